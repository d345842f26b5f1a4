package mysql

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// onPrivate runs a test on a server of its own, which may be reset and purged.
func onPrivate(t *testing.T, o testenv.MySQLOptions, f func(t *testing.T, e *env)) {
	t.Helper()
	forFlavors(t, func(t *testing.T, flavor string) {
		o.Flavor = flavor
		e := newEnv(t, testenv.NewMySQL(t, o))
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(1000))", "CREATE TABLE other (id int PRIMARY KEY)")
		e.need("a", "id", "v")
		e.track(t)
		f(t, e)
	})
}

func (e *env) mariadb() bool { return e.server.Flavor() == testenv.MariaDB }

// read reads n transactions and returns the checkpoint of the last one.
func (e *env) read(t *testing.T, from *capture.Checkpoint, n int) ([]*capturetest.Tx, *capture.Checkpoint) {
	t.Helper()
	r, k := startKeeping(t, e.source(t), from)
	txs := r.Collect(t, n)
	at := k.checkpoint(t, r.Source, txs[n-1])
	stopped(t, r)
	return txs, at
}

func TestPurged(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		e.exec(t, "INSERT INTO a VALUES (1, 'x')")
		_, at := e.read(t, nil, 1)
		purge := func() {
			e.exec(t, "FLUSH BINARY LOGS")
			place, err := readFilePlace(t.Context(), e.conn)
			if err != nil {
				t.Fatal(err)
			}
			name := place[:strings.LastIndexByte(place, ':')]
			testenv.Eventually(t, 30*time.Second, func() error { // a file that is still being sent is not purged
				e.exec(t, fmt.Sprintf("PURGE BINARY LOGS TO '%s'", name))
				files, err := readFiles(t.Context(), e.conn)
				if err == nil && files[0].name != name {
					err = fmt.Errorf("the first log is still %s", files[0].name)
				}
				return err
			})
		}
		purge()
		// Nothing that was not read is gone, the checkpoint's own transaction is.
		e.exec(t, "INSERT INTO a VALUES (2, 'x')")
		txs, at := e.read(t, at, 1)
		if txs[0].Rows[0].New["id"] != "2" {
			t.Errorf("read %v", txs[0])
		}
		e.exec(t, "INSERT INTO a VALUES (3, 'x')")
		purge()
		e.exec(t, "INSERT INTO a VALUES (4, 'x')")
		src := e.source(t)
		r, _ := startKeeping(t, src, at)
		wantGap(t, r, capture.GapPurged)
		if !e.mariadb() { // which does not say what it has purged
			src.Acknowledge(at.Position)
			var gap *capture.GapError
			if st, err := src.Watch(t.Context()); !errors.As(err, &gap) || gap.Cause != capture.GapPurged || st.State != StateLost {
				t.Errorf("Watch says %+v, %v", st, err)
			}
		}
		// After the gap is resumed it goes on where the log stands.
		id, err := src.Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		e.exec(t, "INSERT INTO a VALUES (5, 'x')")
		txs, _ = e.read(t, &capture.Checkpoint{Identity: id}, 1)
		if txs[0].Rows[0].New["id"] != "5" {
			t.Errorf("read %v", txs[0])
		}
	})
}

func (e *env) reset(t *testing.T) {
	t.Helper()
	if e.mariadb() {
		e.exec(t, "RESET MASTER")
		return
	}
	e.exec(t, "RESET BINARY LOGS AND GTIDS")
}

