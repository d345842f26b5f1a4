package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/internal/testenv"
)

const within = 60 * time.Second

// onPrivate runs a test against servers of its own, of all versions.
func onPrivate(t *testing.T, settings map[string]string, f func(t *testing.T, e *env)) {
	t.Helper()
	for _, v := range versions {
		t.Run(fmt.Sprintf("PostgreSQL %d", v), func(t *testing.T) {
			pg := testenv.NewPostgres(t, testenv.Options{Version: v, Settings: settings})
			pg.Exec(t, "", "CREATE DATABASE crm")
			e := envOn(t, pg, "crm")
			f(t, e)
		})
	}
}

// track makes a table a and reads a transaction of it, whose checkpoint it returns. acknowledged tells the slot, too.
func (e *env) track(tb testing.TB, acknowledged bool) *capture.Checkpoint {
	tb.Helper()
	e.exec(tb, "CREATE TABLE a (id int PRIMARY KEY, v text)")
	e.need("public.a", "id", "v")
	e.publish(tb)
	return e.advance(tb, nil, 1, acknowledged)
}

// advance writes row id and reads it from a checkpoint on.
func (e *env) advance(tb testing.TB, from *capture.Checkpoint, id int, acknowledged bool) *capture.Checkpoint {
	tb.Helper()
	src := e.source(tb)
	r := capturetest.Start(tb, src, from, &capturetest.Recorder{})
	e.exec(tb, fmt.Sprintf("INSERT INTO a VALUES (%d, 'x')", id))
	txs := r.Collect(tb, 1)
	at := capturetest.CheckpointAt(tb, src, txs[0])
	if acknowledged {
		src.Acknowledge(at.Position)
	}
	e.halt(tb, r)
	if acknowledged && e.confirmed(tb) != at.Position.End {
		tb.Fatalf("the slot stands at %x instead of %x", e.confirmed(tb), at.Position.End)
	}
	return at
}

// read returns the checkpoint after n transactions that are already written.
func (e *env) read(tb testing.TB, from *capture.Checkpoint, n int) *capture.Checkpoint {
	tb.Helper()
	src := e.source(tb)
	r := capturetest.Start(tb, src, from, &capturetest.Recorder{})
	at := capturetest.CheckpointAt(tb, src, r.Collect(tb, n)[n-1])
	e.halt(tb, r)
	return at
}

// halt ends a reading and waits until the slot is free.
func (e *env) halt(tb testing.TB, r *capturetest.Reading) {
	tb.Helper()
	if err := r.Stop(tb); !errors.Is(err, context.Canceled) {
		tb.Fatalf("Run ended with %v", err)
	}
	e.awaitInactive(tb)
}

// wantGap runs a Source until it refuses, which it has to before anything is handed over.
func (e *env) wantGap(tb testing.TB, from *capture.Checkpoint, cause string) {
	tb.Helper()
	wantGap(tb, e.source(tb), from, cause)
	e.awaitInactive(tb) // the server notices only some time later that its client is gone
}

func wantGap(tb testing.TB, src *postgres.Source, from *capture.Checkpoint, cause string) {
	tb.Helper()
	r := capturetest.Start(tb, src, from, &capturetest.Recorder{})
	err := r.Wait(tb)
	var gap *capture.GapError
	if !errors.As(err, &gap) || gap.Cause != cause || gap.Hint == "" {
		tb.Fatalf("Run ended with %v, want a gap of cause %s", err, cause)
	}
	if all := r.Recorder.All(); len(all) != 0 || r.Recorder.Rows() != 0 {
		tb.Errorf("handed over before the gap was found: %v", all)
	}
}

func TestGapOtherSystem(t *testing.T) {
	e := newEnv(t, testenv.SharedPostgres(t, 15))
	from := e.track(t, true)
	from.Identity.SystemID = "7000000000000000000"
	e.wantGap(t, from, capture.GapOtherSystem)
}

