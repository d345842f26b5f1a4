package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	source "lethe/capture/postgres"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/demo"
	"lethe/internal/testenv"
	"lethe/sinks/postgres"
)

// versions are the majors that the scripts are run on.
var versions = []int{15, 18}

// example is the config whose mapping the scripts have as their default.
func example(t *testing.T) *config.Config {
	t.Helper()
	data, err := os.ReadFile("../config/testdata/postgres.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(data, "postgres.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type database struct {
	t      *testing.T
	server *testenv.Postgres
	name   string
}

// newDatabase makes a database and runs statements in it.
func newDatabase(t *testing.T, server *testenv.Postgres, name string, statements ...string) *database {
	t.Helper()
	d := &database{t: t, server: server, name: name}
	(&database{t: t, server: server, name: "postgres"}).exec(server.Superuser(), "CREATE DATABASE "+name)
	for _, s := range statements {
		d.exec(server.Superuser(), s)
	}
	return d
}

func (d *database) connect(role string) *pgx.Conn {
	d.t.Helper()
	conn, err := pgx.Connect(d.t.Context(), d.server.DSN(d.name, role))
	if err != nil {
		d.t.Fatal(err)
	}
	return conn
}

func (d *database) try(role, sql string, args ...any) error {
	d.t.Helper()
	conn := d.connect(role)
	defer conn.Close(context.WithoutCancel(d.t.Context()))
	_, err := conn.Exec(d.t.Context(), sql, args...)
	return err
}

func (d *database) exec(role, sql string, args ...any) {
	d.t.Helper()
	if err := d.try(role, sql, args...); err != nil {
		d.t.Fatalf("%s: %v\n%s", role, err, sql)
	}
}

// denied wants the statement refused for want of a privilege, and not for any other reason.
func (d *database) denied(role, sql string) {
	d.t.Helper()
	var pgErr *pgconn.PgError
	switch err := d.try(role, sql); {
	case err == nil:
		d.t.Errorf("%s may: %s", role, sql)
	case !errors.As(err, &pgErr) || pgErr.Code != "42501":
		d.t.Errorf("%s: %s: want insufficient privilege, got %v", role, sql, err)
	}
}

func (d *database) query(sql string, args ...any) string {
	d.t.Helper()
	conn := d.connect(d.server.Superuser())
	defer conn.Close(context.WithoutCancel(d.t.Context()))
	var s string
	if err := conn.QueryRow(d.t.Context(), sql, args...).Scan(&s); err != nil {
		d.t.Fatalf("%v\n%s", err, sql)
	}
	return s
}

// script runs a psql script as the superuser.
func (d *database) script(file string, variables ...string) error {
	bin, err := testenv.PostgresBin(15)
	if err != nil {
		return err
	}
	args := []string{"--no-psqlrc", "--quiet", "--dbname", d.server.DSN(d.name, ""), "--file", file}
	for _, v := range variables {
		args = append(args, "--set", v)
	}
	cmd := d.server.Command(d.t.Context(), "psql", args...)
	cmd.Path = filepath.Join(bin, "psql") // The embedded binaries lack it.
	if cmd.Dir, err = os.Getwd(); err != nil {
		return err
	}
	cmd.Err = nil
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func (d *database) mustScript(file string, variables ...string) {
	d.t.Helper()
	if err := d.script(file, variables...); err != nil {
		d.t.Fatal(err)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// startServer refuses physical replication to Lethe's login, as the end of postgres-source.sql says.
func startServer(t *testing.T, version int) *testenv.Postgres {
	t.Helper()
	return testenv.NewPostgres(t, testenv.Options{Version: version, HBA: []string{"host replication lethe 127.0.0.1/32 reject"}})
}

func TestSourceGrants(t *testing.T) {
	tables, _, _ := demo.Schemas()
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			d := newDatabase(t, startServer(t, version), "crm", tables)
			d.mustScript("postgres-source.sql", "passes=0")
			d.denied("lethe", "SELECT customer_id FROM customer")
			d.mustScript("postgres-source.sql") // Again, as after a change of the mapping.
			checkPublication(t, d)
			checkFindsNothing(t, d)
			checkSourceRole(t, d)
			checkWritesOfCRM(t, d)

			d.exec("lethe", "SELECT customer_id, last_name FROM customer")
			d.denied("lethe", "SELECT last_contact FROM customer")
			if got := d.query("SELECT count(*)::text FROM pg_replication_slots"); got != "1" {
				t.Errorf("%s slots, want 1", got)
			}
			if err := d.script("postgres-source.sql", "tables=('public.nowhere','{a}')"); err == nil || !strings.Contains(err.Error(), "public.nowhere") {
				t.Errorf("a table that does not exist gave %v", err)
			}
			d.mustScript("postgres-source.sql", "tables=('public.customer','{customer_id}')")
			if got := d.query("SELECT string_agg(tablename || ' ' || attnames::text, ',') FROM pg_publication_tables"); got != "customer {customer_id}" {
				t.Errorf("after a smaller mapping the publication is %s", got)
			}
		})
	}
}

// checkPublication compares the publication with the example's mapping.
func checkPublication(t *testing.T, d *database) {
	t.Helper()
	if got := d.query("SELECT puballtables::text || pubviaroot FROM pg_publication WHERE pubname = 'lethe'"); got != "falsetrue" {
		t.Errorf("puballtables and pubviaroot are %s", got)
	}
	c := example(t)
	sent := func(table string) []string {
		return strings.Split(d.query("SELECT coalesce((SELECT array_to_string(attnames, ',') FROM pg_publication_tables WHERE schemaname || '.' || tablename = $1), '')", table), ",")
	}
	needs := map[string][]string{c.Source.Erased.Marker.Table: append(slices.Clone(c.Source.Erased.Marker.Subject), "note_code")}
	for name, table := range c.Source.Tables {
		columns := append(slices.Clone(table.Subject), table.Erase...)
		for column := range table.State {
			columns = append(columns, column)
		}
		if r := table.Restricted; r != nil {
			columns = append(columns, r.Until)
		}
		if k := table.Consent; k != nil {
			columns = append(columns, k.Purpose.Column, k.Channel.Column, k.State.Column, k.LegalBasis.Column, k.ValidUntil, k.BoundTo.Column, k.Evidence)
		}
		needs[name] = columns
	}
	needs[c.Source.Subject.Table] = append(needs[c.Source.Subject.Table], "status", "no_marketing")
	for table, columns := range needs {
		have := sent(table)
		for _, column := range columns {
			if !slices.Contains(have, column) {
				t.Errorf("the publication lacks %s.%s", table, column)
			}
		}
	}
	if slices.Contains(sent("public.customer"), "last_contact") {
		t.Error("a column that is not mapped leaves the server")
	}
	if got := d.query("SELECT count(*)::text FROM pg_publication_tables"); got != fmt.Sprint(len(needs)) {
		t.Errorf("%s tables are published, want %d", got, len(needs))
	}
}

// checkFindsNothing asks Lethe itself, with its own login.
func checkFindsNothing(t *testing.T, d *database) {
	t.Helper()
	c := example(t)
	mapped, err := rules.Needs(&c.Source)
	if err != nil {
		t.Fatal(err)
	}
	needs := make(map[string]source.TableNeeds)
	for table, n := range mapped {
		needs[table] = source.TableNeeds{
			Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete, ReadsRows: n.ReadsRows,
		}
	}
	findings, err := source.Check(t.Context(), source.Options{
		DSN: d.server.DSN(d.name, "lethe"), Slot: "lethe", Publication: "lethe", Needs: needs, MaxRetainedWAL: c.Source.Postgres.MaxRetainedWAL,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Errorf("lethe check still finds: %s %s %s: %s", f.Severity, f.Code, f.Object, f.Message)
	}
}

func checkSourceRole(t *testing.T, d *database) {
	t.Helper()
	for _, sql := range []string{
		"UPDATE customer SET status = 'X'", "DELETE FROM consent", "INSERT INTO customer DEFAULT VALUES", "TRUNCATE consent",
		"ALTER PUBLICATION lethe DROP TABLE consent", "CREATE PUBLICATION mine", "ALTER TABLE customer REPLICA IDENTITY FULL",
		"CREATE TABLE mine (a int)", "CREATE ROLE another", "SELECT body FROM customer_note",
	} {
		d.denied("lethe", sql)
	}
	d.exec("lethe", "SELECT pg_logical_emit_message(true, 'lethe', '')")
	d.exec(d.server.Superuser(), "INSERT INTO customer (last_name, status) VALUES ('Durand', 'A')")
	d.exec("lethe", "SELECT 1 / (count(*) > 0)::int FROM pg_logical_slot_peek_binary_changes('lethe', NULL, NULL, 'proto_version', '1', 'publication_names', 'lethe')")
	if got := d.query("SELECT setting || unit FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"); got != "20480MB" {
		t.Errorf("max_slot_wal_keep_size is %s", got)
	}
	// A REPLICATION login could otherwise copy every table.
	for mode, wanted := range map[string]bool{"database": true, "true": false} {
		cfg, err := pgconn.ParseConfig(d.server.DSN("crm", "lethe"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.RuntimeParams["replication"] = mode
		conn, err := pgconn.ConnectConfig(t.Context(), cfg)
		if (err == nil) != wanted {
			t.Errorf("a connection with replication=%s gave %v", mode, err)
		}
		if err == nil {
			if _, err := conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
				t.Error(err)
			}
			if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	}
}

// checkWritesOfCRM runs the CRM's own erasure: a column list that does not cover a replica identity would make it fail.
func checkWritesOfCRM(t *testing.T, d *database) {
	t.Helper()
	d.exec(d.server.Superuser(), `
		INSERT INTO customer (last_name) VALUES ('Martin');
		INSERT INTO customer_address (customer_id, line1, postal_code, city) VALUES (1, 'a', 'b', 'c');
		INSERT INTO customer_email (customer_id, email) VALUES (1, 'a@example.com');
		INSERT INTO customer_phone (customer_id, number) VALUES (1, '1');
		INSERT INTO email_history (customer_id, email, until) VALUES (1, 'b@example.com', now());
		INSERT INTO address_history (customer_id, line1, postal_code, city) VALUES (1, 'a', 'b', 'c');
		INSERT INTO auth_record (customer_id, login, secret_hash) VALUES (1, 'a', 'b');
		INSERT INTO epayment (customer_id, iban) VALUES (1, 'a');
		INSERT INTO questionnaire_answer (customer_id, question, answer_text) VALUES (1, 'a', 'b');
		INSERT INTO vendor (customer_id, name) VALUES (1, 'a');
		INSERT INTO consent (customer_id, purpose_code, channel_code, contact_id, status) VALUES (1, 'NL', 'E', 1, 'Y');
		UPDATE consent SET status = 'N';
		CALL gdpr_erase_identity(1); CALL gdpr_erase_traces(1);
		DELETE FROM consent`)
}

// privileges lists who may do what with Lethe's own tables.
const privileges = `
	SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT format('%s.%s %s %s', table_schema, table_name, grantee, privilege_type) AS line FROM information_schema.table_privileges
		 WHERE (table_schema = 'lethe' OR table_name = 'lethe_witness') AND grantee <> 'lethe_owner'
		UNION ALL
		SELECT format('%s.%s.%s %s %s', table_schema, table_name, column_name, grantee, privilege_type) FROM information_schema.column_privileges
		 WHERE table_schema = 'lethe' AND grantee <> 'lethe_owner') AS p`

// setUp does what lethe setup does, with the login of the owner; runRole may be empty.
func setUp(t *testing.T, d *database, runRole string) {
	t.Helper()
	c := example(t)
	r := c.Replicas["marketing"]
	conn := d.connect("lethe_owner")
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err := postgres.Setup(t.Context(), conn, postgres.SetupOptions{Name: r.Name, Source: c.Name, Config: r, Digest: r.Digest(), RunRole: runRole})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReplicaGrants(t *testing.T) {
	_, tables, _ := demo.Schemas()
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			d := newDatabase(t, startServer(t, version), "marketing", tables,
				"ALTER TABLE contact ADD reconsent_due boolean, ADD no_marketing boolean",
				"INSERT INTO contact (crm_id) VALUES (1); INSERT INTO contact_note (contact_id) VALUES (1)")
			d.mustScript("postgres-replica.sql")
			setUp(t, d, "")
			d.mustScript("postgres-replica.sql")
			granted := d.query(privileges)
			setUp(t, d, "lethe")
			if got := d.query(privileges); got != granted {
				t.Errorf("the script grants\n%s\nand setup\n%s", granted, got)
			}
			checkMappedColumns(t, d, example(t).Replicas["marketing"])
			checkReplicaRole(t, d)
			checkVerifyRole(t, d)
			checkSilentLog(t, d)
			if err := d.script("postgres-replica.sql", "mapped=('nowhere','{a}','{}','{}',false)"); err == nil || !strings.Contains(err.Error(), "nowhere") {
				t.Errorf("a table that does not exist gave %v", err)
			}
		})
	}
}

// checkMappedColumns compares the grants with the example's mapping, column by column.
func checkMappedColumns(t *testing.T, d *database, r *config.Replica) {
	t.Helper()
	update, insert := map[string]bool{}, map[string]bool{}
	add := func(set map[string]map[string]config.Value) {
		for table, columns := range set {
			for column := range columns {
				update[table+"."+column] = true
			}
		}
	}
	for _, a := range r.Suppress {
		add(a.Set)
		if a.Insert != nil {
			for column := range a.Insert.Values {
				insert[a.Insert.Table+"."+column] = true
			}
		}
	}
	for _, a := range r.Consent {
		add(a.Set)
	}
	for _, a := range r.Objection {
		add(a.Set)
	}
	add(r.Restricted.Set)
	for table, e := range r.Erase.Tables {
		add(map[string]map[string]config.Value{table: e.Set})
		for column := range e.JSON {
			update[table+"."+column] = true
		}
	}
	columns := strings.Fields(d.query("SELECT string_agg(table_name || '.' || column_name, ' ') FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'lethe_witness'"))
	for _, name := range columns {
		table, column, _ := strings.Cut(name, ".")
		for privilege, mapped := range map[string]map[string]bool{"UPDATE": update, "INSERT": insert} {
			if got := d.query("SELECT has_column_privilege('lethe', $1, $2, $3)::text", table, column, privilege); got != fmt.Sprint(mapped[name]) {
				t.Errorf("%s on %s is %s, mapped: %t", privilege, name, got, mapped[name])
			}
		}
	}
	for table, want := range map[string]bool{"contact": false, "contact_note": true, "campaign_send": false, "do_not_contact": true} {
		if got := d.query("SELECT has_table_privilege('lethe', $1, 'DELETE')::text", table); got != fmt.Sprint(want) {
			t.Errorf("DELETE on %s is %s, want %t", table, got, want)
		}
	}
}

func checkReplicaRole(t *testing.T, d *database) {
	t.Helper()
	for _, sql := range []string{
		"UPDATE public.contact SET firstname = NULL, blocked = true WHERE crm_id = 1",
		"DELETE FROM contact_note WHERE contact_id = 1",
		"INSERT INTO do_not_contact (contact_id, channel, reason, added_at) VALUES (1, 'all', 'erased', now())",
		"DELETE FROM do_not_contact WHERE contact_id = 1 AND channel = 'all'",
		"INSERT INTO lethe.receipt (receipt_id, event_id, part, state, body) VALUES ('a', 'b', 0, 'verified', 'c')",
		"UPDATE lethe_witness SET n = n + 1",
		"UPDATE lethe.receipt SET sent_at = now() WHERE receipt_id = 'a'",
		"SELECT receipt_id FROM lethe.receipt WHERE sent_at IS NOT NULL FOR UPDATE SKIP LOCKED",
		"INSERT INTO lethe.meta VALUES ('paused', '1') ON CONFLICT (k) DO UPDATE SET v = excluded.v",
		"DELETE FROM lethe.meta WHERE k = 'paused'",
		"SELECT * FROM lethe.status",
	} {
		d.exec("lethe", sql)
	}
	for _, sql := range []string{
		"UPDATE public.contact SET crm_id = 2", "DELETE FROM public.contact", "INSERT INTO public.contact (crm_id) VALUES (3)", "SELECT body FROM contact_note",
		"UPDATE lethe.receipt SET body = 'c'", "DELETE FROM lethe.receipt", "TRUNCATE lethe.receipt", "DELETE FROM lethe.subject",
		"DELETE FROM lethe.partition", "DELETE FROM lethe.decision", "DELETE FROM lethe.gap", "DELETE FROM lethe.parked",
		"CREATE TABLE lethe.mine (a int)", "DROP TABLE lethe.fact", "ALTER TABLE lethe.receipt DISABLE TRIGGER ALL", "CREATE SCHEMA mine",
		"DELETE FROM lethe_witness", "CREATE TABLE mine (a int)",
	} {
		d.denied("lethe", sql)
	}
}

func checkVerifyRole(t *testing.T, d *database) {
	t.Helper()
	d.exec("lethe_verify", "SELECT crm_id, email FROM contact")
	d.exec("lethe_verify", "SELECT * FROM lethe.status")
	for _, sql := range []string{
		"UPDATE public.contact SET blocked = false", "DELETE FROM contact_note", "SELECT body FROM lethe.receipt", "INSERT INTO lethe.meta VALUES ('a', 'b')",
	} {
		// The default of read only is a courtesy that a session can switch off; the privileges are what holds.
		d.denied("lethe_verify", "SET TRANSACTION READ WRITE; "+sql)
	}
}

// checkSilentLog makes Lethe's login fail with a value in statement, parameter and message: none may be in the server's log.
func checkSilentLog(t *testing.T, d *database) {
	t.Helper()
	if err := d.try("lethe", "SELECT 'canary-one'::int"); err == nil {
		t.Fatal("the statement did not fail")
	}
	if err := d.try("lethe", "INSERT INTO do_not_contact (contact_id, channel, reason, added_at) VALUES (7, $1, 'x', now())", "canary-two"); err == nil {
		t.Fatal("the foreign key did not fail")
	}
	if err := d.try(d.server.Superuser(), "SELECT 'canary-three'::int"); err == nil {
		t.Fatal("the statement did not fail")
	}
	log := readFile(t, d.server.LogFile())
	if !strings.Contains(log, "canary-three") {
		t.Fatal("the log holds nothing of other roles: this test would see nothing")
	}
	if strings.Contains(log, "canary-one") || strings.Contains(log, "canary-two") {
		t.Error("the server's log holds a value of Lethe's session")
	}
}
