package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/config"
	"lethe/internal/testenv"
)

// TestValuesAreCanonical: text forms do not depend on what database and role are set to, because identifiers are made of
// them.
func TestValuesAreCanonical(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t,
			"ALTER DATABASE "+e.db+" SET datestyle = 'SQL, DMY'", "ALTER DATABASE "+e.db+" SET timezone = 'Asia/Tokyo'",
			"ALTER DATABASE "+e.db+" SET intervalstyle = 'iso_8601'", "ALTER DATABASE "+e.db+" SET extra_float_digits = -5",
			"ALTER DATABASE "+e.db+" SET bytea_output = 'escape'", "ALTER DATABASE "+e.db+" SET client_encoding = 'LATIN1'",
			"ALTER DATABASE "+e.db+" SET statement_timeout = '1ms'",
			"CREATE TYPE mood AS ENUM ('sad', 'happy')", "CREATE DOMAIN zip AS text CHECK (length(value) = 5)",
			`CREATE TABLE a (id int PRIMARY KEY, ts timestamptz, d date, i interval, f float8, b bytea, t text, m mood, z zip, r regclass, l int[])`)
		e.need("public.a", "id")
		e.publish(t)
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "SET statement_timeout = 0", "SET client_encoding = 'UTF8'", "SET datestyle = 'ISO'", "SET timezone = 'UTC'",
			`INSERT INTO a VALUES (1, '2024-02-29 12:00:00.5+02', '2024-02-29', '1 year 2 days 3 hours', 0.1, '\xdeadbeef', 'Zoë', 'happy', '75001', 'public.a', '{1,NULL,3}')`)
		row := r.Collect(t, 1)[0].Rows[0]
		want := map[string]string{
			"id": "1", "ts": "2024-02-29 10:00:00.5+00", "d": "2024-02-29", "i": "1 year 2 days 03:00:00", "f": "0.1", "b": `\xdeadbeef`,
			"t": "Zoë", "m": "happy", "z": "75001", "r": "public.a", "l": "{1,NULL,3}",
		}
		if diff := cmp.Diff(want, row.New); diff != "" {
			t.Error(diff)
		}
		var types []string
		for _, c := range row.Shape.Columns {
			types = append(types, c.Type)
		}
		if got := strings.Join(types, " "); got != "int4 timestamptz date interval float8 bytea text public.mood text regclass _int4" {
			t.Errorf("types %s", got)
		}
		e.halt(t, r)
	})
}

// TestIdentities: what the old image carries under each replica identity, and that unchanged long values are taken from it
// where it has them.
func TestIdentities(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		long := strings.Repeat("x", 10) + e.query(t, "SELECT string_agg(md5(g::text), '') FROM generate_series(1, 1000) g")
		for _, table := range []string{"dflt", "idx", "full_row"} {
			e.exec(t, "CREATE TABLE "+table+" (id int PRIMARY KEY, customer int NOT NULL, doc text, UNIQUE (customer, id))")
			e.need("public."+table, "id", "customer", "doc")
		}
		e.exec(t, "ALTER TABLE idx REPLICA IDENTITY USING INDEX idx_customer_id_key", "ALTER TABLE full_row REPLICA IDENTITY FULL")
		e.publish(t)
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		for i, test := range []struct {
			table          string
			oldRow         capture.OldRow
			update, delete map[string]string
			doc            string
		}{
			{"dflt", capture.OldRowKey, nil, map[string]string{"id": "1"}, capturetest.Unchanged},
			{
				"idx", capture.OldRowKey,
				map[string]string{"id": "1", "customer": "7"},
				map[string]string{"id": "1", "customer": "8"},
				capturetest.Unchanged,
			},
			{
				"full_row", capture.OldRowFull,
				map[string]string{"id": "1", "customer": "7", "doc": long},
				map[string]string{"id": "1", "customer": "8", "doc": long},
				long,
			},
		} {
			e.exec(t, "INSERT INTO "+test.table+" VALUES (1, 7, '"+long+"')", "UPDATE "+test.table+" SET customer = 8", "DELETE FROM "+test.table)
			txs := r.Collect(t, 3*i+3)
			update, del := txs[3*i+1].Rows[0], txs[3*i+2].Rows[0]
			if diff := cmp.Diff(test.update, update.Old); diff != "" || update.Shape.OldRow != test.oldRow {
				t.Errorf("%s: update, identity %d: %s", test.table, update.Shape.OldRow, diff)
			}
			if got := update.New["doc"]; got != test.doc {
				t.Errorf("%s: unchanged value is %.20s", test.table, got)
			}
			if diff := cmp.Diff(test.delete, del.Old); diff != "" {
				t.Errorf("%s: delete: %s", test.table, diff)
			}
		}
		e.halt(t, r)
	})
}

