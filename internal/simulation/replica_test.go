package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// database is a replica's database in memory: what a transaction wrote is there as a whole or not at all. It counts what no
// replica may do. Its tables are those of DESIGN section 6, as far as the worker can be wrong about them.
type database struct {
	s    *simulation
	name string
	// topic is what it follows.
	topic string

	mu     sync.Mutex
	tables ledger
	faults dbFaults
	plan   []string // what is still to go wrong, one operation each: before, after
}

// ledger is what a backup holds.
type ledger struct {
	places   map[int32]sinks.Place
	subjects map[string]*subject
	seen     map[schema.EventID]string // the outcome of each event
	effects  map[schema.EventID]int
	receipts []*receipt
	known    map[schema.ReceiptID]bool
	parked   []sinks.Record
	applied  map[int32]int64 // records
}

type subject struct {
	partition int32
	facts     map[factKey]sinks.Fact
	kase      kase
	blocked   bool
}

type factKey struct {
	scope   string
	contact schema.ContactRef
}

// kase is the subject's erasure case.
type kase struct {
	state string // empty: none | suppressed | cancelled | erased
	event schema.EventID
	id    schema.CaseID
	due   time.Time
}

type receipt struct {
	sinks.OutboxReceipt
	partition int32
	event     schema.EventID
	sent      bool
}

// dbFaults are what is wrong with a database for a while.
type dbFaults struct {
	down      bool
	permanent bool
	poison    func(*schema.Event) bool
}

func newLedger() ledger {
	return ledger{
		places: map[int32]sinks.Place{}, subjects: map[string]*subject{}, seen: map[schema.EventID]string{},
		effects: map[schema.EventID]int{}, known: map[schema.ReceiptID]bool{}, applied: map[int32]int64{},
	}
}

// clone makes a backup.
func (l *ledger) clone() ledger {
	c := ledger{
		places: maps.Clone(l.places), subjects: map[string]*subject{}, seen: maps.Clone(l.seen), effects: maps.Clone(l.effects),
		known: maps.Clone(l.known), parked: slices.Clone(l.parked), applied: maps.Clone(l.applied),
	}
	for k, v := range l.subjects {
		s := *v
		s.facts = maps.Clone(v.facts)
		c.subjects[k] = &s
	}
	for _, r := range l.receipts {
		d := *r
		c.receipts = append(c.receipts, &d)
	}
	return c
}

// replica is a process's way into a database. It implements sinks.Replica.
type replica struct {
	db *database
	p  *process

	mu sync.Mutex
	// ends are the ends of the partitions' logs when they were assigned last: before them nothing is due.
	ends []int64
}

var errConnection = errors.New("connection to the replica lost")

// transaction runs f as one. Errors before it leave nothing behind; one after it hides that it was committed.
func (r *replica) transaction(op string, f func(*ledger) error) error {
	if r.p.hit("before_" + op); r.p.dead() {
		return errDead
	}
	r.db.mu.Lock()
	err := r.db.begin(op)
	if err == nil {
		err = f(&r.db.tables)
	}
	lost := err == nil && r.db.next("after")
	r.db.mu.Unlock()
	if err != nil {
		return err
	}
	if r.p.hit("after_" + op); r.p.dead() {
		return errDead
	}
	if lost {
		r.p.s.tracef("%s: %s committed, and the answer was lost", r.p.name, op)
		return errConnection
	}
	return nil
}

// begin says what is wrong with the database now; the caller holds mu.
func (d *database) begin(op string) error {
	switch {
	case d.faults.down || d.next("before"):
		return errConnection
	case d.faults.permanent && op != "assign":
		return &sinks.Error{Class: sinks.Permanent, Op: op, Code: "42703", Hint: "simulated"}
	}
	return nil
}

// next takes the next planned fault if it is of this kind.
func (d *database) next(kind string) bool {
	if len(d.plan) == 0 || d.plan[0] != kind {
		return false
	}
	d.plan = d.plan[1:]
	return true
}

// generation is called when partitions are assigned, before anything is read of them.
func (r *replica) generation() {
	ends := r.p.s.endList(r.db.topic)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = ends
}

