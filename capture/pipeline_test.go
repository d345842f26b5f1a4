package capture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"lethe/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// checkOrder asserts what the sinks rely on: the newest record of a key is the last one of that key in its partition.
func (w *world) checkOrder() {
	w.t.Helper()
	for n := range w.log {
		newest, last := map[string]string{}, map[string]string{}
		for _, r := range w.log[n] {
			order := strings.Fields(r.value)[1]
			newest[r.key], last[r.key] = max(newest[r.key], order), order
		}
		for key := range newest {
			if key != "" && newest[key] != last[key] {
				w.t.Errorf("partition %d: the last record of key %s is not its newest", n, key)
			}
		}
	}
}

func TestNothingIsAcknowledgedBeforeItIsDurable(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 1))
				w := newWorld(t)
				for range 150 {
					var subjects []string
					for range r.IntN(4) * r.IntN(30) {
						subjects = append(subjects, []string{"", "*", fmt.Sprint("s", r.IntN(20))}[min(r.IntN(20), 2)])
					}
					w.add(subjects...)
				}
				lost := errors.New("connection lost")
				faults := rand.New(rand.NewPCG(seed, 2))
				w.onPublish = func(int) (int, error) {
					if faults.IntN(5) == 0 {
						return faults.IntN(partitions + 1), lost
					}
					return partitions, nil
				}
				w.saveErr = func(n int) error {
					if n > 1 && faults.IntN(4) == 0 {
						return lost
					}
					return nil
				}
				for range 4 {
					w.sourceErrs[r.IntN(len(w.script))] = lost
				}
				p := w.pipeline()
				stop := w.run(p)
				w.until("everything acknowledged", func() bool { return w.acked == w.last() })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.checkOrder()
				for _, from := range w.from[1:] {
					if from != nil && from.Position.End > w.last().End {
						t.Errorf("started from %s", from.Position)
					}
				}
			})
		})
	}
}

func TestHugeTransactionIsBoundedAndItsPositionMovesOnlyAtItsCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		subjects := make([]string, 200_000)
		for i := range subjects {
			subjects[i] = fmt.Sprint("s", i%5000)
		}
		w.add(subjects...)
		w.add("s2")
		w.complete("", Position{})
		p := w.pipeline()
		stop := w.run(p)
		w.until("first chunks of the huge transaction published", func() bool { return w.publishes > 500 })
		w.mu.Lock()
		if w.acked.Commit > 100 {
			t.Errorf("position %s was acknowledged in the middle of the transaction", w.acked)
		}
		w.mu.Unlock()
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.maxHeld > 120 {
			t.Errorf("a unit held %d records", w.maxHeld)
		}
		if got := p.Status().Events[schema.TypeObjection]; got != 200_002 {
			t.Errorf("%d events counted", got)
		}
	})
}

func TestStuckKafkaBlocksAndNeverDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 1000 {
			w.add(fmt.Sprint("s", i%7), fmt.Sprint("s", i%11))
		}
		w.stuck = make(chan struct{})
		p := w.pipeline()
		stop := w.run(p)
		time.Sleep(time.Hour)
		w.mu.Lock()
		read := w.changes
		if w.acked != (Position{}) {
			t.Errorf("acknowledged %s although Kafka is stuck", w.acked)
		}
		w.mu.Unlock()
		if read == 0 || read > 300 {
			t.Fatalf("%d changes were read while Kafka was stuck for an hour; two units hold fewer", read)
		}
		w.mu.Lock()
		if w.inChange {
			t.Error("Change blocks: a source that heeds Full could not keep its connection alive")
		}
		close(w.stuck)
		w.stuck = nil
		w.mu.Unlock()
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.checkOrder()
	})
}

func TestFailingKafkaIsVisibleAndNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.add("s2")
		down := true
		w.onPublish = func(int) (int, error) {
			if down {
				return 0, errors.New("no leader")
			}
			return partitions, nil
		}
		p := w.pipeline()
		stop := w.run(p)
		time.Sleep(time.Minute)
		if s := p.Status(); s.Ready() || s.Failing == "" || s.PublishFailures < 5 {
			t.Errorf("after a minute without Kafka: %+v", s)
		}
		w.mu.Lock()
		down = false
		w.mu.Unlock()
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if s := p.Status(); !s.Ready() {
			t.Errorf("after Kafka came back: %+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestUnitLeavesAtOnceWhenNothingIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1", "s2")
		p := w.pipeline()
		began := time.Now()
		stop := w.run(p)
		w.until("published", func() bool { return w.publishes == 1 })
		if waited := time.Since(began); waited > 20*time.Millisecond {
			t.Errorf("the only transaction left after %v", waited)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPositionMovesThroughTransactionsWithoutEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 50 {
			w.add("", "")
		}
		stop := w.run(w.pipeline())
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if w.publishes != 0 {
			t.Errorf("%d units without an event", w.publishes)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCheckpointsAreWrittenAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 20_000 {
			w.add(fmt.Sprint("s", i%50))
		}
		began := time.Now()
		stop := w.run(w.pipeline())
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if limit := int(time.Since(began)/time.Second) + 2; w.saves > limit {
			t.Errorf("%d checkpoints in %v", w.saves, time.Since(began))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestGracefulStopCheckpointsWhatWasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 10 {
			w.add(fmt.Sprint("s", i))
		}
		stop := w.run(w.pipeline())
		w.until("published", func() bool { return w.publishes > 0 })
		time.Sleep(20 * time.Millisecond) // well below a second: no checkpoint but the first is due
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.acked != w.last() || w.saved.Position != w.last() {
			t.Errorf("stopped at %s, checkpoint %s, want %s", w.acked, w.saved.Position, w.last())
		}
		if w.lateAcks > 0 {
			t.Error("the source had ended when it was told what it may forget")
		}
	})
}

func TestStopTakesNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 20_000 {
			w.add(fmt.Sprint("s", i%50), fmt.Sprint("s", i%40))
		}
		stop := w.run(w.pipeline())
		w.until("busy", func() bool { return w.publishes > 20 })
		w.mu.Lock()
		before := w.changes
		w.mu.Unlock()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if more := w.changes - before; more > 200 {
			t.Errorf("%d changes were taken after the stop", more)
		}
		if w.acked == (Position{}) || w.acked != w.saved.Position {
			t.Errorf("acknowledged %s, checkpoint %s", w.acked, w.saved.Position)
		}
	})
}

func TestStopIsBoundedWhenKafkaIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.stuck = make(chan struct{})
		stop := w.run(w.pipeline())
		time.Sleep(time.Second)
		began := time.Now()
		if err := stop(); err == nil {
			t.Error("the stop did not say that it left something behind")
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}

// hanging is a checkpoint store whose writes, but for the first, take until their context ends.
type hanging struct {
	*world
	saves atomic.Int32
}

func (h *hanging) Save(ctx context.Context, c *Checkpoint) error {
	if h.saves.Add(1) == 1 {
		return h.world.Save(ctx, c)
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestStopIsBoundedWhileACheckpointHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		h := &hanging{world: w}
		stop := w.run(w.pipeline(func(o *Options) { o.Checkpoints = h }))
		w.until("a checkpoint hangs", func() bool { return h.saves.Load() > 1 })
		began := time.Now()
		if err := stop(); err == nil {
			t.Error("the stop did not say that it left something behind")
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}

func TestPermanentFailuresStopWithTheirPosition(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*world)
		cause   string
	}{
		"rule":                   {func(w *world) { w.script[1].subjects = []string{"?"} }, "rule"},
		"panic in the rules":     {func(w *world) { w.panicAt = 1 }, "panic"},
		"panic in the publisher": {func(w *world) { w.onPublish = func(int) (int, error) { panic("secret@example.org") } }, "panic"},
		"kafka": {func(w *world) {
			w.onPublish = func(int) (int, error) { return 0, &StopError{Op: "publishing", Cause: "kafka_auth"} }
		}, "kafka_auth"},
		"topic":  {func(w *world) { w.openErr = &StopError{Op: "opening", Cause: "topic_shape"} }, "topic_shape"},
		"source": {func(w *world) { w.sourceErrs[1] = &StopError{Op: "decoding", Cause: "decode"} }, "decode"},
		"checkpoint": {func(w *world) {
			w.saveErr = func(n int) error {
				if n == 1 {
					return nil
				}
				return &StopError{Op: "writing", Cause: "checkpoint_back"}
			}
		}, "checkpoint_back"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.add("s1")
				w.add("s2")
				w.add("s3")
				c.prepare(w)
				p := w.pipeline()
				stop := w.run(p)
				time.Sleep(time.Minute)
				s := p.Status()
				if s.State != StateStopped || s.Cause != c.cause || s.Ready() {
					t.Errorf("state %s, cause %s: %s", s.State, s.Cause, s.Hint)
				}
				if strings.Contains(s.Hint, "secret") {
					t.Errorf("the panic's value is in the status: %s", s.Hint)
				}
				if w.runs > 1 {
					t.Errorf("the source was started %d times", w.runs)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if (name == "rule" || name == "panic in the rules") && (w.acked != w.script[0].tx.Position || !strings.Contains(s.Hint, "0/C8")) {
					t.Errorf("acknowledged %s, hint %s", w.acked, s.Hint)
				}
			})
		})
	}
}

func TestStandbyWaitsForTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.sourceErrs[0] = ErrSlotInUse
		p := w.pipeline()
		stop := w.run(p)
		time.Sleep(time.Second)
		if s := p.Status(); s.State != StateWaiting {
			t.Errorf("state %s while another process holds the slot", s.State)
		}
		w.until("taken over", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSupersededProcessReadsTheCheckpointAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 10 {
			w.add(fmt.Sprint("s", i))
		}
		w.saveErr = func(n int) error {
			if n == 2 || n == 3 { // a standby has come as far as the fifth transaction meanwhile
				w.saved.Position = w.script[4].tx.Position
				return fmt.Errorf("writing: %w", ErrSuperseded)
			}
			return nil
		}
		stop := w.run(w.pipeline())
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if w.from[1] == nil || w.from[1].Position != w.script[4].tx.Position {
			t.Errorf("the next session started from %+v", w.from[1])
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestGapAgainstAnOldCheckpointIsNone: the active process checkpoints, acknowledges and ends between the moment in which a
// standby reads the checkpoint and the one in which it looks at the slot.
func TestGapAgainstAnOldCheckpointIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add()
		w.add("s1")
		w.onRun = func(n int) error {
			if n > 1 {
				return nil
			}
			w.saved.Position = w.script[0].tx.Position
			return &GapError{Cause: GapSlotAhead, Hint: "the slot is ahead"}
		}
		stop := w.run(w.pipeline())
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if len(gapEvents(w)) != 0 || len(w.saved.Gaps) != 0 {
			t.Errorf("a gap was announced: %+v", w.saved.Gaps)
		}
		if len(w.from) != 2 || w.from[1] == nil || w.from[1].Position != w.script[0].tx.Position {
			t.Errorf("started from %+v", w.from)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func gapEvents(w *world) map[string]int {
	n := map[string]int{}
	for i := range w.log {
		for _, r := range w.log[i] {
			if strings.HasPrefix(r.value, "Gap ") {
				n[strings.Fields(r.value)[2]]++
			}
		}
	}
	return n
}

func TestGapIsAnnouncedOnceAndResumedByAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.add("s2")
		w.sourceErrs[1] = &GapError{Cause: GapSlotLost, Hint: "lost"}
		p := w.pipeline()
		stop := w.run(p)
		time.Sleep(time.Minute)
		if s := p.Status(); s.State != StateGap || s.Cause != GapSlotLost || len(s.Gaps) != 1 {
			t.Fatalf("%+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Again: the checkpoint stands at the gap, so that nothing is read and nothing published.
		p = w.pipeline()
		stop = w.run(p)
		time.Sleep(time.Minute)
		if s := p.Status(); s.State != StateGap || s.Cause != GapSlotLost {
			t.Fatalf("after a restart: %+v", s)
		}
		events := gapEvents(w)
		if len(events) != 1 || w.runs != 1 {
			t.Fatalf("%d gap events, %d runs of the source", len(events), w.runs)
		}
		for _, n := range events {
			if n != partitions {
				t.Errorf("the gap is in %d of %d partitions", n, partitions)
			}
		}
		w.mu.Lock()
		w.identity.SlotGeneration = ""
		w.mu.Unlock()
		if _, err := ResumeGap(t.Context(), w, w); err == nil {
			t.Error("resumed although the slot is gone")
		}
		w.mu.Lock()
		w.identity.SlotGeneration = "b"
		w.mu.Unlock()
		c, err := ResumeGap(t.Context(), w, w)
		if err != nil {
			t.Fatal(err)
		}
		if c.Incarnation != 2 || !c.Gaps[0].Resumed || c.Identity.SlotGeneration != "b" {
			t.Errorf("resumed: %+v", c)
		}
		w.until("streaming again", func() bool { return w.acked == w.last() })
		if s := p.Status(); s.Incarnation != 2 || s.State != StateStreaming || len(s.Gaps) != 1 {
			t.Errorf("after the resume: %+v", s)
		}
		if w.from[1] != nil {
			t.Error("the source was given a position of the lost history")
		}
		if _, err := ResumeGap(t.Context(), w, w); err == nil {
			t.Error("a gap that is resumed was resumed again")
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCrashBetweenGapEventAndCheckpointRepeatsTheSameEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.sourceErrs[0] = &GapError{Cause: GapForkedHistory, Hint: "forked"}
		refuse := true
		w.saveErr = func(n int) error {
			if n > 1 && refuse {
				return errors.New("no acknowledgement")
			}
			return nil
		}
		stop := w.run(w.pipeline())
		w.until("announced", func() bool { return len(gapEvents(w)) > 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		refuse = false
		w.sourceErrs[0] = &GapError{Cause: GapForkedHistory, Hint: "forked"}
		stop = w.run(w.pipeline())
		w.until("in the checkpoint", func() bool { return len(w.saved.Gaps) == 1 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(gapEvents(w)) != 1 {
			t.Errorf("the gap has %d ids", len(gapEvents(w)))
		}
	})
}

func TestTruncateOpensAGapAndStreamingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1", "!", "s2")
		w.add("s3")
		p := w.pipeline()
		stop := w.run(p)
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if len(w.saved.Gaps) != 1 || w.saved.Gaps[0].Cause != GapTruncate || w.saved.Gaps[0].Blocks() {
			t.Errorf("checkpoint: %+v", w.saved.Gaps)
		}
		if s := p.Status(); s.State != StateStreaming || len(s.Gaps) != 1 {
			t.Errorf("%+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// The gap stays open over a restart, and is not opened twice.
		w.add("s4")
		stop = w.run(w.pipeline())
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(w.saved.Gaps) != 1 {
			t.Errorf("checkpoint: %+v", w.saved.Gaps)
		}
	})
}

// TestWhatWasReadBeforeAStopIsCheckpointed: the mapping may have to be changed before anybody reads on, and the log in front
// of the place may not fit the new one.
func TestWhatWasReadBeforeAStopIsCheckpointed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, subject := range []string{"s1", "s2", "s3", "never"} {
			w.add(subject)
		}
		w.sourceErrs[3] = &StopError{Op: "decoding", Cause: "decode"}
		w.onPublish = func(n int) (int, error) {
			if n <= 2 {
				return 0, errors.New("no leader") // Kafka has nothing yet when the source has ended
			}
			return partitions, nil
		}
		p := w.pipeline()
		stop := w.run(p)
		w.until("capture has stopped", func() bool { return p.Status().State == StateStopped })
		if want := w.script[2].tx.Position; w.saved.Position != want || w.acked != want {
			t.Errorf("the checkpoint is at %s, acknowledged is %s; read was %s", w.saved.Position, w.acked, want)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestReportedGapOpensOnceAndCaptureGoesOn: the watch of the source finds it again and again, wherever capture is by then.
func TestReportedGapOpensOnceAndCaptureGoesOn(t *testing.T) {
	for _, cause := range []string{GapDropped, GapPublication} {
		t.Run(cause, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { reportGaps(t, cause) })
		})
	}
}

func reportGaps(t *testing.T, cause string) {
	w := newWorld(t)
	w.add("s1")
	p := w.pipeline()
	stop := w.run(p)
	w.until("streaming", func() bool { return w.acked == w.last() })
	w.mu.Lock()
	w.add("s2") // read when the first report has ended the session
	w.mu.Unlock()
	for range 5 {
		p.Report(&GapError{Cause: cause, Object: "public.a", Hint: "public.a is not what it was"})
		p.Report(&GapError{Cause: GapSlotLost, Hint: "the stream's own business"})
		w.until("the position has moved", func() bool { return w.acked == w.last() })
		time.Sleep(time.Minute)
	}
	if s := p.Status(); s.State == StateGap || len(s.Gaps) != 1 || s.Gaps[0].Cause != cause {
		t.Errorf("%+v", s)
	}
	p.Report(&GapError{Cause: cause, Object: "public.b", Hint: "public.b is not what it was"})
	w.until("the second gap", func() bool { return len(w.saved.Gaps) == 2 })
	if got := gapEvents(w); len(got) != 2 {
		t.Errorf("events of gaps: %v", got)
	}
	for id, n := range gapEvents(w) {
		if n != partitions {
			t.Errorf("gap event %s is %d times in the topic", id, n)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestLostCheckpointIsAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1")
		w.log[0] = append(w.log[0], logged{"k", "Objection " + strings.Repeat("0", 40) + " x y"})
		p := w.pipeline()
		stop := w.run(p)
		time.Sleep(time.Minute)
		if s := p.Status(); s.State != StateGap || s.Cause != GapCheckpointLost || w.runs != 0 {
			t.Fatalf("%+v, %d runs", s, w.runs)
		}
		if w.saved == nil || w.saved.Incarnation != 4 {
			t.Fatalf("the incarnation of the newest record was not kept: %+v", w.saved)
		}
		if _, err := ResumeGap(t.Context(), w, w); err != nil {
			t.Fatal(err)
		}
		w.until("streaming", func() bool { return w.saved.Incarnation == 5 && w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFirstStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.identity.SlotGeneration = "" // the slot is made later
		w.add("s1")
		w.sourceErrs[0] = errors.New("no slot yet")
		stop := w.run(w.pipeline())
		w.until("first checkpoint", func() bool { return w.saved != nil })
		if w.publishes != 0 {
			t.Error("an event came before the first checkpoint")
		}
		w.mu.Lock()
		w.identity.SlotGeneration = "a"
		w.mu.Unlock()
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.saved.Identity.SlotGeneration != "a" || w.saved.Incarnation != 1 {
			t.Errorf("%+v", w.saved)
		}
	})
}

func TestSlotMadeAnewBeforeTheFirstPositionIsAGap(t *testing.T) {
	for generation, cause := range map[string]string{"b": GapSlotRecreated, "": GapSlotMissing} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.saved = &Checkpoint{Source: "crm", Identity: w.identity, Incarnation: 1}
			w.identity.SlotGeneration = generation
			w.add("s1")
			p := w.pipeline()
			stop := w.run(p)
			time.Sleep(time.Second)
			if s := p.Status(); s.State != StateGap || s.Cause != cause || w.saved.Identity.SlotGeneration != "a" {
				t.Errorf("%+v, generation %q", s, w.saved.Identity.SlotGeneration)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEventsHaveTheSameIdsAtEveryRead(t *testing.T) {
	read := func(t *testing.T, extra bool) map[string]bool {
		ids := map[string]bool{}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.add("s1", "s1", "", "s2", "*", "s1")
			w.add("s1")
			if extra {
				w.sourceErrs[1] = errors.New("lost")
			}
			stop := w.run(w.pipeline())
			w.until("all acknowledged", func() bool { return w.acked == w.last() })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			for n := range w.log {
				for _, r := range w.log[n] {
					f := strings.Fields(r.value)
					ids[f[2]] = true
				}
			}
		})
		return ids
	}
	first, second := read(t, false), read(t, true)
	if len(first) != 6 {
		t.Errorf("%d different ids for 6 events: the three changes of s1 in one transaction must differ", len(first))
	}
	for id := range first {
		if !second[id] {
			t.Error("an event has another id after a restart")
		}
	}
}

func TestHeartbeatsGoOnAndFailuresAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("*")
		beats := 0
		p := w.pipeline(func(o *Options) {
			o.Heart = func(context.Context) error {
				beats++
				if beats == 2 {
					return errors.New("no connection")
				}
				return nil
			}
		})
		stop := w.run(p)
		time.Sleep(21 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(); beats != 5 || s.HeartbeatErrors != 1 {
			t.Errorf("%d beats, %d failed", beats, s.HeartbeatErrors)
		}
	})
}

func TestMetricsFollowTheStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("s1", "s2", "*")
		w.add("!")
		registry := prometheus.NewPedanticRegistry()
		p := w.pipeline(func(o *Options) { o.Registerer = registry })
		stop := w.run(p)
		w.until("all acknowledged", func() bool { return w.acked == w.last() })
		got := map[string]float64{}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					switch l.GetName() {
					case "source":
					case "state", "type":
						name += " " + l.GetValue()
					default:
						t.Errorf("label %s of %s", l.GetName(), name)
					}
				}
				got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		for name, want := range map[string]float64{
			"lethe_capture_transactions_total": 2, "lethe_capture_changes_total": 4, "lethe_capture_events_total Objection": 2,
			"lethe_capture_events_total Heartbeat": 1, "lethe_capture_events_total Gap": 1, "lethe_capture_state streaming": 1,
			"lethe_capture_state gap": 0, "lethe_capture_ready": 1, "lethe_capture_open_gaps": 1,
		} {
			if got[name] != want {
				t.Errorf("%s is %v, want %v", name, got[name], want)
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := NewPipeline(Options{}); err == nil {
			t.Error("a pipeline of nothing was made")
		}
	})
}