// TestTypeChange: another type is another shape, and nothing to stop for.
func TestTypeChange(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v int)")
		e.need("public.a", "id", "v")
		e.publish(t)
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1, 2)", "ALTER TABLE a ALTER COLUMN v TYPE text USING 'v' || v")
		// Neither the rewritten rows nor the DDL is a change.
		e.exec(t, "INSERT INTO a VALUES (2, 'x')")
		txs := r.Collect(t, 2)
		was, is := txs[0].Rows[0], txs[1].Rows[0]
		if was.Shape == is.Shape || was.Shape.Columns[1].Type != "int4" || is.Shape.Columns[1].Type != "text" || is.New["v"] != "x" {
			t.Errorf("%v, then %v", was, is)
		}
		e.halt(t, r)
	})
}

// TestIdentityLost: a DELETE that matters and would not be understood any more stops the stream before its transaction.
func TestIdentityLost(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, customer int NOT NULL, UNIQUE (customer, id))",
			"ALTER TABLE a REPLICA IDENTITY USING INDEX a_customer_id_key")
		e.needs["public.a"] = postgres.TableNeeds{Columns: []string{"id", "customer"}, SubjectColumns: []string{"customer"}, ReadsDelete: true}
		e.publish(t)
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1, 7)")
		r.Collect(t, 1)
		e.exec(t, "ALTER TABLE a REPLICA IDENTITY DEFAULT", "DELETE FROM a")
		var lost *postgres.IdentityError
		if err := r.Wait(t); !errors.As(err, &lost) || lost.Table != "public.a" || lost.LSN == 0 || !capture.IsPermanent(err) ||
			!cmp.Equal(lost.Columns, []string{"customer"}) {
			t.Fatalf("Run ended with %v", err)
		}
		if r.Recorder.Rows() != 1 {
			t.Error("the transaction was handed over")
		}
	})
}

func TestPartitionsAndCopy(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t,
			"CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
			// Another order of columns than the root has.
			"CREATE TABLE low (v text, id int NOT NULL)", "ALTER TABLE parted ATTACH PARTITION low FOR VALUES FROM (0) TO (100)",
			"CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200)")
		e.need("public.parted", "id", "v")
		e.publish(t)
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO parted VALUES (1, 'a'), (150, 'b')", "UPDATE parted SET id = 160 WHERE id = 1")
		if _, err := e.conn.PgConn().CopyFrom(t.Context(), strings.NewReader("2\tc\n3\td\n151\te\n"), "COPY parted FROM STDIN"); err != nil {
			t.Fatal(err)
		}
		e.exec(t, "CREATE TABLE more PARTITION OF parted FOR VALUES FROM (200) TO (300)", "INSERT INTO parted VALUES (250, 'f')", "TRUNCATE parted")
		txs := r.Collect(t, 5)
		var got []string
		for _, tx := range txs {
			for _, row := range tx.Rows {
				got = append(got, fmt.Sprintf("%s %s %s%s", row.Op, strings.TrimPrefix(row.Table, "public."), row.Old["id"]+row.New["id"], row.New["v"]))
			}
		}
		want := []string{
			"insert parted 1a", "insert parted 150b", "delete parted 1", "insert parted 160a",
			"insert parted 2c", "insert parted 3d", "insert parted 151e", "insert parted 250f", "truncate parted ",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		e.halt(t, r)
	})
}

// TestPreparedTransactions come when they are committed, and not at all when they are not.
func TestPreparedTransactions(t *testing.T) {
	onPrivate(t, map[string]string{"max_prepared_transactions": "4"}, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "BEGIN", "INSERT INTO a VALUES (1)", "PREPARE TRANSACTION 'one'", "BEGIN", "INSERT INTO a VALUES (2)", "PREPARE TRANSACTION 'two'",
			"INSERT INTO a VALUES (3)", "ROLLBACK PREPARED 'one'", "COMMIT PREPARED 'two'")
		r.Marked(t, &capturetest.Env{Mark: func(testing.TB) { beat(t, src) }})
		txs := r.Collect(t, 2)
		if a, b := txs[0].Rows[0].New["id"], txs[1].Rows[0].New["id"]; a != "3" || b != "2" {
			t.Errorf("rows %s and %s", a, b)
		}
		e.halt(t, r)
	})
}

