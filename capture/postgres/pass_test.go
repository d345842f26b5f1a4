package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/internal/testenv"
)

// readAll reads a table chunk by chunk and returns the rows in their order.
func readAll(tb testing.TB, src *postgres.Source, table string, limit int) []map[string]string {
	tb.Helper()
	if _, err := src.PassTable(tb.Context(), table); err != nil {
		tb.Fatal(err)
	}
	var rows []map[string]string
	var after [][]byte
	for {
		n := 0
		last, done, err := src.ReadChunk(tb.Context(), capture.ChunkRequest{Table: table, After: after, Limit: limit}, func(c *capture.Change) error {
			n++
			if c.Op != capture.OpRead || c.Old != nil || len(c.New) != len(c.Table.Columns) {
				return fmt.Errorf("%s with %d values", c.Op, len(c.New))
			}
			row := map[string]string{}
			for i, v := range c.New {
				row[c.Table.Columns[i].Name] = string(v.Text)
				if v.State == capture.Null {
					row[c.Table.Columns[i].Name] = capturetest.Null
				}
			}
			rows = append(rows, row)
			return nil
		})
		if err != nil {
			tb.Fatalf("reading %s: %v", table, err)
		}
		if n > limit || last == nil != (n == 0) {
			tb.Fatalf("reading %s: %d rows, last key %t", table, n, last != nil)
		}
		if done {
			return rows
		}
		after = last
	}
}

// TestReadWaitsForWhatTheStreamHas is the reason for capture.Snapshotter: a withdrawal is in the log, and in the stream,
// while its COMMIT waits for a standby, and until that has ended no other session sees it.
func TestReadWaitsForWhatTheStreamHas(t *testing.T) {
	onPrivate(t, nil, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE consent (id int PRIMARY KEY, state text)", "INSERT INTO consent VALUES (1, 'given')")
		e.need("public.consent", "id", "state")
		e.publish(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "UPDATE consent SET state = 'renewed'")
		r.Collect(t, 1)
		if rows := readAll(t, src, "public.consent", 10); len(rows) != 1 || rows[0]["state"] != "renewed" {
			t.Fatalf("before the race: %v", rows)
		}

		e.exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
		testenv.Eventually(t, within, func() error {
			if got := e.query(t, "SHOW synchronous_standby_names"); got != "nobody" {
				return fmt.Errorf("synchronous_standby_names is %q", got)
			}
			return nil
		})
		crm := e.pg.Connect(t, e.db)
		held := make(chan error, 1)
		go func() {
			_, err := crm.Exec(context.WithoutCancel(t.Context()), "UPDATE consent SET state = 'withdrawn'")
			held <- err
		}()
		txs := r.Collect(t, 2)
		if got := txs[1].Rows[0].New["state"]; got != "withdrawn" {
			t.Fatalf("the stream has %q", got)
		}
		if got := e.query(t, "SELECT state FROM consent"); got != "renewed" {
			t.Fatalf("another session sees %q: the race did not come about", got)
		}

		waits := make(chan string, 1)
		read, at := make(chan string, 1), make(chan string, 1)
		failed := make(chan error, 2)
		go func() {
			_, _, err := src.ReadChunk(t.Context(), capture.ChunkRequest{
				Table: "public.consent", Limit: 10, Seen: txs[1].Position, Waits: func(why string) { waits <- why },
			}, func(c *capture.Change) error {
				read <- string(c.New[c.Table.Index("state")].Text)
				return nil
			})
			failed <- err
		}()
		go func() {
			failed <- src.At(t.Context(), txs[1].Position, func(ctx context.Context, q capture.Querier) error {
				return q.Query(ctx, func(row []capture.Value) error {
					at <- string(row[0].Text)
					return nil
				}, "SELECT state FROM public.consent WHERE id = $1", 1)
			})
		}()
		select {
		case why := <-waits:
			if !strings.Contains(why, "synchronous standby") {
				t.Errorf("the reason given is %q", why)
			}
		case state := <-read:
			t.Fatalf("a read showed %q, which the stream has left behind", state)
		case <-time.After(within):
			t.Fatal("neither rows nor a reason for the wait")
		}
		if len(at) > 0 {
			t.Fatalf("a question saw %q, which the stream has left behind", <-at)
		}
		// A mark is written without waiting for the standby.
		if m, err := src.Watermark(t.Context()); err != nil || m.Passed(txs[1].Position) {
			t.Fatalf("mark %v, %v", m, err)
		}
		e.exec(t, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
		if err := <-held; err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		}
		if a, b := <-read, <-at; a != "withdrawn" || b != "withdrawn" {
			t.Errorf("in the end the read shows %q and the question %q", a, b)
		}
		e.halt(t, r)
	})
}

