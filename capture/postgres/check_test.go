package postgres_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/config"
	"lethe/internal/testenv"
)

// limited is a role that has just what the manual asks for.
func (e *env) limited(tb testing.TB, attributes string) string {
	tb.Helper()
	role := testenv.UniqueName("lethe")
	e.exec(tb, "CREATE ROLE "+role+" LOGIN "+attributes)
	tb.Cleanup(func() { e.pg.Exec(tb, "", "DROP ROLE "+role) })
	return role
}

func check(tb testing.TB, o postgres.Options) []postgres.Finding {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	findings, err := postgres.Check(ctx, o)
	if err != nil {
		tb.Fatal(err)
	}
	return findings
}

// codes are those that speak of tables, publication and slot: what the shared server is set to is no matter here.
func codes(findings []postgres.Finding) []string {
	var list []string
	for _, f := range findings {
		switch f.Code {
		case postgres.CodeKeepSizeUnlimited, postgres.CodeRoleSuperuser:
		default:
			list = append(list, f.Code)
		}
	}
	return list
}

func find(tb testing.TB, findings []postgres.Finding, code, object string) postgres.Finding {
	tb.Helper()
	i := slices.IndexFunc(findings, func(f postgres.Finding) bool { return f.Code == code && f.Object == object })
	if i < 0 {
		tb.Fatalf("no finding %s of %s in %+v", code, object, findings)
	}
	return findings[i]
}

func TestCheckNamesEachFault(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t,
			"CREATE TABLE plain (id int PRIMARY KEY, v text)",
			"CREATE TABLE keyless (id int, v text)",
			"CREATE TABLE nothing (id int PRIMARY KEY)", "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
			"CREATE TABLE child (id int PRIMARY KEY, customer int NOT NULL, v text)",
			"CREATE TABLE loose (id int PRIMARY KEY, customer int, v text)",
			"CREATE TABLE indexed (id int PRIMARY KEY, customer int NOT NULL, UNIQUE (customer, id))",
			"CREATE TABLE wide (id int PRIMARY KEY, v text, w text)", "ALTER TABLE wide REPLICA IDENTITY FULL",
			"CREATE TABLE narrow (id int PRIMARY KEY, v text, w text)",
			"CREATE TABLE filtered (id int PRIMARY KEY, v text)",
			"CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
			"CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)",
			"CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)",
			"CREATE VIEW seen AS SELECT 1 AS id",
			"CREATE TABLE made (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
			"CREATE TABLE extra (id int PRIMARY KEY)",
			"CREATE PUBLICATION "+e.db+" FOR TABLE plain, wide (id, v), narrow (id), filtered WHERE (id > 3), parted, extra, made, indexed "+
				"WITH (publish = 'insert, update')",
		)
		child := postgres.TableNeeds{Columns: []string{"id", "customer"}, SubjectColumns: []string{"customer"}, ReadsDelete: true}
		unseen := child
		unseen.AllowUnseenDeletes = true
		e.needs = map[string]postgres.TableNeeds{
			"public.plain":    {Columns: []string{"id", "v", "missing"}, OldColumns: []string{"v"}, Mapped: []string{"v", "slip"}},
			"public.maybe":    {Columns: []string{"id"}, Optional: true},
			"public.keyless":  {Columns: []string{"id"}},
			"public.nothing":  {Columns: []string{"id"}},
			"public.child":    child,
			"public.loose":    unseen,
			"public.indexed":  child,
			"public.wide":     {Columns: []string{"id"}},
			"public.narrow":   {Columns: []string{"id", "w"}},
			"public.filtered": {Columns: []string{"id"}},
			"public.parted":   {Columns: []string{"id"}},
			"public.fast":     {Columns: []string{"id"}},
			"public.seen":     {Columns: []string{"id"}},
			"public.made":     {Columns: []string{"twice"}},
			"public.absent":   {Columns: []string{"id"}},
		}
		findings := check(t, e.options(t))
		pub := `"` + e.db + `"`
		for _, want := range []struct {
			code, object, sql string
		}{
			{postgres.CodeTableMissing, "public.absent", ""},
			{postgres.CodeTableKind, "public.seen", ""},
			{postgres.CodeTableUnlogged, "public.fast", `SET LOGGED`},
			{postgres.CodeColumnMissing, "public.plain.missing", ""},
			{postgres.CodeColumnMissing, "public.plain.slip", ""},
			{postgres.CodeTableMissing, "public.maybe", ""},
			{postgres.CodeColumnGenerated, "public.made.twice", ""},
			{postgres.CodeOldUnseen, "public.plain", `ALTER TABLE "public"."plain" REPLICA IDENTITY FULL`},
			{postgres.CodeIdentityNothing, "public.keyless", `ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL`},
			{postgres.CodeIdentityNothing, "public.nothing", `ALTER TABLE "public"."nothing" REPLICA IDENTITY DEFAULT`},
			{postgres.CodeDeletesUnseen, "public.child", `CREATE UNIQUE INDEX CONCURRENTLY "child_lethe_identity" ON "public"."child" ("id", "customer"); ` +
				`ALTER TABLE "public"."child" REPLICA IDENTITY USING INDEX "child_lethe_identity"`},
			{postgres.CodeDeletesUnseen, "public.loose", `ALTER TABLE "public"."loose" REPLICA IDENTITY FULL`},
			{postgres.CodeDeletesUnseen, "public.indexed", `ALTER TABLE "public"."indexed" REPLICA IDENTITY USING INDEX "indexed_customer_id_key"`},
			{postgres.CodePublicationOp, e.db, `ALTER PUBLICATION ` + pub + ` SET (publish = 'insert, update, delete, truncate')`},
			{postgres.CodePublicationRoot, e.db, `ALTER PUBLICATION ` + pub + ` SET (publish_via_partition_root = true)`},
			{postgres.CodePublicationTable, "public.child", `ADD TABLE "public"."child" ("id", "customer")`},
			{postgres.CodePublicationTable, "public.keyless", `ADD TABLE "public"."keyless"`},
			{postgres.CodePublicationList, "public.wide", `BEGIN; ALTER PUBLICATION ` + pub + ` DROP TABLE "public"."wide"; ` +
				`ALTER PUBLICATION ` + pub + ` ADD TABLE "public"."wide"; COMMIT`},
			{postgres.CodePublicationColumn, "public.narrow", `ADD TABLE "public"."narrow" ("id", "w")`},
			{postgres.CodePublicationFilter, "public.filtered", `ADD TABLE "public"."filtered" ("id")`},
			{postgres.CodePublicationExtra, "public.extra", `DROP TABLE "public"."extra"`},
			{postgres.CodeSlotMissing, e.db, `SELECT pg_create_logical_replication_slot('` + e.db + `', 'pgoutput')`},
			{postgres.CodeKeepSizeUnlimited, "max_slot_wal_keep_size", `ALTER SYSTEM SET max_slot_wal_keep_size = '1024MB'`},
			{postgres.CodeRoleSuperuser, "postgres", ""},
		} {
			f := find(t, findings, want.code, want.object)
			if got := strings.Join(f.FixSQL, "; "); !strings.Contains(got, want.sql) {
				t.Errorf("%s of %s: SQL %s, want %s", want.code, want.object, got, want.sql)
			}
		}
		if f := find(t, findings, postgres.CodeDeletesUnseen, "public.loose"); f.Severity != postgres.SeverityWarning {
			t.Errorf("accepted unseen deletes are an %s", f.Severity)
		}
		if f := find(t, findings, postgres.CodeDeletesUnseen, "public.child"); f.Severity != postgres.SeverityError {
			t.Errorf("unseen deletes are a %s", f.Severity)
		}
		if f := find(t, findings, postgres.CodeTableMissing, "public.maybe"); f.Severity != postgres.SeverityWarning {
			t.Errorf("an optional table that is missing is an %s", f.Severity)
		}
	})
}

