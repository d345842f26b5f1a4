package sinks_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a Feed over logs in memory, without a broker: a test adds records and begins generations.
type script struct {
	mu      sync.Mutex
	logs    map[int32][]sinks.Record
	start   map[int32]int64
	hinted  map[int32]int64
	arrived chan struct{}
	serves  int
}

func newScript(partitions int32) *script {
	s := &script{logs: map[int32][]sinks.Record{}, start: map[int32]int64{}, hinted: map[int32]int64{}, arrived: make(chan struct{}, 1)}
	for p := range partitions {
		s.logs[p], s.hinted[p] = nil, -1
	}
	return s
}

func (s *script) Run(ctx context.Context, h sinks.FeedHandler) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		s.serves++
		s.mu.Unlock()
		h.Serve(ctx, &scriptGeneration{s: s, next: map[int32]int64{}})
	}
	return nil
}

func (s *script) generations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serves
}

// add appends a record to the log of a partition.
func (s *script) add(p int32, subject byte, n uint64, body schema.Body) {
	ref := schema.SubjectRef{subject}
	ev := &schema.Event{
		Header: schema.Header{Order: schema.NewOrder(1, 1, n, 0), SubjectRef: ref, CommittedAt: time.Now()}, Body: body,
	}
	binary.BigEndian.PutUint64(ev.EventID[1:], n)
	ev.EventID[0] = subject
	r := sinks.Record{Event: ev, Value: []byte{1}}
	if body.Type() != schema.TypeHeartbeat {
		r.Key = []byte(ref.String())
	}
	s.append(p, r)
}

func (s *script) append(p int32, r sinks.Record) {
	s.mu.Lock()
	r.Partition, r.Offset = p, int64(len(s.logs[p]))
	s.logs[p] = append(s.logs[p], r)
	s.mu.Unlock()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

func (s *script) end(p int32) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.logs[p]))
}

type scriptGeneration struct {
	s    *script
	next map[int32]int64
}

func (g *scriptGeneration) Partitions() []int32 {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	var ids []int32
	for p := range g.s.logs {
		ids = append(ids, p)
	}
	return ids
}

func (g *scriptGeneration) Open(_ context.Context, places []sinks.Place) ([]sinks.Bounds, error) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	var out []sinks.Bounds
	for _, p := range places {
		b := sinks.Bounds{
			Partition: p.Partition, Start: g.s.start[p.Partition], End: int64(len(g.s.logs[p.Partition])), Hinted: g.s.hinted[p.Partition],
		}
		if i := p.NextOffset - 1; i >= b.Start && i < b.End {
			b.Before = &g.s.logs[p.Partition][i]
		}
		g.next[p.Partition] = max(p.NextOffset, b.Start)
		out = append(out, b)
	}
	return out, nil
}

func (g *scriptGeneration) Poll(ctx context.Context, wait time.Duration, limit int) ([]sinks.Record, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		g.s.mu.Lock()
		var out []sinks.Record
		for p, log := range g.s.logs {
			from := g.next[p]
			to := min(int64(len(log)), from+int64(limit-len(out)))
			if to > from {
				out = append(out, log[from:to]...)
				g.next[p] = to
			}
		}
		g.s.mu.Unlock()
		if len(out) > 0 || wait <= 0 {
			return out, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return nil, nil
		case <-g.s.arrived:
		}
	}
}

func (g *scriptGeneration) End(p int32) int64 { return g.s.end(p) }

func (g *scriptGeneration) Committed(places []sinks.Place) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	for _, p := range places {
		g.s.hinted[p.Partition] = p.NextOffset
	}
}

// run is a worker over a script and a model.
type run struct {
	t      *testing.T
	feed   *script
	model  *sinktest.Model
	worker *sinks.Worker
	stop   context.CancelFunc
	done   chan error
}

func inRun(t *testing.T, partitions int32, prepare func(*run, *sinks.WorkerOptions), test func(*testing.T, *run)) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{t: t, feed: newScript(partitions), model: sinktest.NewModel(), done: make(chan error, 1)}
		o := sinks.WorkerOptions{Name: "marketing", Replica: r.model, Feed: r.feed, Registerer: prometheus.NewRegistry()}
		if prepare != nil {
			prepare(r, &o)
		}
		var err error
		if r.worker, err = sinks.NewWorker(o); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r.stop = cancel
		go func() { r.done <- r.worker.Run(ctx) }()
		test(t, r)
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := r.model.Check(); err != nil {
			t.Error(err)
		}
	})
}

