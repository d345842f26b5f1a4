package kafka

import (
	"context"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lethe/internal/crashpoint"
	"lethe/sinks"
)

// recordOverhead is what a decoded record costs in memory beside its bytes; an estimate that errs upward.
const recordOverhead = 1024

// generation implements sinks.Generation. The fetching goroutines put records into queues, Poll takes them.
type generation struct {
	f       *Feed
	gen     *kafkago.Generation
	trouble func(error)
	leave   func() // gives the membership up

	ids     []int32
	stop    context.CancelFunc // ends fetching; nil until Open
	fetched sync.WaitGroup

	arrived chan struct{} // capacity 1: Poll may find records

	mu    sync.Mutex
	room  chan struct{} // closed, and made anew, when queues were emptied: the loops of all brokers have to hear it
	parts map[int32]*queue
	turn  int // the partition that Poll serves first, so that none starves

	hints struct {
		sync.Mutex
		told   map[int32]int64 // what Kafka knows
		latest map[int32]int64 // what the replica has committed
	}
	hinted sync.WaitGroup
}

// queue is one partition: where it is read, and what waits for the worker.
type queue struct {
	id    int32
	recs  []sinks.Record
	bytes int

	next    int64 // the offset to fetch next
	end     int64 // as last seen
	dead    bool  // it cannot be read on: a gap was reported
	verify  bool  // the record in front of next is fetched again and compared: the topic may have been made anew meanwhile
	last    lastRecord
	moved   time.Time // when next last moved or there was nothing to read
	maxWant int32     // bytes asked for; raised when a batch does not fit
}

// lastRecord is the record in front of queue.next.
type lastRecord struct {
	known bool
	id    [16]byte
}

func newGeneration(f *Feed, gen *kafkago.Generation, trouble func(error), leave func()) *generation {
	g := &generation{
		f: f, gen: gen, trouble: trouble, leave: leave, parts: map[int32]*queue{},
		arrived: make(chan struct{}, 1), room: make(chan struct{}),
	}
	g.hints.told, g.hints.latest = map[int32]int64{}, map[int32]int64{}
	for _, a := range gen.Assignments[f.topic] {
		id := int32(a.ID) //nolint:gosec // partition ids are int32 on the wire
		g.ids = append(g.ids, id)
		told := a.Offset
		if told < 0 {
			told = -1
		}
		g.hints.told[id], g.hints.latest[id] = told, told
	}
	return g
}

// Partitions implements sinks.Generation.
func (g *generation) Partitions() []int32 { return g.ids }

// Open implements sinks.Generation.
func (g *generation) Open(ctx context.Context, places []sinks.Place) ([]sinks.Bounds, error) {
	bounds, err := g.f.bounds(ctx, places)
	if err != nil {
		return nil, troubleOf("opening partitions", err)
	}
	g.mu.Lock()
	for i := range bounds {
		b, pl := &bounds[i], places[i]
		b.Hinted = g.hints.told[b.Partition]
		q := &queue{id: b.Partition, next: pl.NextOffset, end: b.End, moved: time.Now(), maxWant: partitionBytes}
		if pl.NextOffset == 0 && b.Hinted <= 0 {
			q.next = b.Start
		}
		if pl.LastEventID != [16]byte{} {
			q.last = lastRecord{known: true, id: pl.LastEventID}
		}
		g.parts[b.Partition] = q
	}
	g.mu.Unlock()
	fetching, stop := context.WithCancel(ctx)
	g.stop = stop
	g.fetched.Go(func() { g.fetchAll(fetching) })
	g.hinted.Go(func() { g.hintAll(fetching) })
	return bounds, nil
}

// Poll implements sinks.Generation.
func (g *generation) Poll(ctx context.Context, atMost time.Duration, limit int) ([]sinks.Record, error) {
	if recs := g.take(limit); len(recs) > 0 || atMost <= 0 {
		return recs, ctx.Err()
	}
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			return nil, nil
		case <-g.arrived:
			if recs := g.take(limit); len(recs) > 0 {
				return recs, nil
			}
		}
	}
}

// take removes up to limit records from the queues: an equal share of each first, what is left from where there is more.
func (g *generation) take(limit int) []sinks.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	waiting, busy := 0, 0
	for _, q := range g.parts {
		waiting += len(q.recs)
		if len(q.recs) > 0 {
			busy++
		}
	}
	if waiting == 0 {
		return nil
	}
	share := max(1, limit/busy)
	want := make(map[int32]int, busy)
	left := limit
	for round := range 2 {
		for i := range g.ids {
			q := g.parts[g.ids[(i+g.turn)%len(g.ids)]]
			n := min(len(q.recs)-want[q.id], left)
			if round == 0 {
				n = min(n, share)
			}
			want[q.id] += n
			left -= n
		}
	}
	g.turn++
	out := make([]sinks.Record, 0, limit-left)
	for _, id := range g.ids {
		if n := want[id]; n > 0 {
			popped := g.parts[id].pop(n)
			out = append(out, popped...)
			clear(popped) // the queue's array must not keep what the worker is done with
		}
	}
	close(g.room)
	g.room = make(chan struct{})
	return out
}

func (q *queue) pop(n int) []sinks.Record {
	out := q.recs[:n]
	for i := range out {
		q.bytes -= len(out[i].Value) + recordOverhead
	}
	if q.recs = q.recs[n:]; len(q.recs) == 0 {
		q.recs = nil
	}
	return out
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// End implements sinks.Generation.
func (g *generation) End(partition int32) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.parts[partition]; q != nil {
		return q.end
	}
	return 0
}

// Committed implements sinks.Generation.
func (g *generation) Committed(places []sinks.Place) {
	g.hints.Lock()
	defer g.hints.Unlock()
	for _, p := range places {
		g.hints.latest[p.Partition] = p.NextOffset
	}
}

// hintAll tells Kafka the offsets, for the tools that look at consumer groups, and as the witness of what this replica had
// committed should it be restored from a backup.
func (g *generation) hintAll(ctx context.Context) {
	for wait(ctx, g.f.o.HintInterval) {
		g.hint()
	}
}

// hint never tells less than Kafka was told: a restored replica starts lower, and would destroy the witness.
func (g *generation) hint() {
	g.hints.Lock()
	news := map[int]int64{}
	for id, offset := range g.hints.latest {
		if offset > g.hints.told[id] {
			news[int(id)] = offset
		}
	}
	g.hints.Unlock()
	if len(news) == 0 {
		return
	}
	// An error needs no care: the next hint says the same, and a generation that ended takes none.
	if err := g.gen.CommitOffsets(map[string]map[int]int64{g.f.topic: news}); err != nil {
		return
	}
	crashpoint.Hit("sink.after_offset_hint")
	g.hints.Lock()
	defer g.hints.Unlock()
	for id, offset := range news {
		g.hints.told[int32(id)] = offset //nolint:gosec // partition ids are int32 on the wire
	}
}

// close ends reading and tells Kafka the last offsets, while this is still a member of the group.
func (g *generation) close(context.Context) {
	if g.stop == nil {
		return
	}
	g.stop()
	g.fetched.Wait()
	g.hinted.Wait()
	g.hint()
}
