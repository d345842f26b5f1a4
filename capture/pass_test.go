package capture

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lethe/schema"
)

func TestPassShowsEveryRowBetweenItsMarkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 2500, "public.b": 1203, "public.c": 0})
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options()))
		p := w.untilPass("r1", PassEnded)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if !p.Full || p.LastFull.RunID != p.RunID || len(p.LastFull.Tables) != 3 {
			t.Errorf("the pass is not full: %+v", p)
		}
		if rows, estimate := p.Rows(); rows != 3703 || estimate != 3703 {
			t.Errorf("%d rows of %d", rows, estimate)
		}
		seen := w.shown(p.RunID)
		for subject, n := range seen {
			if n != 1 {
				t.Errorf("%s was shown %d times", subject, n)
			}
		}
		if len(seen) != 3703 {
			t.Errorf("%d rows were shown", len(seen))
		}
		ids, orders := map[string]bool{}, map[string]bool{}
		for n := range partitions {
			events := w.passEvents(n)
			all := "true:public.a,public.b,public.c"
			if first, last := events[0], events[len(events)-1]; first.what != "begin:"+all || last.what != "end:"+all {
				t.Errorf("partition %d begins with %v and ends with %v", n, first, last)
			}
			for _, e := range events {
				if e.run != p.RunID {
					t.Errorf("%s is of run %s", e.what, e.run)
				}
				if e.subject == "" {
					continue
				}
				if ids[e.id] || orders[e.order] {
					t.Fatalf("two rows have one id or one order: %v", e)
				}
				ids[e.id], orders[e.order] = true, true
				if !slices.ContainsFunc(w.script, func(s scripted) bool { return w.between(e.order, s.tx.Position) }) {
					t.Fatalf("the order of %v is not behind a commit", e)
				}
			}
		}
		if w.most > 2 {
			t.Errorf("%d chunks were read at once", w.most)
		}
		if len(w.passes.requests) != 0 {
			t.Errorf("requests are left: %v", w.passes.requests)
		}
	})
}

// between reports whether an order lies behind every change of the commit at p and before every later commit.
func (w *passWorld) between(order string, p Position) bool {
	low, high := schema.NewOrder(1, p.Epoch, p.Commit, 1<<31), schema.NewOrder(1, p.Epoch, p.Commit+1, 0)
	return order >= fmt.Sprintf("%x", low[:]) && order < fmt.Sprintf("%x", high[:])
}

func chance(seed, of uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, of)) }

func TestInterruptedPassGoesOnWhereItWas(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, chunk, save, publish := chance(seed, 3), chance(seed, 4), chance(seed, 5), chance(seed, 6)
				w := newPassWorld(t, map[string]int{"public.a": 4000, "public.b": 3000})
				lost := errors.New("connection lost")
				w.onPublish = func(int) (int, error) {
					if publish.IntN(10) == 0 {
						return publish.IntN(partitions + 1), lost
					}
					return partitions, nil
				}
				failures := 0
				w.onChunk = func(int, ChunkRequest) error {
					w.mu.Lock()
					defer w.mu.Unlock()
					if failures < 6 && chunk.IntN(15) == 0 {
						failures++
						return lost
					}
					return nil
				}
				w.passes.saveErr = func(n int) error {
					if n > 1 && save.IntN(5) == 0 {
						return lost
					}
					return nil
				}
				w.passes.ask("r1")
				slow := w.options(func(o *PassOptions) { o.RowsPerSecond = 1000 })
				stops := 0
				for ended := false; !ended; stops++ {
					stop := w.run(w.pipeline(slow))
					time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
					w.append("s1")
					ended = w.passes.now().State == PassEnded
					if err := stop(); err != nil {
						t.Fatal(err)
					}
					if stops > 100 {
						t.Fatalf("the pass never ends: %+v", w.passes.now())
					}
				}
				p := w.passes.now()
				seen := w.shown(p.RunID)
				if len(seen) != 7000 {
					t.Errorf("%d rows were shown", len(seen))
				}
				again := 0
				for _, n := range seen {
					again += n - 1
				}
				// A publish that failed half and was sent again shows rows twice as well.
				if most := (stops + failures + 3) * 2 * 1100; p.Restarts != 0 || again > most {
					t.Errorf("%d rows were shown again in %d interruptions; begun anew %d times", again, stops+failures, p.Restarts)
				}
				for i := range w.passes.history {
					for _, table := range w.passes.history[i].Tables {
						if strings.Contains(string(table.After), "0000") {
							t.Fatalf("a key is kept in clear: %q", table.After)
						}
					}
				}
			})
		})
	}
}

