package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/internal/testenv"
)

// ignore takes a row and looks away.
func ignore(*capture.Change) error { return nil }

// TestTablesThatNoPassCanWalk are refused, each with its reason, and with what to do.
func TestTablesThatNoPassCanWalk(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE bare (id INT, v INT, KEY (id))", "CREATE TABLE maybe (id INT NULL, UNIQUE (id))",
			"CREATE TABLE half (id VARCHAR(100) NOT NULL, PRIMARY KEY (id(5)))", "CREATE VIEW shown AS SELECT * FROM bare",
			"CREATE TABLE short (id INT PRIMARY KEY)", "CREATE TABLE good (a INT NOT NULL, b INT, c INT NOT NULL, UNIQUE (b), UNIQUE wide (a, c), UNIQUE one (c))",
			"INSERT INTO good VALUES (1, NULL, 7), (2, NULL, 5)")
		for _, table := range []string{"bare", "maybe", "half", "shown", "gone"} {
			e.need(table, "id")
		}
		e.need("short", "id", "v")
		e.need("good", "a")
		e.track(t)
		p := e.pass(t)
		for table, want := range map[string][2]string{
			"bare": {capture.RefusedNoKey, "neither a primary key"}, "maybe": {capture.RefusedNoKey, "NOT NULL"}, "half": {capture.RefusedNoKey, "only the beginning of column id"},
			"shown": {capture.RefusedKind, "view"}, "gone": {capture.RefusedMissing, "no such table"}, "short": {capture.RefusedShape, "column v"},
			"unmapped": {capture.RefusedMissing, "not among the mapped"},
		} {
			var refused *capture.TableRefusedError
			_, err := p.src.PassTable(t.Context(), e.db+"."+table)
			if !errors.As(err, &refused) || refused.Cause != want[0] || !strings.Contains(refused.Hint, want[1]) {
				t.Errorf("%s: %v", table, err)
			}
			if _, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + "." + table, Limit: 1}, ignore); !errors.As(err, &refused) {
				t.Errorf("%s is read: %v", table, err)
			}
		}
		told, err := p.src.PassTable(t.Context(), e.db+".good")
		if err != nil || !slices.Equal(told.Key, []string{"a", "c"}) || told.Rows < 0 {
			t.Errorf("a table with a unique key: %+v %v", told, err)
		}
		if got := p.rows(t, "good", "a", 1); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("read %v", got)
		}
		e.exec(t, "INSERT INTO good VALUES (3, NULL, 9)")
		shape := p.reading.Collect(t, 1)[0].Rows[0].Shape
		known, err := p.src.walkOf(t.Context(), e.db+".good")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(shape, known.walk.table); diff != "" {
			t.Errorf("the shape differs from the stream's, whose keys name contact points: %s", diff)
		}
	})
}