func TestCheckRole(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		o := e.options(t)
		role := e.limited(t, "NOREPLICATION")
		o.DSN = e.pg.DSN(e.db, role)
		f := find(t, check(t, o), postgres.CodeRoleReplication, role)
		if len(f.FixSQL) != 1 || f.FixSQL[0] != `ALTER ROLE "`+role+`" REPLICATION` {
			t.Errorf("SQL %v", f.FixSQL)
		}
		e.exec(t, f.FixSQL...)
		if got := codes(check(t, o)); got != nil {
			t.Errorf("a role with LOGIN and REPLICATION alone: %v", got)
		}
		// That role can do all that capture does.
		src := newSource(t, o)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1)")
		r.Collect(t, 1)
		if err := src.EmitHeartbeat(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := src.Watch(t.Context()); err != nil {
			t.Error(err)
		}
		if id, err := src.Identity(t.Context()); err != nil || id.Epoch != 1 || id.SystemID == "" || id.SlotGeneration == "" {
			t.Errorf("identity %+v, %v", id, err)
		}
		if err := r.Stop(t); err == nil {
			t.Error("no error after the end")
		}
		e.awaitInactive(t)
	})
}

func TestCheckSlot(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		if got := codes(check(t, e.options(t))); got != nil {
			t.Fatalf("all is well and Check says %v", got)
		}
		e.dropSlot(t)
		for _, slot := range []struct{ sql, code string }{
			{"SELECT pg_create_physical_replication_slot('%s')", postgres.CodeSlotWrong},
			{"SELECT pg_create_logical_replication_slot('%s', 'test_decoding')", postgres.CodeSlotWrong},
			{"SELECT pg_create_logical_replication_slot('%s', 'pgoutput', false, true)", postgres.CodeSlotTwoPhase},
		} {
			e.exec(t, strings.ReplaceAll(slot.sql, "%s", e.db))
			if got := codes(check(t, e.options(t))); !slices.Equal(got, []string{slot.code}) {
				t.Errorf("%s: %v", slot.sql, got)
			}
			e.dropSlot(t)
		}
		// A slot of another database.
		other := newEnv(t, e.pg)
		other.exec(t, "SELECT pg_create_logical_replication_slot('"+e.db+"', 'pgoutput')")
		if got := codes(check(t, e.options(t))); !slices.Equal(got, []string{postgres.CodeSlotWrong}) {
			t.Errorf("slot of another database: %v", got)
		}
	})
}

