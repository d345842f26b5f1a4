package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	capturekafka "lethe/capture/kafka"
	source "lethe/capture/postgres"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/demo"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/internal/testenv"
	"lethe/schema"
	sinkspg "lethe/sinks/postgres"
)

// Bounds of waiting. A killed worker's partitions are served again after the group's session timeout.
const (
	soon   = 30 * time.Second
	within = 60 * time.Second
)

const (
	roleCapture   = "capture"
	roleMarketing = "sink=marketing"
	roleReporting = "sink=reporting"
)

var replicaNames = []string{"marketing", "reporting"}

// options of a world; the zero value is the publisher with 200 customers on the shared servers, CRM on 15, replicas on 18.
type options struct {
	crm, replicas *testenv.Postgres // nil: shared ones, of the versions below
	marketing     *testenv.Postgres // nil: the server of the replicas
	on            engines           // MySQL and MariaDB in the place of PostgreSQL
	crmVersion    int               // default 15; the replicas get the other one
	kafka         *testenv.Kafka    // nil: the shared one
	customers     int               // negative: none
	coolOff       string            // default 300ms
	breaker       int               // default 5000
	yaml          func(string) string
	crmSQL        string // changes the CRM's tables before Lethe is set up
	marketingSQL  string
	sourceTables  string // -v tables of deploy/postgres-source.sql; empty: its default, which is the publisher's mapping
	mapped        map[string]string
	unfilled      bool // the caller fills the databases
	// schemas replace the publisher's.
	schemas *[3]string
}

// database is one of the three, with the logins that the scripts of deploy/ made.
type database struct {
	*testenv.Postgres                // nil: it is in mysql
	mysql             *testenv.MySQL // nil: it is in Postgres

	name               string
	run, owner, verify string // roles
	conn               *pgx.Conn
	pool               *sql.DB   // of mysql, in place of conn
	oracle             *sql.Conn // of mysql, for the publisher's oracle
}

// world is a CRM, two replicas, topics of its own and Lethe's keys and config file.
type world struct {
	t       *testing.T
	ctx     context.Context //nolint:containedctx // the test's
	name    string
	dir     string // logs and config
	file    string // config file
	program string
	cfg     *config.Config
	ring    *keys.Ring
	ids     *schema.Identifiers
	kafka   *testenv.Kafka
	conn    *kafkaconn.Conn

	crm, marketing, reporting database
	publisher                 *demo.Publisher
	customers                 int
	again                     bool // cases went through phase 2 once more: the mapping has grown, or a backup was restored

	mu        sync.Mutex
	started   int
	processes []*process
	erased    map[int64]time.Time
}

// mappings are the -v mapped of deploy/postgres-replica.sql for the publisher's two replicas.
var mappings = map[string]string{
	"marketing": `('contact', '{contact_id,crm_id,firstname,lastname,email,mobile,city,profile,newsletter_optin,offers_email,offers_sms,offers_phone,frozen,blocked}',
			'{firstname,lastname,email,mobile,city,profile,newsletter_optin,offers_email,offers_sms,offers_phone,frozen,blocked}', '{}', false),
		('contact_note', '{note_id,contact_id}', '{}', '{}', true),
		('campaign_send', '{send_id,contact_id,address}', '{address}', '{}', false),
		('do_not_contact', '{contact_id,channel,reason,added_at}', '{}', '{contact_id,channel,reason,added_at}', true)`,
	"reporting": `('dim_customer', '{customer_sk,customer_nk,full_name,birth_year,gender,postcode,contactable,frozen,usable}',
			'{full_name,birth_year,gender,postcode,contactable,frozen,usable}', '{}', false),
		('fact_survey', '{survey_sk,customer_sk,answer}', '{answer}', '{}', false)`,
}