// TestProgressIsNotAheadOfKafka: what is saved as read is in the topic.
func TestProgressIsNotAheadOfKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 3000})
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options()))
		w.until("first rows", func() bool { return w.chunks > 3 })
		w.mu.Lock()
		w.stuck = make(chan struct{})
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		rows, _ := w.passes.now().Rows()
		shown := len(w.shown(w.passes.now().RunID))
		w.mu.Lock()
		chunks := w.chunks
		w.mu.Unlock()
		if int(rows) > shown || chunks > int(rows)/100+inFlight+2 {
			t.Errorf("%d rows are saved as read and %d published; %d chunks were read while Kafka did not answer", rows, shown, chunks)
		}
		w.mu.Lock()
		close(w.stuck)
		w.stuck = nil
		w.mu.Unlock()
		w.untilPass("r1", PassEnded)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestGapUnderAPassBeginsItAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 3000})
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options(func(o *PassOptions) { o.RowsPerSecond = 1000 })))
		w.until("first rows", func() bool { return w.chunks > 8 })
		first := w.passes.now().RunID
		w.append("!")
		p := w.untilPass("r1", PassEnded)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if p.RunID == first || p.Restarts != 1 || len(p.Gaps) != 1 {
			t.Errorf("the pass is %+v", p)
		}
		if n := len(w.shown(p.RunID)); n != 3000 {
			t.Errorf("the second run showed %d rows", n)
		}
		for n := range partitions {
			for _, e := range w.passEvents(n) {
				if strings.HasPrefix(e.what, "end") && e.run == first {
					t.Error("the run that met the gap was ended as if it were whole")
				}
			}
		}
	})
}

func TestPassClosesGapsBehindItsEnd(t *testing.T) {
	for _, unwritten := range []bool{false, true} {
		t.Run(fmt.Sprint(unwritten), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPassWorld(t, map[string]int{"public.a": 300})
				w.add("!")
				w.add("!")
				w.table("public.b", 10)
				p := w.pipeline(w.options())
				stop := w.run(p)
				w.until("the gaps", func() bool { return w.saved != nil && len(w.saved.Gaps) == 2 })
				w.mu.Lock()
				gaps := slices.Clone(w.saved.Gaps)
				if unwritten { // the checkpoint without the gap cannot be written for a while
					fails := 5
					w.saveErr = func(int) error {
						if w.passes.now().State == PassClosing && fails > 0 {
							fails--
							return errors.New("not now")
						}
						return nil
					}
				}
				w.mu.Unlock()
				w.passes.ask("r1", func(r *PassRequest) { r.Cause, r.Gaps = PassGap, []string{gaps[0].ID, "another"} })
				pass := w.untilPass("r1", PassEnded)
				w.until("one gap left", func() bool { return len(w.saved.Gaps) == 1 && w.saved.Gaps[0].ID == gaps[1].ID })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(pass.Closed, []string{gaps[0].ID}) || len(p.Status().Gaps) != 1 {
					t.Errorf("closed %v; capture still knows %v", pass.Closed, p.Status().Gaps)
				}
				for n := range partitions {
					events := w.passEvents(n)
					end := slices.IndexFunc(events, func(e passEvent) bool { return strings.HasPrefix(e.what, "end") })
					closed := slices.IndexFunc(events, func(e passEvent) bool { return strings.HasPrefix(e.what, "closed") })
					if closed < end || end < 0 || events[closed].what != "closed:"+gaps[0].ID {
						t.Errorf("partition %d: the end is %d, the gap is closed at %d", n, end, closed)
					}
				}
			})
		})
	}
}