func TestSetup(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t,
			"CREATE TABLE customer (id int PRIMARY KEY, name text, secret text)",
			"CREATE TABLE email (id int PRIMARY KEY, customer int NOT NULL, email text, \"Odd \"\" name\" text)",
			"CREATE TABLE loose (id int PRIMARY KEY, customer int)",
			"CREATE TABLE parted (id int, customer int NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
			"CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)",
		)
		child := postgres.TableNeeds{Columns: []string{"id", "customer"}, SubjectColumns: []string{"customer"}, ReadsDelete: true}
		odd := child
		odd.Columns = append(slices.Clone(odd.Columns), `Odd " name`)
		e.needs = map[string]postgres.TableNeeds{
			"public.customer": {Columns: []string{"id", "name"}, SubjectColumns: []string{"id"}, ReadsDelete: true, ReadsRows: true, Mapped: []string{"secret"}},
			"public.email":    odd, "public.loose": child, "public.parted": child,
		}
		role := testenv.UniqueName("lethe")
		t.Cleanup(func() { e.pg.Exec(t, "", "DROP ROLE IF EXISTS "+role) })
		o := e.options(t)
		o.DSN = e.pg.DSN(e.db, role)
		setup := func() ([]string, []postgres.Finding) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			ran, left, err := postgres.Setup(ctx, e.pg.DSN(e.db, ""), config.Secret{}, o)
			if err != nil {
				t.Fatal(err)
			}
			return ran, left
		}
		ran, left := setup()
		if len(ran) == 0 || codes(left) != nil {
			t.Fatalf("Setup ran %q and leaves %v", ran, codes(left))
		}
		if ran, _ := setup(); ran != nil {
			t.Errorf("a second Setup ran %q", ran)
		}
		if got := codes(check(t, o)); got != nil {
			t.Errorf("after Setup Check says %v", got)
		}
		if got := e.query(t, "SELECT string_agg(tablename || ':' || array_to_string(attnames, ','), ' ' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = '"+e.db+"'"); got !=
			`customer:id,name email:id,customer,Odd " name loose:id,customer parted:id,customer` {
			t.Errorf("published: %s", got)
		}
		if _, err := newSource(t, o).PassTable(t.Context(), "public.customer"); err != nil {
			t.Errorf("after Setup a pass is refused: %v", err)
		}
		testChildDeletes(t, e, o)
		testGrown(t, e, o, setup)
		uninstall(t, e, o)
		e.exec(t, "DROP OWNED BY "+role)
	})
}

// testChildDeletes: after Setup a DELETE of a child row says whose it was, in every kind of table.
func testChildDeletes(t *testing.T, e *env, o postgres.Options) {
	t.Helper()
	r := capturetest.Start(t, newSource(t, o), nil, &capturetest.Recorder{})
	for _, table := range []string{"email", "loose", "parted"} {
		e.exec(t, "INSERT INTO "+table+" (id, customer) VALUES (1, 7)", "UPDATE "+table+" SET customer = 8", "DELETE FROM "+table)
	}
	txs := r.Collect(t, 9)
	for i := range 3 {
		if tx := txs[3*i+2]; tx.Rows[0].Old["customer"] != "8" || tx.Rows[0].Old["id"] != "1" {
			t.Errorf("delete: %v", tx.Rows[0])
		}
	}
	if err := r.Stop(t); err == nil {
		t.Error("no error after the end")
	}
	e.awaitInactive(t)
}

// testGrown: a mapping that grows widens the column lists before it changes an identity, and the application can write
// after each single statement.
func testGrown(t *testing.T, e *env, o postgres.Options, setup func() ([]string, []postgres.Finding)) {
	t.Helper()
	grown := e.needs["public.customer"]
	grown.Columns = []string{"id", "name", "secret"}
	grown.OldColumns = []string{"name"} // may be NULL: the whole row
	o.Needs["public.customer"] = grown
	e.exec(t, "INSERT INTO customer VALUES (1, 'n', 's')")
	for _, f := range check(t, o) {
		if f.Code == postgres.CodeKeepSizeUnlimited {
			continue
		}
		e.exec(t, f.FixSQL...)
		e.exec(t, "UPDATE customer SET secret = secret || 'x'")
	}
	if ran, left := setup(); ran != nil || codes(left) != nil {
		t.Errorf("the statements of Check do not do what Setup does: %q, %v", ran, codes(left))
	}
}