func newWorld(t *testing.T, o options) *world {
	t.Helper()
	if o.crmVersion == 0 {
		o.crmVersion = 15
	}
	w := &world{t: t, ctx: t.Context(), name: testenv.UniqueName("lethe"), dir: t.TempDir(), program: childProgram(t), erased: map[int64]time.Time{}}
	if w.kafka = o.kafka; w.kafka == nil {
		w.kafka = testenv.SharedKafka(t)
	}
	if o.crm == nil {
		o.crm = postgres(t, o.crmVersion)
	}
	if o.replicas == nil {
		o.replicas = postgres(t, map[int]int{15: 18, 18: 15}[o.crmVersion])
	}
	if o.marketing == nil {
		o.marketing = o.replicas
	}
	t.Cleanup(w.close)
	w.openDatabases(o)
	w.writeConfig(o)
	w.setupKafka()
	w.setupSource(o)
	for _, name := range replicaNames {
		w.setupReplica(o, name)
	}
	if w.crm.mysql != nil {
		// What PostgreSQL's slot does since setup: the log is followed from here on, and not from the first start.
		if err := w.crash(pointFirstCheckpoint, 1, roleCapture); err != nil {
			t.Fatal(err)
		}
	}
	if o.customers >= 0 && !o.unfilled {
		if err := w.publisher.Fill(w.ctx, w.databases()); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// close ends the processes, and shows their logs when the test has failed.
func (w *world) close() {
	for _, p := range w.processes {
		p.kill()
		log, err := os.ReadFile(p.log)
		if err != nil {
			w.t.Error(err)
		}
		for _, defect := range []string{"WARNING: DATA RACE", "goroutine 1 [", "panic contained"} {
			if bytes.Contains(log, []byte(defect)) {
				w.t.Errorf("the process under test says %q:\n%s", defect, log)
			}
		}
		if w.t.Failed() {
			w.t.Logf("%s ends with:\n%s", filepath.Base(p.log), tail(p.log))
		}
	}
}

func (w *world) openDatabases(o options) {
	if o.customers == 0 {
		o.customers = 200
	}
	w.customers = max(o.customers, 1)
	w.publisher = demo.NewPublisher(w.customers)
	crm, marketing, reporting := demo.Schemas()
	myCRM, myMarketing, myReporting := demo.MySQLSchemas()
	if o.schemas != nil {
		crm, marketing, reporting = o.schemas[0], o.schemas[1], o.schemas[2]
	}
	for _, d := range []struct {
		db     *database
		server *testenv.Postgres
		mysql  *testenv.MySQL
		prefix string
		sql    []string
		tables string // for MySQL
	}{
		{&w.crm, o.crm, o.on.crm, "", []string{crm, o.crmSQL}, myCRM},
		{&w.marketing, o.marketing, o.on.marketing, "_m", []string{marketing, o.marketingSQL}, myMarketing},
		{&w.reporting, o.replicas, o.on.reporting, "_r", []string{reporting}, myReporting},
	} {
		if d.mysql != nil {
			w.openMySQL(d.db, d.mysql, d.prefix, d.tables)
			continue
		}
		*d.db = database{
			Postgres: d.server, name: d.server.NewDatabase(w.t),
			run: w.name + d.prefix, owner: w.name + d.prefix + "_owner", verify: w.name + d.prefix + "_verify",
		}
		d.server.Exec(w.t, d.db.name, d.sql...)
		d.db.conn = d.server.Connect(w.t, d.db.name)
	}
}

// expandConfig puts the values of this world into a config file.
func (w *world) expandConfig(text string, o options) string {
	if o.coolOff == "" {
		o.coolOff = "300ms"
	}
	if o.breaker == 0 {
		o.breaker = 5000
	}
	values := map[string]string{
		"KEYS": filepath.Join(w.dir, "keys"), "BROKER": w.kafka.Brokers()[0], "PREFIX": w.name, "SLOT": w.name,
		"COOL_OFF": o.coolOff, "BREAKER": fmt.Sprint(o.breaker),
		"CRM":       w.crm.login(w.crm.run),
		"MARKETING": w.marketing.login(w.marketing.run), "MARKETING_VERIFY": w.marketing.login(w.marketing.verify),
		"REPORTING": w.reporting.login(w.reporting.run), "REPORTING_VERIFY": w.reporting.login(w.reporting.verify),
	}
	return os.Expand(text, func(name string) string {
		if v, ok := values[name]; ok {
			return v
		}
		return "$" + name // $key, $now and the like are the config's own
	})
}

func (w *world) writeConfig(o options) {
	w.t.Helper()
	text, err := os.ReadFile("testdata/lethe.yaml")
	if err != nil {
		w.t.Fatal(err)
	}
	yaml := string(text)
	if o.yaml != nil {
		yaml = o.yaml(yaml)
	}
	w.file = filepath.Join(w.dir, "lethe.yaml")
	if err := os.WriteFile(w.file, []byte(w.expandConfig(w.dialect(yaml), o)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if w.cfg, err = config.Load(w.file); err != nil {
		w.t.Fatal(err)
	}
	if _, err := os.Stat(w.cfg.Keys.Dir); os.IsNotExist(err) {
		if _, err := keys.Init(w.cfg.Keys.Dir, replicaNames); err != nil {
			w.t.Fatal(err)
		}
	}
	w.openKeys()
}

func (w *world) openKeys() {
	w.t.Helper()
	var err error
	if w.ring, err = keys.Open(w.cfg.Keys.Dir, keys.RoleCapture, keys.RoleLedger); err != nil {
		w.t.Fatal(err)
	}
	w.ids = schema.NewIdentifiers(w.ring.Subject(), w.cfg.Name)
}

func (w *world) setupKafka() {
	w.t.Helper()
	var err error
	if w.conn, err = kafkaconn.New(w.cfg.Kafka, kafkaconn.Options{ClientID: "e2e"}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.conn.Close)
	if _, err := (&capturekafka.Topics{Conn: w.conn}).Setup(w.ctx); err != nil {
		w.t.Fatal(err)
	}
}

// script runs a script of deploy/ with psql as the superuser.
func (d *database) script(t *testing.T, file string, variables map[string]string) {
	t.Helper()
	bin, err := testenv.PostgresBin(15) // the embedded binaries of 18 lack psql
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.Open(filepath.Join("../../deploy", file))
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	args := []string{"--no-psqlrc", "--quiet", "--output=/dev/null", "--dbname", d.DSN(d.name, ""), "--file=-"}
	for name, value := range variables {
		args = append(args, "--set", name+"="+value)
	}
	cmd := d.Command(t.Context(), "psql", args...)
	cmd.Path, cmd.Err, cmd.Stdin = filepath.Join(bin, "psql"), nil, script
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, out)
	}
}

// sourceOptions are what capture is given for this config.
func (w *world) sourceOptions() source.Options {
	w.t.Helper()
	byTable, err := rules.Needs(&w.cfg.Source)
	if err != nil {
		w.t.Fatal(err)
	}
	pg := w.cfg.Source.Postgres
	o := source.Options{
		DSN: pg.DSN, Slot: pg.Slot, Publication: pg.Publication, MaxRetainedWAL: pg.MaxRetainedWAL,
		Needs: make(map[string]source.TableNeeds, len(byTable)),
	}
	for table, n := range byTable {
		o.Needs[table] = source.TableNeeds{
			Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete,
		}
	}
	return o
}

// setupSource runs the source's script, and wants `lethe check` to find nothing to complain of then.
func (w *world) setupSource(o options) {
	w.t.Helper()
	if w.crm.mysql != nil {
		w.setupMySQLSource()
		return
	}
	variables := map[string]string{"role": w.crm.run, "slot": w.cfg.Source.Postgres.Slot, "publication": w.cfg.Source.Postgres.Publication}
	if o.sourceTables != "" {
		variables["tables"] = o.sourceTables
	}
	w.crm.script(w.t, "postgres-source.sql", variables)
	findings, err := source.Check(w.ctx, w.sourceOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range findings {
		if f.Severity == source.SeverityError {
			w.t.Errorf("after deploy/postgres-source.sql check finds: %s %s: %s", f.Code, f.Object, f.Message)
		}
	}
}

// setupReplica runs the replica's script, makes the tables with the owner's login, and runs the script again for them.
func (w *world) setupReplica(o options, name string) {
	w.t.Helper()
	db, mapped := w.replica(name), mappings[name]
	if db.mysql != nil {
		w.setupMySQLReplica(name)
		return
	}
	if o.mapped != nil {
		mapped = o.mapped[name]
	}
	variables := map[string]string{
		"role": db.run, "owner": db.owner, "verify": db.verify, "schema": w.cfg.Replicas[name].Postgres.Schema, "mapped": mapped,
	}
	db.script(w.t, "postgres-replica.sql", variables)
	w.activate(name)
	db.script(w.t, "postgres-replica.sql", variables)
}

// activate is what `lethe setup` does with the owner's login: tables, migrations, the digest of the mapping.
func (w *world) activate(name string) {
	w.t.Helper()
	db := w.replica(name)
	conn, err := pgx.Connect(w.ctx, db.DSN(db.name, db.owner))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(w.ctx))
	cfg := w.cfg.Replicas[name]
	findings, err := sinkspg.Setup(w.ctx, conn, sinkspg.SetupOptions{Name: name, Source: w.cfg.Name, Config: cfg, Digest: cfg.Digest(), RunRole: db.run})
	if err != nil {
		w.t.Fatalf("setting up %s: %v %+v", name, err, findings)
	}
}

func (w *world) replica(name string) *database {
	if name == "marketing" {
		return &w.marketing
	}
	return &w.reporting
}

// reconnect opens the test's own connection to a database again, after its server was down.
func (w *world) reconnect(db *database) {
	w.t.Helper()
	if db.mysql == nil {
		db.conn = db.Connect(w.t, db.name)
		return
	}
	w.listen(db)
}

// exec runs a statement in one of the databases as the superuser.
func (w *world) exec(db *database, sql string, args ...any) {
	w.t.Helper()
	if err := db.exec(w.ctx, sql, args...); err != nil {
		w.t.Fatalf("%v\n%s", err, sql)
	}
}

// query returns the result of a query as text, columns separated by |, rows by newlines.
func (w *world) query(db *database, sql string, args ...any) string {
	w.t.Helper()
	text, err := db.text(w.ctx, sql, args...)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, sql)
	}
	return text
}

func (d *database) exec(ctx context.Context, statement string, args ...any) error {
	if d.mysql != nil {
		return d.mysqlExec(ctx, statement, args...)
	}
	_, err := d.conn.Exec(ctx, statement, args...)
	return err
}

func (d *database) text(ctx context.Context, query string, args ...any) (string, error) {
	if d.mysql != nil {
		return d.mysqlText(ctx, query, args...)
	}
	rows, err := d.conn.Query(ctx, query, args...)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		if err != nil {
			return "", err
		}
		cells := make([]string, len(values))
		for i, v := range values {
			if cells[i] = fmt.Sprint(v); v == nil {
				cells[i] = "null"
			}
		}
		return strings.Join(cells, "|"), nil
	})
	return strings.Join(lines, "\n"), err
}

// want waits until a query's result is as wanted.
func (w *world) want(db *database, within time.Duration, sql, want string, args ...any) {
	w.t.Helper()
	testenv.Eventually(w.t, within, func() error {
		have, err := db.text(w.ctx, sql, args...)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, sql)
		}
		if have != want {
			return fmt.Errorf("%s\nis  %s\nwant %s", sql, have, want)
		}
		return nil
	})
}
