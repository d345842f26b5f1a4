package capturetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/internal/testenv"
)

func testOrder(t *testing.T, d Dialect, env *Env) {
	a := d.Schema + ".a"
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v varchar(20)"), table(d, "b", "id int PRIMARY KEY, v varchar(20)"))
	env.Track(t, Need{Table: a, Columns: []string{"id", "v"}}, Need{Table: d.Schema + ".b", Columns: []string{"id"}})
	env.Tx(t, "INSERT INTO a VALUES (1, 'x'), (2, 'y')", "UPDATE a SET v = 'z' WHERE id = 1", "INSERT INTO b VALUES (1, 'b')")
	env.Exec(t, "UPDATE a SET id = 3 WHERE id = 2", "DELETE FROM a WHERE id = 1")
	r := Start(t, env.Source(t), nil, &Recorder{})
	txs := r.Collect(t, 3)
	if got := ops(txs[0]); got != "insert insert update insert" {
		t.Errorf("first transaction: %s", got)
	}
	if got := txs[0].Rows[2].New; !cmp.Equal(got, map[string]string{"id": "1", "v": "z"}) {
		t.Errorf("update: %v", got)
	}
	if got := txs[0].Rows[3].Table; got != d.Schema+".b" {
		t.Errorf("fourth change is of %s", got)
	}
	if got := txs[1].Rows[0].Old["id"]; got != "2" {
		t.Errorf("the update of a key has old key %q", got)
	}
	if got := txs[2].Rows[0].Old["id"]; got != "1" || txs[2].Rows[0].New != nil {
		t.Errorf("delete: %v", txs[2].Rows[0])
	}
	stopped(t, r)
}

