package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/schema"
)

// Readbacks implements capture.Readbacks in the topic of the checkpoints: under the source's name, after "/case/", one record for
// each case about which the source is still to be asked. The case is keyed, the subject's key sealed.
//
// It holds nothing in memory: Load reads the topic from its start.
type Readbacks struct{ o Options }

// NewReadbacks wires a Readbacks; it opens nothing.
func NewReadbacks(o Options) *Readbacks {
	o.defaults()
	return &Readbacks{o: o}
}

var _ capture.Readbacks = (*Readbacks)(nil)

func (s *Readbacks) prefix() string { return s.o.Source + "/case/" }

// Load implements capture.Readbacks. Of the cases that have no room only the ids are kept; where room was made by others that
// are forgotten further on in the topic, it is read once more for them.
func (s *Readbacks) Load(ctx context.Context, most int) (list []capture.Readback, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.LoadWithin)
	defer cancel()
	first, end, err := bounds(ctx, s.o.Conn)
	if err != nil {
		return nil, false, err
	}
	topic := s.o.Conn.CheckpointsTopic()
	values, left := map[string][]byte{}, map[string]bool{}
	err = s.scan(ctx, first, end, func(id string, value []byte) {
		_, known := values[id]
		switch {
		case value == nil:
			delete(values, id)
			delete(left, id)
		case known || len(values) < most:
			values[id] = value
			delete(left, id)
		default:
			left[id] = true
		}
	})
	if err == nil && len(values) < most && len(left) > 0 {
		wanted := map[string]bool{}
		for _, id := range slices.Sorted(maps.Keys(left))[:min(most-len(values), len(left))] {
			wanted[id] = true
			delete(left, id)
		}
		err = s.scan(ctx, first, end, func(id string, value []byte) {
			if wanted[id] && value != nil { // it is not forgotten before end
				values[id] = value
			}
		})
	}
	if err != nil {
		return nil, false, err
	}
	for _, id := range slices.Sorted(maps.Keys(values)) {
		r, err := decodeReadback(id, values[id])
		if err != nil {
			return nil, false, &capture.StopError{
				Op: "reading " + s.prefix() + id + " from " + topic, Cause: "readback_unreadable", Err: err,
				Hint: "a later Lethe wrote it, or something else writes to the topic: run that version, or delete the topic's record of this key;" +
					" the source is then not asked about this case any more",
			}
		}
		list = append(list, *r)
	}
	return list, len(left) > 0, nil
}

// scan gives the records of this source's cases between two offsets.
func (s *Readbacks) scan(ctx context.Context, first, end int64, take func(id string, value []byte)) error {
	topic := s.o.Conn.CheckpointsTopic()
	for next := first; next < end; {
		res, err := s.o.Conn.Client().Fetch(ctx, &kafka.FetchRequest{
			Topic: topic, Offset: next, MinBytes: 1, MaxBytes: 4 << 20, MaxWait: 200 * time.Millisecond,
		})
		if err == nil {
			err = res.Error
		}
		last := int64(-1)
		if err == nil {
			last, err = s.each(res.Records, next, take)
		}
		if err != nil {
			return failure(fmt.Sprintf("reading %s at %d", topic, next), err)
		}
		next = max(last, next) + 1
	}
	return nil
}

// each gives the records of this source's cases and returns the last offset seen; -1: none.
func (s *Readbacks) each(records kafka.RecordReader, from int64, take func(id string, value []byte)) (last int64, err error) {
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
		id, ours := strings.CutPrefix(string(key), s.prefix())
		if !ours {
			continue
		}
		var value []byte
		if rec.Value != nil {
			if value, err = kafka.ReadAll(rec.Value); err != nil {
				return last, err
			}
		}
		take(id, value)
	}
}

// Save implements capture.Readbacks: one request to the broker.
func (s *Readbacks) Save(ctx context.Context, list []capture.Readback) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.SaveWithin)
	defer cancel()
	topic := s.o.Conn.CheckpointsTopic()
	records := make([]kafka.Record, len(list))
	for i := range list {
		r := &list[i]
		records[i].Key = kafka.NewBytes([]byte(s.prefix() + r.Case.String()))
		if r.Finished() {
			continue // no value: forgotten
		}
		value, err := encodeReadback(r)
		if err != nil {
			return err
		}
		records[i].Value = kafka.NewBytes(value)
	}
	res, err := s.o.Conn.Client().Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: 0, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return failure("writing to "+topic, err)
	}
	return nil
}

// readbackDocument is the JSON form of a case.
type readbackDocument struct {
	Version     int           `json:"version"`
	Subject     []byte        `json:"subject"` // sealed
	Incarnation uint32        `json:"incarnation"`
	Epoch       uint32        `json:"epoch,omitempty"`
	Number      uint64        `json:"number,string"`
	OpenedAt    time.Time     `json:"opened_at"`
	Marked      bool          `json:"marked,omitempty"`
	Again       bool          `json:"again,omitempty"`
	Complete    askedDocument `json:"complete"`
	Gate        askedDocument `json:"gate"`
	Request     askedDocument `json:"request"`
}

type askedDocument struct {
	Done     bool      `json:"done,omitempty"`
	Attempts uint32    `json:"attempts,omitempty"`
	Told     string    `json:"told,omitempty"`
	Number   uint32    `json:"number,omitempty"`
	NextAt   time.Time `json:"next_at,omitzero"`
}

func encodeReadback(r *capture.Readback) ([]byte, error) {
	asked := func(a *capture.Asked) askedDocument {
		return askedDocument{Done: a.Done, Attempts: a.Attempts, Told: a.Told, Number: a.Number, NextAt: utc(a.NextAt)}
	}
	b, err := json.Marshal(readbackDocument{
		Version: version, Subject: r.Subject, Incarnation: r.Incarnation, Epoch: r.Epoch, Number: r.Number, OpenedAt: utc(r.OpenedAt),
		Marked: r.Marked, Again: r.Again, Complete: asked(&r.Complete), Gate: asked(&r.Gate), Request: asked(&r.Request),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a case: %w", err)
	}
	return b, nil
}

func decodeReadback(id string, b []byte) (*capture.Readback, error) {
	var d readbackDocument
	if err := decodeStrictly(b, &d); err != nil {
		return nil, err
	}
	caseID, err := schema.ParseCaseID(id)
	if err != nil || len(d.Subject) == 0 {
		return nil, errForm
	}
	asked := func(a *askedDocument) capture.Asked {
		return capture.Asked{Done: a.Done, Attempts: a.Attempts, Told: a.Told, Number: a.Number, NextAt: a.NextAt}
	}
	return &capture.Readback{
		Case: caseID, Subject: d.Subject, Incarnation: d.Incarnation, Epoch: d.Epoch, Number: d.Number, OpenedAt: d.OpenedAt, Marked: d.Marked,
		Again: d.Again, Complete: asked(&d.Complete), Gate: asked(&d.Gate), Request: asked(&d.Request),
	}, nil
}
