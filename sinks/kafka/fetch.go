package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"

	"lethe/internal/kafkaconn"
	"lethe/sinks"
)

// Sizes of one fetch. A batch larger than partitionBytes comes all the same (KIP-74).
const (
	partitionBytes = 256 << 10
	responseBytes  = 4 << 20
	maxPartition   = 64 << 20
)

// Waits after errors of fetching, and how long they may last before they are told as trouble.
const (
	fetchBackoffMin = 50 * time.Millisecond
	fetchBackoffMax = 2 * time.Second
	tellTrouble     = 5 * time.Second
)

// errLeaders says that the partitions have to be shared out over the brokers anew.
var errLeaders = errors.New("leaders have moved")

// fetchAll reads all partitions until ctx ends: one loop for each broker that leads some, shared out anew after every
// error and every move of a leader.
func (g *generation) fetchAll(ctx context.Context) {
	var failing time.Time // since when nothing comes
	told := false
	backoff := fetchBackoffMin
	for ctx.Err() == nil {
		progress, err := g.fetchRound(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress || err == nil {
			failing, backoff = time.Time{}, fetchBackoffMin
			if told {
				told = false
				g.trouble(nil)
			}
		}
		if err == nil || errors.Is(err, errLeaders) {
			continue
		}
		g.suspect()
		if failing.IsZero() {
			failing = time.Now()
		}
		g.f.log.Debug().Str("code", kafkaconn.Reason(err)).Msg("fetching failed")
		if !told && time.Since(failing) >= tellTrouble {
			told = true
			g.trouble(troubleOf("fetching events", err))
		}
		if told {
			// Connections may be the trouble: make all of them anew.
			g.f.o.Conn.Close()
		}
		wait(ctx, backoff)
		backoff = min(2*backoff, fetchBackoffMax)
	}
}

// suspect has every partition compare the record in front of its offset before it goes on: while nothing could be fetched
// the topic may have been made anew.
func (g *generation) suspect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, q := range g.parts {
		q.verify = q.last.known
	}
}

// fetchRound reads until something goes wrong or the leaders move. progress reports whether any response was good.
func (g *generation) fetchRound(ctx context.Context) (progress bool, err error) {
	req, cancel := context.WithTimeout(ctx, g.f.o.RequestTimeout)
	leaders, err := g.f.leaders(req)
	cancel()
	if err != nil {
		return false, err
	}
	if len(leaders) != g.f.o.Conn.Partitions() {
		g.leave() // loudly: Run's own check says why
		<-ctx.Done()
		return false, ctx.Err()
	}
	byLeader := map[int][]int32{}
	orphans := false
	for _, id := range g.ids {
		if l, known := leaders[id]; known && l >= 0 {
			byLeader[l] = append(byLeader[l], id)
		} else {
			orphans = true
		}
	}
	round, end := context.WithCancelCause(ctx)
	defer end(nil)
	var loops sync.WaitGroup
	var mu sync.Mutex
	for _, ids := range byLeader {
		loops.Go(func() {
			good, err := g.fetchLoop(round, ids)
			mu.Lock()
			progress = progress || good
			mu.Unlock()
			end(err)
		})
	}
	again := g.f.o.TopicCheck
	if orphans {
		again = time.Second
	}
	loops.Go(func() { end(g.watchLeaders(round, leaders, again)) })
	loops.Wait()
	err = context.Cause(round)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return progress, err
}