func TestGapSlotMissing(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		from := e.track(t, true)
		e.dropSlot(t)
		e.wantGap(t, from, capture.GapSlotMissing)
		if _, err := e.source(t).Watch(t.Context()); !errors.As(err, new(*capture.GapError)) {
			t.Errorf("Watch says %v", err)
		}
		// Without a checkpoint nothing was read yet, and nothing is lost.
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		if err := r.Wait(t); !errors.As(err, new(*postgres.SetupError)) || !strings.Contains(err.Error(), "lethe setup") {
			t.Errorf("no slot, no checkpoint: %v", err)
		}
	})
}

func TestGapSlotRecreated(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		from := e.track(t, true)
		e.dropSlot(t)
		e.exec(t, "INSERT INTO a VALUES (2, 'lost')")
		e.createSlot(t)
		e.exec(t, "INSERT INTO a VALUES (3, 'seen')")
		e.wantGap(t, from, capture.GapSlotRecreated)
	})
}

// TestGenerationBeforeFirstPosition: as long as nothing was acknowledged the generation alone tells a slot that was made
// again.
func TestGenerationBeforeFirstPosition(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		src := e.source(t)
		identify := func() capture.Identity {
			id, err := src.Identity(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		before := identify()
		r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1)")
		r.Collect(t, 1)
		e.halt(t, r)
		if now := identify(); now != before {
			t.Errorf("nothing was acknowledged, and %+v became %+v", before, now)
		}
		e.dropSlot(t)
		e.createSlot(t)
		if now := identify(); now == before {
			t.Error("a re-created slot has the same generation")
		}
	})
}

func TestGapSlotAhead(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		from := e.track(t, true)
		e.exec(t, "INSERT INTO a VALUES (2, 'skipped')",
			fmt.Sprintf("SELECT pg_replication_slot_advance('%s', pg_current_wal_lsn())", e.db))
		r := capturetest.Start(t, e.source(t), from, &capturetest.Recorder{})
		var gap *capture.GapError
		// How far the server has moved the slot's own start along decides between the two names.
		if err := r.Wait(t); !errors.As(err, &gap) || gap.Cause != capture.GapSlotAhead && gap.Cause != capture.GapSlotRecreated {
			t.Fatalf("Run ended with %v", err)
		}
		if r.Recorder.Rows() != 0 {
			t.Error("changes were handed over")
		}
	})
}