// TestTransactionOfAnEarlierStreamIsWaitedFor: capture is started anew, and what its predecessor has handed over is still not
// visible to anybody.
func TestTransactionOfAnEarlierStreamIsWaitedFor(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		open := e.pg.Connect(t, e.db)
		if _, err := open.Exec(t.Context(), "BEGIN; INSERT INTO a VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (2)")
		txs := r.Collect(t, 1)
		waits := make(chan string, 1)
		rows := make(chan int, 1)
		go func() {
			n := 0
			_, _, err := src.ReadChunk(t.Context(), capture.ChunkRequest{
				Table: "public.a", Limit: 10, Seen: txs[0].Position, Waits: func(why string) { waits <- why },
			}, func(*capture.Change) error { n++; return nil })
			if err != nil {
				n = -1
			}
			rows <- n
		}()
		select {
		case <-waits:
		case n := <-rows:
			t.Fatalf("%d rows were read beside a transaction that an earlier stream may have handed over", n)
		}
		if _, err := open.Exec(t.Context(), "COMMIT"); err != nil {
			t.Fatal(err)
		}
		if n := <-rows; n != 2 {
			t.Fatalf("%d rows", n)
		}
		// One that was opened since is in nobody's way.
		if _, err := open.Exec(t.Context(), "BEGIN; INSERT INTO a VALUES (3)"); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, src, "public.a", 10); len(got) != 2 {
			t.Fatalf("%d rows beside an open transaction", len(got))
		}
		e.halt(t, r)
	})
}