// watchLeaders returns errLeaders when a partition has another leader, or the topic another number of partitions.
func (g *generation) watchLeaders(ctx context.Context, before map[int32]int, every time.Duration) error {
	for wait(ctx, every) {
		req, cancel := context.WithTimeout(ctx, g.f.o.RequestTimeout)
		now, err := g.f.leaders(req)
		cancel()
		if err == nil && !maps.Equal(before, now) {
			return errLeaders
		}
		if err := g.unstall(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// unstall looks after the partitions that no response has brought forward for Stalled. Of those whose queue is full only
// the end is read, for the lag; for those that have a lag and room reading is rebuilt, asking for more at a time.
func (g *generation) unstall(ctx context.Context) error {
	var full []int32
	stalled := false
	g.mu.Lock()
	for _, q := range g.parts {
		switch {
		case q.dead || time.Since(q.moved) < g.f.o.Stalled:
		case q.bytes >= g.quota():
			full = append(full, q.id)
		case q.end > q.next:
			stalled = true
			q.maxWant = min(2*q.maxWant, maxPartition)
			q.moved = time.Now()
		}
	}
	g.mu.Unlock()
	for _, id := range full {
		if _, end, err := g.f.listOffsets(ctx, id); err == nil {
			g.mu.Lock()
			g.parts[id].end = end
			g.mu.Unlock()
		}
	}
	if stalled {
		g.f.log.Warn().Msg("a partition has a lag and does not move: its reading is rebuilt")
		g.f.o.Conn.Close()
		return errLeaders
	}
	return nil
}

// quota is how many bytes of one partition may wait.
func (g *generation) quota() int { return max(g.f.o.MaxBuffer/max(1, len(g.ids)), partitionBytes) }

// fetchLoop reads the partitions that one broker leads, one long poll after the other.
func (g *generation) fetchLoop(ctx context.Context, ids []int32) (progress bool, err error) {
	for {
		req, room := g.request(ids)
		if req == nil {
			select {
			case <-room:
				continue
			case <-ctx.Done():
				return progress, nil
			}
		}
		res, err := g.f.roundTrip(ctx, req)
		if err != nil {
			return progress, err
		}
		for i := range res.Topics {
			for j := range res.Topics[i].Partitions {
				if err := g.receive(ctx, &res.Topics[i].Partitions[j]); err != nil {
					return progress, err
				}
			}
		}
		progress = true
	}
}

// request asks for the partitions that have room. Where none has it returns nil, and what is closed when there may be some.
func (g *generation) request(ids []int32) (*fetch.Request, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var parts []fetch.RequestPartition
	for _, id := range ids {
		q := g.parts[id]
		if q.dead || q.bytes >= g.quota() {
			continue
		}
		from := q.next
		if q.verify && from > 0 {
			from--
		}
		parts = append(parts, requestPartition(id, from, q.maxWant))
	}
	if len(parts) == 0 {
		return nil, g.room
	}
	// The broker fills the response in the order asked for: another partition comes first each time.
	g.turn++
	k := g.turn % len(parts)
	parts = slices.Concat(parts[k:], parts[:k])
	return g.f.request(parts, g.f.o.MaxWait, 1), nil
}

func requestPartition(id int32, from int64, maxBytes int32) fetch.RequestPartition {
	return fetch.RequestPartition{
		Partition: id, CurrentLeaderEpoch: -1, FetchOffset: from, LogStartOffset: -1, PartitionMaxBytes: maxBytes,
	}
}

func (f *Feed) request(parts []fetch.RequestPartition, maxWait time.Duration, minBytes int32) *fetch.Request {
	return &fetch.Request{
		ReplicaID: -1, MaxWaitTime: int32(maxWait.Milliseconds()), MinBytes: minBytes, MaxBytes: responseBytes, //nolint:gosec // below a day
		SessionID: -1, SessionEpoch: -1, Topics: []fetch.RequestTopic{{Topic: f.topic, Partitions: parts}},
	}
}

func (f *Feed) roundTrip(ctx context.Context, req *fetch.Request) (*fetch.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.MaxWait+f.o.RequestTimeout)
	defer cancel()
	msg, err := f.o.Conn.Transport().RoundTrip(ctx, f.o.Conn.Addr(), req)
	if err != nil {
		return nil, err
	}
	res, ok := msg.(*fetch.Response)
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	if res.ErrorCode != 0 {
		return nil, kafkago.Error(res.ErrorCode)
	}
	return res, nil
}

// receive takes one partition of a response.
func (g *generation) receive(ctx context.Context, p *fetch.ResponsePartition) error {
	g.mu.Lock()
	q := g.parts[p.Partition]
	g.mu.Unlock()
	if q == nil || q.dead {
		return nil
	}
	if p.ErrorCode == int16(kafkago.OffsetOutOfRange) {
		return g.outOfRange(ctx, q)
	}
	if p.ErrorCode != 0 {
		return kafkago.Error(p.ErrorCode)
	}
	from := q.next
	if q.verify && from > 0 {
		from--
	}
	recs, err := g.f.decode(p, from)
	if err != nil && len(recs) == 0 {
		return err
	}
	g.mu.Lock()
	q.end = p.HighWatermark
	if q.next >= q.end || len(recs) > 0 {
		q.moved = time.Now()
	}
	g.mu.Unlock()
	if q.verify && len(recs) > 0 {
		if recs[0].Offset != from || recs[0].Event == nil || recs[0].Event.EventID != q.last.id {
			g.dead(q, "topic_recreated", "the record in front of the last one read is another one than before: the topic was made anew")
			return nil
		}
		q.verify = false
		recs = recs[1:]
	}
	g.push(q, recs)
	return nil
}

func (g *generation) push(q *queue, recs []sinks.Record) {
	if len(recs) == 0 {
		return
	}
	g.mu.Lock()
	for i := range recs {
		q.bytes += len(recs[i].Value) + recordOverhead
	}
	q.recs = append(q.recs, recs...)
	last := &recs[len(recs)-1]
	q.next = last.Offset + 1
	q.last = lastRecord{}
	if last.Event != nil {
		q.last = lastRecord{known: true, id: last.Event.EventID}
	}
	g.mu.Unlock()
	signal(g.arrived)
}

// outOfRange finds out why a broker does not have an offset: only what the log's own bounds say is believed.
func (g *generation) outOfRange(ctx context.Context, q *queue) error {
	start, end, err := g.f.listOffsets(ctx, q.id)
	switch {
	case err != nil:
		return err
	case start > q.next:
		g.dead(q, "retention_passed", fmt.Sprintf("the log of partition %d starts at offset %d, this replica needs %d", q.id, start, q.next))
	case end < q.next:
		g.dead(q, "log_shorter", fmt.Sprintf("the log of partition %d ends at offset %d, this replica is at %d: the topic was made anew "+
			"or lost records", q.id, end, q.next))
	default:
		// Only the record to compare with has expired.
		q.verify = false
	}
	return nil
}

// dead stops reading a partition and tells the worker, behind what was read before.
func (g *generation) dead(q *queue, code, hint string) {
	g.mu.Lock()
	q.dead = true
	q.recs = append(q.recs, sinks.Record{Partition: q.id, Offset: q.next, Err: &sinks.Error{
		Class: sinks.Permanent, Op: "reading events", Code: code, Hint: hint, Err: sinks.ErrGap,
	}})
	q.bytes += recordOverhead
	g.mu.Unlock()
	signal(g.arrived)
}

// decode copies the records from offset from on out of a response and decodes them. An error after some records is of no
// account: what follows them is fetched again.
func (f *Feed) decode(p *fetch.ResponsePartition, from int64) ([]sinks.Record, error) {
	if p.RecordSet.Records == nil {
		return nil, nil
	}
	var recs []sinks.Record
	for {
		r, err := p.RecordSet.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return recs, nil
		}
		if err != nil {
			return recs, err
		}
		key, errKey := readBytes(r.Key, r.Offset < from)
		value, errValue := readBytes(r.Value, r.Offset < from)
		if err := errors.Join(errKey, errValue); err != nil {
			return recs, err
		}
		if r.Offset < from {
			continue // the broker sends whole batches
		}
		rec := sinks.Record{Partition: p.Partition, Offset: r.Offset, Key: key, Value: value}
		rec.Event, rec.Err = f.o.Decoder.Decode(value)
		if rec.Err != nil {
			rec.Event = nil
		}
		recs = append(recs, rec)
	}
}

// readBytes copies b and gives its page back to kafka-go.
func readBytes(b protocol.Bytes, skip bool) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close()
	if skip || b.Len() == 0 {
		return nil, nil
	}
	out := make([]byte, b.Len())
	if _, err := io.ReadFull(b, out); err != nil {
		return nil, err
	}
	return out, nil
}
