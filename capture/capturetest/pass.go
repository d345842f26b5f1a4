package capturetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/internal/testenv"
)

// snapshotter is the Source as a reader of tables. Every Source has to be one.
func snapshotter(tb testing.TB, src capture.Source) capture.Snapshotter {
	tb.Helper()
	s, ok := src.(capture.Snapshotter)
	if !ok {
		tb.Fatalf("%T is no Snapshotter", src)
	}
	return s
}

// caughtUp marks the end of the log, waits until the stream has passed it, and returns the newest commit.
func (r *Reading) caughtUp(tb testing.TB) capture.Position {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	mark, err := snapshotter(tb, r.Source).Watermark(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	var at capture.Position
	testenv.Eventually(tb, within, func() error {
		all := r.Recorder.All()
		if len(all) == 0 {
			return errors.New("nothing was handed over")
		}
		if at = all[len(all)-1].Position; !mark.Passed(at) {
			return fmt.Errorf("the stream stands at %s, before the mark", at)
		}
		return nil
	})
	return at
}

// readTable reads a table in chunks, from behind a key, and stops after so many rows; 0: at its end.
func readTable(tb testing.TB, s capture.Snapshotter, request capture.ChunkRequest, stop int) (rows []Row, last [][]byte) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		n := 0
		key, done, err := s.ReadChunk(ctx, request, func(c *capture.Change) error {
			n++
			if c.Op != capture.OpRead || c.Old != nil || c.Table == nil {
				tb.Errorf("a row came as %s, with old values %t", c.Op, c.Old != nil)
			}
			values, err := image(c.Table, c.New)
			rows = append(rows, Row{Op: c.Op, Table: c.Table.Name, New: values, Shape: c.Table})
			return err
		})
		if err != nil {
			tb.Fatalf("reading %s after %d rows: %v", request.Table, len(rows), err)
		}
		if n > request.Limit || n > 0 && key == nil || !done && n == 0 {
			tb.Fatalf("a chunk of %s has %d rows of %d, a key: %t, done: %t", request.Table, n, request.Limit, key != nil, done)
		}
		if n > 0 {
			request.After = key
		}
		if done || stop > 0 && len(rows) >= stop {
			return rows, request.After
		}
	}
}

// testReadValues: a row that is read is the row that was streamed, in the same shape.
func testReadValues(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, s varchar(100), n numeric(10,2), e varchar(10), d date, unmapped int"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "s", "n", "e", "d"}})
	env.Exec(t, "INSERT INTO a VALUES (-1, 'Zoë ''O’Hara''\t漢字', 12.50, '', '2024-02-29', 7)", "INSERT INTO a (id) VALUES (0)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	txs := r.Collect(t, 2)
	got, _ := readTable(t, snapshotter(t, r.Source), capture.ChunkRequest{Table: d.Schema + ".a", Limit: 10, Seen: r.caughtUp(t)}, 0)
	if len(got) != len(txs) {
		t.Fatalf("%d rows", len(got))
	}
	for i := range got {
		want := txs[i].Rows[0]
		for _, column := range []string{"id", "s", "n", "e", "d"} {
			if got[i].New[column] != want.New[column] {
				t.Errorf("column %s is read as %q and streamed as %q", column, got[i].New[column], want.New[column])
			}
			is, was := got[i].Shape.Columns[got[i].Shape.Index(column)], want.Shape.Columns[want.Shape.Index(column)]
			if is != was {
				t.Errorf("column %s is read as %+v and streamed as %+v", column, is, was)
			}
		}
		if got[i].Shape != got[0].Shape {
			t.Error("the same shape came with two pointers")
		}
	}
	stopped(t, r)
}

// testReadKeys: along a key of several columns each row comes once, whatever the chunks are.
func testReadKeys(t *testing.T, d Dialect, env *Env) {
	a := d.Schema + ".a"
	env.Exec(t, table(d, "a", "customer int, channel varchar(20), since date, v int, PRIMARY KEY (channel, customer, since)"))
	env.Track(t, Need{Table: a, Columns: []string{"v"}})
	n := 0
	for _, channel := range []string{"'e-mail'", "'E'", "''", "'o''hara'", "'Zoë'", "'%'"} {
		for customer := -1; customer < 2; customer++ {
			for _, since := range []string{"'2024-02-29'", "'1999-12-31'"} {
				env.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, %s, %s, %d)", customer, channel, since, n))
				n++
			}
		}
	}
	r := Start(t, env.Source(t), nil, &Recorder{})
	s, seen := snapshotter(t, r.Source), r.caughtUp(t)
	told, err := s.PassTable(t.Context(), a)
	if err != nil || cmp.Diff([]string{"channel", "customer", "since"}, told.Key) != "" || told.Walk == "" {
		t.Errorf("the table is told as %+v: %v", told, err)
	}
	for _, limit := range []int{1, 2, 5, n - 1, n, n + 1} {
		rows, _ := readTable(t, s, capture.ChunkRequest{Table: a, Limit: limit, Seen: seen}, 0)
		count := map[string]int{}
		for _, row := range rows {
			count[row.New["v"]]++
		}
		if len(rows) != n || len(count) != n {
			t.Errorf("in chunks of %d: %d rows, %d different ones of %d", limit, len(rows), len(count), n)
		}
	}
	stopped(t, r)
}