// TestReset: a server that was reset numbers its transactions anew. Its log connects to nothing, even where it has as many
// transactions as before.
func TestReset(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		e.exec(t, "SET timestamp = UNIX_TIMESTAMP() - 3600", "INSERT INTO a VALUES (1, 'x')", "INSERT INTO a VALUES (2, 'x')", "SET timestamp = DEFAULT")
		_, at := e.read(t, nil, 2)
		e.reset(t)
		r, _ := startKeeping(t, e.source(t), at)
		wantGap(t, r, capture.GapOtherSystem)
		e.exec(t, "INSERT INTO a VALUES (3, 'x')")
		r, _ = startKeeping(t, e.source(t), at)
		wantGap(t, r, capture.GapForkedHistory)
		for i := range 20 {
			e.exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 'x')", 10+i))
		}
		r, _ = startKeeping(t, e.source(t), at)
		wantGap(t, r, capture.GapForkedHistory)
	})
}

func TestResetWhileReading(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		src := e.source(t)
		src.attendEvery = 100 * time.Millisecond
		r, _ := startKeeping(t, src, nil)
		e.exec(t, "INSERT INTO a VALUES (1, 'x')")
		r.Collect(t, 1)
		e.reset(t)
		var gap *capture.GapError
		if err := r.Wait(t); !errors.As(err, &gap) || gap.Cause != capture.GapOtherSystem {
			t.Fatalf("Run ended with %v", err)
		}
	})
}

// TestHole: a GTID that was never executed in front of one that was.
func TestHole(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		e.exec(t, "INSERT INTO a VALUES (1, 'x')")
		_, at := e.read(t, nil, 1)
		e.skip(t, at, 3, "INSERT INTO a VALUES (2, 'x')")
		src := e.source(t)
		src.holeWithin = 200 * time.Millisecond
		r, _ := startKeeping(t, src, at)
		wantGap(t, r, capture.GapHole)
	})
}

// skip runs a statement under a number that is by so much above the checkpoint's.
func (e *env) skip(t *testing.T, at *capture.Checkpoint, by uint64, statement string) {
	t.Helper()
	if e.mariadb() {
		e.exec(t, fmt.Sprintf("SET gtid_seq_no = %d", at.Position.Commit+by), statement)
		return
	}
	e.exec(t, fmt.Sprintf("SET gtid_next = '%s:%d'", e.query(t, "SELECT @@server_uuid"), at.Position.Commit+by),
		statement, "SET gtid_next = 'AUTOMATIC'")
}

// TestFilledHole: a replica that was promoted may have committed in another order than the numbers'. Nothing is missing, and
// what comes late is newer than what came before it.
func TestFilledHole(t *testing.T) {
	t.Parallel()
	e := newEnv(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer}))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20))", "CREATE TABLE other (id int)")
	e.need("a", "id", "v")
	e.track(t)
	e.exec(t, "INSERT INTO a VALUES (1, 'x')")
	_, at := e.read(t, nil, 1)
	e.skip(t, at, 2, "INSERT INTO a VALUES (3, 'x')")
	e.skip(t, at, 1, "INSERT INTO a VALUES (2, 'x')")
	e.exec(t, "INSERT INTO a VALUES (4, 'x')")
	txs, end := e.read(t, at, 3)
	ascending(t, txs)
	if p := txs[1].Position; p.Epoch != 2 || p.Commit != at.Position.Commit+1 || txs[2].Position.Epoch != 2 {
		t.Errorf("read %+v, then %+v", p, txs[2].Position)
	}
	if _, again := e.read(t, at, 3); again.Position != end.Position {
		t.Errorf("ended at %+v at first, then at %+v", end.Position, again.Position)
	}
	end.Epochs = append(end.Epochs, capture.Epoch{Number: 3, Origin: end.Epochs[0].Origin, From: at.Position.Commit + 1000})
	e.exec(t, "INSERT INTO a VALUES (5, 'x')")
	if txs, _ := e.read(t, end, 1); txs[0].Position.Epoch != 2 {
		t.Errorf("after the checkpoint the epoch is %d", txs[0].Position.Epoch)
	}
}

