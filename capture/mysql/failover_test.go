package mysql

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// keeper is a Handler that remembers epochs as a Pipeline does.
type keeper struct {
	*capturetest.Recorder
	mu     sync.Mutex
	epochs []capture.Epoch
	kept   int
}

func (k *keeper) KeepEpochs(epochs []capture.Epoch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epochs, k.kept = slices.Clone(epochs), k.kept+1
	return nil
}

// checkpoint is what a Pipeline would have written after tx.
func (k *keeper) checkpoint(tb testing.TB, src capture.Source, tx *capturetest.Tx) *capture.Checkpoint {
	tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	c := capturetest.CheckpointAt(tb, src, tx)
	c.Epochs = slices.Clone(k.epochs)
	return c
}

func startKeeping(tb testing.TB, src capture.Source, from *capture.Checkpoint) (*capturetest.Reading, *keeper) {
	tb.Helper()
	k := &keeper{Recorder: &capturetest.Recorder{}}
	if from != nil {
		k.epochs = from.Epochs
	}
	r := capturetest.Start(tb, src, from, k)
	r.Recorder = k.Recorder
	return r, k
}

func stopped(tb testing.TB, r *capturetest.Reading) {
	tb.Helper()
	if err := r.Stop(tb); !errors.Is(err, tb.Context().Err()) && err.Error() != "context canceled" {
		tb.Fatalf("Run ended with %v", err)
	}
}

// same compares what ids and order are made of.
func same(tb testing.TB, want, got *capturetest.Tx) {
	tb.Helper()
	if want.Position.Epoch != got.Position.Epoch || want.Position.Commit != got.Position.Commit || !want.CommittedAt.Equal(got.CommittedAt) {
		tb.Errorf("the transaction came as %+v at first, then as %+v", want.Transaction, got.Transaction)
	}
	rows := func(tx *capturetest.Tx) (list []capturetest.Row) {
		for _, r := range tx.Rows {
			r.Shape = nil
			list = append(list, r)
		}
		return list
	}
	if diff := cmp.Diff(rows(want), rows(got)); diff != "" {
		tb.Error(diff)
	}
}

// pair is a primary and its replica.
type pair struct {
	a, b *env
}

func newPair(tb testing.TB, flavor string) *pair {
	tb.Helper()
	a := testenv.NewMySQL(tb, testenv.MySQLOptions{Flavor: flavor})
	b := testenv.NewMySQL(tb, testenv.MySQLOptions{Flavor: flavor})
	a.Exec(tb, "", "CREATE DATABASE crm")
	b.Follow(tb, a)
	first := envOn(tb, a, "crm")
	first.need("a", "id", "v")
	first.exec(tb, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20))")
	first.track(tb)
	b.CatchUp(tb, a)
	return &pair{a: first, b: first.on(tb, b)}
}

// on is the same database on another server.
func (e *env) on(tb testing.TB, server *testenv.MySQL) *env {
	tb.Helper()
	other := envOn(tb, server, e.db)
	other.needs, other.start, other.change = e.needs, e.start, e.change
	return other
}

func forFlavors(t *testing.T, f func(t *testing.T, flavor string)) {
	t.Helper()
	for _, flavor := range testFlavors {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			f(t, flavor)
		})
	}
}

// TestFailover: what is sent again by the server that took over has the same ids and order, what is new comes after it,
// and so does what the first server writes when it is the primary again.
func TestFailover(t *testing.T) {
	t.Parallel()
	forFlavors(t, func(t *testing.T, flavor string) {
		p := newPair(t, flavor)
		r, k := startKeeping(t, p.a.source(t), nil)
		p.a.exec(t, "SET timestamp = UNIX_TIMESTAMP() - 3600") // MariaDB: the time of a commit is the session's
		for i := range 3 {
			p.a.tx(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 'x'), (%d, 'y')", 10*i, 10*i+1), fmt.Sprintf("UPDATE a SET v = 'z' WHERE id = %d", 10*i))
		}
		before := r.Collect(t, 3)
		at := k.checkpoint(t, r.Source, before[0]) // what came after was published, and not checkpointed
		stopped(t, r)
		p.b.server.CatchUp(t, p.a.server)
		if err := p.a.server.Kill(); err != nil {
			t.Fatal(err)
		}
		p.b.server.Promote(t)
		p.b.exec(t, "INSERT INTO a VALUES (100, 'b')", "INSERT INTO a VALUES (101, 'b')")

		r, k = startKeeping(t, p.b.source(t), at)
		after := r.Collect(t, 4)
		same(t, before[1], after[0])
		same(t, before[2], after[1])
		ascending(t, append(before[:1:1], after...))
		middle := k.checkpoint(t, r.Source, after[2])
		stopped(t, r)
		if flavor == testenv.MySQLServer {
			if after[2].Position.Epoch != 2 || len(k.epochs) != 2 {
				t.Errorf("after the failover the epoch is %d, known are %v", after[2].Position.Epoch, k.epochs)
			}
		} else if after[2].Position.Epoch != 1 || k.kept != 0 {
			t.Errorf("after the failover the epoch is %d, known are %v", after[2].Position.Epoch, k.epochs)
		}

		// Back to the first server, which has been a replica meanwhile.
		if err := p.a.server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.a.server.Follow(t, p.b.server)
		p.a.server.CatchUp(t, p.b.server)
		if err := p.b.server.Kill(); err != nil {
			t.Fatal(err)
		}
		p.a.server.Promote(t)
		again := p.a.on(t, p.a.server)
		again.exec(t, "INSERT INTO a VALUES (200, 'a')")
		r, _ = startKeeping(t, again.source(t), middle)
		last := r.Collect(t, 2)
		same(t, after[3], last[0])
		ascending(t, append(after[:4:4], last[1]))
		stopped(t, r)
	})
}

func ascending(tb testing.TB, txs []*capturetest.Tx) {
	tb.Helper()
	for i := 1; i < len(txs); i++ {
		a, b := txs[i-1].Position, txs[i].Position
		if a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Commit >= b.Commit {
			tb.Errorf("%+v is not after %+v", b, a)
		}
	}
}

// TestFailoverToLaggingReplica: the promoted server lacks what was read already.
func TestFailoverToLaggingReplica(t *testing.T) {
	t.Parallel()
	forFlavors(t, func(t *testing.T, flavor string) {
		p := newPair(t, flavor)
		p.b.server.Promote(t) // it sees nothing of what follows
		r, k := startKeeping(t, p.a.source(t), nil)
		p.a.exec(t, "INSERT INTO a VALUES (1, 'a')")
		at := k.checkpoint(t, r.Source, r.Collect(t, 1)[0])
		stopped(t, r)
		p.b.exec(t, "INSERT INTO a VALUES (1, 'other')", "INSERT INTO a VALUES (2, 'b')")
		r, _ = startKeeping(t, p.b.source(t), at)
		wantGap(t, r, capture.GapForkedHistory)
	})
}

func wantGap(tb testing.TB, r *capturetest.Reading, cause string) {
	tb.Helper()
	err := r.Wait(tb)
	var gap *capture.GapError
	if !errors.As(err, &gap) || gap.Cause != cause || gap.Hint == "" {
		tb.Fatalf("Run ended with %v instead of the gap %s", err, cause)
	}
	if n := r.Recorder.Rows(); n != 0 {
		tb.Errorf("%d rows were handed over behind a gap", n)
	}
}
