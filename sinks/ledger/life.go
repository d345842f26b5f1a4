package ledger

import (
	"bytes"
	"slices"
	"strings"
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

	wanted   []holding // values that subjects hold newly
	fallen   []fallen
	taken    bool
	erasures map[*Subject]schema.Order // of the unit's own records: the first of each subject
	last     map[pointInCommit]schema.Order
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

// holding is a value that a subject holds at a contact point since an event.
type holding struct {
	s       *Subject
	contact schema.ContactRef
	value   [32]byte
	order   schema.Order
	event   schema.EventID
}

// fallen is a consent that fell with its contact point.
type fallen struct {
	s       *Subject
	scope   string
	contact schema.ContactRef
	event   schema.EventID
	order   schema.Order
}

// TakeContacts takes in the contact points and joined duplicates of the unit, whatever their place among its records: facts
// compare their own place with that of a change. It returns the values that subjects hold newly; the dialect looks for what
// stands about them elsewhere, tells Meet, and goes on with Dispatch.
func (u *Unit) TakeContacts() [][32]byte {
	if u.Life.taken {
		return nil
	}
	u.Life.taken = true
	if !u.lookAhead() {
		return nil
	}
	for i := range u.Results {
		x := &u.Results[i]
		switch body := x.Event.Body.(type) {
		case *schema.ContactPoint:
			if u.overtaken(x, body) {
				x.Outcome = OutcomeRecorded
				continue
			}
			u.takeContact(x, body)
		case *schema.SubjectMerged:
			u.takeMerged(x, body)
		}
	}
	return u.Wanted()
}

// Wanted are the values that TakeContacts or Consult wants to know more about.
func (u *Unit) Wanted() [][32]byte {
	var out [][32]byte
	for i := range u.Life.wanted {
		if v := u.Life.wanted[i].value; !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// lookAhead notes what later records of the unit mean for earlier ones, and reports whether there is a contact point or a join among
// them at all.
func (u *Unit) lookAhead() bool {
	found := false
	for i := range u.Results {
		x := &u.Results[i]
		switch body := x.Event.Body.(type) {
		case *schema.SubjectMerged:
			found = true
		case *schema.ContactPoint:
			found = true
			if x.Event.Kind != schema.KindStream {
				continue
			}
			if u.Life.last == nil {
				u.Life.last = map[pointInCommit]schema.Order{}
			}
			if p := pointOf(x.Subject, body, x.Event.Order); x.Event.Order.Compare(u.Life.last[p]) > 0 {
				u.Life.last[p] = x.Event.Order
			}
		case *schema.SubjectErasure:
			if u.Life.erasures == nil {
				u.Life.erasures = map[*Subject]schema.Order{}
			}
			first, known := u.Life.erasures[x.Subject]
			if bytes.Compare(x.Event.Order[:], x.Subject.ErasedOrder) > 0 && (!known || x.Event.Order.Compare(first) < 0) {
				u.Life.erasures[x.Subject] = x.Event.Order
			}
		}
	}
	return found
}

// overtaken reports whether the same commit says something later about the same contact point: only what it leaves behind
// counts. A row that is deleted and inserted again, or changed twice, has changed as little as its value has.
func (u *Unit) overtaken(x *Result, body *schema.ContactPoint) bool {
	return x.Event.Kind == schema.KindStream && x.Event.Order.Compare(u.Life.last[pointOf(x.Subject, body, x.Event.Order)]) < 0
}

// erasedAt is the place at which the subject was erased, also by a record of this unit; nil: it was not.
func (u *Unit) erasedAt(s *Subject) []byte {
	if s.Erased() {
		return s.ErasedOrder
	}
	if at, ok := u.Life.erasures[s]; ok {
		return at[:]
	}
	return nil
}

// takeContact takes in what an event says of one contact point, an upsert: the newer place wins. What the change means for
// consents is decided here, because only the replica knows the keys that the point had.
func (u *Unit) takeContact(x *Result, body *schema.ContactPoint) {
	s, ev := x.Subject, x.Event
	erased := u.erasedAt(s)
	after := erased != nil && bytes.Compare(ev.Order[:], erased) > 0
	x.Outcome = OutcomeRecorded
	if s.State == SubjectErased && !after {
		x.Outcome = OutcomeStale // what was known before is kept as keys
		return
	}
	c := s.contact(body.Contact, body.Kind == schema.ContactIdentity)
	if c == nil {
		s.Contacts = append(s.Contacts, Contact{Ref: body.Contact, Kind: body.Kind, Revived: after})
		c = &s.Contacts[len(s.Contacts)-1]
	}
	keys := u.Core.storedKeys(body.Keys)
	switch {
	case c.Order != (schema.Order{}) && ev.Order.Compare(c.Order) <= 0:
		x.Outcome = OutcomeStale
		c.takeLate(ev, keys)
	case after:
		u.revive(x, c, body, keys)
	default:
		u.change(s, c, ev, body, keys)
	}
	s.contactsMoved = true
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
		for _, v := range c.values(false) {
			if first || wasGone || !slices.Contains(before, v) {
				u.Life.wanted = append(u.Life.wanted, holding{s: s, contact: c.Ref, value: v, order: ev.Order, event: ev.EventID})
			}
		}
		if first || wasGone || replaced {
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
// had then may still be in a copy; and where it was another one, what was consented to before the present one is void.
func (c *Contact) takeLate(ev *schema.Event, keys []StoredKey) {
	if len(keys) == 0 {
		return
	}
	if c.Kind != schema.ContactIdentity && !c.Removed && ev.Order.Compare(c.Since) < 0 && compareKeys(c.Keys, keys) == different &&
		c.Since.Compare(c.VoidOrder) > 0 {
		c.VoidOrder, c.VoidEvent, c.Dirty = c.Since, c.EventID, true
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
	if f.Contact.IsZero() || f.State.Strictness() != sinks.Permission {
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

// settleContacts draws the consequences of what became of contact points for the facts that are bound to them, once all records
// are taken in: permissions given for what is no longer there fall, and prohibitions go over to the person.
func (u *Unit) settleContacts() {
	if !u.Set.NeedContacts {
		return
	}
	causes := map[schema.EventID]bool{}
	for _, s := range u.Set.List {
		if s.contactsMoved && s.State != SubjectErased {
			u.settleFacts(s, causes)
		}
	}
	if len(causes) == 0 {
		return
	}
	for i := range u.Results { // what made something fall is in a receipt, with what became of it
		x := &u.Results[i]
		if _, ok := x.Event.Body.(*schema.ContactPoint); ok && causes[x.Event.EventID] && x.Outcome == OutcomeRecorded {
			x.Outcome = ""
		}
	}
}

func (u *Unit) settleFacts(s *Subject, causes map[schema.EventID]bool) {
	for i := range len(s.Facts) {
		f := s.Facts[i]
		if f.Contact.IsZero() || f.Contact == sinks.Carried || !strings.HasPrefix(f.Scope, ConsentPrefix) {
			continue
		}
		c := s.Contact(f.Contact)
		if c == nil || f.State == sinks.StateInvalidated {
			continue
		}
		strictness := f.State.Strictness()
		switch {
		case strictness == sinks.Permission && (c.Gone() || c.fell(&f)):
			u.fall(s, f, c)
		case c.Gone() && strictness.Prohibits():
			carried := f
			carried.Contact = sinks.Carried
			s.Merge(carried)
		case !c.Gone():
			continue
		}
		s.Facts[i] = invalidated(f, c)
		s.markFresh(i)
		s.Touched, causes[c.VoidEvent] = true, true
	}
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
