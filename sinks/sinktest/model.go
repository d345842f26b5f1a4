// Package sinktest holds what sinks are tested with: Model, a replica in memory, and Run, the conformance suite that every
// sinks.Replica passes.
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Model is a sinks.Replica in memory, as simple as it can be: it keeps the facts by the guard, folds them when asked, and
// counts what no replica may do. Tests of the worker use it as the replica and as the oracle. Safe for concurrent use.
type Model struct {
	// Before is called at the start of each transaction, After behind its commit; an error of After is that of a commit
	// whose answer was lost. Either may be nil; op is assign, apply, park, due, unsent or sent.
	Before, After func(op string, recs []sinks.Record) error

	mu         sync.Mutex
	places     map[int32]sinks.Place
	subjects   map[string]*modelSubject
	effects    map[schema.EventID]int
	offsets    map[int32]map[int64]int
	receipts   []sinks.OutboxReceipt
	sent       map[schema.ReceiptID]bool
	batches    []int
	violations []string
}

type modelSubject struct {
	facts   map[modelScope]sinks.Fact
	erased  bool
	blocked bool
	parked  int
}

type modelScope struct {
	scope   string
	contact schema.ContactRef
}

// NewModel returns an empty replica.
func NewModel() *Model {
	return &Model{
		places: map[int32]sinks.Place{}, subjects: map[string]*modelSubject{}, effects: map[schema.EventID]int{},
		offsets: map[int32]map[int64]int{}, sent: map[schema.ReceiptID]bool{},
	}
}

func (m *Model) hook(f func(string, []sinks.Record) error, op string, recs []sinks.Record) error {
	if f == nil {
		return nil
	}
	return f(op, recs)
}

// Assign implements sinks.Applier.
func (m *Model) Assign(_ context.Context, partitions []int32) ([]sinks.Place, error) {
	if err := m.hook(m.Before, "assign", nil); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []sinks.Place
	for _, id := range partitions {
		p, known := m.places[id]
		if !known {
			p = sinks.Place{Partition: id}
			m.places[id] = p
		}
		out = append(out, p)
	}
	return out, nil
}

// Apply implements sinks.Applier.
func (m *Model) Apply(_ context.Context, b *sinks.Batch) (sinks.Outcome, error) {
	if err := m.hook(m.Before, "apply", b.Records); err != nil {
		return sinks.Outcome{}, err
	}
	out, err := m.apply(b)
	if err != nil {
		return sinks.Outcome{}, err
	}
	if err := m.hook(m.After, "apply", b.Records); err != nil {
		return sinks.Outcome{}, err
	}
	return out, nil
}

func (m *Model) apply(b *sinks.Batch) (sinks.Outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, from := range b.From {
		if m.places[from.Partition].NextOffset != from.NextOffset {
			return sinks.Outcome{}, fmt.Errorf("partition %d: %w", from.Partition, sinks.ErrFenced)
		}
	}
	var out sinks.Outcome
	m.batches = append(m.batches, len(b.Records))
	for i := range b.Records {
		r := &b.Records[i]
		if !slices.ContainsFunc(b.From, func(p sinks.Place) bool { return p.Partition == r.Partition }) {
			m.violate("partition %d is not in From", r.Partition)
		}
		if r.Event == nil {
			m.violate("undecodable record %d/%d in a batch", r.Partition, r.Offset)
			continue
		}
		m.move(r)
		if m.applyEvent(r) {
			out.Applied++
		} else {
			out.Stale++
		}
	}
	for _, from := range b.From {
		out.Places = append(out.Places, m.places[from.Partition])
	}
	return out, nil
}

func (m *Model) violate(format string, args ...any) {
	m.violations = append(m.violations, fmt.Sprintf(format, args...))
}

// move moves the place behind r, which must be the next record of its partition.
func (m *Model) move(r *sinks.Record) {
	p := m.places[r.Partition]
	if p.NextOffset != 0 && r.Offset != p.NextOffset {
		m.violate("partition %d: record %d where %d is next", r.Partition, r.Offset, p.NextOffset)
	}
	seen := m.offsets[r.Partition]
	if seen == nil {
		seen = map[int64]int{}
		m.offsets[r.Partition] = seen
	}
	if seen[r.Offset]++; seen[r.Offset] > 1 {
		m.violate("partition %d: record %d applied twice", r.Partition, r.Offset)
	}
	p.Partition, p.NextOffset, p.UpdatedAt, p.LastEventID = r.Partition, r.Offset+1, time.Now(), schema.EventID{}
	if r.Event != nil {
		p.LastEventID, p.LastOrder = r.Event.EventID, r.Event.Order
	}
	m.places[r.Partition] = p
}

