// Package capturetest is what every capture.Source must do, as tests against a real server.
package capturetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/internal/testenv"
)

// Env is one database with a log position of its own, made for one test.
type Env struct {
	// Exec runs statements, each in a transaction of its own, as the application's user.
	Exec func(tb testing.TB, statements ...string)
	// Tx runs statements in one transaction.
	Tx func(tb testing.TB, statements ...string)
	// Track publishes tables (schema.table) and makes the place from which Source reads the log. It is called once, after
	// the tables are there.
	Track func(tb testing.TB, needs ...Need)
	// Source makes a Source on that place.
	Source func(tb testing.TB) capture.Source
	// Mark writes something into the log that comes back as a transaction of its own with a message.
	Mark func(tb testing.TB)
	// Confirmed is the position that the server remembers as acknowledged; 0 where servers do not remember one.
	Confirmed func(tb testing.TB) uint64
	// Timeout makes the server end connections that say nothing for so long; it is called before Source.
	Timeout func(tb testing.TB, d time.Duration)
	// Interrupt ends the Source's connection from the server's side.
	Interrupt func(tb testing.TB)
	// Schema replaces the Dialect's where each test has one of its own; empty: it does not.
	Schema string
}

// Need is a table that is read, with the columns that rules need of it.
type Need struct {
	Table   string
	Columns []string
	// Old are the columns that the old image has to carry.
	Old []string
}

// Dialect is the SQL that differs between servers. Schema is the prefix of all tables.
type Dialect struct {
	Schema string
	// BigText is the type of a column whose values of LongText length are stored out of line.
	BigText string
	// MappedOnly is set for a Source that reads the needed columns only; all others are absent.
	MappedOnly bool
	// Server is the server's line of a source in the config; empty: one of PostgreSQL.
	Server string
	// Garbage is how many bytes the Source's library may allocate, and leave, for a transaction of 100,000 rows of a
	// hundred bytes; 0: as little as nothing.
	Garbage uint64
}

const (
	within = 60 * time.Second
	// longText is stored out of line and compresses badly.
	longText = 20_000
)

// Run runs the suite. open is called once for each test.
func Run(t *testing.T, d Dialect, open func(testing.TB) *Env) {
	t.Helper()
	for _, test := range []struct {
		name string
		f    func(*testing.T, Dialect, *Env)
	}{
		{"order and boundaries", testOrder},
		{"rolled back", testRollback},
		{"values", testValues},
		{"unchanged long values", testUnchanged},
		{"truncate", testTruncate},
		{"unmapped tables", testUnmapped},
		{"shape changes", testShapes},
		{"mapped column gone", testColumnGone},
		{"large transaction", testLarge},
		{"read again", testReadAgain},
		{"unacknowledged is read again", testUnacknowledged},
		{"handler fails", testHandlerFails},
		{"handler is full", testFull},
		{"connection cut", testInterrupted},
		{"idle", testIdle},
		{"mark", testMark},
		{"read values", testReadValues},
		{"read along a key", testReadKeys},
		{"read on", testReadOn},
		{"read refused", testReadRefused},
		{"read what was streamed", testReadSees},
		{"ask", testAsk},
		{"pass over every state", testPassStates},
		{"pass under change", testPassUnderChange},
		{"pass taken up", testPassTakenUp},
		{"erasures are read back", testReadback},
		{"erasures that nobody asked for", testUnauthorised},
		{"the gate is planned", testGateExplained},
	} {
		t.Run(test.name, func(t *testing.T) {
			env, d := open(t), d
			if env.Schema != "" {
				d.Schema = env.Schema
			}
			test.f(t, d, env)
		})
	}
}

// Reading is a Source that runs.
type Reading struct {
	Recorder *Recorder
	Source   capture.Source
	cancel   context.CancelFunc
	done     chan error
}

// Start runs a Source in the background until Stop or the end of the test.
func Start(tb testing.TB, src capture.Source, from *capture.Checkpoint, h capture.Handler) *Reading {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Reading{Source: src, cancel: cancel, done: make(chan error, 1)}
	r.Recorder, _ = h.(*Recorder)
	go func() { r.done <- src.Run(ctx, from, h) }()
	tb.Cleanup(func() { r.cancel() })
	return r
}

// Stop ends it and returns the error of Run, which is context.Canceled after an orderly stop.
func (r *Reading) Stop(tb testing.TB) error {
	tb.Helper()
	r.cancel()
	return r.Wait(tb)
}

// Wait returns the error of Run when it has ended by itself.
func (r *Reading) Wait(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(within):
		tb.Fatal("Run did not end")
		return nil
	}
}

// Collect waits for n transactions that hold changes.
func (r *Reading) Collect(tb testing.TB, n int) []*Tx {
	tb.Helper()
	var txs []*Tx
	testenv.Eventually(tb, within, func() error {
		txs = r.Recorder.Txs()
		select {
		case err := <-r.done:
			r.done <- err
			tb.Fatalf("Run ended after %d of %d transactions: %v", len(txs), n, err)
		default:
		}
		if len(txs) < n {
			return fmt.Errorf("%d of %d transactions: %v", len(txs), n, txs)
		}
		return nil
	})
	if len(txs) > n {
		tb.Fatalf("%d transactions instead of %d: %v", len(txs), n, txs)
	}
	return txs
}

// Marked waits until something written now has come through, so that everything before it has, or never will.
func (r *Reading) Marked(tb testing.TB, env *Env) {
	tb.Helper()
	was := len(r.Recorder.All())
	messages := func() (n int) {
		for _, tx := range r.Recorder.All() {
			for i := range tx.Rows {
				if tx.Rows[i].Op == capture.OpMessage {
					n++
				}
			}
		}
		return n
	}
	before := messages()
	env.Mark(tb)
	testenv.Eventually(tb, within, func() error {
		if messages() == before {
			return fmt.Errorf("no mark after %d transactions", was)
		}
		return nil
	})
}

// CheckpointAt makes the checkpoint of a transaction, stamped by src.
func CheckpointAt(tb testing.TB, src capture.Source, tx *Tx) *capture.Checkpoint {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	id, err := src.Identity(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return &capture.Checkpoint{
		Source: "test", Identity: id, Incarnation: 1, Position: tx.Position, XID: tx.XID, CommittedAt: tx.CommittedAt,
		WrittenAt: time.Now(),
	}
}

func stopped(tb testing.TB, r *Reading) {
	tb.Helper()
	if err := r.Stop(tb); !errors.Is(err, context.Canceled) {
		tb.Fatalf("Run ended with %v", err)
	}
}

func table(d Dialect, name, columns string) string {
	return fmt.Sprintf("CREATE TABLE %s.%s (%s)", d.Schema, name, columns)
}

func ops(tx *Tx) string {
	var list []string
	for i := range tx.Rows {
		list = append(list, tx.Rows[i].Op.String())
	}
	return strings.Join(list, " ")
}
