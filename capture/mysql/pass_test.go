package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// passing is a Source that streams, and reads beside that.
type passing struct {
	*env
	src     *Source
	reading *capturetest.Reading
}

func (e *env) pass(t *testing.T) *passing {
	t.Helper()
	src := e.source(t)
	p := &passing{env: e, src: src.Source, reading: capturetest.Start(t, src, nil, &capturetest.Recorder{})}
	t.Cleanup(func() { stopped(t, p.reading) })
	return p
}

// newest waits for what was written until now, and returns the newest commit that was handed over.
func (p *passing) newest(t *testing.T) capture.Position {
	t.Helper()
	mark, err := p.src.Watermark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var at capture.Position
	testenv.Eventually(t, time.Minute, func() error {
		if all := p.reading.Recorder.All(); len(all) > 0 {
			at = all[len(all)-1].Position
		}
		if !mark.Passed(at) {
			return fmt.Errorf("the stream stands at %s", at)
		}
		return nil
	})
	return at
}

// rows reads a table in chunks and gives the values of a column in the order in which they came.
func (p *passing) rows(t *testing.T, table, column string, limit int) (got []string) {
	t.Helper()
	seen := p.newest(t)
	var after [][]byte
	for {
		last, done, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: p.db + "." + table, After: after, Limit: limit, Seen: seen},
			func(c *capture.Change) error {
				v := c.New[c.Table.Index(column)]
				got = append(got, string(v.Text))
				return nil
			})
		if err != nil {
			t.Fatalf("after %d rows of %s: %v", len(got), table, err)
		}
		if done {
			return got
		}
		after = last
	}
}

// TestReadRowsAreAsStreamedOnes: every type, as the stream gives it.
func TestReadRowsAreAsStreamedOnes(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		cases := slices.Clone(typeCases)
		cases = append(cases, typeCase{ddl: "DECIMAL(8,2) ZEROFILL", values: []string{"12.5", "0", "123456.78"}},
			typeCase{ddl: "FLOAT(8,3)", values: []string{"0.1", "1234.567", "-3"}}, typeCase{ddl: "DOUBLE(12,4)", values: []string{"0.1", "1234567.8912"}},
			typeCase{ddl: "INTEGER", values: []string{"7"}}, typeCase{ddl: "NUMERIC(6,3)", values: []string{"-1.5"}}, typeCase{ddl: "REAL", values: []string{"2.25"}},
			typeCase{ddl: "CHAR(3) CHARACTER SET binary", values: []string{"'a'"}}, typeCase{ddl: "NATIONAL CHAR(4)", values: []string{"'é'"}})
		if e.server.Flavor() == testenv.MySQLServer {
			cases = append(cases, onlyMySQL...)
		}
		columns, needed, rows := make([]string, len(cases)), []string{"id"}, 0
		for i, c := range cases {
			columns[i] = fmt.Sprintf("c%d %s", i, c.ddl)
			needed = append(needed, fmt.Sprintf("c%d", i))
			rows = max(rows, len(c.values))
		}
		e.exec(t, "CREATE TABLE every (id INT PRIMARY KEY, note INT NOT NULL DEFAULT 0, "+strings.Join(columns, ", ")+")")
		e.need("every", needed...)
		e.track(t)
		e.exec(t, stored)
		for r := range rows {
			values := make([]string, len(cases))
			for i, c := range cases {
				values[i] = c.values[r%len(c.values)]
			}
			e.exec(t, fmt.Sprintf("INSERT INTO every VALUES (%d, 0, %s)", r, strings.Join(values, ", ")))
		}
		p := e.pass(t)
		streamed := map[string]capturetest.Row{}
		for _, tx := range p.reading.Collect(t, rows) {
			streamed[tx.Rows[0].New["id"]] = tx.Rows[0]
		}
		n := 0
		_, done, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".every", Limit: 1000, Seen: p.newest(t)}, func(c *capture.Change) error {
			n++
			if c.Op != capture.OpRead || c.Old != nil {
				t.Errorf("a row came as %v with old values %v", c.Op, c.Old)
			}
			got := named(c)
			row := streamed[got["id"]]
			for i, c := range cases {
				if name := fmt.Sprintf("c%d", i); got[name] != row.New[name] {
					t.Errorf("%s in row %s is read as %.200q and streamed as %.200q", c.ddl, got["id"], got[name], row.New[name])
				}
			}
			if _, ok := got["note"]; ok {
				t.Error("a column that is not mapped was read")
			}
			if diff := cmp.Diff(row.Shape, c.Table); diff != "" {
				t.Errorf("the shape differs from the stream's: %s", diff)
			}
			return nil
		})
		if err != nil || !done || n != rows {
			t.Errorf("%d of %d rows, done %t: %v", n, rows, done, err)
		}
	})
}

