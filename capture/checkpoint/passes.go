package checkpoint

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/capture"
)

// Passes implements capture.Passes in the topic of the checkpoints. Under a source's name lies its checkpoint; behind it,
// after a slash, the newest pass, and each request that no pass has answered. A request is a record of its own, so that
// a command can add one while capture writes how far it is.
//
// The topic is compacted every few minutes, so the first Load reads it from its start; a later one reads what came since.
type Passes struct {
	o Options

	mu       sync.Mutex
	next     int64 // offset to read from; 0: nothing was read
	pass     []byte
	requests map[string][]byte
	saved    []byte // the pass as Load or Save of this process saw it last
	tried    [][]byte
}

// NewPasses wires a Passes; it opens nothing.
func NewPasses(o Options) *Passes {
	o.defaults()
	return &Passes{o: o, requests: map[string][]byte{}}
}

var _ capture.Passes = (*Passes)(nil)

func (s *Passes) passKey() string       { return s.o.Source + "/pass" }
func (s *Passes) requestPrefix() string { return s.o.Source + "/pass/request/" }

// Load implements capture.Passes.
func (s *Passes) Load(ctx context.Context) (*capture.PassBook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.o.LoadWithin)
	defer cancel()
	if err := s.catchUp(ctx); err != nil {
		return nil, err
	}
	s.saved, s.tried = s.pass, nil
	book := &capture.PassBook{}
	if s.pass != nil {
		p, err := decodePass(s.o.Source, s.pass)
		if err != nil {
			return nil, s.unreadable(s.passKey(), err)
		}
		book.Pass = p
	}
	for _, id := range slices.Sorted(maps.Keys(s.requests)) {
		r, err := decodeRequest(s.requests[id])
		if err == nil && r.ID != id {
			err = errForm
		}
		if err != nil {
			return nil, s.unreadable(s.requestPrefix()+id, err)
		}
		book.Requests = append(book.Requests, *r)
	}
	slices.SortStableFunc(book.Requests, func(a, b capture.PassRequest) int {
		return cmp.Or(a.RequestedAt.Compare(b.RequestedAt), strings.Compare(a.ID, b.ID))
	})
	return book, nil
}

func (s *Passes) unreadable(key string, err error) error {
	return &capture.StopError{
		Op: "reading " + key + " from " + s.o.Conn.CheckpointsTopic(), Cause: "pass_unreadable", Err: err,
		Hint: "a later Lethe wrote it, or something else writes to the topic: run that version, or delete the topic's record of this key" +
			" and ask for a pass with `lethe snapshot`",
	}
}

// catchUp reads to the end offset asked for first. The caller holds mu.
func (s *Passes) catchUp(ctx context.Context) error {
	topic := s.o.Conn.CheckpointsTopic()
	first, end, err := bounds(ctx, s.o.Conn)
	if err != nil {
		return err
	}
	if end < s.next { // the topic was made again
		s.next, s.pass, s.requests = 0, nil, map[string][]byte{}
	}
	for next := max(first, s.next); next < end; {
		res, err := s.o.Conn.Client().Fetch(ctx, &kafka.FetchRequest{
			Topic: topic, Offset: next, MinBytes: 1, MaxBytes: 4 << 20, MaxWait: 200 * time.Millisecond,
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return failure(fmt.Sprintf("reading %s at %d", topic, next), err)
		}
		last, err := s.take(res.Records, next)
		if err != nil {
			return failure(fmt.Sprintf("reading %s at %d", topic, next), err)
		}
		next = max(last, next) + 1
		s.next = next
	}
	return nil
}

// take notes the records of this source and returns the last offset seen; -1: none.
func (s *Passes) take(records kafka.RecordReader, from int64) (last int64, err error) {
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
		if rec.Offset < from || rec.Key == nil {
			continue
		}
		key, err := kafka.ReadAll(rec.Key)
		if err != nil {
			return last, err
		}
		id, request := strings.CutPrefix(string(key), s.requestPrefix())
		if !request && string(key) != s.passKey() {
			continue
		}
		var value []byte
		if rec.Value != nil {
			if value, err = kafka.ReadAll(rec.Value); err != nil {
				return last, err
			}
		}
		switch {
		case !request:
			s.pass = value
		case value == nil:
			delete(s.requests, id)
		default:
			s.requests[id] = value
		}
	}
}

// Save implements capture.Passes. What another process has written meanwhile is looked at first, as with a checkpoint.
func (s *Passes) Save(ctx context.Context, p *capture.Pass) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.o.SaveWithin)
	defer cancel()
	value, err := encodePass(p)
	if err != nil {
		return err
	}
	if err := s.catchUp(ctx); err != nil {
		return err
	}
	own := func(tried []byte) bool { return bytes.Equal(tried, s.pass) }
	if !bytes.Equal(s.pass, s.saved) && !slices.ContainsFunc(s.tried, own) {
		return fmt.Errorf("writing how far a pass is: %w", capture.ErrSuperseded)
	}
	s.tried = append(s.tried, value)
	if err := s.produce(ctx, s.passKey(), value); err != nil {
		return err
	}
	s.saved, s.tried = value, [][]byte{value}
	return nil
}

// Ask implements capture.Passes.
func (s *Passes) Ask(ctx context.Context, r capture.PassRequest) error {
	value, err := encodeRequest(&r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.SaveWithin)
	defer cancel()
	return s.produce(ctx, s.requestPrefix()+r.ID, value)
}

// Answered implements capture.Passes.
func (s *Passes) Answered(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.SaveWithin)
	defer cancel()
	return s.produce(ctx, s.requestPrefix()+id, nil)
}

// produce returns when all in-sync replicas have the record; a nil value deletes.
func (s *Passes) produce(ctx context.Context, key string, value []byte) error {
	topic := s.o.Conn.CheckpointsTopic()
	rec := kafka.Record{Key: kafka.NewBytes([]byte(key))}
	if value != nil {
		rec.Value = kafka.NewBytes(value)
	}
	res, err := s.o.Conn.Client().Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: 0, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(rec),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return failure("writing to "+topic, err)
	}
	return nil
}
