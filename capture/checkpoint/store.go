// Package checkpoint keeps each source's position in a compacted topic of one partition: the key is the source's name, the
// value is JSON, and the newest record counts.
package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/internal/kafkaconn"
)

// Options are what a Store is made of.
type Options struct {
	Conn *kafkaconn.Conn
	// Source is the config's name.
	Source string
	// LoadWithin bounds Load; default 30 s.
	LoadWithin time.Duration
	// SaveWithin bounds Save; default 10 s.
	SaveWithin time.Duration
}

// Store implements capture.Checkpoints. Safe for concurrent use.
type Store struct {
	o Options

	mu     sync.Mutex
	newest *capture.Checkpoint // what Load or Save saw last
	end    int64               // of the topic, as Load or Save saw it last; -1: not yet
	tried  [][]byte            // values that Save has sent since, and that may be in the topic although it failed
}

func (o *Options) defaults() {
	if o.LoadWithin <= 0 {
		o.LoadWithin = 30 * time.Second
	}
	if o.SaveWithin <= 0 {
		o.SaveWithin = 10 * time.Second
	}
}

// New wires a Store; it opens nothing.
func New(o Options) *Store {
	o.defaults()
	return &Store{o: o, end: -1}
}

// tail is how many of the newest records Load reads first. The topic is compacted by a cleaner that runs now and then, so
// that it usually holds hours of one record a second; ours is nearly always among the last.
const tail = 256

// Load implements capture.Checkpoints. It reads to the end offset asked for at its start, so that a writer that is still
// alive cannot keep it from ending, and goes back in growing steps until it meets a record of this source.
func (s *Store) Load(ctx context.Context) (*capture.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.LoadWithin)
	defer cancel()
	first, end, err := bounds(ctx, s.o.Conn)
	if err != nil {
		return nil, err
	}
	high := end
	for step := int64(tail); high > first; step *= 4 {
		low := max(first, high-step)
		value, found, err := s.newestIn(ctx, low, high)
		if err != nil {
			return nil, err
		}
		if found && value == nil {
			break // deleted
		}
		if found {
			c, err := decode(s.o.Source, value)
			if err != nil {
				return nil, &capture.StopError{
					Op: "reading the checkpoint from " + s.o.Conn.CheckpointsTopic(), Cause: "checkpoint_unreadable", Err: err,
					Hint: "a later Lethe wrote it, or something else writes to the topic: run that version, or delete the topic's" +
						" record for this source and resume the gap that follows",
				}
			}
			s.seen(c, end)
			return clone(c), nil
		}
		high = low
	}
	s.seen(nil, end)
	return nil, nil
}

func (s *Store) seen(c *capture.Checkpoint, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest, s.end, s.tried = c, end, nil
}

// bounds asks where the topic begins and ends.
func bounds(ctx context.Context, conn *kafkaconn.Conn) (first, end int64, err error) {
	topic := conn.CheckpointsTopic()
	res, err := conn.Client().ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: {kafka.FirstOffsetOf(0), kafka.LastOffsetOf(0)}},
	})
	if err == nil && (len(res.Topics[topic]) != 1 || res.Topics[topic][0].Error != nil) {
		err = errors.New("no offsets in the answer")
		if len(res.Topics[topic]) == 1 {
			err = res.Topics[topic][0].Error
		}
	}
	if err != nil {
		return 0, 0, failure("asking for the end of "+topic, err)
	}
	return res.Topics[topic][0].FirstOffset, res.Topics[topic][0].LastOffset, nil
}

