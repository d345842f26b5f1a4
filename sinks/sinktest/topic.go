package sinktest

import (
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Topic makes the events of one source, lays them out, and remembers where the replica stands in it.
type Topic struct {
	IDs    *schema.Identifiers
	Parts  int32
	Places map[int32]sinks.Place
	encode func(ev *schema.Event) []byte
	number uint64
}

// NewTopic makes an empty topic with so many partitions; encode returns an event as the topic carries it.
func NewTopic(parts int32, encode func(ev *schema.Event) []byte) *Topic {
	return &Topic{IDs: schema.NewIdentifiers(PRF("subject"), "crm"), Parts: parts, Places: map[int32]sinks.Place{}, encode: encode}
}

// Event makes the next event about a person.
func (t *Topic) Event(crmKey string, body schema.Body) *schema.Event {
	t.number++
	return t.EventAt(crmKey, t.number, body)
}

// EventAt makes an event with a place of its own in the order of the source.
func (t *Topic) EventAt(crmKey string, number uint64, body schema.Body) *schema.Event {
	key := schema.CanonicalKey(nil, []byte(crmKey))
	now := time.Now().UTC().Truncate(time.Millisecond)
	ev := &schema.Event{
		Header: schema.Header{
			EventID: t.IDs.EventID(schema.EventKey{Number: number, Table: "public.customer", PK: key, Op: 1, Rule: "rule"}),
			Order:   schema.NewOrder(0, 1, number, 0), Source: "crm", CommittedAt: now, DetectedAt: now, Rule: "rule",
		},
		Body: body,
	}
	switch body.(type) {
	case *schema.Heartbeat, *schema.Gap, *schema.PassMarker:
		return ev
	case *schema.SubjectErasure, *schema.CaseDecision, *schema.SourceReport:
		ev.CaseID = t.CaseID(crmKey)
	}
	ev.SubjectRef, ev.CRMKey = t.IDs.SubjectRef(key), key
	return ev
}

// CaseID is the id of the erasure case of a person.
func (t *Topic) CaseID(crmKey string) schema.CaseID {
	return t.IDs.CaseID(t.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(crmKey))))
}

// Partition is where the events of a subject lie; those of none lie in the first.
func (t *Topic) Partition(ev *schema.Event) int32 { return int32(ev.SubjectRef[0]) % t.Parts }

// Batch lays events out: by partition, offsets from the places on.
func (t *Topic) Batch(events ...*schema.Event) *sinks.Batch {
	b := &sinks.Batch{}
	for part := range t.Parts {
		next := t.Places[part].NextOffset
		for _, ev := range events {
			if t.Partition(ev) != part {
				continue
			}
			b.Records = append(b.Records, t.Record(part, next, ev))
			next++
		}
		if next > t.Places[part].NextOffset {
			b.From = append(b.From, t.Places[part])
		}
	}
	return b
}

// Record is an event at a place of the topic.
func (t *Topic) Record(part int32, offset int64, ev *schema.Event) sinks.Record {
	r := sinks.Record{Partition: part, Offset: offset, Value: t.encode(ev), Event: ev}
	if !ev.SubjectRef.IsZero() {
		r.Key = ev.SubjectRef.AppendText(nil)
	}
	return r
}

// Partitions lists all partitions.
func (t *Topic) Partitions() []int32 {
	parts := make([]int32, t.Parts)
	for i := range parts {
		parts[i] = int32(i)
	}
	return parts
}

// All returns the places of all partitions.
func (t *Topic) All() []sinks.Place {
	out := make([]sinks.Place, 0, t.Parts)
	for p := range t.Parts {
		out = append(out, t.Places[p])
	}
	return out
}

// Move notes where the replica stands in some partitions.
func (t *Topic) Move(places ...sinks.Place) {
	for _, p := range places {
		t.Places[p.Partition] = p
	}
}