func (r *run) applied() bool {
	for _, p := range (&scriptGeneration{s: r.feed}).Partitions() {
		if r.model.Place(p).NextOffset != r.feed.end(p) {
			return false
		}
	}
	return true
}

func (r *run) eventually(within time.Duration, what string, cond func() bool) {
	r.t.Helper()
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > within {
			r.t.Fatalf("not within %v: %s; status %+v", within, what, r.worker.Status())
		}
		<-tick.C
	}
}

func given() *schema.ConsentChange {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven, LegalBasis: "consent"}
}

func withdrawn() *schema.ConsentChange {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentWithdrawn}
}

func key(subject byte) string { return schema.SubjectRef{subject}.String() }

func TestPoisonIsBisectedAndParked(t *testing.T) {
	const poisoned = 613
	calls := 0
	inRun(t, 2, func(r *run, _ *sinks.WorkerOptions) {
		for i := range 1000 {
			subject := byte(1)
			if i == poisoned {
				subject = 7
			}
			r.feed.add(int32(i%2), subject, uint64(i+1), given())
		}
		r.feed.add(1, 7, 2000, given())
		r.feed.add(1, 7, 2001, &schema.Objection{Raised: true, Scope: "all"})
		r.model.Before = func(op string, recs []sinks.Record) error {
			if op != "apply" {
				return nil
			}
			calls++
			if slices.ContainsFunc(recs, func(r sinks.Record) bool { return r.Event != nil && r.Event.Order.Number() == poisoned+1 }) {
				return &sinks.Error{Class: sinks.Poison, Op: "applying", Code: "23502"}
			}
			return nil
		}
	}, func(t *testing.T, r *run) {
		r.eventually(time.Second, "all is applied", r.applied)
		if got := r.model.Parked(key(7)); got != 2 {
			t.Errorf("%d events of the poisoned subject wait, want the poison and the permission behind it", got)
		}
		if !r.model.Verdict(key(7), time.Now()).Objected("all") {
			t.Error("the objection behind the poison did not pass")
		}
		if !r.model.Verdict(key(1), time.Now()).Permitted("newsletter", "email") {
			t.Error("other subjects were held back")
		}
		if calls > 30 {
			t.Errorf("%d transactions to find one event in a thousand", calls)
		}
		if !r.worker.Status().Ready {
			t.Errorf("a parked event must not stop the sink: %+v", r.worker.Status())
		}
	})
}

func TestPermanentErrorHaltsAndIsLookedAtAgain(t *testing.T) {
	var mu sync.Mutex
	broken, calls := true, 0
	inRun(t, 1, func(r *run, _ *sinks.WorkerOptions) {
		r.feed.add(0, 1, 1, given())
		r.model.Before = func(op string, _ []sinks.Record) error {
			mu.Lock()
			defer mu.Unlock()
			if op == "apply" {
				calls++
				if broken {
					return &sinks.Error{Class: sinks.Permanent, Op: "applying", Code: "42703", Hint: "a column is missing"}
				}
			}
			return nil
		}
	}, func(t *testing.T, r *run) {
		pass(10 * time.Minute)
		st := r.worker.Status()
		if st.Ready || st.State != sinks.StateHalted || st.Cause != "42703" || st.Hint != "a column is missing" {
			t.Errorf("status: %+v", st)
		}
		mu.Lock()
		if calls < 15 || calls > 25 {
			t.Errorf("%d tries in ten minutes, want one every 30 s", calls)
		}
		broken = false
		mu.Unlock()
		r.eventually(time.Minute, "it goes on", r.applied)
		r.eventually(time.Minute, "it is ready", func() bool { return r.worker.Status().Ready })
	})
}

func TestFencedGivesUpTheGeneration(t *testing.T) {
	inRun(t, 1, func(r *run, _ *sinks.WorkerOptions) {
		r.feed.add(0, 1, 1, given())
	}, func(t *testing.T, r *run) {
		r.eventually(time.Second, "it runs", r.applied)
		// Another worker applies the next record behind this one's back.
		r.feed.mu.Lock()
		other := sinks.Place{Partition: 0, NextOffset: 2}
		r.feed.mu.Unlock()
		r.feed.add(0, 1, 2, given())
		r.model.SetPlace(other)
		r.feed.add(0, 1, 3, given())
		r.eventually(20*time.Second, "the generation is given up and the rest applied", func() bool {
			return r.feed.generations() >= 2 && r.applied()
		})
	})
}