// TestAlteredWhileItIsRead: what the key survives goes on, and with another key the table is read again from its start.
func TestAlteredWhileItIsRead(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id INT NOT NULL PRIMARY KEY, k VARCHAR(9) COLLATE utf8mb4_unicode_ci NOT NULL, v VARCHAR(9))",
			"INSERT INTO a VALUES (1, 'c', 'x'), (2, 'b', 'y'), (3, 'a', 'z')")
		e.need("a", "id", "v")
		e.track(t)
		p := e.pass(t)
		seen := p.newest(t)
		read := func(after [][]byte) (last [][]byte, got string, table *capture.Table, err error) {
			t.Helper()
			last, _, err = p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", After: after, Limit: 1, Seen: seen}, func(c *capture.Change) error {
				got, table = texts(c.New), c.Table
				return nil
			})
			return last, got, table, err
		}
		last, got, first, err := read(nil)
		if err != nil || got != "1|-|x" {
			t.Fatalf("read %q: %v", got, err)
		}
		e.exec(t, "ALTER TABLE a AUTO_INCREMENT = 77", "ANALYZE TABLE a")
		if _, _, table, err := read(last); err != nil || table != first {
			t.Errorf("the same shape came with two pointers: %v", err)
		}
		e.exec(t, "ALTER TABLE a ADD COLUMN added INT FIRST, ADD UNIQUE (v)")
		last, got, second, err := read(last)
		if err != nil || got != "-|2|-|y" || second == first {
			t.Errorf("behind a column that was added: %q %v", got, err)
		}
		e.exec(t, "ALTER TABLE a DROP PRIMARY KEY, ADD PRIMARY KEY (k)")
		if _, _, _, err := read(last); !errors.Is(err, capture.ErrTableChanged) {
			t.Fatalf("with another key: %v", err)
		}
		if _, _, _, err := read(nil); !errors.Is(err, capture.ErrTableChanged) {
			t.Fatalf("until PassTable is asked: %v", err)
		}
		was, err := p.src.PassTable(t.Context(), e.db+".a")
		if err != nil || !slices.Equal(was.Key, []string{"k"}) {
			t.Fatalf("%+v %v", was, err)
		}
		if last, got, _, err = read(nil); err != nil || got != "-|3|a|z" {
			t.Errorf("along the new key: %q %v", got, err)
		}
		e.exec(t, "ALTER TABLE a MODIFY k VARCHAR(9) COLLATE utf8mb4_bin NOT NULL")
		if _, _, _, err = read(last); !errors.Is(err, capture.ErrTableChanged) {
			t.Errorf("under another collation: %v", err)
		}
		if now, err := p.src.PassTable(t.Context(), e.db+".a"); err != nil || now.Walk == was.Walk {
			t.Errorf("another collation has the same walk %q: %v", now.Walk, err)
		}
		e.exec(t, "ALTER TABLE a DROP COLUMN v")
		var refused *capture.TableRefusedError
		if _, _, _, err = read(nil); !errors.As(err, &refused) || refused.Cause != capture.RefusedShape {
			t.Errorf("without a mapped column: %v", err)
		}
	})
}

// TestLargeRowsComeInSmallChunks: the memory of a chunk is bounded, whatever the rows are.
func TestLargeRowsComeInSmallChunks(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id INT PRIMARY KEY, doc LONGTEXT)")
		for i := range 12 {
			e.exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, REPEAT('x', %d))", i, 1<<20))
		}
		e.need("a", "id", "doc")
		e.track(t)
		p := e.pass(t)
		seen := p.newest(t)
		rows, chunks := 0, 0
		var after [][]byte
		for done := false; !done; chunks++ {
			bytes := 0
			var err error
			after, done, err = p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", After: after, Limit: 1000, Seen: seen}, func(c *capture.Change) error {
				rows++
				bytes += len(c.New[1].Text)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if bytes > maxChunk {
				t.Errorf("a chunk of %d bytes", bytes)
			}
		}
		if rows != 12 || chunks < 3 {
			t.Errorf("%d rows in %d chunks", rows, chunks)
		}
	})
}

// TestAReadHoldsNothingBack: when the first row is looked at, the snapshot has ended, and the application changes the table.
func TestAReadHoldsNothingBack(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id INT PRIMARY KEY, v INT)", "INSERT INTO a VALUES (1, 1), (2, 2)", "SET SESSION lock_wait_timeout = 2")
		e.need("a", "id", "v")
		e.track(t)
		p := e.pass(t)
		got := ""
		_, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", Limit: 10, Seen: p.newest(t)}, func(c *capture.Change) error {
			if got == "" {
				e.exec(t, "ALTER TABLE a ADD COLUMN w INT", "DELETE FROM a WHERE id = 2")
			}
			got += texts(c.New) + " "
			return nil
		})
		if err != nil || got != "1|1 2|2 " {
			t.Errorf("read %q: %v", got, err)
		}
	})
}