// Assign implements sinks.Applier.
func (r *replica) Assign(_ context.Context, partitions []int32) ([]sinks.Place, error) {
	var out []sinks.Place
	err := r.transaction("assign", func(l *ledger) error {
		for _, id := range partitions {
			p, known := l.places[id]
			if !known {
				p = sinks.Place{Partition: id}
				l.places[id] = p
			}
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

// Apply implements sinks.Applier.
func (r *replica) Apply(_ context.Context, b *sinks.Batch) (out sinks.Outcome, err error) {
	err = r.transaction("apply", func(l *ledger) error {
		if err := r.fence(l, b.From); err != nil {
			return err
		}
		for i := range b.Records {
			rec := &b.Records[i]
			if rec.Event == nil {
				r.p.s.check.fail("%s: an undecodable record (%d/%d) is in a batch", r.db.name, rec.Partition, rec.Offset)
			} else if poison := r.db.faults.poison; poison != nil && poison(rec.Event) {
				return &sinks.Error{Class: sinks.Poison, Op: "applying", Code: "23502"}
			}
		}
		for i := range b.Records {
			r.db.move(l, &b.Records[i])
			r.db.event(l, &b.Records[i], false)
		}
		for _, from := range b.From {
			out.Places = append(out.Places, l.places[from.Partition])
		}
		return nil
	})
	return out, err
}

// fence is the compare-and-set of the offset rows.
func (r *replica) fence(l *ledger, from []sinks.Place) error {
	for _, p := range from {
		if now := l.places[p.Partition]; now.NextOffset != p.NextOffset {
			r.p.s.tracef("%s: fenced at partition %d: %d, not %d", r.p.name, p.Partition, now.NextOffset, p.NextOffset)
			return fmt.Errorf("partition %d: %w", p.Partition, sinks.ErrFenced)
		}
	}
	return nil
}

// move advances a partition over a record, which must be its next.
func (d *database) move(l *ledger, rec *sinks.Record) {
	p := l.places[rec.Partition]
	if rec.Offset != p.NextOffset {
		d.s.check.fail("I2: %s: record %d of partition %d is applied where %d is next", d.name, rec.Offset, rec.Partition, p.NextOffset)
	}
	p.Partition, p.NextOffset, p.LastEventID, p.UpdatedAt = rec.Partition, rec.Offset+1, schema.EventID{}, time.Now()
	if rec.Event != nil {
		p.LastEventID, p.LastOrder = rec.Event.EventID, rec.Event.Order
	}
	l.places[rec.Partition] = p
	l.applied[rec.Partition]++
}

func (l *ledger) subject(key []byte, partition int32) *subject {
	s := l.subjects[string(key)]
	if s == nil {
		s = &subject{facts: map[factKey]sinks.Fact{}, partition: partition}
		l.subjects[string(key)] = s
	}
	return s
}

// event applies one event, with its outcome and its receipt in the same transaction.
func (d *database) event(l *ledger, rec *sinks.Record, replayed bool) {
	ev := rec.Event
	if len(rec.Key) == 0 {
		return // heartbeats and gaps concern nobody
	}
	s := l.subject(rec.Key, rec.Partition)
	fact, strictness, isFact := sinks.FactOf(ev)
	var outcome string
	switch body := ev.Body.(type) {
	case *schema.SubjectErasure:
		outcome = "known"
		if s.kase.state == "" {
			outcome = "suppressed"
			s.kase = kase{state: "suppressed", event: ev.EventID, id: ev.CaseID, due: time.Now().Add(coolOff)}
			d.effect(l, ev)
		}
	case *schema.CaseDecision:
		outcome = "too late"
		if body.Decision == schema.DecisionCancel && s.kase.state == "suppressed" {
			outcome = "cancelled"
			s.kase.state = "cancelled"
			d.effect(l, ev)
		}
	default:
		switch {
		case !isFact:
			return
		case s.blocked && !strictness.Prohibits() && !replayed:
			l.parked = append(l.parked, *rec)
			return
		case s.kase.state == "erased":
			outcome = "refused"
		default:
			outcome = d.fact(l, s, fact, ev)
		}
	}
	if _, known := l.seen[ev.EventID]; known {
		return
	}
	l.seen[ev.EventID] = outcome
	d.receipt(l, rec.Partition, ev.EventID, ev.CaseID, outcome, schema.ReceiptPlanned)
}

// fact upserts where the event is newer.
func (d *database) fact(l *ledger, s *subject, f sinks.Fact, ev *schema.Event) string {
	k := factKey{f.Scope, f.Contact}
	old, known := s.facts[k]
	if known && !sinks.Newer(f, old) {
		return "stale"
	}
	if known && f.AsOf.IsZero() && old.AsOf.IsZero() && f.Order.Compare(old.Order) < 0 {
		d.s.check.fail("I3: %s: %s of a subject goes back from %s to %s", d.name, f.Scope, old.Order, f.Order)
	}
	s.facts[k] = f
	d.effect(l, ev)
	return "applied"
}

// effect counts that an event changed something.
func (d *database) effect(l *ledger, ev *schema.Event) {
	if l.effects[ev.EventID]++; l.effects[ev.EventID] > 1 {
		d.s.check.fail("I2: %s: event %s has %d effects", d.name, ev.EventID, l.effects[ev.EventID])
	}
}

// receipt stores one statement about an event.
func (d *database) receipt(l *ledger, partition int32, event schema.EventID, id schema.CaseID, says string, state schema.ReceiptState) {
	rid := d.s.ids.ReceiptID(event, d.name, state, 0)
	if l.known[rid] {
		d.s.check.fail("I2: %s: event %s gets its receipt %q twice", d.name, event, says)
		return
	}
	l.known[rid] = true
	l.receipts = append(l.receipts, &receipt{
		OutboxReceipt: sinks.OutboxReceipt{ID: rid, CaseID: id, Body: fmt.Appendf(nil, "%s %s %s", d.name, rid, says)},
		partition:     partition, event: event,
	})
}

// Park implements sinks.Applier.
func (r *replica) Park(_ context.Context, from sinks.Place, rec *sinks.Record, _ string) (place sinks.Place, err error) {
	err = r.transaction("park", func(l *ledger) error {
		if err := r.fence(l, []sinks.Place{from}); err != nil {
			return err
		}
		r.p.s.tracef("%s: parks %d/%d", r.p.name, rec.Partition, rec.Offset)
		r.db.move(l, rec)
		l.subject(rec.Key, rec.Partition).blocked = true
		l.parked = append(l.parked, *rec)
		place = l.places[rec.Partition]
		return nil
	})
	return place, err
}

// coolOff is how long an erasure waits for phase 2.
const coolOff = 20 * time.Second

// RunDue implements sinks.Chores: phase 2 of what is due in the partitions given.
func (r *replica) RunDue(_ context.Context, places []sinks.Place) (next time.Time, err error) {
	r.mu.Lock()
	ends := r.ends
	r.mu.Unlock()
	err = r.transaction("due", func(l *ledger) error {
		if err := r.fence(l, places); err != nil {
			return err
		}
		now := time.Now()
		for _, p := range places {
			r.p.s.check.caughtUp(r.db.name, p.Partition, p.NextOffset, ends[p.Partition])
			for _, s := range l.subjects {
				switch {
				case s.partition != p.Partition || s.kase.state != "suppressed":
				case now.Before(s.kase.due):
					if next.IsZero() || s.kase.due.Before(next) {
						next = s.kase.due
					}
				default:
					s.kase.state = "erased"
					clear(s.facts)
					r.db.receipt(l, s.partition, s.kase.event, s.kase.id, "verified", schema.ReceiptVerified)
				}
			}
		}
		return nil
	})
	return next, err
}

// Unsent implements sinks.Outbox.
func (r *replica) Unsent(_ context.Context, partitions []int32, limit int) (out []sinks.OutboxReceipt, err error) {
	err = r.transaction("unsent", func(l *ledger) error {
		for _, rc := range l.receipts {
			if !rc.sent && slices.Contains(partitions, rc.partition) && len(out) < limit {
				out = append(out, rc.OutboxReceipt)
			}
		}
		return nil
	})
	return out, err
}

// MarkSent implements sinks.Outbox.
func (r *replica) MarkSent(_ context.Context, ids []schema.ReceiptID) error {
	return r.transaction("sent", func(l *ledger) error {
		want := map[schema.ReceiptID]bool{}
		for _, id := range ids {
			want[id] = true
		}
		for _, rc := range l.receipts {
			rc.sent = rc.sent || want[rc.ID]
		}
		return nil
	})
}

// replay is what an operator does with parked events once their cause is gone: those that can be applied are, the others
// are discarded.
func (d *database) replay() {
	d.mu.Lock()
	defer d.mu.Unlock()
	parked := d.tables.parked
	d.tables.parked = nil
	for _, s := range d.tables.subjects {
		s.blocked = false
	}
	for i := range parked {
		if parked[i].Event != nil {
			d.event(&d.tables, &parked[i], true)
		}
	}
}

// verdict folds a subject's facts as a replica does.
func (d *database) verdict(key string, now time.Time) verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.tables.subjects[key]
	if s == nil {
		return verdict{}
	}
	facts := slices.Collect(maps.Values(s.facts))
	return verdictOf(sinks.Fold(facts, s.erased(), now))
}

func (s *subject) erased() bool { return s.kase.state == "suppressed" || s.kase.state == "erased" }

// place returns where a partition stands.
func (d *database) place(partition int32) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tables.places[partition].NextOffset
}

// change runs f on the database.
func (d *database) change(f func(*database)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}