func testRollback(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Tx(t, "INSERT INTO a VALUES (1)", "ROLLBACK", "BEGIN")
	env.Tx(t, "INSERT INTO a VALUES (2)", "SAVEPOINT s", "INSERT INTO a VALUES (3)", "ROLLBACK TO SAVEPOINT s", "INSERT INTO a VALUES (4)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	r.Marked(t, env)
	txs := r.Collect(t, 1)
	if len(txs[0].Rows) != 2 || txs[0].Rows[0].New["id"] != "2" || txs[0].Rows[1].New["id"] != "4" {
		t.Errorf("rows %v", txs[0].Rows)
	}
	stopped(t, r)
}

func testValues(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, s varchar(100), n numeric(10,2), e varchar(10), d date"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "s", "n", "e", "d"}})
	env.Exec(t, "INSERT INTO a VALUES (-1, 'Zoë ''O’Hara''\t漢字', 12.50, '', '2024-02-29')", "INSERT INTO a (id) VALUES (0)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	txs := r.Collect(t, 2)
	want := map[string]string{"id": "-1", "s": "Zoë 'O’Hara'\t漢字", "n": "12.50", "e": "", "d": "2024-02-29"}
	if diff := cmp.Diff(want, txs[0].Rows[0].New); diff != "" {
		t.Error(diff)
	}
	want = map[string]string{"id": "0", "s": Null, "n": Null, "e": Null, "d": Null}
	if diff := cmp.Diff(want, txs[1].Rows[0].New); diff != "" {
		t.Error(diff)
	}
	stopped(t, r)
}

// testUnchanged: a long value that an UPDATE did not touch is either sent or said to be unchanged, never NULL or empty.
func testUnchanged(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v int, doc "+d.BigText))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "doc"}})
	doc := noise(longText)
	env.Exec(t, "INSERT INTO a VALUES (1, 1, '"+doc+"')", "UPDATE a SET v = 2", "UPDATE a SET doc = NULL")
	r := Start(t, env.Source(t), nil, &Recorder{})
	txs := r.Collect(t, 3)
	for i, want := range []func(string) bool{
		func(s string) bool { return s == doc },
		func(s string) bool { return s == doc || s == Unchanged },
		func(s string) bool { return s == Null },
	} {
		if got := txs[i].Rows[0].New["doc"]; !want(got) {
			t.Errorf("transaction %d has %.40q", i, got)
		}
	}
	stopped(t, r)
}

// noise is text that does not compress well.
func noise(n int) string {
	var b strings.Builder
	x := uint32(1)
	for b.Len() < n {
		x = x*1664525 + 1013904223
		b.WriteByte("abcdefghijklmnopqrstuvwxyzABCDEF"[x>>27])
	}
	return b.String()
}

func testTruncate(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"), table(d, "other", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Exec(t, "INSERT INTO a VALUES (1)", "TRUNCATE TABLE other", "TRUNCATE TABLE a")
	r := Start(t, env.Source(t), nil, &Recorder{})
	txs := r.Collect(t, 2)
	if row := txs[1].Rows[0]; len(txs[1].Rows) != 1 || row.Op != capture.OpTruncate || row.Table != d.Schema+".a" {
		t.Errorf("after TRUNCATE: %v", txs[1])
	}
	stopped(t, r)
}

func testUnmapped(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"), table(d, "other", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Tx(t, "INSERT INTO other VALUES (1)", "INSERT INTO a VALUES (1)", "INSERT INTO other VALUES (2)")
	env.Exec(t, "INSERT INTO other VALUES (3)", "INSERT INTO a VALUES (2)")
	r := Start(t, env.Source(t), nil, &Recorder{})
	for _, tx := range r.Collect(t, 2) {
		if len(tx.Rows) != 1 || tx.Rows[0].Table != d.Schema+".a" {
			t.Errorf("transaction %v", tx)
		}
	}
	stopped(t, r)
}

func testShapes(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v varchar(20), x int"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "v"}})
	r := Start(t, env.Source(t), nil, &Recorder{})
	env.Exec(t, "INSERT INTO a VALUES (1, 'a', 7)", "INSERT INTO a VALUES (2, 'b', 7)",
		"ALTER TABLE a ADD COLUMN added int", "INSERT INTO a VALUES (3, 'c', 7, 8)",
		"ALTER TABLE a DROP COLUMN x", "INSERT INTO a VALUES (4, 'd', 9)",
		"ALTER TABLE a RENAME COLUMN added TO renamed", "INSERT INTO a VALUES (5, 'e', 9)",
		"ALTER TABLE a DROP COLUMN renamed", "ALTER TABLE a ADD COLUMN y int", "INSERT INTO a VALUES (6, 'f', 9)")
	txs := r.Collect(t, 6)
	for i, want := range []map[string]string{
		{"id": "1", "v": "a", "x": "7"},
		{"id": "2", "v": "b", "x": "7"},
		{"id": "3", "v": "c", "x": "7", "added": "8"},
		{"id": "4", "v": "d", "added": "9"},
		{"id": "5", "v": "e", "renamed": "9"},
		{"id": "6", "v": "f", "y": "9"},
	} {
		if d.MappedOnly {
			maps.DeleteFunc(want, func(column, _ string) bool { return column != "id" && column != "v" })
		}
		if diff := cmp.Diff(want, txs[i].Rows[0].New); diff != "" {
			t.Error(diff)
		}
	}
	if txs[0].Rows[0].Shape != txs[1].Rows[0].Shape {
		t.Error("the same shape came with two pointers")
	}
	if txs[1].Rows[0].Shape == txs[2].Rows[0].Shape {
		t.Error("another shape came with the same pointer")
	}
	stopped(t, r)
}

func testColumnGone(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v varchar(20)"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "v"}})
	r := Start(t, env.Source(t), nil, &Recorder{})
	env.Exec(t, "INSERT INTO a VALUES (1, 'a')", "ALTER TABLE a RENAME COLUMN v TO w", "INSERT INTO a VALUES (2, 'b')")
	err := r.Wait(t)
	if err == nil || !strings.Contains(err.Error(), d.Schema+".a") || !strings.Contains(err.Error(), "column v") || !capture.IsPermanent(err) {
		t.Fatalf("Run ended with %v", err)
	}
	if txs := r.Recorder.Txs(); len(txs) != 1 || r.Recorder.Rows() != 1 {
		t.Errorf("handed over: %v and %d rows", txs, r.Recorder.Rows())
	}
}

// testLarge: memory does not grow with the size of a transaction.
func testLarge(t *testing.T, d Dialect, env *Env) {
	const rows = 100_000
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v varchar(200)"), table(d, "ten", "n int PRIMARY KEY"),
		"INSERT INTO ten VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9)")
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "v"}})
	env.Exec(t, `INSERT INTO a SELECT a.n + 10*b.n + 100*c.n + 1000*d.n + 10000*e.n,
		'some text that makes the row a hundred bytes long, so that it is about as long as a row of a real table'
		FROM ten a, ten b, ten c, ten d, ten e`)
	src := env.Source(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	rec := &Recorder{CountOnly: true}
	r := Start(t, src, nil, rec)
	r.Collect(t, 1)
	runtime.ReadMemStats(&after)
	if rec.Rows() != rows {
		t.Errorf("%d rows", rec.Rows())
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 6<<20+d.Garbage {
		t.Errorf("%d MB were allocated for %d rows", grown>>20, rows)
	}
	stopped(t, r)
}

// testReadAgain: what is read again after a checkpoint is the same, and begins behind it.
func testReadAgain(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, v varchar(20)"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id", "v"}})
	for i := range 5 {
		env.Tx(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 'x')", 2*i), fmt.Sprintf("INSERT INTO a VALUES (%d, 'y')", 2*i+1))
	}
	src := env.Source(t)
	first := Start(t, src, nil, &Recorder{})
	all := first.Collect(t, 5)
	at := CheckpointAt(t, src, all[1])
	stopped(t, first)

	again := Start(t, env.Source(t), at, &Recorder{})
	rest := again.Collect(t, 3)
	for i := range rest {
		if diff := cmp.Diff(all[2+i].Transaction, rest[i].Transaction); diff != "" {
			t.Error(diff)
		}
		for j := range rest[i].Rows {
			was, is := all[2+i].Rows[j], rest[i].Rows[j]
			was.Shape, is.Shape = nil, nil
			if diff := cmp.Diff(was, is); diff != "" {
				t.Error(diff)
			}
		}
	}
	// Acknowledged, the server moves on, and the next start needs no passing by.
	again.Source.Acknowledge(rest[2].Position)
	awaitConfirmed(t, env, rest[2].Position.End)
	end := CheckpointAt(t, again.Source, rest[2])
	stopped(t, again)
	env.Exec(t, "INSERT INTO a VALUES (100, 'z')")
	third := Start(t, env.Source(t), end, &Recorder{})
	if tx := third.Collect(t, 1)[0]; tx.Rows[0].New["id"] != "100" {
		t.Errorf("read %v", tx)
	}
	stopped(t, third)
}