func TestSecondDomain(t *testing.T) {
	t.Parallel()
	e := newEnv(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MariaDB}))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20))", "CREATE TABLE other (id int)")
	e.need("a", "id", "v")
	e.track(t)
	e.exec(t, "INSERT INTO a VALUES (1, 'x')", "SET gtid_domain_id = 7", "INSERT INTO other VALUES (1)", "SET gtid_domain_id = 0",
		"INSERT INTO a VALUES (2, 'x')")
	txs, at := e.read(t, nil, 2)
	if p := txs[1].Position; !strings.Contains(p.GTID, ",7-") || p.Commit != txs[0].Position.Commit+1 {
		t.Errorf("read %+v", p)
	}
	e.exec(t, "INSERT INTO a VALUES (3, 'x')", "SET gtid_domain_id = 7", "INSERT INTO other VALUES (2)", "INSERT INTO a VALUES (4, 'x')")
	r, _ := startKeeping(t, e.source(t), at)
	var gap *capture.GapError
	if err := r.Wait(t); !errors.As(err, &gap) || gap.Cause != capture.GapSecondDomain || gap.Object != e.db+".a" {
		t.Fatalf("Run ended with %v", err)
	}
	if n := len(r.Recorder.Txs()); n != 1 || r.Recorder.Rows() != 1 {
		t.Errorf("%d transactions and %d rows were handed over", n, r.Recorder.Rows())
	}
	e.exec(t, "SET GLOBAL gtid_domain_id = 7")
	r, _ = startKeeping(t, e.source(t), at)
	if err := r.Wait(t); !errors.As(err, new(*SetupError)) {
		t.Errorf("Run ended with %v", err)
	}
}

// TestStatements: what changes a mapped table without rows is told as such, and everything else is not.
func TestStatements(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20))", "CREATE TABLE b (id int PRIMARY KEY)",
			"CREATE TABLE c (id int) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN MAXVALUE)",
			"CREATE TABLE other (id int)")
		e.need("a", "id", "v")
		e.need("b", "id")
		e.need("c", "id")
		e.track(t)
		e.exec(t,
			// Ordinary DDL, and a schema change beside the application.
			"ALTER TABLE a ADD COLUMN x int", "CREATE INDEX i ON a (v)", "DROP INDEX i ON a", "CREATE TABLE a_new LIKE a", "TRUNCATE other",
			"RENAME TABLE a TO a_old, a_new TO a", "DROP TABLE a_old, other", "CREATE TEMPORARY TABLE b (id int)", "DROP TEMPORARY TABLE b",
			"OPTIMIZE TABLE a",
			"INSERT INTO a (id, v) VALUES (1, 'drop table b')",
			// Without rows.
			"SET binlog_format = 'STATEMENT'", "UPDATE a SET v = 'z' WHERE id = 1", "SET binlog_format = 'ROW'",
			"TRUNCATE a",
			"ALTER TABLE c DROP PARTITION p0",
			"DROP TABLE IF EXISTS nothing, `b`",
			"RENAME TABLE c TO c2",
			"INSERT INTO a (id, v) VALUES (2, 'y')",
		)
		r, _ := startKeeping(t, e.source(t), nil)
		r.Marked(t, &capturetest.Env{Mark: func(tb testing.TB) {
			if err := e.source(tb).EmitHeartbeat(tb.Context()); err != nil {
				tb.Fatal(err)
			}
		}})
		var got []string
		for _, tx := range r.Recorder.Txs() {
			for _, row := range tx.Rows {
				s := row.Op.String() + " " + strings.TrimPrefix(row.Table, e.db+".")
				if row.Lost != "" {
					s += " " + row.Lost
				}
				got = append(got, s)
			}
		}
		want := "insert a, truncate a statement_format, truncate a, truncate c, truncate b table_dropped, truncate c table_dropped, insert a"
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("read %s\ninstead of %s", s, want)
		}
		stopped(t, r)
	})
}