// TestAQuestionsAnswer: values in the forms of the stream, arguments bound, and not a change.
func TestAQuestionsAnswer(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(40), at TIMESTAMP(3) NULL, n DECIMAL(8,2), u BIGINT UNSIGNED, b VARBINARY(4), e ENUM('x','y'))",
			"SET time_zone = '+00:00'", "INSERT INTO a VALUES (1, 'it''s', '2024-02-29 23:59:59.5', 1.5, 18446744073709551615, x'00ff', 'y'), (2, NULL, NULL, NULL, NULL, NULL, NULL)")
		e.track(t)
		p := e.pass(t)
		seen := p.newest(t)
		var got []string
		err := p.src.At(t.Context(), seen, func(ctx context.Context, q capture.Querier) error {
			for _, id := range []int{1, 2} {
				err := q.Query(ctx, func(row []capture.Value) error {
					got = append(got, texts(row))
					return nil
				}, "SELECT v, at, n, u, b, e, id FROM "+quoteTable(e.db+".a")+" WHERE id = ? AND (v = ? OR v IS NULL)", id, "it's")
				if err != nil {
					return err
				}
			}
			return nil
		})
		want := []string{`it's|2024-02-29 23:59:59.500+00|1.50|18446744073709551615|\x00ff|y|1`, "NULL|NULL|NULL|NULL|NULL|NULL|2"}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q: %v", got, err)
		}
		boom := errors.New("the caller's own error")
		if err := p.src.At(t.Context(), seen, func(context.Context, capture.Querier) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
		err = p.src.At(t.Context(), seen, func(ctx context.Context, q capture.Querier) error {
			return q.Query(ctx, func([]capture.Value) error { return nil }, "DELETE FROM "+quoteTable(e.db+".a"))
		})
		if err == nil || e.query(t, "SELECT COUNT(*) FROM a") != "2" {
			t.Errorf("a question changed the source: %v", err)
		}
	})
}

// TestAPassWithoutGTIDs: reads are put behind a heartbeat where the server commits in the order of its log, and refused where
// it need not.
func TestAPassWithoutGTIDs(t *testing.T) {
	t.Parallel()
	server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer, WithoutGTID: true})
	e := newEnv(t, server)
	e.change = func(o *Options) { o.RequireGTID = false }
	e.exec(t, "CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(9))", "INSERT INTO a VALUES (1, 'x'), (2, 'y')")
	e.need("a", "id", "v")
	e.track(t)
	p := e.pass(t)
	if got := p.rows(t, "a", "id", 1); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("read %v", got)
	}
	server.Exec(t, "", "SET GLOBAL binlog_group_commit_sync_delay = 1000000")
	committed := make(chan error, 1)
	go func() {
		_, err := e.pool.ExecContext(context.Background(), "UPDATE a SET v = 'gone' WHERE id = 1")
		committed <- err
	}()
	tx := p.reading.Collect(t, 1)[0]
	if got := e.query(t, "SELECT v FROM a WHERE id = 1"); got != "x" {
		t.Fatalf("the race is not there: another session sees %q", got)
	}
	_, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", Limit: 1, Seen: tx.Position}, func(c *capture.Change) error {
		if got := texts(c.New); got != "1|gone" {
			t.Errorf("read %q", got)
		}
		return nil
	})
	if err := errors.Join(err, <-committed); err != nil {
		t.Error(err)
	}
	server.Exec(t, "", "SET GLOBAL binlog_group_commit_sync_delay = 0", "SET GLOBAL binlog_order_commits = OFF")
	var refused *capture.TableRefusedError
	if _, err := p.src.PassTable(t.Context(), e.db+".a"); !errors.As(err, &refused) || refused.Cause != capture.RefusedOrder {
		t.Errorf("without an order: %v", err)
	}
	if _, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", Limit: 1, Seen: tx.Position}, ignore); !errors.Is(err, errUnordered) {
		t.Errorf("without an order: %v", err)
	}
}