func TestHeartbeatsAloneAreCommittedRarely(t *testing.T) {
	inRun(t, 2, nil, func(t *testing.T, r *run) {
		for i := range 120 {
			r.feed.add(int32(i%2), 0, uint64(i+1), &schema.Heartbeat{})
			pass(500 * time.Millisecond)
		}
		if n := len(r.model.Batches()); n < 5 || n > 7 {
			t.Errorf("%d transactions in a minute of heartbeats, want one every 10 s", n)
		}
		if st := r.worker.Status(); st.LagEvents != 0 || time.Since(st.Partitions[0].LastEvent) > 2*time.Second {
			t.Errorf("status: %+v", st)
		}
		r.feed.add(0, 1, 500, given())
		r.eventually(100*time.Millisecond, "an event takes them along", r.applied)
	})
}

func TestChoresWaitForTheEndOfTheLog(t *testing.T) {
	var mu sync.Mutex
	var early, due int
	slow := true
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		o.MaxBatch = 10
		for i := range 100 {
			r.feed.add(0, 1, uint64(i+1), given())
		}
		r.model.Before = func(op string, _ []sinks.Record) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case op == "due" && r.model.Place(0).NextOffset < 100:
				early++
			case op == "due":
				due++
			case op == "apply" && slow:
				pass(time.Second)
			}
			return nil
		}
	}, func(t *testing.T, r *run) {
		pass(100 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if early != 0 || due < 8 {
			t.Errorf("chores ran %d times before the worker was caught up, %d times after", early, due)
		}
	})
}

// A commit whose answer is lost is found out by asking, in the same generation, and nothing is applied twice.
func TestLostAnswerOfACommit(t *testing.T) {
	lost := 0
	inRun(t, 2, func(r *run, o *sinks.WorkerOptions) {
		o.MaxBatch = 10
		for i := range 100 {
			r.feed.add(int32(i%2), byte(i), uint64(i+1), given())
		}
		r.model.After = func(op string, _ []sinks.Record) error {
			if op == "apply" && lost < 3 {
				lost++
				return errors.New("connection lost")
			}
			return nil
		}
	}, func(t *testing.T, r *run) {
		r.eventually(time.Minute, "all is applied", r.applied)
		if n := r.feed.generations(); n != 1 || lost != 3 {
			t.Errorf("%d generations, %d lost answers", n, lost)
		}
	})
}

func TestGapsAreSeenAtTheAssignment(t *testing.T) {
	for name, c := range map[string]struct {
		place   sinks.Place
		start   int64 // of a log with 10 records
		hinted  int64
		want    string
		state   sinks.PartitionState
		applied int64
	}{
		"follows":                      {place: sinks.Place{NextOffset: 5}, hinted: 5, state: sinks.PartitionRunning, applied: 10},
		"follows, record expired":      {place: sinks.Place{NextOffset: 5}, start: 5, hinted: 5, state: sinks.PartitionRunning, applied: 10},
		"new replica":                  {start: 3, hinted: -1, state: sinks.PartitionRunning, applied: 10},
		"retention passed":             {place: sinks.Place{NextOffset: 5}, start: 6, hinted: 5, want: "retention_passed", state: sinks.PartitionGap, applied: 5},
		"ledger lost, records expired": {start: 3, hinted: 8, want: "retention_passed", state: sinks.PartitionGap},
		"ledger lost, all there":       {hinted: 8, state: sinks.PartitionRunning, applied: 10},
		"log shorter than the place":   {place: sinks.Place{NextOffset: 11}, hinted: 11, want: "log_shorter", state: sinks.PartitionGap, applied: 11},
		"log shorter than the hint":    {place: sinks.Place{NextOffset: 5}, hinted: 12, want: "log_shorter", state: sinks.PartitionGap, applied: 5},
		"another record in front": {
			place: sinks.Place{NextOffset: 5, LastEventID: schema.EventID{9, 9}}, hinted: 5, want: "topic_recreated",
			state: sinks.PartitionGap, applied: 5,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inRun(t, 1, func(r *run, _ *sinks.WorkerOptions) {
				for i := range uint64(10) {
					r.feed.add(0, 1, i+1, given())
				}
				r.feed.start[0], r.feed.hinted[0] = c.start, c.hinted
				r.model.SetPlace(c.place)
			}, func(t *testing.T, r *run) {
				pass(30 * time.Second)
				st := r.worker.Status()
				if p := st.Partitions[0]; p.State != c.state || p.Cause != c.want || st.Ready != (c.want == "") {
					t.Errorf("status: %+v", st)
				}
				if got := r.model.Place(0).NextOffset; got != c.applied {
					t.Errorf("the place is %d, want %d", got, c.applied)
				}
			})
		})
	}
}