// named gives a row by the names of its columns, as capturetest.Row does.
func named(c *capture.Change) map[string]string {
	m := map[string]string{}
	for i, v := range c.New {
		switch v.State {
		case capture.Present:
			m[c.Table.Columns[i].Name] = string(v.Text)
		case capture.Null:
			m[c.Table.Columns[i].Name] = capturetest.Null
		case capture.Absent, capture.Unchanged:
		}
	}
	return m
}

// keyCase is a key that tables are walked along.
type keyCase struct {
	name    string
	columns string
	key     string
	values  []string // of the key's columns, as SQL; each is a row
	order   string
	scans   bool // no index helps
}

var keyCases = []keyCase{
	{"bigint", "k BIGINT", "k", []string{"-9223372036854775808", "-1", "0", "1", "42", "9223372036854775807"}, "k", false},
	{"unsigned", "k BIGINT UNSIGNED", "k", []string{"0", "1", "9223372036854775807", "9223372036854775808", "18446744073709551615"}, "k", false},
	{"decimal", "k DECIMAL(30,10)", "k", []string{"-1.5", "0", "0.0000000001", "12345678901234567890.1234567890", "12345678901234567890.1234567891"}, "k", false},
	{"float", "k FLOAT", "k", []string{"-0.1", "0.1", "0.2", "0.3", "16777216", "3.4e38"}, "k", false},
	{"double", "k DOUBLE", "k", []string{"-0.1", "0.1", "0.30000000000000004", "0.3", "1e300"}, "k", false},
	{"bit", "k BIT(64)", "k", []string{"0", "1", "0xffffffffffffffff", "0x8000000000000000"}, "k", false},
	{"year", "k YEAR", "k", []string{"0", "1901", "1999", "2000", "2155"}, "k", false},
	{"date", "k DATE", "k", []string{"'0000-00-00'", "'2024-02-30'", "'2024-02-29'", "'9999-12-31'"}, "k", false},
	{"datetime", "k DATETIME(6)", "k", []string{"'0000-00-00'", "'2024-02-29 23:59:59.000001'", "'2024-02-29 23:59:59.000002'", "'2024-02-29 23:59:59'"}, "k", false},
	{"timestamp", "k TIMESTAMP(3)", "k", []string{"'1970-01-01 00:00:01'", "'2024-02-29 23:59:59.123'", "'2024-02-29 23:59:59.124'", "'2038-01-19 03:14:07'"}, "k", false},
	{"time", "k TIME(2)", "k", []string{"'-838:59:59'", "'-00:00:00.01'", "'00:00:00'", "'100:00:00.5'", "'838:59:59'"}, "k", false},
	{"uuid", "k BINARY(16)", "k", []string{"x'00'", "x'00000000000000000000000000000001'", "x'ff00'", "x'7f'", "x'5c5c27225c'", "x'20'"}, "k", false},
	{"uuid text", "k CHAR(36) CHARACTER SET ascii", "k", []string{"'6ccd780c-baba-1026-9564-5b8c656024db'", "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff'"}, "k", false},
	{"varbinary", "k VARBINARY(20)", "k", []string{"x''", "x'00'", "x'0000'", "x'ff'", "'a'", "'a '", "'A'"}, "k", false},
	{"text without case", "k VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci", "k", []string{
		"'anna@x.fr'", "'Anne@x.fr'", "'ANNB@x.fr'", "'Zoé'", "'zof'", "'Zoa'", "''", "'ß'", "'st'", "'_'", "'%'", "'o''hara\\\\'", "'漢字'", "'😀'",
	}, "k", false},
	{"text with case", "k VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "k", []string{"'a'", "'A'", "'á'", "'b'", "'B'"}, "k", false},
	{"latin1", "k VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_german2_ci", "k", []string{"_latin1 x'6166'", "_latin1 x'E4'", "_latin1 x'8D'", "'ad'", "'ae_'", "'af_'", "'B'"}, "k", false},
	// The same character has two codes in it, of which the way back from UTF-8 finds one.
	{"cp932", "k VARCHAR(40) CHARACTER SET cp932 COLLATE cp932_bin", "k", []string{
		"_cp932 x'81CA'", "_cp932 x'EEF9'", "_cp932 x'FA54'", "_cp932 x'EEFA'", "_cp932 x'FA4A'", "_cp932 x'8754'", "'a'",
	}, "k", false},
	{"ucs2", "k CHAR(10) CHARACTER SET ucs2", "k", []string{"'Ümit'", "'a'", "'B'", "'漢字'"}, "k", false},
	{"enum", "k ENUM('z','Y','it''s','a,b') CHARACTER SET latin1", "k", []string{"'a,b'", "'it''s'", "'z'", "'Y'", "''"}, "k + 0", false},
	{"set", "k SET('x','y','z')", "k", []string{"''", "'x'", "'y'", "'x,y'", "'z'", "'x,z'"}, "k + 0", true},
	{"composite", "a INT, b VARCHAR(9) COLLATE utf8mb4_unicode_ci, c DATE", "a, b, c", []string{
		"1, 'a', '2024-01-01'", "1, 'A', '2024-01-02'", "1, 'b', '2023-01-01'", "2, 'a', '2022-01-01'", "-1, 'z', '2025-01-01'", "2, 'a', '2021-01-01'",
	}, "a, b, c", false},
	{"enum first", "a ENUM('s','e'), b BIGINT UNSIGNED", "a, b", []string{"'e', 1", "'s', 2", "'s', 18446744073709551615", "'e', 0", "'s', 1"}, "a + 0, b", false},
	{"descending", "a INT, b INT", "a DESC, b", []string{"1, 1", "1, 2", "2, 1", "2, 2", "3, 0"}, "a DESC, b", false},
	{"enum descending", "k ENUM('s','e','x')", "k DESC", []string{"'s'", "'e'", "'x'"}, "k + 0 DESC", false},
	{"odd names", "`a``b` INT, `select` INT", "`a``b`, `select`", []string{"1, 1", "1, 2", "2, 0"}, "`a``b`, `select`", false},
}

// TestWalksAlongAnyKey: each row comes once and in the order of the key, and is found without reading those before it.
func TestWalksAlongAnyKey(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, stored)
		for i, c := range keyCases {
			table := fmt.Sprintf("t%d", i)
			e.exec(t, "CREATE TABLE "+table+" (n INT, "+c.columns+", PRIMARY KEY ("+c.key+"))")
			for n, v := range c.values {
				e.exec(t, fmt.Sprintf("INSERT IGNORE INTO %s VALUES (%d, %s)", table, n, v))
			}
			e.need(table, "n")
		}
		e.track(t)
		p := e.pass(t)
		for i, c := range keyCases {
			table := fmt.Sprintf("t%d", i)
			want := strings.Split(e.query(t, "SELECT GROUP_CONCAT(n ORDER BY "+c.order+") FROM "+table), ",")
			if len(want) != len(c.values) {
				t.Fatalf("%s: %d of %d rows", c.name, len(want), len(c.values))
			}
			for _, limit := range []int{1, 2, 100} {
				if got := p.rows(t, table, "n", limit); !slices.Equal(got, want) {
					t.Errorf("%s in chunks of %d: rows %v, want %v", c.name, limit, got, want)
				}
			}
			if p.scans(t, table) != c.scans {
				t.Errorf("%s: the rows before a chunk are read again: %t", c.name, !c.scans)
			}
		}
	})
}