// testReadOn: another Source goes on behind the key that one had come to, also when the row of the key is gone.
func testReadOn(t *testing.T, d Dialect, env *Env) {
	a := d.Schema + ".a"
	env.Exec(t, table(d, "a", "id varchar(40) PRIMARY KEY, v int"))
	env.Track(t, Need{Table: a, Columns: []string{"id", "v"}})
	for i := range 7 {
		env.Exec(t, fmt.Sprintf("INSERT INTO a VALUES ('customer-%d@example.fr', %d)", i, i))
	}
	r := Start(t, env.Source(t), nil, &Recorder{})
	request := capture.ChunkRequest{Table: a, Limit: 2, Seen: r.caughtUp(t)}
	first, last := readTable(t, snapshotter(t, r.Source), request, 4)
	stopped(t, r)
	env.Exec(t, "DELETE FROM a WHERE v = 3", "DELETE FROM a WHERE v = 5", "UPDATE a SET v = 66 WHERE v = 6", "INSERT INTO a VALUES ('customer-0@aaa', 8)")
	r = Start(t, env.Source(t), nil, &Recorder{})
	request.After, request.Seen = last, r.caughtUp(t)
	rest, _ := readTable(t, snapshotter(t, r.Source), request, 0)
	got := ""
	for _, row := range append(first, rest...) {
		got += row.New["v"] + " "
	}
	if got != "0 1 2 3 4 66 " {
		t.Errorf("read %s", got)
	}
	stopped(t, r)
}

// testReadRefused: a table that cannot be read is refused with its reason, and only that table.
func testReadRefused(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"), table(d, "bare", "id int, v int"), table(d, "loose", "id int NULL UNIQUE"),
		table(d, "unique_one", "id int NOT NULL UNIQUE"))
	var needs []Need
	for _, name := range []string{"a", "bare", "loose", "unique_one"} {
		needs = append(needs, Need{Table: d.Schema + "." + name, Columns: []string{"id"}})
	}
	env.Track(t, needs...)
	env.Exec(t, "INSERT INTO a VALUES (1)", "INSERT INTO bare VALUES (1, 1)", "INSERT INTO unique_one VALUES (1)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	s, seen := snapshotter(t, r.Source), r.caughtUp(t)
	for _, name := range []string{"bare", "loose"} {
		var refused *capture.TableRefusedError
		_, err := s.PassTable(t.Context(), d.Schema+"."+name)
		if !errors.As(err, &refused) || refused.Cause != capture.RefusedNoKey || refused.Table != d.Schema+"."+name || refused.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"a", "unique_one"} {
		if rows, _ := readTable(t, s, capture.ChunkRequest{Table: d.Schema + "." + name, Limit: 10, Seen: seen}, 0); len(rows) != 1 {
			t.Errorf("%s: %d rows", name, len(rows))
		}
	}
	stopped(t, r)
}