func TestAMissingRecordIsNeverJumped(t *testing.T) {
	inRun(t, 2, func(r *run, _ *sinks.WorkerOptions) {
		for i := range uint64(6) {
			r.feed.add(0, 1, i+1, given())
			r.feed.add(1, 2, i+10, given())
		}
		r.feed.logs[0] = slices.Delete(r.feed.logs[0], 3, 4)
	}, func(t *testing.T, r *run) {
		r.eventually(time.Second, "the other partition is applied", func() bool { return r.model.Place(1).NextOffset == 6 })
		pass(time.Minute)
		st := r.worker.Status()
		if p := st.Partitions[0]; p.State != sinks.PartitionGap || p.Cause != "records_missing" || st.Ready {
			t.Errorf("status: %+v", st)
		}
		if got := r.model.Place(0).NextOffset; got != 3 {
			t.Errorf("the place moved to %d", got)
		}
	})
}

// asking is a replica whose chores ask for the next time themselves.
type asking struct {
	sinks.Replica
	mu    sync.Mutex
	times []time.Time
	next  time.Duration
}

func (a *asking) RunDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
	_, err := a.Replica.RunDue(ctx, places)
	return time.Now().Add(a.next), err
}

func TestChoresRunWhenAsked(t *testing.T) {
	a := &asking{next: 3 * time.Second}
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		a.Replica = r.model
		o.Replica = a
	}, func(t *testing.T, r *run) {
		pass(time.Minute)
		a.mu.Lock()
		n := len(a.times)
		a.mu.Unlock()
		if n < 19 || n > 22 {
			t.Errorf("%d calls in a minute, want one every 3 s", n)
		}
		began := time.Now()
		r.feed.add(0, 1, 1, &schema.SubjectErasure{})
		r.eventually(time.Second, "an erasure wakes the chores", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return r.applied() && a.times[len(a.times)-1].After(began)
		})
	})
}

type pauser struct {
	mu     sync.Mutex
	paused bool
}

func (p *pauser) set(v bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = v
}

func (p *pauser) Paused(context.Context) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused, nil
}

func TestPauseAndResume(t *testing.T) {
	p := &pauser{paused: true}
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		o.Pauser = p
		r.feed.add(0, 1, 1, given())
	}, func(t *testing.T, r *run) {
		pass(time.Minute)
		if st := r.worker.Status(); st.State != sinks.StatePaused || st.Ready || r.model.Place(0).NextOffset != 0 {
			t.Errorf("paused: %+v, place %+v", st, r.model.Place(0))
		}
		p.set(false)
		r.eventually(3*time.Second, "it resumes", func() bool { return r.applied() && r.worker.Status().Ready })
		p.set(true)
		pass(3 * time.Second)
		r.feed.add(0, 1, 2, given())
		pass(time.Minute)
		if r.model.Place(0).NextOffset != 1 {
			t.Error("it applied while paused")
		}
		p.set(false)
		r.eventually(3*time.Second, "it resumes again", r.applied)
	})
}

// A process that lacks a key parks nothing: it stops in front of what it cannot read.
func TestUnknownKeyStopsThePartition(t *testing.T) {
	inRun(t, 1, func(r *run, _ *sinks.WorkerOptions) {
		r.feed.add(0, 1, 1, given())
		ref := schema.SubjectRef{2}
		r.feed.append(0, sinks.Record{Key: []byte(ref.String()), Value: []byte{1}, Err: fmt.Errorf("decoding: %w", schema.ErrUnknownKey)})
		r.feed.add(0, 3, 3, given())
	}, func(t *testing.T, r *run) {
		pass(time.Minute)
		st := r.worker.Status()
		if len(st.Partitions) != 1 || st.Partitions[0].State != sinks.PartitionStopped || st.Partitions[0].Cause != "unknown_key" || st.Ready {
			t.Errorf("status %+v", st)
		}
		if next := r.model.Place(0).NextOffset; next != 1 {
			t.Errorf("the place is %d, want it in front of the record", next)
		}
	})
}