// newestIn returns the record of this source within [low, high) that counts; found without a value is a deletion.
// Compaction leaves holes, so that a fetch may answer with later records than it was asked for, or with none.
func (s *Store) newestIn(ctx context.Context, low, high int64) (newest []byte, found bool, err error) {
	topic := s.o.Conn.CheckpointsTopic()
	for next := low; next < high; {
		res, err := s.o.Conn.Client().Fetch(ctx, &kafka.FetchRequest{
			Topic: topic, Offset: next, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 200 * time.Millisecond,
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return nil, false, failure(fmt.Sprintf("reading %s at %d", topic, next), err)
		}
		last, err := s.scan(res.Records, next, high, func(value []byte) {
			newest, found = s.later(newest, value), true
		})
		if err != nil {
			return nil, false, failure(fmt.Sprintf("reading %s at %d", topic, next), err)
		}
		next = max(last, next) + 1
	}
	return newest, found, nil
}

// later returns the one of two values, in the order of the topic, that counts: the second, unless it moves back. Such a one
// is the last write of a process that was frozen or cut off, and came when another had gone on already; taken for the
// truth it would make the slot look as if it were ahead. What cannot be compared counts, and is refused by Load.
func (s *Store) later(first, second []byte) []byte {
	if first == nil || second == nil {
		return second
	}
	a, errA := decode(s.o.Source, first)
	b, errB := decode(s.o.Source, second)
	if errA == nil && errB == nil && before(b, a) {
		return first
	}
	return second
}

// scan reads one answer: it gives each value of this source below high, nil for a deletion, and returns the last offset
// seen (-1: none).
func (s *Store) scan(records kafka.RecordReader, from, high int64, each func(value []byte)) (last int64, err error) {
	last = -1
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		last = max(last, rec.Offset)
		if rec.Offset < from || rec.Offset >= high || rec.Key == nil {
			continue
		}
		key, err := kafka.ReadAll(rec.Key)
		if err != nil {
			return last, err
		}
		if string(key) != s.o.Source {
			continue
		}
		if rec.Value == nil {
			each(nil)
			continue
		}
		value, err := kafka.ReadAll(rec.Value)
		if err != nil {
			return last, err
		}
		each(value)
	}
}

// errBack is wrapped by the StopError of a checkpoint that would move back.
var errBack = errors.New("the checkpoint would move back")

// Save implements capture.Checkpoints: it returns when all in-sync replicas have the record (acks=all).
func (s *Store) Save(ctx context.Context, c *capture.Checkpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest != nil && before(c, s.newest) {
		return &capture.StopError{
			Op: "writing the checkpoint", Cause: "checkpoint_back", Position: c.Position,
			Err:  fmt.Errorf("%w: incarnation %d, at %s already", errBack, s.newest.Incarnation, s.newest.Position),
			Hint: "another Lethe may capture the same source: stop one of them",
		}
	}
	value, err := encode(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.SaveWithin)
	defer cancel()
	if err := s.superseded(ctx); err != nil {
		return err
	}
	s.tried = append(s.tried, value)
	topic := s.o.Conn.CheckpointsTopic()
	res, err := s.o.Conn.Client().Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: 0, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Key: kafka.NewBytes([]byte(s.o.Source)), Value: kafka.NewBytes(value)}),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return failure("writing to "+topic, err)
	}
	s.newest, s.end, s.tried = clone(c), res.BaseOffset+1, nil
	return nil
}

// superseded looks at what others have written since Load or the last Save. A process that was stopped (SIGSTOP, a
// frozen machine) for so long that a standby took over would otherwise put its old position over the standby's, and the
// next start would see a slot that is ahead of its checkpoint. A write in the moment between the look and ours is not
// seen; Load passes over it, because it moves back.
func (s *Store) superseded(ctx context.Context) error {
	if s.end < 0 {
		return nil
	}
	_, end, err := bounds(ctx, s.o.Conn)
	if err != nil {
		return err
	}
	if end <= s.end {
		return nil
	}
	value, found, err := s.newestIn(ctx, s.end, end)
	if err != nil {
		return err
	}
	if !found || slices.ContainsFunc(s.tried, func(tried []byte) bool { return bytes.Equal(tried, value) }) {
		return nil
	}
	return fmt.Errorf("writing the checkpoint: %w", capture.ErrSuperseded)
}

// before reports whether c lies before d in d's own incarnation, or in an earlier one.
func before(c, d *capture.Checkpoint) bool {
	switch {
	case c.Incarnation != d.Incarnation:
		return c.Incarnation < d.Incarnation
	case c.Position.Epoch != d.Position.Epoch:
		return c.Position.Epoch < d.Position.Epoch
	}
	return c.Position.Commit < d.Position.Commit
}

// failure classifies an error of Kafka: what a human must cure becomes a StopError.
func failure(op string, err error) error {
	class := kafkaconn.Classify(err)
	if class.Permanent() {
		return &capture.StopError{
			Op: op, Cause: "kafka_" + string(class), Err: errors.New(kafkaconn.Reason(err)), Hint: kafkaconn.Hint(class),
		}
	}
	return fmt.Errorf("%s: %w", op, err)
}