func awaitConfirmed(tb testing.TB, env *Env, end uint64) {
	tb.Helper()
	testenv.Eventually(tb, within, func() error {
		if got := env.Confirmed(tb); got != 0 && got != end {
			return fmt.Errorf("confirmed %x instead of %x", got, end)
		}
		return nil
	})
}

func testUnacknowledged(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Exec(t, "INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)")
	was := env.Confirmed(t)
	first := Start(t, env.Source(t), nil, &Recorder{})
	all := first.Collect(t, 2)
	// A position that was not handed over is nothing to tell the server.
	beyond := all[1].Position
	beyond.End += 1 << 30
	first.Source.Acknowledge(capture.Position{})
	stopped(t, first)
	if got := env.Confirmed(t); got != was {
		t.Errorf("nothing was acknowledged, the server has %x instead of %x", got, was)
	}
	second := Start(t, env.Source(t), nil, &Recorder{})
	again := second.Collect(t, 2)
	for i := range all {
		if diff := cmp.Diff(all[i].Transaction, again[i].Transaction); diff != "" {
			t.Error(diff)
		}
	}
	second.Source.Acknowledge(beyond)
	awaitConfirmed(t, env, all[1].Position.End)
	stopped(t, second)
}

func testHandlerFails(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Exec(t, "INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)")
	boom := errors.New("the handler's own error")
	r := Start(t, env.Source(t), nil, &Recorder{OnCommit: func(tx *Tx) error {
		if tx.Own() {
			return nil
		}
		return boom
	}})
	if err := r.Wait(t); !errors.Is(err, boom) {
		t.Fatalf("Run ended with %v", err)
	}
	if n := len(r.Recorder.Txs()); n != 1 {
		t.Errorf("%d transactions were handed over", n)
	}
	again := Start(t, env.Source(t), nil, &Recorder{})
	again.Collect(t, 2)
	stopped(t, again)
}