func beat(tb testing.TB, src *postgres.Source) {
	tb.Helper()
	if err := src.EmitHeartbeat(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// TestMessages: only our own transactional messages are handed over.
func TestMessages(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "SELECT pg_logical_emit_message(true, 'other', 'x')", "SELECT pg_logical_emit_message(false, 'lethe', 'y')")
		before := time.Now().Truncate(time.Millisecond)
		beat(t, src)
		var messages []string
		testenv.Eventually(t, within, func() error {
			messages = nil
			for _, tx := range r.Recorder.All() {
				for _, row := range tx.Rows {
					messages = append(messages, row.Message)
				}
			}
			if len(messages) == 0 {
				return errors.New("no message")
			}
			return nil
		})
		var ms int64
		if _, err := fmt.Sscan(messages[0], &ms); err != nil || len(messages) != 1 || time.UnixMilli(ms).Before(before) {
			t.Errorf("messages %q", messages)
		}
		e.halt(t, r)
	})
}

// TestSilence: a server that stops answering without closing the connection is noticed.
func TestSilence(t *testing.T) {
	pg := testenv.NewPostgres(t, testenv.Options{Version: 15})
	pg.Exec(t, "", "CREATE DATABASE crm")
	e := envOn(t, pg, "crm")
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("public.a", "id")
	e.publish(t)
	o := e.options(t)
	o.Liveness = 3 * time.Second
	src := newSource(t, o)
	r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
	e.exec(t, "INSERT INTO a VALUES (1)")
	r.Collect(t, 1)
	// Idle for longer than that is no silence: the server is asked and answers.
	idle, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	<-idle.Done()
	e.exec(t, "INSERT INTO a VALUES (2)")
	r.Collect(t, 2)
	if _, err := src.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pg.Pause(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	watched := make(chan error, 1)
	go func() {
		_, err := src.Watch(t.Context())
		watched <- err
	}()
	err := r.Wait(t)
	if err == nil || !strings.Contains(err.Error(), "taken for dead") || capture.IsPermanent(err) {
		t.Errorf("Run ended with %v", err)
	}
	// The ordinary connection as well: whoever wants it next would wait behind.
	select {
	case err := <-watched:
		if err == nil {
			t.Error("a server that does not answer was watched")
		}
	case <-time.After(30 * time.Second):
		t.Error("the watch still waits for an answer")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := pg.Resume(); err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v text)", "CREATE TABLE b (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.need("public.b", "id")
		e.publish(t)
		o := e.options(t)
		o.MaxRetainedWAL = 1 << 20
		reg := prometheus.NewRegistry()
		o.Registerer = reg
		src := newSource(t, o)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1)")
		r.Collect(t, 1)
		st, err := src.Watch(t.Context())
		if err != nil || !st.Active || st.WALStatus != "reserved" || st.SafeWAL != -1 || st.Lag <= 0 || st.RetainedWAL < st.Lag || st.OverLimit {
			t.Fatalf("%+v, %v", st, err)
		}
		e.exec(t, "CREATE TABLE big AS SELECT g, repeat('x', 1000) FROM generate_series(1, 2000) g")
		if st, err = src.Watch(t.Context()); err != nil || !st.OverLimit {
			t.Errorf("after 2 MB: %+v, %v", st, err)
		}
		if got := gauge(t, reg, "lethe_source_retained_wal_bytes"); got != float64(st.RetainedWAL) {
			t.Errorf("metric says %v, status %d", got, st.RetainedWAL)
		}
		e.exec(t, "ALTER TABLE a ADD COLUMN w int", "ALTER TABLE a DROP COLUMN v") // the stream's business
		if _, err = src.Watch(t.Context()); err != nil {
			t.Errorf("columns that are not mapped: %v", err)
		}
		for _, change := range []struct{ do, undo, what string }{
			{"SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')", "operation update"},
			{"SET TABLE a", "SET TABLE a, b", "table public.b was taken out"},
			{"SET TABLE a WHERE (id > 3), b", "SET TABLE a, b", "row filter of public.a"},
			{"SET TABLE a (id), b", "SET TABLE a, b", "column list of public.a"},
			{"SET (publish_via_partition_root = false)", "SET (publish_via_partition_root = true)", "publish_via_partition_root"},
		} {
			e.exec(t, "ALTER PUBLICATION "+e.db+" "+change.do)
			var changed *postgres.PublicationError
			_, err := src.Watch(t.Context())
			if !errors.As(err, &changed) || !strings.Contains(err.Error(), change.what) {
				t.Errorf("%s: %v", change.do, err)
			}
			var gap *capture.GapError
			if !errors.As(err, &gap) || gap.Cause != capture.GapPublication || !strings.Contains(gap.Object, change.what) {
				t.Errorf("%s is no gap: %v", change.do, gap)
			}
			e.exec(t, "ALTER PUBLICATION "+e.db+" "+change.undo)
			if _, err := src.Watch(t.Context()); err != nil {
				t.Errorf("put back: %v", err)
			}
		}
		// A stream that starts again, as after a lost connection, does not make an edited publication the right one.
		e.exec(t, "ALTER PUBLICATION "+e.db+" SET (publish = 'insert')")
		e.halt(t, r)
		r = capturetest.Start(t, src, nil, &capturetest.Recorder{})
		r.Collect(t, 1)
		if _, err := src.Watch(t.Context()); !errors.As(err, new(*postgres.PublicationError)) {
			t.Errorf("edited, and the stream started again: %v", err)
		}
		e.exec(t, "ALTER PUBLICATION "+e.db+" SET (publish = 'insert, update, delete, truncate')", "DROP TABLE b")
		var gap *capture.GapError
		if _, err := src.Watch(t.Context()); !errors.As(err, &gap) || gap.Cause != capture.GapDropped || !strings.Contains(gap.Hint, "public.b") {
			t.Errorf("table dropped: %v", err)
		}
		e.halt(t, r)
		// Dropped while nobody read: the log before that is read all the same.
		again := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		again.Collect(t, 1)
		if _, err := src.Watch(t.Context()); !errors.As(err, &gap) || gap.Cause != capture.GapDropped {
			t.Errorf("table dropped before the start: %v", err)
		}
		e.halt(t, again)
	})
}