func TestTableThatCannotBeReadIsSaidAndClosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 300, "public.b": 300, "public.c": 300, "public.maybe": 0})
		w.add("!")
		w.tables["public.b"].refused = &TableRefusedError{Table: "public.b", Cause: RefusedNoKey, Hint: "give it a key"}
		w.tables["public.c"].rows[150].subject = "?"
		w.tables["public.maybe"].refused = &TableRefusedError{Table: "public.maybe", Cause: RefusedMissing}
		w.passes.ask("r0", func(r *PassRequest) { r.Tables = []string{"public.maybe"} })
		stop := w.run(w.pipeline(w.options(func(o *PassOptions) { o.Optional = []string{"public.maybe"} })))
		w.until("the gap", func() bool { return w.saved != nil && len(w.saved.Gaps) == 1 })
		w.mu.Lock()
		gap := w.saved.Gaps[0].ID
		w.mu.Unlock()
		if p := w.untilPass("r0", PassEnded); p.Full || p.Tables[0].State != TableDone {
			t.Errorf("a pass over an optional table that is not there: %+v", p)
		}
		w.passes.ask("r1", func(r *PassRequest) { r.Gaps = []string{gap} })
		p := w.untilPass("r1", PassEnded)
		w.append("s1")
		w.until("the stream goes on", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		refused := p.Refused()
		if p.Full || len(refused) != 2 || refused[0].Cause != RefusedNoKey || refused[0].Hint == "" || refused[1].Cause != "rule" || len(p.Closed) != 0 {
			t.Errorf("refused %+v, closed %v, full %t", refused, p.Closed, p.Full)
		}
		if len(w.saved.Gaps) != 1 {
			t.Error("the gap was closed although a table was not read")
		}
		for n := range partitions {
			events := w.passEvents(n)
			if last := events[len(events)-1]; last.what != "end:false:public.a,public.maybe" {
				t.Errorf("partition %d ends with %v", n, last)
			}
		}
	})
}

func TestPassCanBeTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 100_000})
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options(func(o *PassOptions) { o.RowsPerSecond = 1000 })))
		w.until("first rows", func() bool { return w.chunks > 3 })
		w.passes.ask("r1", func(r *PassRequest) { r.Cancelled = true })
		w.passes.ask("r2", func(r *PassRequest) { r.Cancelled = true })
		w.passes.ask("r3", func(r *PassRequest) { r.Tables = []string{"public.a"}; r.RequestedAt = r.RequestedAt.Add(time.Minute) })
		w.until("the next one", func() bool { return w.passes.now().Request.ID == "r3" })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.passes.mu.Lock()
		defer w.passes.mu.Unlock()
		cancelled := slices.ContainsFunc(w.passes.history, func(p Pass) bool { return p.Request.ID == "r1" && p.State == PassCancelled })
		if !cancelled || len(w.passes.requests) != 1 {
			t.Errorf("r1 was cancelled: %t; requests: %v", cancelled, w.passes.requests)
		}
	})
}

func TestPassIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 3000, "public.b": 3000})
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options(func(o *PassOptions) { o.RowsPerSecond = 500 })))
		w.until("begun", func() bool { return w.chunks > 0 })
		began := time.Now()
		w.untilPass("r1", PassEnded)
		if took := time.Since(began); took < 11*time.Second || took > 16*time.Second {
			t.Errorf("6000 rows at 500 a second took %v", took)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestChangedTableIsReadAgainFromItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 1000})
		w.onChunk = func(n int, _ ChunkRequest) error {
			if n == 6 {
				w.mu.Lock()
				w.tables["public.a"].walk = "id, more"
				w.mu.Unlock()
				return fmt.Errorf("reading: %w", ErrTableChanged)
			}
			return nil
		}
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options()))
		p := w.untilPass("r1", PassEnded)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if a := p.Tables[0]; a.Rows != 1000 || a.Restarts != 1 || a.Walk != "id, more" || !p.Full {
			t.Errorf("%+v", a)
		}
		if n := w.chunks; n < 15 {
			t.Errorf("%d chunks: it was not read from its start", n)
		}
	})
}

func TestForkedHistoryBeginsThePassAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 5000})
		w.passes.ask("r1")
		slow := w.options(func(o *PassOptions) { o.RowsPerSecond = 1000 })
		stop := w.run(w.pipeline(slow))
		w.until("first rows", func() bool { return w.chunks > 10 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		first := w.passes.now()
		w.mu.Lock()
		w.saved.Incarnation++
		w.saved.Position = Position{} // as ResumeGap leaves it
		w.mu.Unlock()
		stop = w.run(w.pipeline(slow))
		p := w.untilPass("r1", PassEnded)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if p.RunID == first.RunID || p.Incarnation != first.Incarnation+1 || p.Restarts != 1 {
			t.Errorf("%+v after %+v", p, first)
		}
	})
}

func TestStandbyMakesNoPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 100})
		w.silent = true
		w.passes.ask("r1")
		stop := w.run(w.pipeline(w.options(func(o *PassOptions) { o.Every = time.Hour })))
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.passes.saves != 0 || w.marks != 0 {
			t.Errorf("%d saves, %d marks of a process that does not read the log", w.passes.saves, w.marks)
		}
	})
}

func TestScheduleAsksForPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 100})
		every := func(o *PassOptions) { o.Every, o.Replicas = 48*time.Hour, []string{"marketing"} }
		stop := w.run(w.pipeline(w.options(every)))
		ended := func(cause string, after int) *Pass {
			t.Helper()
			var p *Pass
			w.until(cause, func() bool {
				p = w.passes.now()
				return p.State == PassEnded && p.Request.Cause == cause && w.passes.count() > after
			})
			return p
		}
		ended(PassFirst, 0)
		n := w.passes.count()
		time.Sleep(47 * time.Hour)
		if w.passes.count() != n {
			t.Fatal("a pass before its time")
		}
		time.Sleep(2 * time.Hour)
		ended(PassScheduled, n)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.table("public.b", 10)
		stop = w.run(w.pipeline(w.options(every)))
		ended(PassNewTable, n)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		stop = w.run(w.pipeline(w.options(every, func(o *PassOptions) { o.Replicas = append(o.Replicas, "reporting") })))
		p := ended(PassNewReplica, n)
		if !slices.Equal(p.LastFull.Replicas, []string{"marketing", "reporting"}) {
			t.Errorf("%v", p.LastFull.Replicas)
		}
		w.mu.Lock()
		w.tables["public.b"].refused = &TableRefusedError{Table: "public.b", Cause: RefusedNoKey}
		w.mu.Unlock()
		n = w.passes.count()
		time.Sleep(49 * time.Hour)
		p = ended(PassScheduled, n)
		n = w.passes.count()
		time.Sleep(23 * time.Hour)
		if p.Full || w.passes.count() != n {
			t.Error("a pass that a person has to see to is repeated at once")
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPassThatCannotBeReadStopsNoStream: erasures go on whatever lies beside the checkpoint.
func TestPassThatCannotBeReadStopsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPassWorld(t, map[string]int{"public.a": 100})
		w.passes.loadErr = &StopError{Op: "reading a pass", Cause: "pass_unreadable"}
		p := w.pipeline(w.options())
		stop := w.run(p)
		time.Sleep(time.Minute)
		w.append("s1")
		w.until("the stream goes on", func() bool { return w.acked == w.last() })
		if st := p.Status(); !st.Ready() || !strings.Contains(st.PassFailing, "reading a pass") {
			t.Errorf("state %s, failing %q", st.State, st.PassFailing)
		}
		w.passes.mu.Lock()
		w.passes.loadErr = nil
		w.passes.mu.Unlock()
		w.passes.ask("r1")
		w.untilPass("r1", PassEnded)
		if st := p.Status(); st.PassFailing != "" {
			t.Errorf("failing %q although it has ended", st.PassFailing)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