// fullHandler has no room until release.
type fullHandler struct {
	*Recorder
	mu   sync.Mutex
	room chan struct{}
	full bool
}

func (h *fullHandler) Full() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.full {
		return nil
	}
	return h.room
}

func (h *fullHandler) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = false
	close(h.room)
}

// testFull: a Handler without room for much longer than the server waits for a sign of life costs nothing but time.
func testFull(t *testing.T, d Dialect, env *Env) {
	const patience = 2 * time.Second
	env.Exec(t, table(d, "a", "id int PRIMARY KEY, doc "+d.BigText))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	env.Timeout(t, patience)
	for i := range 200 { // more than what lies in the buffers between
		env.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, '%s')", i, noise(longText)))
	}
	h := &fullHandler{Recorder: &Recorder{}, room: make(chan struct{}), full: true}
	src := env.Source(t)
	r := Start(t, src, nil, h)
	r.Recorder = h.Recorder
	select {
	case err := <-r.done:
		t.Fatalf("Run ended while the handler was full: %v", err)
	case <-time.After(3 * patience):
	}
	if h.Rows() != 0 {
		t.Errorf("%d rows were handed to a full handler", h.Rows())
	}
	h.release()
	r.Collect(t, 200)
	stopped(t, r)
}

func testInterrupted(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	src := env.Source(t)
	r := Start(t, src, nil, &Recorder{})
	env.Exec(t, "INSERT INTO a VALUES (1)")
	first := r.Collect(t, 1)
	at := CheckpointAt(t, src, first[0])
	env.Interrupt(t)
	err := r.Wait(t)
	if err == nil || errors.Is(err, context.Canceled) || capture.IsPermanent(err) || errors.As(err, new(*capture.GapError)) {
		t.Fatalf("Run ended with %v, which should be an error that goes away by itself", err)
	}
	env.Exec(t, "INSERT INTO a VALUES (2)")
	again := Start(t, src, at, &Recorder{}) // the same Source can be run again
	if tx := again.Collect(t, 1)[0]; tx.Rows[0].New["id"] != "2" {
		t.Errorf("read %v", tx)
	}
	stopped(t, again)
}

// testIdle: where nothing mapped is written, marks let the server forget its log.
func testIdle(t *testing.T, d Dialect, env *Env) {
	env.Exec(t, table(d, "a", "id int PRIMARY KEY"), table(d, "other", "id int PRIMARY KEY"))
	env.Track(t, Need{Table: d.Schema + ".a", Columns: []string{"id"}})
	r := Start(t, env.Source(t), nil, &Recorder{})
	r.Marked(t, env)
	was := env.Confirmed(t)
	env.Exec(t, "INSERT INTO other VALUES (1)")
	r.Marked(t, env)
	all := r.Recorder.All()
	r.Source.Acknowledge(all[len(all)-1].Position)
	testenv.Eventually(t, within, func() error {
		if now := env.Confirmed(t); now != 0 && now <= was {
			return fmt.Errorf("the server still remembers %x", now)
		}
		return nil
	})
	stopped(t, r)
}