func TestGapSlotLost(t *testing.T) {
	settings := map[string]string{"max_slot_wal_keep_size": "2MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
	onPrivate(t, settings, func(t *testing.T, e *env) {
		from := e.track(t, true)
		src := e.source(t)
		if st, err := src.Watch(t.Context()); err != nil || st.WALStatus != "reserved" || st.SafeWAL <= 0 {
			t.Fatalf("before: %+v, %v", st, err)
		}
		testenv.Eventually(t, within, func() error {
			e.exec(t, "INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(2, 5000) g ON CONFLICT (id) DO UPDATE SET v = excluded.v || 'y'",
				"SELECT pg_switch_wal()", "CHECKPOINT")
			if got := e.query(t, "SELECT wal_status FROM pg_replication_slots"); got != "lost" {
				return errors.New(got)
			}
			return nil
		})
		var gap *capture.GapError
		if st, err := src.Watch(t.Context()); !errors.As(err, &gap) || gap.Cause != capture.GapSlotLost || st.WALStatus != "lost" {
			t.Errorf("Watch says %+v, %v", st, err)
		}
		e.wantGap(t, from, capture.GapSlotLost)
		e.wantGap(t, nil, capture.GapSlotLost)
		if f := check(t, e.options(t)); len(f) == 0 || f[len(f)-1].Code != postgres.CodeSlotLost {
			t.Errorf("Check says %+v", f)
		}
	})
}

// snapshot stops the server, copies its data and starts it again.
func (e *env) snapshot(tb testing.TB) (dir string) {
	tb.Helper()
	dir = filepath.Join(e.pg.Dir, "snapshot")
	e.stopAndStart(tb, e.pg.Stop, func() {
		if err := e.pg.CopyData(dir); err != nil {
			tb.Fatal(err)
		}
	})
	return dir
}

// stopAndStart ends the server by stop, does something, and starts it again.
func (e *env) stopAndStart(tb testing.TB, stop func() error, between func()) {
	tb.Helper()
	if err := stop(); err != nil {
		tb.Fatal(err)
	}
	between()
	if err := e.pg.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	e.conn = e.pg.Connect(tb, e.db)
}

// restored starts the copy as a server of its own, with the same system identifier and timeline.
func (e *env) restored(tb testing.TB, dir string) *env {
	tb.Helper()
	pg := testenv.NewPostgres(tb, testenv.Options{Version: e.pg.Version, DataDir: dir, Dir: filepath.Join(e.pg.Dir, "restored")})
	again := envOn(tb, pg, e.db)
	again.needs = e.needs
	return again
}

// TestGapForkedHistory: a storage snapshot is put back. System identifier and timeline are the same, the slot is there and
// stands before the checkpoint, positions come again with other content.
func TestGapForkedHistory(t *testing.T) {
	onPrivate(t, nil, func(t *testing.T, e *env) {
		before := e.track(t, true)
		dir := e.snapshot(t)
		from := e.advance(t, before, 2, true)
		old := e.restored(t, dir)
		// As long as its log is shorter than ours it is seen at once.
		old.wantGap(t, from, capture.GapForkedHistory)
		// Once it has grown past our place, by what commit stands there.
		old.exec(t, "INSERT INTO a VALUES (2, 'of the other history')",
			"INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(10, 1000) g", "INSERT INTO a VALUES (3, 'y')")
		old.wantGap(t, from, capture.GapForkedHistory)
		// The checkpoint of the time of the snapshot connects to both histories.
		r := capturetest.Start(t, old.source(t), before, &capturetest.Recorder{})
		r.Collect(t, 3)
		old.halt(t, r)
	})
}

// TestForkedByAnotherCommit: another transaction stands exactly where the checkpoint's commit stood.
func TestForkedByAnotherCommit(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		from := e.track(t, false)
		for name, spoil := range map[string]func(*capture.Checkpoint){
			"other xid":   func(c *capture.Checkpoint) { c.XID++ },
			"other time":  func(c *capture.Checkpoint) { c.CommittedAt = c.CommittedAt.Add(time.Second) },
			"other place": func(c *capture.Checkpoint) { c.Position.Commit++ },
		} {
			wrong := *from
			spoil(&wrong)
			src := e.source(t)
			r := capturetest.Start(t, src, &wrong, &capturetest.Recorder{})
			e.exec(t, "INSERT INTO a VALUES ("+strconv.Itoa(100+len(name))+", 'behind the checkpoint') ON CONFLICT DO NOTHING")
			var gap *capture.GapError
			if err := r.Wait(t); !errors.As(err, &gap) || gap.Cause != capture.GapForkedHistory {
				t.Errorf("%s: Run ended with %v", name, err)
			}
			if r.Recorder.Rows() != 0 {
				t.Errorf("%s: changes were handed over", name)
			}
			e.awaitInactive(t)
		}
	})
}

// TestForkedWithoutAnyCommit: the server has decoded past the checkpoint's place and there was nothing for us there.
func TestForkedWithoutAnyCommit(t *testing.T) {
	onPrivate(t, nil, func(t *testing.T, e *env) {
		before := e.track(t, true)
		dir := e.snapshot(t)
		from := e.advance(t, before, 2, true)
		old := e.restored(t, dir)
		old.exec(t, "CREATE TABLE unpublished AS SELECT g, repeat('x', 1000) FROM generate_series(1, 2000) g", "CHECKPOINT")
		old.wantGap(t, from, capture.GapForkedHistory)
	})
}

func TestSlotInUse(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("public.a", "id")
		e.publish(t)
		first := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		e.exec(t, "INSERT INTO a VALUES (1)")
		first.Collect(t, 1)
		second := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		if err := second.Wait(t); !errors.Is(err, capture.ErrSlotInUse) || capture.IsPermanent(err) {
			t.Errorf("the second reader gets %v", err)
		}
		e.halt(t, first)
		third := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		third.Collect(t, 1)
		e.halt(t, third)
	})
}

