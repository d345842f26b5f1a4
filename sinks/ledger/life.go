package ledger

import (
	"bytes"
	"slices"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Life is what the records of a unit mean beyond the facts that they state: contact points that changed and what falls with
// them, prohibitions that stand wherever a contact point stands, duplicates, and what somebody ought to know.
type Life struct {
	Blocks   []Block // to be written
	Unblocks []Block // to be taken away: by reference, scope and value
	Touches  []Touch // to be put into the queue
	Aliases  []Alias // to be written
	Findings []Noted // to be written
	Mended   []Noted // to be taken away: by reference, kind and scope

	fallen  []fallen
	last    map[pointInCommit]schema.Order
	blocked map[[32]byte][]Block  // told by Meet
	held    map[[32]byte][]Holder // told by Meet
}

// pointInCommit is a contact point in one commit of the source.
type pointInCommit struct {
	s        *Subject
	contact  schema.ContactRef
	identity bool
	commit   [16]byte
}

func commitOf(o schema.Order) [16]byte { return [16]byte(o[:16]) }

func pointOf(s *Subject, body *schema.ContactPoint, o schema.Order) pointInCommit {
	return pointInCommit{s, body.Contact, body.Kind == schema.ContactIdentity, commitOf(o)}
}

// Block is a withdrawal about a contact point. It applies wherever that point stands, whichever record it came with.
type Block struct {
	Value   [32]byte // see Core.MatchValue
	Scope   string
	Ref     Ref // of the subject that it came from
	State   sinks.State
	Order   schema.Order
	AsOf    time.Time
	EventID schema.EventID
}

// Holder is an erased subject that held a contact point.
type Holder struct {
	Value       [32]byte
	Ref         Ref
	ErasedOrder []byte
}

// fallen is a consent that fell with its contact point.
type fallen struct {
	s       *Subject
	scope   string
	contact schema.ContactRef
	event   schema.EventID
	order   schema.Order
}

// Wanted are the values that the unit's contact points bring, and that their subjects do not hold yet: the dialect looks for what stands
// about them elsewhere, and tells Meet before Dispatch.
func (u *Unit) Wanted() [][32]byte {
	u.takePasses()
	var out [][32]byte
	for i := range u.Results {
		x := &u.Results[i]
		body, ok := x.Event.Body.(*schema.ContactPoint)
		if !ok || body.Removed || body.Past || x.Outcome == OutcomeElsewhere {
			continue
		}
		var held [][32]byte
		if c := x.Subject.Contact(body.Contact); c != nil && c.Live() {
			held = c.values(false)
		}
		x.keys = u.Core.storedKeys(body.Keys)
		for k := range x.keys {
			if key := &x.keys[k]; key.Strict() && !slices.Contains(held, key.Value) {
				out = append(out, key.Value)
			}
		}
	}
	return out
}

// Meet takes what the replica knows about values from other subjects: withdrawals, and erased people who held them.
func (u *Unit) Meet(blocks []Block, holders []Holder) {
	u.Life.blocked, u.Life.held = map[[32]byte][]Block{}, map[[32]byte][]Holder{}
	for _, b := range blocks {
		u.Life.blocked[b.Value] = append(u.Life.blocked[b.Value], b)
	}
	for _, h := range holders {
		u.Life.held[h.Value] = append(u.Life.held[h.Value], h)
	}
}

// lookAhead notes which of several changes of one contact point in one commit is the last.
func (u *Unit) lookAhead() {
	for i := range u.Results {
		x := &u.Results[i]
		body, ok := x.Event.Body.(*schema.ContactPoint)
		if !ok || x.Event.Kind != schema.KindStream {
			continue
		}
		if u.Life.last == nil {
			u.Life.last = map[pointInCommit]schema.Order{}
		}
		if p := pointOf(x.Subject, body, x.Event.Order); x.Event.Order.Compare(u.Life.last[p]) > 0 {
			u.Life.last[p] = x.Event.Order
		}
	}
}

// overtaken reports whether the same commit says something later about the same contact point: only what it leaves behind
// counts. A row that is deleted and inserted again, or changed twice, has changed as little as its value has.
func (u *Unit) overtaken(x *Result, body *schema.ContactPoint) bool {
	return x.Event.Kind == schema.KindStream && x.Event.Order.Compare(u.Life.last[pointOf(x.Subject, body, x.Event.Order)]) < 0
}

// takeContact takes in what an event says of one contact point, an upsert: the newer place wins. What the change means for
// consents is decided here, because only the replica knows the keys that the point had.
func (u *Unit) takeContact(x *Result, body *schema.ContactPoint) {
	s, ev := x.Subject, x.Event
	after := s.Erased() && bytes.Compare(ev.Order[:], s.ErasedOrder) > 0
	x.Outcome = OutcomeRecorded
	if u.overtaken(x, body) {
		return
	}
	if s.State == SubjectErased && !after {
		x.Outcome = OutcomeStale // what was known before is kept as keys
		return
	}
	c := s.contact(body.Contact, body.Kind == schema.ContactIdentity)
	if c == nil {
		s.Contacts = append(s.Contacts, Contact{Ref: body.Contact, Kind: body.Kind, Revived: after})
		c = &s.Contacts[len(s.Contacts)-1]
	}
	keys := x.keys
	if keys == nil {
		keys = u.Core.storedKeys(body.Keys)
	}
	switch {
	case c.Order != (schema.Order{}) && ev.Order.Compare(c.Order) <= 0:
		x.Outcome = OutcomeStale
		c.takeLate(ev, body, keys)
	case after:
		u.revive(x, c, body, keys)
	default:
		u.change(s, c, ev, body, keys)
		if ev.Kind == schema.KindSnapshot && !c.Dirty {
			x.Outcome = OutcomeUnchanged
		}
	}
	if s.State != SubjectErased && u.settleFacts(s, c) {
		x.Outcome = "" // what made something fall is in a receipt, with what became of it
	}
	s.keep()
}

// keep makes the subject have a row: what belongs to it lies beside it.
func (s *Subject) keep() {
	if !s.Known {
		s.Dirty = true
	}
}

// change brings a contact point up to date.
func (u *Unit) change(s *Subject, c *Contact, ev *schema.Event, body *schema.ContactPoint, keys []StoredKey) {
	first, wasGone := c.Order == (schema.Order{}), c.Gone()
	before := c.values(false)
	replaced := false
	if !body.Removed && !first {
		switch compareKeys(c.Keys, keys) {
		case different:
			replaced = true
		case unknown:
			// A row that the log shows to be changed may hold another value: the person is protected. A pass reads every row, also
			// after a rotation that left nothing to compare; what had changed before it came through the log, unless a part is lost.
			replaced = ev.Kind == schema.KindStream || len(u.Gaps) > 0
		case same:
		}
	}
	moved := first || replaced || wasGone != (body.Removed || body.Past) || c.Revived
	c.Removed, c.Past, c.Revived = body.Removed, body.Past, false
	switch {
	case c.Removed:
		for i := range c.Keys {
			if k := &c.Keys[i]; !k.Past {
				k.Past, k.Dirty = true, true
			}
		}
		c.keepKeys(keys, true, false)
	default:
		c.setKeys(keys, replaced)
	}
	if c.Kind != schema.ContactIdentity && (replaced || c.Gone() && (first || !wasGone) || wasGone && !first && !c.Gone()) {
		c.void(s, ev)
	}
	if first || replaced || wasGone {
		c.Since = ev.Order
	}
	// A pass that says nothing new writes nothing.
	if moved || ev.Kind == schema.KindStream || slices.ContainsFunc(c.Keys, func(k StoredKey) bool { return k.Dirty }) {
		c.Order, c.EventID, c.Dirty = ev.Order, ev.EventID, true
	}
	if c.Live() {
		news := first || wasGone || replaced
		for _, v := range c.values(false) {
			if first || wasGone || !slices.Contains(before, v) {
				u.consult(s, c, v)
				news = true // after a rotation of the match key what was withdrawn has to stand under the new version, too
			}
		}
		if news {
			u.blockAll(s, c)
		}
	}
}

// void ends what was consented to for the contact point up to an event. A pass reads what is there at its time, which may be
// newer than the place that its events have: what was known when it came, and what was committed before it read, falls.
func (c *Contact) void(s *Subject, ev *schema.Event) {
	order, at := ev.Order, ev.CommittedAt
	if ev.Kind == schema.KindSnapshot {
		if ev.DetectedAt.After(at) {
			at = ev.DetectedAt
		}
		for i := range s.Facts {
			if f := &s.Facts[i]; f.Contact == c.Ref && f.Order.Compare(order) > 0 {
				order = f.Order
			}
		}
	}
	if order.Compare(c.VoidOrder) > 0 {
		c.VoidOrder, c.VoidEvent = order, ev.EventID
	}
	if at.After(c.VoidAt) {
		c.VoidAt = at
	}
	c.Dirty = true
}

// takeLate takes in an event that is older than what is known of the contact point. It changes nothing, but the value that it
// had then may still be in a copy; and where it was another one, or was gone, what was consented to before is void. Of what is
// delivered again that is known.
func (c *Contact) takeLate(ev *schema.Event, body *schema.ContactPoint, keys []StoredKey) {
	if c.Kind != schema.ContactIdentity && !c.Gone() && (body.Removed || body.Past || compareKeys(c.Keys, keys) == different) {
		at := c.Since
		if ev.Order.Compare(c.Since) > 0 { // it was another one in between, and is the same again
			at = c.Order
		}
		if at.Compare(c.VoidOrder) > 0 {
			c.VoidOrder, c.VoidEvent, c.Dirty = at, c.EventID, true
		}
	}
	c.keepKeys(keys, true, false)
}

// revive keeps what came up after the erasure, apart from what finds people.
func (u *Unit) revive(x *Result, c *Contact, body *schema.ContactPoint, keys []StoredKey) {
	c.Removed, c.Past = body.Removed, body.Past
	c.Order, c.EventID, c.Dirty = x.Event.Order, x.Event.EventID, true
	known := len(c.Keys)
	c.keepKeys(keys, c.Past, true)
	if len(c.Keys) > known {
		u.note(x, FindingRevived, "")
	}
}

// voided reports whether a permission was given for what the contact point is no longer. old is the fact in its place.
func (c *Contact) voided(ev *schema.Event, f, old *sinks.Fact) bool {
	if c.Gone() {
		return true
	}
	if c.VoidOrder == (schema.Order{}) {
		return false
	}
	if !f.AsOf.IsZero() && claimedBefore(f.AsOf, c.VoidAt) {
		return true
	}
	if ev.Kind == schema.KindSnapshot {
		// A pass says what a row says, not when it was written: the source does not void its rows, and would give back in every
		// pass what fell.
		return f.AsOf.IsZero() && (old == nil || old.State.Strictness() != sinks.Permission)
	}
	switch {
	case f.Order.Compare(c.VoidOrder) <= 0, ev.CommittedAt.Before(c.VoidAt):
		return true
	case f.State == sinks.StateGiven && commitOf(f.Order) == commitOf(c.VoidOrder):
		// The same commit that replaced the point touched a consent that was there before. Nobody can tell a box that was ticked
		// anew from one that was saved along; a renewal says so.
		return old != nil && old.State == sinks.StateInvalidated && old.EventID == c.VoidEvent
	}
	return false
}

// claimedBefore compares the time that a record claims with a time of the log. A date alone stands for its whole day.
func claimedBefore(claimed, at time.Time) bool {
	claimed = claimed.UTC()
	if claimed.Equal(claimed.Truncate(24 * time.Hour)) {
		claimed = claimed.Add(24*time.Hour - 1)
	}
	return claimed.Before(at)
}

// bindFact compares a permission with what became of the contact point that it was given for. It returns the fact that holds, and
// whether it is the event's own; keep is false where what is known stays.
func (s *Subject) bindFact(ev *schema.Event, f sinks.Fact) (out sinks.Fact, own, keep bool) {
	if f.Contact.IsZero() || f.State.Strictness() != sinks.Permission || !isConsent(f.Scope) {
		return f, true, true
	}
	c := s.Contact(f.Contact)
	if c == nil {
		return f, true, true
	}
	old := s.Find(f.Scope, f.Contact)
	if !c.voided(ev, &f, old) {
		return f, true, true
	}
	if ev.Kind == schema.KindSnapshot && old != nil && old.State.Strictness() != sinks.Permission {
		return f, false, false
	}
	return invalidated(f, c), false, true
}

// invalidated is what a fact becomes when its contact point changes: at its own place in the log, so that whatever was said later is
// still newer, with the change as its cause.
func invalidated(f sinks.Fact, c *Contact) sinks.Fact {
	f.State, f.EventID, f.ValidUntil = sinks.StateInvalidated, c.VoidEvent, time.Time{}
	return f
}

// settleFacts draws the consequences of what became of a contact point for the facts that are bound to it, and reports whether there
// were any: permissions given for what is no longer there fall, and prohibitions go over to the person.
func (u *Unit) settleFacts(s *Subject, c *Contact) (changed bool) {
	for i := range len(s.Facts) {
		f := s.Facts[i]
		if f.Contact != c.Ref || f.State == sinks.StateInvalidated || c.Kind == schema.ContactIdentity {
			continue
		}
		strictness := f.State.Strictness()
		switch {
		case !isConsent(f.Scope) && (!c.Gone() || f.State != sinks.StateRaised):
			continue
		case strictness == sinks.Permission && (c.Gone() || c.fell(&f)):
			u.fall(s, f, c)
		case c.Gone() && strictness.Prohibits():
			// It counts from where the point went: a permission that was of no use before does not come to be of one by that.
			carried := f
			carried.Contact = sinks.Carried
			if carried.Order.Compare(c.VoidOrder) < 0 {
				carried.Order = c.VoidOrder
			}
			s.Merge(carried)
		case !c.Gone() || strictness == sinks.Permission:
			continue
		}
		s.replace(i, invalidated(f, c))
		s.Touched, changed = true, true
	}
	s.forgetUnchanged()
	return changed
}

// fell reports whether a permission that is known lies in front of the change that voids.
func (c *Contact) fell(f *sinks.Fact) bool {
	return c.VoidOrder != (schema.Order{}) && (f.Order.Compare(c.VoidOrder) <= 0 || !f.AsOf.IsZero() && claimedBefore(f.AsOf, c.VoidAt))
}

// fall notes a consent that was in force and fell with its contact point.
func (u *Unit) fall(s *Subject, f sinks.Fact, c *Contact) {
	if f.ValidUntil.IsZero() || u.Now.Before(f.ValidUntil) {
		u.Life.fallen = append(u.Life.fallen, fallen{s: s, scope: f.Scope, contact: f.Contact, event: c.VoidEvent, order: c.VoidOrder})
	}
}