// TestASnapshotsPlaceIsFoundInTheLog: before the stream has handed anything over its place in the file is not known.
func TestASnapshotsPlaceIsFoundInTheLog(t *testing.T) {
	e := newEnv(t, testenv.SharedMySQL(t, testenv.MariaDB))
	e.exec(t, "CREATE TABLE a (id INT PRIMARY KEY)", "INSERT INTO a VALUES (1)")
	e.need("a", "id")
	e.track(t)
	src := e.plainSource(t)
	seen := capture.Position{GTID: e.start.Start}
	if _, done, err := src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", Limit: 10, Seen: seen}, ignore); err != nil || !done {
		t.Errorf("done %t: %v", done, err)
	}
	g, err := parseDomainGTID(e.start.Start)
	if err != nil {
		t.Fatal(err)
	}
	g.number += 1 << 40
	ctx, cancel := context.WithTimeout(t.Context(), 2*sqlTimeout/15)
	defer cancel()
	if _, _, err := src.ReadChunk(ctx, capture.ChunkRequest{Table: e.db + ".a", Limit: 10, Seen: capture.Position{GTID: g.String()}}, ignore); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("what never was is seen: %v", err)
	}
}

// TestAPassNeedsPrivileges: on the mapped columns and on those of the key, which check names and setup grants; no more.
func TestAPassNeedsPrivileges(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, map[string]TableNeeds{"consent": {Columns: []string{"customer_id", "status"}, SubjectColumns: []string{"customer_id"}}},
			"CREATE TABLE consent (id INT PRIMARY KEY, customer_id INT, status VARCHAR(9), secret VARCHAR(9))", "INSERT INTO consent VALUES (7, 1, 'Y', 's')",
			"CREATE USER ~", "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO ~", "GRANT SELECT (customer_id, status), REFERENCES ON consent TO ~")
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		server.Exec(t, c.db, "GRANT SELECT, UPDATE ON lethe_heartbeat TO "+c.user)
		src, err := New(c.options)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = src.Close(context.Background()) }()
		var refused *capture.TableRefusedError
		if _, err := src.PassTable(t.Context(), c.db+".consent"); !errors.As(err, &refused) || refused.Cause != capture.RefusedGrant || !strings.Contains(refused.Hint, "SELECT (`customer_id`, `id`, `status`)") {
			t.Errorf("without the key: %v", err)
		}
		findings := c.check(t)
		c.expect(t, findings, "warning key_denied consent")
		if fix := c.find(t, findings, CodeKeyDenied).FixSQL; len(fix) != 1 || !strings.Contains(fix[0], "SELECT (`id`)") {
			t.Fatalf("the statement is %q", fix)
		}
		if ran, left, err := Setup(t.Context(), c.owner(), c.options); err != nil || len(ran) != 1 || len(left) != 0 {
			t.Fatalf("setup ran %q and left %v: %v", ran, left, err)
		}
		got := ""
		id, err := src.Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		request := capture.ChunkRequest{Table: c.db + ".consent", Limit: 10, Seen: capture.Position{GTID: id.Start}}
		if _, _, err := src.ReadChunk(t.Context(), request, func(c *capture.Change) error { got = texts(c.New); return nil }); err != nil || got != "7|1|Y|-" {
			t.Errorf("with the key: %q %v", got, err)
		}
	})
}

// TestAnErrorOfAPassHoldsNoValue: a key may be an e-mail address.
func TestAnErrorOfAPassHoldsNoValue(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id VARCHAR(40) PRIMARY KEY, n INT)", "INSERT INTO a VALUES ('anna@example.fr', 1)")
		e.need("a", "id", "n")
		e.track(t)
		p := e.pass(t)
		seen := p.newest(t)
		e.exec(t, "ALTER TABLE a ADD COLUMN m INT AS (n / 0)")
		for _, after := range [][][]byte{{[]byte("anna@example.fr"), []byte("x")}, {}} {
			_, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", After: after, Limit: 1, Seen: seen}, ignore)
			if !errors.Is(err, capture.ErrTableChanged) || strings.Contains(err.Error(), "anna") {
				t.Errorf("a key of another table: %v", err)
			}
		}
		e.exec(t, "DROP TABLE a", "CREATE TABLE a (id INT PRIMARY KEY, n INT)")
		_, _, err := p.src.ReadChunk(t.Context(), capture.ChunkRequest{Table: e.db + ".a", After: [][]byte{[]byte("anna@example.fr")}, Limit: 1, Seen: seen}, ignore)
		if !errors.Is(err, capture.ErrTableChanged) || strings.Contains(err.Error(), "anna") {
			t.Errorf("a key of another type: %v", err)
		}
	})
}