func (m *Model) subject(key []byte) *modelSubject {
	s := m.subjects[string(key)]
	if s == nil {
		s = &modelSubject{facts: map[modelScope]sinks.Fact{}}
		m.subjects[string(key)] = s
	}
	return s
}

func (m *Model) applyEvent(r *sinks.Record) (applied bool) {
	if len(r.Key) == 0 {
		return true
	}
	s := m.subject(r.Key)
	fact, strictness, isFact := sinks.FactOf(r.Event)
	switch {
	case strictness == sinks.Erasure:
		if applied = !s.erased; applied {
			s.erased = true
			m.effects[r.Event.EventID]++
			id := schema.ReceiptID(r.Event.EventID)
			m.receipts = append(m.receipts, sinks.OutboxReceipt{ID: id, CaseID: r.Event.CaseID, Body: []byte(r.Event.EventID.String())})
		}
	case isFact && s.blocked && !strictness.Prohibits():
		s.parked++
	case isFact:
		k := modelScope{fact.Scope, fact.Contact}
		old, known := s.facts[k]
		if r.Event.Kind == schema.KindSnapshot && !s.blocked && tellsNothing(fact, old, known) {
			return false
		}
		if !known || sinks.Newer(fact, old) {
			applied = true
			s.facts[k] = fact
			m.effects[r.Event.EventID]++
		}
	}
	return applied
}

// tellsNothing reports whether what a pass has read is known.
func tellsNothing(fact, old sinks.Fact, known bool) bool {
	if !known {
		return fact.State == sinks.StateLifted
	}
	return old.State == fact.State && old.ValidUntil.Equal(fact.ValidUntil) && old.AsOf.Equal(fact.AsOf)
}

// Park implements sinks.Applier.
func (m *Model) Park(_ context.Context, from sinks.Place, r *sinks.Record, _ string) (sinks.Place, error) {
	if err := m.hook(m.Before, "park", []sinks.Record{*r}); err != nil {
		return sinks.Place{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.places[r.Partition].NextOffset != from.NextOffset {
		return sinks.Place{}, sinks.ErrFenced
	}
	m.move(r)
	s := m.subject(r.Key)
	s.blocked = true
	s.parked++
	return m.places[r.Partition], nil
}

// RunDue implements sinks.Chores. Nothing is ever due here.
func (m *Model) RunDue(_ context.Context, places []sinks.Place) (time.Time, error) {
	if err := m.hook(m.Before, "due", nil); err != nil {
		return time.Time{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range places {
		if m.places[p.Partition].NextOffset != p.NextOffset {
			return time.Time{}, sinks.ErrFenced
		}
	}
	return time.Time{}, nil
}

// Unsent implements sinks.Outbox.
func (m *Model) Unsent(_ context.Context, _ []int32, limit int) ([]sinks.OutboxReceipt, error) {
	if err := m.hook(m.Before, "unsent", nil); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []sinks.OutboxReceipt
	for _, r := range m.receipts {
		if !m.sent[r.ID] && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

// MarkSent implements sinks.Outbox.
func (m *Model) MarkSent(_ context.Context, ids []schema.ReceiptID) error {
	if err := m.hook(m.Before, "sent", nil); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		m.sent[id] = true
	}
	return nil
}

// Place returns where a partition stands.
func (m *Model) Place(partition int32) sinks.Place {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.places[partition]
}

// SetPlace puts a partition somewhere else, as a restore does, and forgets what was applied from there on.
func (m *Model) SetPlace(p sinks.Place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[p.Partition] = p
	for offset := range m.offsets[p.Partition] {
		if offset >= p.NextOffset {
			delete(m.offsets[p.Partition], offset)
		}
	}
}

// Verdict folds the subject of a Kafka key.
func (m *Model) Verdict(key string, now time.Time) sinks.Verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.subject([]byte(key))
	var facts []sinks.Fact
	for _, f := range s.facts {
		facts = append(facts, f)
	}
	return sinks.Fold(facts, s.erased, now)
}

// Parked returns how many events of a subject wait.
func (m *Model) Parked(key string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.subject([]byte(key)).parked
}

// Records returns how many records were applied or parked.
func (m *Model) Records() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.offsets {
		n += len(p)
	}
	return n
}

// Batches returns the sizes of the committed batches.
func (m *Model) Batches() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.batches)
}

// Check returns what this replica saw that no replica may see: a record applied twice or out of turn, an event with two
// effects.
func (m *Model) Check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, v := range m.violations {
		errs = append(errs, errors.New(v))
	}
	for id, n := range m.effects {
		if n > 1 {
			errs = append(errs, fmt.Errorf("event %s has %d effects", id, n))
		}
	}
	return errors.Join(errs...)
}