// A cancel may lie at the end of what came while the worker stood still.
func TestChoresWaitForTheEndOfTheLogAfterAStandstill(t *testing.T) {
	for _, name := range []string{"pause", "outage"} {
		t.Run(name, func(t *testing.T) {
			p := &pauser{}
			var mu sync.Mutex
			var early int
			var down bool
			inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
				o.Pauser, o.MaxBatch, o.ChoreInterval = p, 10, 50*time.Millisecond
				r.model.Before = func(op string, _ []sinks.Record) error {
					mu.Lock()
					defer mu.Unlock()
					switch next := r.model.Place(0).NextOffset; {
					case down:
						return errors.New("down")
					case op == "due" && next > 0 && next < 100:
						early++
					case op == "apply":
						pass(time.Second)
					}
					return nil
				}
			}, func(t *testing.T, r *run) {
				pass(10 * time.Second)
				mu.Lock()
				down = name == "outage"
				mu.Unlock()
				p.set(name == "pause")
				pass(3 * time.Second)
				for i := range 100 {
					r.feed.add(0, 1, uint64(i+1), given())
				}
				pass(time.Minute)
				mu.Lock()
				down = false
				mu.Unlock()
				p.set(false)
				r.eventually(2*time.Minute, "it goes on", r.applied)
				mu.Lock()
				defer mu.Unlock()
				if early != 0 {
					t.Errorf("chores ran %d times before the worker was caught up", early)
				}
			})
		})
	}
}

func TestStopFinishesTheBatchAtHand(t *testing.T) {
	var entered chan struct{}
	inRun(t, 1, func(r *run, _ *sinks.WorkerOptions) {
		entered = make(chan struct{}, 1) // in the bubble
		r.model.Before = func(op string, _ []sinks.Record) error {
			if op == "apply" {
				entered <- struct{}{}
				pass(5 * time.Second)
			}
			return nil
		}
	}, func(t *testing.T, r *run) {
		r.feed.add(0, 1, 1, given())
		<-entered
		r.stop()
		began := time.Now()
		err := <-r.done
		r.done <- err
		if took := time.Since(began); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("stopping took %v, want the rest of the batch", took)
		}
		if !r.applied() {
			t.Error("the batch at hand was not finished")
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		o.Replica = stuck{r.model}
	}, func(t *testing.T, r *run) {
		r.feed.add(0, 1, 1, given())
		pass(time.Minute)
		r.stop()
		began := time.Now()
		err := <-r.done
		r.done <- err
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("stopping took %v", took)
		}
	})
}

// A server that hangs makes no error: the worker says by itself that it is not ready.
func TestSilentReplicaIsNotReady(t *testing.T) {
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		o.Replica, o.Silence = stuck{r.model}, 20*time.Second
	}, func(t *testing.T, r *run) {
		pass(time.Second)
		if st := r.worker.Status(); !st.Ready {
			t.Fatalf("before anything is asked: %+v", st)
		}
		r.feed.add(0, 1, 1, given())
		pass(15 * time.Second)
		if st := r.worker.Status(); !st.Ready {
			t.Errorf("a slow answer: %+v", st)
		}
		pass(10 * time.Second)
		if st := r.worker.Status(); st.Ready || st.Cause != "replica_silent" || st.Hint == "" {
			t.Errorf("no answer: %+v", st)
		}
	})
}

// stuck is a replica whose transactions only end with their context.
type stuck struct{ sinks.Replica }

func (s stuck) Apply(ctx context.Context, _ *sinks.Batch) (sinks.Outcome, error) {
	<-ctx.Done()
	return sinks.Outcome{}, ctx.Err()
}

// sender collects receipts and can be down.
type sender struct {
	mu   sync.Mutex
	down bool
	sent []schema.ReceiptID
}