// TestRoutines: what a function or a trigger changed in statement format is in the log as the statement that called it.
func TestRoutines(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v int)", "CREATE TABLE other (id int PRIMARY KEY)")
		e.need("a", "id", "v")
		e.track(t)
		e.exec(t, "CREATE FUNCTION f() RETURNS int DETERMINISTIC MODIFIES SQL DATA BEGIN DELETE FROM a WHERE id = 1; RETURN 1; END",
			"INSERT INTO a VALUES (1, 1)", "SELECT f()", "SET binlog_format = 'STATEMENT'", "INSERT INTO a VALUES (1, 1)", "SELECT f()",
			"INSERT INTO other VALUES (1)", "SET binlog_format = 'ROW'", "INSERT INTO a VALUES (2, 2)")
		txs, _ := e.read(t, nil, 5)
		var got []string
		for _, tx := range txs {
			got = append(got, fmt.Sprint(tx.Rows[0].Op, tx.Rows[0].Lost))
		}
		if s := strings.Join(got, " "); s != "insert delete truncatestatement_format truncatestatement_format insert" {
			t.Errorf("read %s", s)
		}
	})
}

// TestDatabaseDropped is a test of its own, because the heartbeat is gone too.
func TestDatabaseDropped(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		crm := e.db + "x"
		e.server.Exec(t, "", "CREATE DATABASE "+crm, "CREATE TABLE "+crm+".a (id int PRIMARY KEY)")
		e.needs[crm+".a"] = TableNeeds{Columns: []string{"id"}}
		e.track(t)
		e.exec(t, "DROP DATABASE "+crm)
		txs, _ := e.read(t, nil, 1)
		if row := txs[0].Rows[0]; row.Op != capture.OpTruncate || row.Table != crm+".a" || row.Lost != capture.GapDropped {
			t.Errorf("read %+v", row)
		}
	})
}

// TestXA: rows of a prepared transaction may never be committed, so they are not handed over; a gap is.
func TestXA(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE other (id int)")
		e.need("a", "id")
		e.track(t)
		x := "'" + e.db + "'"
		e.exec(t, "XA START "+x, "INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)", "XA END "+x, "XA PREPARE "+x, "XA COMMIT "+x,
			"XA START "+x, "INSERT INTO other VALUES (1)", "XA END "+x, "XA PREPARE "+x, "XA ROLLBACK "+x,
			"INSERT INTO a VALUES (3)")
		txs, _ := e.read(t, nil, 2)
		if row := txs[0].Rows[0]; len(txs[0].Rows) != 1 || row.Lost != capture.GapXA || row.Table != e.db+".a" {
			t.Errorf("read %+v", txs[0].Rows)
		}
		if row := txs[1].Rows[0]; row.New["id"] != "3" {
			t.Errorf("read %+v", row)
		}
	})
}

// TestNotTransactional: with a table of an engine without transactions, rows may stand in the log that were rolled back.
func TestNotTransactional(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE m (id int PRIMARY KEY) ENGINE=MyISAM")
		e.need("a", "id")
		e.need("m", "id")
		e.track(t)
		want := "m1"
		e.exec(t, "INSERT INTO m VALUES (1)")
		if e.mariadb() { // MySQL refuses that with GTIDs
			want = "m1 m2 m3 a2"
			e.exec(t, "BEGIN", "INSERT INTO a VALUES (1)", "INSERT INTO m VALUES (2)", "ROLLBACK",
				"BEGIN", "INSERT INTO a VALUES (2)", "INSERT INTO m VALUES (3)", "COMMIT")
		}
		r, _ := startKeeping(t, e.source(t), nil)
		r.Marked(t, &capturetest.Env{Mark: func(tb testing.TB) {
			if err := e.source(tb).EmitHeartbeat(tb.Context()); err != nil {
				tb.Fatal(err)
			}
		}})
		var got []string
		for _, tx := range r.Recorder.Txs() {
			for _, row := range tx.Rows {
				got = append(got, strings.TrimPrefix(row.Table, e.db+".")+row.New["id"])
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("read %s", s)
		}
		stopped(t, r)
	})
}