// TestServerKilled: after kill -9 the server may have forgotten what was acknowledged; nothing is handed over twice, and
// nothing is lost.
func TestServerKilled(t *testing.T) {
	onPrivate(t, nil, func(t *testing.T, e *env) {
		from := e.track(t, true)
		src := e.source(t)
		r := capturetest.Start(t, src, from, &capturetest.Recorder{})
		for id := 2; id < 50; id++ {
			e.exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 'x')", id))
		}
		txs := r.Collect(t, 48)
		at := capturetest.CheckpointAt(t, src, txs[40])
		src.Acknowledge(at.Position)
		testenv.Eventually(t, within, func() error {
			if got := e.confirmed(t); got != at.Position.End {
				return fmt.Errorf("the slot stands at %x", got)
			}
			return nil
		})
		e.stopAndStart(t, e.pg.Kill, func() {
			if err := r.Wait(t); err == nil || capture.IsPermanent(err) || errors.As(err, new(*capture.GapError)) {
				t.Errorf("Run ended with %v", err)
			}
		})
		if got := e.confirmed(t); got >= at.Position.End {
			t.Logf("the slot remembers %x: nothing is re-read here", got)
		}
		e.exec(t, "INSERT INTO a VALUES (50, 'after')")
		again := capturetest.Start(t, src, at, &capturetest.Recorder{})
		rest := again.Collect(t, 8)
		for i, tx := range rest {
			if want := strconv.Itoa(43 + i); tx.Rows[0].New["id"] != want {
				t.Errorf("transaction %d is of row %s instead of %s", i, tx.Rows[0].New["id"], want)
			}
		}
		e.halt(t, again)
	})
}

// TestFailover: a standby is promoted that has the slot. The timeline changes; commits from before keep theirs, and a
// checkpoint that lies on the common part connects.
func TestFailover(t *testing.T) {
	pg := testenv.NewPostgres(t, testenv.Options{Version: 15, Settings: map[string]string{"wal_keep_size": "256MB"}})
	pg.Exec(t, "", "CREATE DATABASE crm")
	e := envOn(t, pg, "crm")
	first := e.track(t, true)
	e.exec(t, "INSERT INTO a VALUES (2, 'before the failover')")
	// Stopped and copied with its slot, then made to end recovery on a new timeline.
	dir := e.snapshot(t)
	promoted := e.promote(t, dir)
	promoted.exec(t, "INSERT INTO a VALUES (3, 'after the failover')")
	src := promoted.source(t)
	r := capturetest.Start(t, src, first, &capturetest.Recorder{})
	txs := r.Collect(t, 2)
	if txs[0].Position.Epoch != 1 || txs[1].Position.Epoch != 2 {
		t.Errorf("epochs %d and %d", txs[0].Position.Epoch, txs[1].Position.Epoch)
	}
	at := capturetest.CheckpointAt(t, src, txs[1])
	if at.Identity.Epoch != 2 {
		t.Errorf("identity %+v", at.Identity)
	}
	promoted.halt(t, r)
	// The old primary wrote on: its commits are not on the promoted server's history.
	common := e.read(t, first, 1) // row 2
	lost := e.advance(t, common, 4, false)
	for range 50 {
		promoted.exec(t, "INSERT INTO a SELECT coalesce(max(id), 0) + 100, repeat('z', 1000) FROM a")
	}
	promoted.wantGap(t, lost, capture.GapForkedHistory)
	e.wantGap(t, at, capture.GapForkedHistory)
}

// promote starts a copy as a standby that is promoted at once.
func (e *env) promote(tb testing.TB, dir string) *env {
	tb.Helper()
	writeFile(tb, filepath.Join(dir, "standby.signal"))
	pg := testenv.NewPostgres(tb, testenv.Options{
		Version: e.pg.Version, DataDir: dir, Dir: filepath.Join(e.pg.Dir, "promoted"),
		Settings: map[string]string{"hot_standby": "on"},
	})
	standby := envOn(tb, pg, e.db)
	standby.needs = e.needs
	r := capturetest.Start(tb, standby.source(tb), nil, &capturetest.Recorder{})
	if err := r.Wait(tb); !errors.Is(err, postgres.ErrNotPrimary) || capture.IsPermanent(err) {
		tb.Errorf("reading from a standby: %v", err)
	}
	standby.exec(tb, "SELECT pg_promote()")
	return standby
}