func (s *sender) Send(_ context.Context, rs []sinks.OutboxReceipt) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("kafka is down")
	}
	for _, r := range rs {
		s.sent = append(s.sent, r.ID)
	}
	return nil
}

func TestReceiptsWaitForKafkaAndComeInOrder(t *testing.T) {
	out := &sender{down: true}
	inRun(t, 1, func(r *run, o *sinks.WorkerOptions) {
		o.Sender = out
		for i := range 1200 {
			r.feed.add(0, byte(i), uint64(i+1), &schema.SubjectErasure{})
		}
	}, func(t *testing.T, r *run) {
		pass(time.Hour)
		if !r.applied() {
			t.Fatal("events waited for receipts")
		}
		out.mu.Lock()
		out.down = false
		out.mu.Unlock()
		pass(15 * time.Second)
		out.mu.Lock()
		defer out.mu.Unlock()
		if len(out.sent) != 256 { // one for each of the 256 subjects
			t.Errorf("%d receipts sent", len(out.sent))
		}
		for i := 1; i < len(out.sent); i++ {
			if binary.BigEndian.Uint64(out.sent[i][1:]) < binary.BigEndian.Uint64(out.sent[i-1][1:]) {
				t.Fatalf("receipt %d is out of order", i)
			}
		}
	})
}

// The worker under every error at once, over a log that is permuted and doubled: each record is applied once, and the
// replica ends where the set of events says, whatever their order.
func TestWorkerUnderFaults(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { underFaults(t, seed) })
	}
}

func underFaults(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	faults := rand.New(rand.NewPCG(seed, 2)) // the worker's goroutine draws from it
	oracle := sinktest.NewModel()
	var mu sync.Mutex
	quiet := false
	fault := func() error {
		switch faults.IntN(10) {
		case 0, 1:
			return errors.New("connection lost")
		case 2:
			return &sinks.Error{Class: sinks.Permanent, Op: "applying", Code: "42703"}
		}
		return nil
	}
	inRun(t, 3, func(r *run, o *sinks.WorkerOptions) {
		o.MaxBatch = 1 + rng.IntN(60)
		hook := func(string, []sinks.Record) error {
			mu.Lock()
			defer mu.Unlock()
			if quiet {
				return nil
			}
			return fault()
		}
		r.model.Before, r.model.After = hook, hook
	}, func(t *testing.T, r *run) {
		type line struct {
			p       int32
			subject byte
			n       uint64
			body    schema.Body
		}
		var log []line
		for i := range uint64(150) {
			subject := byte(rng.IntN(9))
			l := line{p: int32(subject % 3), subject: subject, n: i + 1}
			switch rng.IntN(12) {
			case 0:
				l.body = &schema.SubjectErasure{}
			case 1, 2:
				l.body = &schema.Objection{Raised: rng.IntN(2) == 0, Scope: "all"}
			case 3:
				l.body = &schema.ProcessingRestriction{Imposed: rng.IntN(2) == 0}
			case 4, 5, 6:
				l.body = withdrawn()
			default:
				l.body = given()
			}
			log = append(log, l)
		}
		played := append(append([]line(nil), log...), log[:rng.IntN(len(log))]...)
		rng.Shuffle(len(played), func(i, j int) { played[i], played[j] = played[j], played[i] })
		for i, l := range played {
			r.feed.add(l.p, l.subject, l.n, l.body)
			if i%20 == 0 {
				pass(time.Duration(rng.IntN(500)) * time.Millisecond)
			}
		}
		pass(10 * time.Second)
		mu.Lock()
		quiet = true
		mu.Unlock()
		r.eventually(5*time.Minute, "all is applied", r.applied)
		ordered := newScript(3)
		for _, l := range log {
			ordered.add(l.p, l.subject, l.n, l.body)
		}
		for p, recs := range ordered.logs {
			if _, err := oracle.Apply(t.Context(), &sinks.Batch{From: []sinks.Place{{Partition: p}}, Records: recs}); err != nil {
				t.Fatal(err)
			}
		}
		for subject := range byte(9) {
			a, b := ask(r.model.Verdict(key(subject), time.Now())), ask(oracle.Verdict(key(subject), time.Now()))
			if a != b {
				t.Errorf("subject %d: %+v, the oracle says %+v", subject, a, b)
			}
		}
	})
}

// pass lets time pass in the bubble.
func pass(d time.Duration) { <-time.After(d) }