// newestOf is what a stream has handed over: of each row its newest version, and the commit up to which that is so.
type newestOf struct {
	mu       sync.Mutex
	versions map[string]int
	at       capture.Position
}

func (n *newestOf) take(tx *Tx) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range tx.Rows {
		if row := &tx.Rows[i]; row.New != nil {
			v, err := strconv.Atoi(row.New["v"])
			if err != nil {
				return err
			}
			n.versions[row.New["id"]] = v
		}
	}
	n.at = tx.Position
	return nil
}

func (n *newestOf) now() (map[string]int, capture.Position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.versions), n.at
}

// testReadSees: no row is read in a state before one that was streamed already.
func testReadSees(t *testing.T, d Dialect, env *Env) {
	const rows, chunks = 10, 300
	a := d.Schema + ".a"
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v int"))
	env.Track(t, Need{Table: a, Columns: []string{"id", "v"}})
	for i := range rows {
		env.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 0)", i))
	}
	streamed := &newestOf{versions: map[string]int{}}
	r := Start(t, env.Source(t), nil, &Recorder{OnCommit: streamed.take})
	r.caughtUp(t)
	s := snapshotter(t, r.Source)
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		for range chunks {
			versions, at := streamed.now()
			_, _, err := s.ReadChunk(ctx, capture.ChunkRequest{Table: a, Limit: rows, Seen: at}, func(c *capture.Change) error {
				row, err := image(c.Table, c.New)
				if err != nil {
					return err
				}
				if v, err := strconv.Atoi(row["v"]); err != nil || v < versions[row["id"]] {
					return fmt.Errorf("row %s is read as %s after %d was streamed (%w)", row["id"], row["v"], versions[row["id"]], err)
				}
				return nil
			})
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := 0; ; i++ {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			stopped(t, r)
			return
		default:
			env.Exec(t, fmt.Sprintf("UPDATE a SET v = v + 1 WHERE id = %d", i%rows))
		}
	}
}

// testMark: a mark is passed when what was written before it has come, also where nothing else is written.
func testMark(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"), table(d, "other", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	r := Start(t, env.Source(t), nil, &Recorder{})
	for i := range 5 {
		env.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d)", i), fmt.Sprintf("INSERT INTO other VALUES (%d)", i))
		mark, err := snapshotter(t, r.Source).Watermark(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if mark.Passed(capture.Position{}) {
			t.Error("a mark is passed before anything has come")
		}
		testenv.Eventually(t, within, func() error {
			all := r.Recorder.All()
			if len(all) == 0 || !mark.Passed(all[len(all)-1].Position) {
				return errors.New("the mark is not passed")
			}
			return nil
		})
		if n := len(r.Recorder.Txs()); n != i+1 {
			t.Errorf("%d of %d transactions had come when the mark was passed", n, i+1)
		}
	}
	stopped(t, r)
}

// testAsk: a question sees what was streamed, in the stream's text forms, and its arguments are bound.
func testAsk(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, n numeric(10,2), d date"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Exec(t, "INSERT INTO a VALUES (1, 12.50, '2024-02-29')", "INSERT INTO a VALUES (2, NULL, NULL)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	seen := r.caughtUp(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := ""
	err := snapshotter(t, r.Source).At(ctx, seen, func(ctx context.Context, q capture.Querier) error {
		return q.Query(ctx, func(row []capture.Value) error {
			for _, v := range row {
				got += fmt.Sprintf("%d:%s ", v.State, v.Text)
			}
			return nil
		}, "SELECT n, d FROM "+d.Schema+".a ORDER BY id")
	})
	if want := fmt.Sprintf("%[1]d:12.50 %[1]d:2024-02-29 %[2]d: %[2]d: ", capture.Present, capture.Null); err != nil || got != want {
		t.Errorf("the answer is %q, want %q: %v", got, want, err)
	}
	stopped(t, r)
}