func gauge(tb testing.TB, reg *prometheus.Registry, name string) float64 {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	tb.Fatalf("no metric %s", name)
	return 0
}

// TestPublicationIncomplete: run refuses, because PostgreSQL 18 would just send nothing.
func TestPublicationIncomplete(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
		e.createSlot(t)
		e.need("public.a", "id")
		for _, want := range []string{"publication " + e.db + " does not exist", "table public.a is not in publication"} {
			err := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{}).Wait(t)
			if !errors.As(err, new(*postgres.SetupError)) || !strings.Contains(err.Error(), want) {
				t.Errorf("Run ended with %v, want %s", err, want)
			}
			if want[0] == 'p' {
				e.exec(t, "CREATE PUBLICATION "+e.db+" FOR TABLE b")
			}
			e.awaitInactive(t)
		}
	})
}

// TestAccess: a password, several hosts, and a pg_hba.conf that keeps base backups away.
func TestAccess(t *testing.T) {
	pg := testenv.NewPostgres(t, testenv.Options{Version: 15, HBA: []string{
		"host crm lethe 127.0.0.1/32 scram-sha-256", "host crm stranger 127.0.0.1/32 trust", "host replication lethe,stranger 127.0.0.1/32 reject",
		"host all lethe 127.0.0.1/32 reject",
	}})
	pg.Exec(t, "", "CREATE DATABASE crm", "CREATE ROLE lethe LOGIN REPLICATION PASSWORD 'correct horse'")
	e := envOn(t, pg, "crm")
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("public.a", "id")
	e.publish(t)
	o := e.options(t)
	for _, attrs := range []string{"", "primary", "read-write"} {
		o.DSN = strings.Replace(pg.DSN("crm", "lethe"), "127.0.0.1", "127.0.0.1:1,127.0.0.1", 1)
		if attrs != "" {
			o.DSN += "&target_session_attrs=" + attrs
		}
		o.Password = config.NewSecret("correct horse")
		r := capturetest.Start(t, newSource(t, o), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a SELECT coalesce(max(id), 0) + 1 FROM a")
		testenv.Eventually(t, within, func() error {
			if len(r.Recorder.Txs()) == 0 {
				return errors.New("nothing came")
			}
			return nil
		})
		e.halt(t, r)
	}
	o.Password = config.NewSecret("wrong horse")
	_, err := postgres.Check(t.Context(), o)
	if err == nil || strings.Contains(err.Error(), "horse") {
		t.Errorf("a wrong password: %v", err)
	}
	// A line for the database is what logical replication needs; without it Check says so.
	o.Password = config.NewSecret("correct horse")
	if got := codes(check(t, o)); got != nil {
		t.Errorf("Check says %v", got)
	}
}
