package capture

import (
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"lethe/schema"
)

// assembly is what a goroutine needs to make events of changes. Everything in it is reused. The source's goroutine has one,
// the pass another.
type assembly struct {
	rules      Ruler
	encoder    Encoder
	tx         Transaction // in hand
	position   Position    // of tx
	detectedAt time.Time
	ordinal    uint32
	counts     []occurrence
	drafts     []Draft
	gaps       []OpenGap // opened by the transaction in hand
	event      schema.Event
	key, value []byte
	refs       refCache
	streaming  bool
	failure    error // what the handler returned, whatever the source makes of it
}

// occurrence counts the changes of one (table, operation) in the transaction, whether a rule saw them or not: another
// rule must not rename the events of this one.
type occurrence struct {
	table string
	op    Op
	n     uint32
}

func (a *assembly) init(p *Pipeline, rules Ruler, encoder Encoder) {
	a.rules, a.encoder = rules, encoder
	a.event.Source = p.o.Name
	a.event.ConfigDigest = p.o.ConfigDigest
	a.event.Kind = schema.KindStream
	a.refs.init(p.o.IDs)
}

// countUp returns how many changes of this table and operation the transaction had before.
func (a *assembly) countUp(table string, op Op) uint32 {
	for i := range a.counts {
		if o := &a.counts[i]; o.op == op && o.table == table {
			o.n++
			return o.n - 1
		}
	}
	a.counts = append(a.counts, occurrence{table: table, op: op, n: 1})
	return 0
}

// Follows implements Follower.
func (s *session) Follows() {
	select {
	case <-s.follows: // a source may come to it once more, for example behind what was purged
	default:
		close(s.follows)
	}
}

// Begin implements Handler.
func (s *session) Begin(tx *Transaction) error {
	if !s.streaming {
		s.streaming = true
		s.p.setState(StateStreaming, "", "")
	}
	s.tx, s.position = *tx, tx.Position
	s.detectedAt = time.Now() // the only clock read of a transaction
	s.ordinal = 0
	s.counts = s.counts[:0]
	s.gaps = nil
	return nil
}