// scans reports whether the server begins at the table's first row to find those behind the third one.
func (p *passing) scans(t *testing.T, table string) bool {
	t.Helper()
	first, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: p.db + "." + table, Limit: 2}, func(*capture.Change) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	known, err := p.src.walkOf(t.Context(), p.db+"."+table)
	if err != nil {
		t.Fatal(err)
	}
	query, args, err := known.walk.query(first, 1)
	if err != nil {
		t.Fatal(err)
	}
	p.exec(t, "FLUSH STATUS")
	err = eachValue(t.Context(), p.conn, "SELECT "+query, args, func(driver.Rows, []driver.Value) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	began := false
	err = eachRow(t.Context(), p.conn, "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_read_first', 'Handler_read_last')", func(row []sql.NullString) {
		began = began || row[1].String != "0"
	})
	if err != nil {
		t.Fatal(err)
	}
	return began
}

// TestAReadWaitsUntilItSees: a withdrawal is in the log, and streamed, while others still see the consent. A chunk that is
// read then would give the consent again, with a later place in the order.
func TestAReadWaitsUntilItSees(t *testing.T) {
	for _, flavor := range testFlavors {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
			e := newEnv(t, server)
			e.exec(t, "CREATE TABLE consent (id INT PRIMARY KEY, status VARCHAR(9))", "INSERT INTO consent VALUES (1, 'given')")
			e.need("consent", "id", "status")
			e.track(t)
			p := e.pass(t)
			p.newest(t)
			hold(t, e, 2*time.Second)
			committed := make(chan error, 1)
			go func() {
				_, err := e.pool.ExecContext(context.Background(), "UPDATE consent SET status = 'withdrawn'")
				committed <- err
			}()
			tx := p.reading.Collect(t, 1)[0]
			if got := e.query(t, "SELECT status FROM consent"); got != "given" {
				t.Fatalf("the race is not there: another session sees %q", got)
			}
			waited := ""
			request := capture.ChunkRequest{Table: e.db + ".consent", Limit: 10, Seen: tx.Position, Waits: func(why string) { waited = why }}
			_, _, err := p.src.ReadChunk(t.Context(), request, func(c *capture.Change) error {
				if got := named(c)["status"]; got != "withdrawn" {
					t.Errorf("the pass reads %q behind the withdrawal", got)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if flavor == testenv.MariaDB && !strings.Contains(waited, "semi-synchronous") {
				t.Errorf("the wait is told as %q", waited)
			}
			err = p.src.At(t.Context(), tx.Position, func(ctx context.Context, q capture.Querier) error {
				return q.Query(ctx, func(row []capture.Value) error {
					if got := texts(row); got != "withdrawn" {
						t.Errorf("the question is answered by %q", got)
					}
					return nil
				}, "SELECT status FROM "+quoteTable(e.db+".consent")+" WHERE id = ?", 1)
			})
			if err := errors.Join(err, <-committed); err != nil {
				t.Error(err)
			}
		})
	}
}

// hold makes every commit wait between the log and the engine: on MariaDB for a semi-synchronous replica that is not there,
// on MySQL, whose plugin for that is not installed here, for others to share the synchronisation of the log with.
func hold(t *testing.T, e *env, d time.Duration) {
	t.Helper()
	if e.server.Flavor() == testenv.MariaDB {
		e.exec(t, "SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC'", fmt.Sprintf("SET GLOBAL rpl_semi_sync_master_timeout = %d", d.Milliseconds()),
			"SET GLOBAL rpl_semi_sync_master_enabled = ON")
		return
	}
	e.exec(t, fmt.Sprintf("SET GLOBAL binlog_group_commit_sync_delay = %d", min(d, time.Second).Microseconds()))
}