// TestTablesAreReadAsTheStreamTellsThem compares what a pass reads with what the stream says of the same rows.
func TestTablesAreReadAsTheStreamTellsThem(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t,
			"CREATE DOMAIN code AS varchar(8)", "CREATE TYPE mood AS ENUM ('low', 'high')",
			"CREATE TABLE single (id bigint PRIMARY KEY, v text, at timestamptz, d date, n numeric, b bytea, f float8, j jsonb, c code, m mood, p char(5), a int[])",
			`CREATE TABLE composite (b int, a text COLLATE "C", at timestamptz, v text, PRIMARY KEY (a, at, b))`,
			"CREATE TABLE ids (id uuid PRIMARY KEY, v text)",
			`CREATE TABLE names (name text COLLATE "und-x-icu" PRIMARY KEY, v text)`,
			"CREATE TABLE codes (c code PRIMARY KEY, v text)",
			"CREATE TABLE moods (m mood, p char(5), v text, PRIMARY KEY (m, p))",
			"CREATE TABLE parted (id int, region text, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
			"CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a')",
			"CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b', 'c')",
			"CREATE TABLE made (id int PRIMARY KEY, v text, twice int GENERATED ALWAYS AS (id * 2) STORED)",
			`CREATE TABLE "Odd.Name" ("Id" int PRIMARY KEY, "V" text)`,
			"CREATE TABLE uniq (u int NOT NULL, v text)", "CREATE UNIQUE INDEX ON uniq (u)", "ALTER TABLE uniq REPLICA IDENTITY FULL",
			"CREATE TABLE parent (id int PRIMARY KEY, v text)", "CREATE TABLE heir () INHERITS (parent)", "INSERT INTO heir VALUES (99, 'not the parent''s')",
		)
		fill := map[string]string{
			"single": `SELECT i * 1000003 % 97, CASE WHEN i % 5 = 0 THEN NULL ELSE repeat('ü', i) END, now() - i * interval '1 hour', current_date - i,
				i / 7.0, int4send(i), i / 3.0::float8, '{"b": 1, "a": [2]}', 'c' || i, 'high', 'p' || i, array[i, NULL] FROM generate_series(1, 20) i`,
			"composite":   `SELECT i, chr(65 + i % 3), '2026-01-01'::timestamptz + (i % 4) * interval '1 microsecond', 'v' || i FROM generate_series(1, 20) i`,
			"ids":         `SELECT gen_random_uuid(), 'v' FROM generate_series(1, 20)`,
			"names":       `SELECT unnest(array['Éa', 'ea', 'E', 'é', 'z', 'Z', 'ä', 'a b', 'ab', 'A', '', ' ']), 'v'`,
			"codes":       `SELECT 'c' || i, 'v' FROM generate_series(1, 20) i`,
			"moods":       `SELECT (array['high', 'low']::mood[])[1 + i % 2], 'x' || i, 'v' FROM generate_series(1, 20) i`,
			"parted":      `SELECT i, chr(97 + i % 3), 'v' FROM generate_series(1, 20) i`,
			"made":        `SELECT i, 'v' FROM generate_series(1, 20) i`,
			`"Odd.Name"`:  `SELECT i, 'v' FROM generate_series(1, 20) i`,
			"uniq":        `SELECT -i, 'v' FROM generate_series(1, 20) i`,
			"ONLY.parent": "",
			"parent":      `SELECT i, 'v' FROM generate_series(1, 7) i`,
		}
		delete(fill, "ONLY.parent")
		columns := map[string][]string{
			"single": {"v", "at", "d", "n", "b", "f", "j", "c", "m", "p", "a"}, "composite": {"a", "at", "b", "v"}, `"Odd.Name"`: {"V"},
		}
		for table := range fill {
			name := "public." + strings.Trim(table, `"`)
			e.needs[name] = postgres.TableNeeds{Columns: []string{"v"}}
			if c := columns[table]; c != nil {
				e.needs[name] = postgres.TableNeeds{Columns: c}
			}
		}
		var list []string
		for table := range fill {
			if table == "parent" {
				table = "ONLY parent"
			}
			list = append(list, table)
		}
		e.exec(t, fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish_via_partition_root)", e.db, strings.Join(list, ", ")))
		e.createSlot(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		tables := slices.Sorted(maps.Keys(fill))
		for _, table := range tables {
			into := ""
			if table == "made" {
				into = " (id, v)"
			}
			e.exec(t, "INSERT INTO "+table+into+" "+fill[table])
		}
		txs := r.Collect(t, len(tables))
		for i, table := range tables {
			name := "public." + strings.Trim(table, `"`)
			how, err := src.PassTable(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			got := readAll(t, src, name, 3)
			if len(got) != len(txs[i].Rows) {
				t.Errorf("%s: %d rows read, %d streamed", name, len(got), len(txs[i].Rows))
			}
			known := map[string]bool{}
			for _, row := range txs[i].Rows {
				known[pick(row.New, got[0])] = true
			}
			for _, row := range got {
				if text := pick(row, got[0]); !known[text] {
					t.Errorf("%s along %v: read %s, which the stream did not tell so (or it was read twice)", name, how.Key, text)
				} else {
					delete(known, text)
				}
			}
			shape := txs[i].Rows[0].Shape
			_, _, err = src.ReadChunk(t.Context(), capture.ChunkRequest{Table: name, Limit: 1}, func(c *capture.Change) error {
				for _, col := range c.Table.Columns {
					if s := shape.Columns[shape.Index(col.Name)]; s.Type != col.Type {
						return fmt.Errorf("column %s is %s in the stream and %s in the pass", col.Name, s.Type, col.Type)
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		e.halt(t, r)
	})
}

// pick prints the columns of row that like has.
func pick(row, like map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(like)) {
		fmt.Fprintf(&b, "%s=%s ", k, row[k])
	}
	return b.String()
}

func TestTablesThatAPassCannotRead(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		login := e.limited(t, "REPLICATION")
		defer e.exec(t, "DROP OWNED BY "+login)
		e.exec(t,
			"CREATE TABLE keyless (id int, v text)", "CREATE TABLE maybe_null (id int UNIQUE, v text)",
			"CREATE TABLE partial (id int NOT NULL, v text)", "CREATE UNIQUE INDEX ON partial (id) WHERE id > 0",
			"CREATE VIEW seen AS SELECT 1 AS id", "CREATE TABLE narrow (id int PRIMARY KEY)", "CREATE TABLE hidden (id int PRIMARY KEY, v text)",
			"CREATE TABLE guarded (id int PRIMARY KEY)", "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY", "CREATE TABLE good (id int PRIMARY KEY)",
			"GRANT USAGE ON SCHEMA public TO "+login, "GRANT SELECT ON keyless, maybe_null, partial, seen, narrow, guarded, good TO "+login, "GRANT SELECT (id) ON hidden TO "+login,
		)
		for _, table := range []string{"keyless", "maybe_null", "partial", "seen", "absent", "guarded", "good"} {
			e.need("public."+table, "id")
		}
		e.need("public.narrow", "id", "gone")
		e.need("public.hidden", "id", "v")
		o := e.options(t)
		o.DSN = e.pg.DSN(e.db, login)
		src := newSource(t, o)
		for table, want := range map[string]string{
			"keyless": capture.RefusedNoKey, "maybe_null": capture.RefusedNoKey, "partial": capture.RefusedNoKey, "seen": capture.RefusedKind,
			"absent": capture.RefusedMissing, "narrow": capture.RefusedShape, "hidden": capture.RefusedGrant, "guarded": capture.RefusedGrant,
		} {
			_, err := src.PassTable(t.Context(), "public."+table)
			var refused *capture.TableRefusedError
			if !errors.As(err, &refused) || refused.Cause != want || refused.Hint == "" {
				t.Errorf("%s: %v, want %s", table, err, want)
			}
		}
		if _, err := src.PassTable(t.Context(), "public.good"); err != nil {
			t.Error(err)
		}
		// Check says so beforehand, and what it prints helps.
		for table, needs := range o.Needs {
			needs.ReadsRows = true
			o.Needs[table] = needs
		}
		findings := check(t, o)
		for _, table := range []string{"keyless", "maybe_null", "partial"} {
			if f := find(t, findings, postgres.CodeTableKeyless, "public."+table); f.Severity != postgres.SeverityWarning {
				t.Errorf("%s without a key is an %s: capture runs without passes", table, f.Severity)
			}
		}
		e.exec(t, find(t, findings, postgres.CodeSelectDenied, "public.hidden").FixSQL...)
		e.exec(t, find(t, findings, postgres.CodeRowSecurity, "public.guarded").FixSQL...)
		for _, table := range []string{"hidden", "guarded"} {
			if _, err := newSource(t, o).PassTable(t.Context(), "public."+table); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTableChangesUnderItsReader: what a chunk meets sends the pass back to PassTable, which says what is wrong.
func TestTableChangesUnderItsReader(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v text)", "INSERT INTO a SELECT i, 'v' FROM generate_series(1, 10) i")
		e.need("public.a", "id", "v")
		e.publish(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		next := func(after [][]byte) (last [][]byte, err error) {
			last, _, err = src.ReadChunk(t.Context(), capture.ChunkRequest{Table: "public.a", After: after, Limit: 3}, func(*capture.Change) error { return nil })
			return last, err
		}
		how, err := src.PassTable(t.Context(), "public.a")
		if err != nil {
			t.Fatal(err)
		}
		last, err := next(nil)
		if err != nil || string(last[0]) != "3" {
			t.Fatalf("%s, %v", last, err)
		}
		for _, change := range []struct {
			sql     []string
			unread  bool // the next chunk notices
			walks   bool // the old key still says where the reader is
			refused string
		}{
			{sql: []string{"ALTER TABLE a ADD COLUMN more int"}, walks: true},
			{sql: []string{"ALTER TABLE a ALTER COLUMN v TYPE varchar(20)"}, unread: true, walks: true},
			{sql: []string{"ALTER TABLE a ALTER COLUMN id TYPE bigint"}, unread: true},
			{sql: []string{"ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (v, id)"}}, // read on along the old one, only slower
			{sql: []string{"ALTER TABLE a RENAME COLUMN v TO w"}, unread: true, refused: capture.RefusedShape},
			{sql: []string{"ALTER TABLE a RENAME COLUMN w TO v", "ALTER TABLE a DROP CONSTRAINT a_pkey"}, refused: capture.RefusedNoKey},
			{sql: []string{"DROP TABLE a"}, refused: capture.RefusedMissing},
		} {
			e.exec(t, change.sql...)
			_, err := next(last)
			var refused *capture.TableRefusedError
			changed := errors.Is(err, capture.ErrTableChanged)
			if changed != change.unread || err != nil && !changed && !errors.As(err, &refused) {
				t.Errorf("%v: the next chunk gave %v", change.sql, err)
			}
			now, err := src.PassTable(t.Context(), "public.a")
			switch {
			case change.refused != "":
				if !errors.As(err, &refused) || refused.Cause != change.refused {
					t.Errorf("%v: %v, want %s", change.sql, err, change.refused)
				}
			case err != nil:
				t.Errorf("%v: %v", change.sql, err)
			case (now.Walk == how.Walk) != change.walks:
				t.Errorf("%v: the walk was %q and is %q", change.sql, how.Walk, now.Walk)
			default:
				how = now
				if last, err = next(nil); err != nil {
					t.Errorf("%v: %v", change.sql, err)
				}
			}
		}
		e.halt(t, r)
	})
}

// TestChunkIsBoundedInBytes: rows that are wider than a chunk may be are read a few at a time.
func TestChunkIsBoundedInBytes(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE wide (id int PRIMARY KEY, v text)",
			"INSERT INTO wide SELECT i, repeat(md5(i::text), 40000) FROM generate_series(1, 12) i")
		e.need("public.wide", "v")
		e.publish(t)
		src := e.source(t)
		r := capturetest.Start(t, src, nil, &capturetest.Recorder{})
		rows := readAll(t, src, "public.wide", 1000)
		if len(rows) != 12 || len(rows[11]["v"]) != 32*40000 {
			t.Fatalf("%d rows", len(rows))
		}
		e.halt(t, r)
	})
}