// Commit implements Handler: the gathering shipment is complete up to here.
func (s *session) Commit(tx *Transaction) error {
	s.p.totals.transactions.Add(1)
	s.p.totals.changes.Add(uint64(s.ordinal))
	s.mu.Lock()
	s.gathering.mark.advance(&mark{
		position: tx.Position, xid: tx.XID, committedAt: tx.CommittedAt, gaps: s.gaps, set: true,
	})
	s.gathering.commits++
	s.seen = seenCommit{position: tx.Position, committedAt: tx.CommittedAt}
	if s.moved != nil {
		close(s.moved)
		s.moved = nil
	}
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// Change implements Handler: the rules, then one event for each draft.
func (s *session) Change(c *Change) (err error) {
	defer func() { s.failure = err }()
	defer contain(s.p, "applying the rules", &s.position, &err)
	return s.apply(&s.assembly, c)
}

// apply makes the events of a change with a.
func (s *session) apply(a *assembly, c *Change) (err error) {
	table := ""
	if c.Table != nil {
		table = c.Table.Name
	}
	n := a.ordinal // a row of a pass is told from every other by its place alone
	if c.Op != OpRead {
		n = a.countUp(table, c.Op)
	}
	a.drafts, err = a.rules.Apply(&a.tx, c, a.drafts[:0])
	if err != nil {
		return a.stop(c.Op, table, "rule", "compare the mapping with the table; `lethe check` does", err)
	}
	for i := range a.drafts {
		if err := s.emit(a, c.Op, table, n, &a.drafts[i]); err != nil {
			return err
		}
	}
	a.ordinal++
	return nil
}

func (a *assembly) stop(op Op, table, cause, hint string, err error) error {
	if stop := (*StopError)(nil); errors.As(err, &stop) {
		return err
	}
	return &StopError{
		Op: fmt.Sprintf("applying the rules to %s of %s", op, table), Cause: cause, Position: a.position, Hint: hint, Err: err,
	}
}

// errNoSubject is a rule's defect: an event about a person without the person.
var errNoSubject = errors.New("the rule gave an event without a subject key")

// emit makes the event of a draft and puts it into the gathering shipment.
func (s *session) emit(a *assembly, op Op, table string, n uint32, d *Draft) error {
	ev := &a.event
	ids := s.p.o.IDs
	key := schema.EventKey{
		Incarnation: s.incarnation, Epoch: a.position.Epoch, Number: a.position.Commit,
		Table: table, PK: d.PK, Op: uint8(op), Occurrence: n, Rule: d.Rule,
	}
	if d.ID != nil {
		key = *d.ID
	}
	ev.EventID = ids.EventID(key)
	ev.Order = schema.NewOrder(s.incarnation, a.position.Epoch, a.position.Commit, a.ordinal)
	ev.CommittedAt, ev.DetectedAt = a.tx.CommittedAt, a.detectedAt
	ev.Rule, ev.Body, ev.CRMKey = d.Rule, d.Body, d.SubjectKey
	ev.SubjectRef, ev.CaseID = schema.SubjectRef{}, schema.CaseID{}
	all := false
	switch body := d.Body.(type) {
	case *schema.Heartbeat, *schema.PassMarker:
		all = true
	case *schema.Gap:
		all = true
		if body.Opened {
			s.openGap(body, ev.Order, table)
		} else {
			body.To = ev.Order
		}
	case *schema.ConsentChange:
		body.Contact = s.contact(d)
	case *schema.Objection:
		body.Contact = s.contact(d)
	case *schema.ContactPoint:
		body.Contact = s.contact(d)
	case *schema.SubjectMerged:
		body.Absorbed = body.Absorbed[:0]
		for _, key := range d.Absorbed {
			body.Absorbed = append(body.Absorbed, s.refs.get(key))
		}
	}
	if !all {
		if len(d.SubjectKey) == 0 {
			return a.stop(op, table, "rule", "this is a defect of Lethe: report it with the rule's name", errNoSubject)
		}
		ev.SubjectRef = a.refs.get(d.SubjectKey)
		if t := d.Body.Type(); t == schema.TypeSubjectErasure || t == schema.TypeSourceReport || t == schema.TypeCaseDecision {
			ev.CaseID = ids.CaseID(ev.SubjectRef)
			if x := s.reader; x != nil && a == &s.assembly {
				if err := x.note(ev); err != nil {
					return err
				}
			}
		}
	}
	var err error
	if a.value, err = a.encoder.Append(a.value[:0], ev); err != nil {
		return a.stop(op, table, "encode", "the event cannot be encoded: report it with the rule's name", err)
	}
	if all {
		a.key = a.key[:0]
	} else {
		a.key = ev.SubjectRef.AppendText(a.key[:0])
	}
	return s.put(a, d.Body.Type(), all)
}

func (s *session) contact(d *Draft) (ref schema.ContactRef) {
	if d.ContactTable == "" {
		return ref
	}
	return s.p.o.IDs.ContactRef(d.ContactTable, d.ContactPK)
}

// openGap completes a Gap that a rule saw in the stream and keeps it for the checkpoint.
func (s *session) openGap(g *schema.Gap, at schema.Order, table string) {
	g.From = at
	if g.GapID == "" {
		g.GapID = gapID(s.p.o.Name, s.incarnation, g.Cause, s.position, table)
	}
	s.gapsOpened.Add(1)
	s.gaps = append(s.gaps, OpenGap{ID: g.GapID, Cause: g.Cause, From: g.From, OpenedAt: s.tx.CommittedAt})
}

// put adds the encoded event to the gathering shipment. A source that heeds Full never blocks here: there is room for
// what it has already read.
func (s *session) put(a *assembly, t schema.Type, all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		g := s.gathering
		var err error
		if all {
			err = g.unit.AppendAll(a.value)
		} else {
			err = g.unit.Append(a.key, a.value)
		}
		if err == nil {
			g.filled = true
			g.events[t]++
			if !g.ripe && g.unit.Full() {
				s.ripen()
			}
			return nil
		}
		if !errors.Is(err, ErrUnitFull) {
			return &StopError{
				Op: "adding an event to the unit", Cause: "too_large", Position: a.position, Err: err,
				Hint: "raise max.message.bytes of the events topic",
			}
		}
		s.ripen()
		room := s.roomLocked()
		s.mu.Unlock()
		select {
		case <-room:
		case <-s.work.Done():
		}
		s.mu.Lock()
		if err := s.work.Err(); err != nil {
			return err
		}
	}
}

// ripen tells the sender to take the gathering shipment as it is; the caller holds mu.
func (s *session) ripen() {
	s.gathering.ripe = true
	poke(s.wake)
	poke(s.hurry)
}

// Full implements Throttle. During a stop it never gives room again.
func (s *session) Full() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return s.never
	}
	if !s.gathering.unit.Full() {
		return nil
	}
	return s.roomLocked()
}

func (s *session) roomLocked() <-chan struct{} {
	if s.room == nil {
		s.room = make(chan struct{})
	}
	return s.room
}

// refCache saves an HMAC where consecutive changes concern the same subjects. It is direct-mapped: bounded, and a
// collision only costs the HMAC again.
type refCache struct {
	ids   *schema.Identifiers
	seed  maphash.Seed
	slots []refSlot
}

const refSlots = 512

type refSlot struct {
	key []byte
	ref schema.SubjectRef
}

func (c *refCache) init(ids *schema.Identifiers) {
	c.ids, c.seed, c.slots = ids, maphash.MakeSeed(), make([]refSlot, refSlots)
}

func (c *refCache) get(key []byte) schema.SubjectRef {
	slot := &c.slots[maphash.Bytes(c.seed, key)%refSlots]
	if string(slot.key) != string(key) || len(slot.key) == 0 {
		slot.key = append(slot.key[:0], key...)
		slot.ref = c.ids.SubjectRef(key)
	}
	return slot.ref
}