func uninstall(t *testing.T, e *env, o postgres.Options) {
	t.Helper()
	statements, err := postgres.UninstallSQL(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if strings.HasPrefix(sql, "--") {
			_, sql, _ = strings.Cut(sql, "that: ")
		}
		e.exec(t, sql)
	}
	for _, sql := range []string{
		"SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '" + e.db + "'",
		"SELECT count(*)::text FROM pg_publication",
		"SELECT count(*)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relreplident <> 'd'",
		"SELECT count(*)::text FROM pg_class WHERE relname LIKE '%lethe%'",
	} {
		if got := e.query(t, sql); got != "0" {
			t.Errorf("%s: %s", sql, got)
		}
	}
}

func TestSetupFailsWhole(t *testing.T) {
	e := newEnv(t, testenv.SharedPostgres(t, 15))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("public.a", "id")
	role := e.limited(t, "REPLICATION")
	ran, _, err := postgres.Setup(t.Context(), e.pg.DSN(e.db, role), config.Secret{}, e.options(t))
	if err == nil || len(ran) != 0 || !strings.Contains(err.Error(), "CREATE PUBLICATION") {
		t.Errorf("Setup without rights ran %q: %v", ran, err)
	}
}

// TestSetupDoesNotQueueUp: a table that a report holds is left alone after a while, so that nobody waits behind Setup.
func TestSetupDoesNotQueueUp(t *testing.T) {
	e := newEnv(t, testenv.SharedPostgres(t, 15))
	e.exec(t, "CREATE TABLE a (id int, v text)")
	e.need("public.a", "id")
	report := e.pg.Connect(t, e.db)
	if _, err := report.Exec(t.Context(), "BEGIN; SELECT * FROM a"); err != nil {
		t.Fatal(err)
	}
	_, _, err := postgres.Setup(t.Context(), e.pg.DSN(e.db, ""), config.Secret{}, e.options(t))
	if err == nil || !strings.Contains(err.Error(), "REPLICA IDENTITY FULL") || !strings.Contains(err.Error(), "run setup again") {
		t.Fatalf("Setup says %v", err)
	}
	if _, err := report.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if _, left, err := postgres.Setup(t.Context(), e.pg.DSN(e.db, ""), config.Secret{}, e.options(t)); err != nil || codes(left) != nil {
		t.Errorf("afterwards: %v, %v", codes(left), err)
	}
}

func TestOptionsAreValidated(t *testing.T) {
	good := postgres.Options{DSN: "postgres://h/d", Slot: "lethe", Publication: "lethe"}
	if _, err := postgres.New(good); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*postgres.Options){
		"no DSN":           func(o *postgres.Options) { o.DSN = "" },
		"injection":        func(o *postgres.Options) { o.Slot = "x'; DROP TABLE y; --" },
		"upper case":       func(o *postgres.Options) { o.Slot = "Lethe" },
		"no slot":          func(o *postgres.Options) { o.Slot = "" },
		"no publication":   func(o *postgres.Options) { o.Publication = "" },
		"long publication": func(o *postgres.Options) { o.Publication = strings.Repeat("x", 64) },
		"zero byte":        func(o *postgres.Options) { o.Publication = "a\x00b" },
	} {
		o := good
		spoil(&o)
		if _, err := postgres.New(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestOddNames: names from the config reach the server quoted.
func TestOddNames(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		table := pgx.Identifier{"Odd, schema", `ta'b"le`}.Sanitize()
		e.exec(t, `CREATE SCHEMA "Odd, schema"`, "CREATE TABLE "+table+` (id int PRIMARY KEY, "Col umn" text)`)
		o := e.options(t)
		o.Publication = `Pub'l"i, cation`
		o.Needs = map[string]postgres.TableNeeds{`Odd, schema.ta'b"le`: {Columns: []string{"id", "Col umn"}}}
		if _, left, err := postgres.Setup(t.Context(), e.pg.DSN(e.db, ""), config.Secret{}, o); err != nil || codes(left) != nil {
			t.Fatalf("Setup leaves %v: %v", codes(left), err)
		}
		r := capturetest.Start(t, newSource(t, o), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO "+table+" VALUES (1, 'x')")
		if row := r.Collect(t, 1)[0].Rows[0]; row.Table != `Odd, schema.ta'b"le` || row.New["Col umn"] != "x" {
			t.Errorf("row %v", row)
		}
		if err := r.Stop(t); err == nil {
			t.Error("no error after the end")
		}
	})
}
