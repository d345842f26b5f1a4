package ledger

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// The kinds of Noted.
const (
	FindingRefused  = "refused_grant"   // a permission after an erasure, or of somebody who shares a contact point with one, without evidence
	FindingNoBasis  = "no_basis"        // a grant without purpose or legal basis
	FindingRevived  = "revived_contact" // a contact point came up after the erasure
	FindingHeir     = "erased_contact"  // a new record shares a contact point with an erased person
	FindingAbsorbed = "absorbed_erased" // a duplicate was erased because the record that it was joined into was
	FindingShared   = "shared_key"      // several subjects hold one contact point; counted, not stored
)

// Noted is something that somebody ought to know about a subject, for the table finding: one row for each kind and scope.
type Noted struct {
	Ref   Ref
	Part  int32
	Kind  string
	Scope string // of facts; empty where it is about none
	Event schema.EventID
}

func (u *Unit) note(x *Result, kind, scope string) {
	u.noteEvent(x.Subject, kind, scope, x.Event.EventID)
}

func (u *Unit) noteEvent(s *Subject, kind, scope string, event schema.EventID) {
	if !slices.ContainsFunc(u.Life.Findings, func(n Noted) bool { return n.Ref == s.Ref && n.Kind == kind && n.Scope == scope }) {
		u.Life.Findings = append(u.Life.Findings, Noted{Ref: s.Ref, Part: s.Part, Kind: kind, Scope: scope, Event: event})
	}
}

// refuses reports whether the subject may not be permitted anything by this event: it is erased, or it is new, shares a contact point with
// somebody who was erased, and brings no evidence that it asked for it itself.
func (s *Subject) refuses(ev *schema.Event) bool {
	if s.Erased() {
		return true
	}
	grant, ok := ev.Body.(*schema.ConsentChange)
	return ok && len(grant.Evidence) == 0 && s.has(sinks.ScopeHeir)
}

// merge takes the fact of a record in where it holds, and says what became of the record; empty: that is for the statements to show.
func (u *Unit) merge(x *Result, f sinks.Fact) string {
	s := x.Subject
	before := s.Find(f.Scope, f.Contact)
	var old sinks.Fact
	if before != nil {
		old = *before
	}
	if carried := s.Find(f.Scope, sinks.Carried); carried != nil && x.Event.Kind == schema.KindSnapshot && f.AsOf.IsZero() &&
		f.State.Strictness() == sinks.Permission && f.Order.Compare(carried.Order) > 0 {
		f.Order = carried.Order // a pass cannot say that the grant is newer
	}
	stated := f
	f, own, keep := s.bindFact(x.Event, f)
	if !keep {
		return OutcomeUnchanged
	}
	if s.carries(&f, &old) || !s.Merge(f) {
		return OutcomeStale
	}
	s.Touched = true
	u.follow(x, f, old)
	if c := s.Contact(f.Contact); c != nil && c.Gone() {
		u.settleFacts(s, c)
	}
	switch {
	case !own:
		u.fall(s, stated, s.Contact(f.Contact))
		return OutcomeRefused
	case f.State == sinks.StateNoBasis:
		u.note(x, FindingNoBasis, f.Scope)
		return OutcomeRefused
	case old.State == sinks.StateNoBasis:
		u.Life.Mended = append(u.Life.Mended, Noted{Ref: s.Ref, Kind: FindingNoBasis, Scope: f.Scope})
	}
	return ""
}

// carries reports whether a prohibition has gone over to the person already, and is delivered again.
func (s *Subject) carries(f, old *sinks.Fact) bool {
	if old.State != sinks.StateInvalidated || old.Order != f.Order || !old.AsOf.Equal(f.AsOf) || !f.State.Strictness().Prohibits() {
		return false
	}
	carried := s.Find(f.Scope, sinks.Carried)
	return carried != nil && carried.Order.Compare(f.Order) >= 0
}

// follow has others hear of a fact that was merged: who holds the same contact point, and duplicates.
func (u *Unit) follow(x *Result, f, old sinks.Fact) {
	s := x.Subject
	if f.State.Strictness().Prohibits() && s.has(sinks.ScopeMerged) {
		u.touch(s, TouchSpread)
	}
	if f.Contact.IsZero() || len(s.Contacts) == 0 {
		return
	}
	c := s.Contact(f.Contact)
	if c == nil {
		return
	}
	switch {
	case !isConsent(f.Scope):
		for _, scope := range u.Core.reached(f.Scope, c.Kind) {
			u.followScope(s, c, scope)
		}
	case f.State.Strictness() == sinks.Withdrawal, f.State.Strictness() == sinks.Permission && old.State.Strictness() == sinks.Withdrawal:
		u.followScope(s, c, f.Scope)
	}
}

// followScope has what is said of a contact point in one scope of consents hold wherever the point stands: a withdrawal, or an objection
// that covers the scope; where there is neither, no more.
func (u *Unit) followScope(s *Subject, c *Contact, scope string) {
	if f := s.prohibits(u.Core, c, scope); f != nil {
		u.block(s, c, f)
		return
	}
	for _, v := range c.values(true) {
		u.Life.Unblocks = append(u.Life.Unblocks, Block{Value: v, Scope: scope, Ref: s.Ref})
		u.Life.Blocks = slices.DeleteFunc(u.Life.Blocks, func(o Block) bool { return o.Value == v && o.Scope == scope && o.Ref == s.Ref })
	}
}

// prohibits returns the newest thing said of a contact point that forbids a scope of consents, as a withdrawal; nil: nothing.
func (s *Subject) prohibits(core *Core, c *Contact, scope string) (found *sinks.Fact) {
	for i := range s.Facts {
		f := s.Facts[i]
		switch {
		case f.Contact != c.Ref:
			continue
		case isConsent(f.Scope):
			if f.Scope != scope || f.State.Strictness() != sinks.Withdrawal {
				continue
			}
		case f.State != sinks.StateRaised || !slices.Contains(core.reached(f.Scope, c.Kind), scope):
			continue
		default:
			f.Scope, f.State = scope, sinks.StateWithdrawn
		}
		if found == nil || f.Order.Compare(found.Order) > 0 {
			found = &f
		}
	}
	return found
}

// contactChannels are the channels that lead to a contact point.
var contactChannels = map[schema.ContactKind][]string{
	schema.ContactEmail:  {"email", "social_match"},
	schema.ContactPhone:  {"sms", "phone_human", "phone_automated", "social_match"},
	schema.ContactPostal: {"postal"},
}

// reached are the scopes of the replica's consents that an objection in the row of a contact point forbids for that point: of the purposes that it
// covers, on the channels that lead there.
func (c *Core) reached(scope string, kind schema.ContactKind) []string {
	of, ok := strings.CutPrefix(scope, objectionPrefix)
	if !ok {
		return nil
	}
	var out []string
	for i := range c.Config.Consent {
		a := &c.Config.Consent[i]
		if !covers(of, a.Purpose) || !slices.Contains(contactChannels[kind], a.Channel) {
			continue
		}
		if reached := sinks.ConsentScope(a.Purpose, a.Channel); !slices.Contains(out, reached) {
			out = append(out, reached)
		}
	}
	return out
}

// block has a withdrawal apply wherever the contact point stands.
func (u *Unit) block(s *Subject, c *Contact, f *sinks.Fact) {
	if f.Order.Compare(c.VoidOrder) <= 0 && !c.Gone() {
		return // it was said of the value before; that one's block stands
	}
	values := c.values(c.Gone())
	if len(values) == 0 {
		return
	}
	for _, v := range values {
		b := Block{Value: v, Scope: f.Scope, Ref: s.Ref, State: f.State, Order: f.Order, AsOf: f.AsOf, EventID: f.EventID}
		i := slices.IndexFunc(u.Life.Blocks, func(o Block) bool { return o.Value == v && o.Scope == b.Scope && o.Ref == b.Ref })
		if i < 0 {
			u.Life.Blocks = append(u.Life.Blocks, b)
		} else {
			u.Life.Blocks[i] = b
		}
		u.Life.Unblocks = slices.DeleteFunc(u.Life.Unblocks, func(o Block) bool { return o.Value == v && o.Scope == b.Scope && o.Ref == b.Ref })
	}
	u.touch(s, TouchSpread)
}

// blockAll does so for what was withdrawn before the contact point's keys were known.
func (u *Unit) blockAll(s *Subject, c *Contact) {
	var scopes []string
	for i := range s.Facts {
		switch f := &s.Facts[i]; {
		case f.Contact != c.Ref:
		case f.State.Strictness() == sinks.Withdrawal:
			scopes = append(scopes, f.Scope)
		case f.State == sinks.StateRaised:
			scopes = append(scopes, u.Core.reached(f.Scope, c.Kind)...)
		}
	}
	for _, scope := range scopes {
		if f := s.prohibits(u.Core, c, scope); f != nil {
			u.block(s, c, f)
		}
	}
}

// consult has a subject take in what stands elsewhere about a value of one of its contact points, as told by Meet.
func (u *Unit) consult(s *Subject, c *Contact, value [32]byte) {
	if s.Erased() {
		return
	}
	ref, since, event := c.Ref, c.Since, c.EventID
	for _, b := range u.Life.blocked[value] {
		if b.Ref != s.Ref {
			f := sinks.Fact{Scope: b.Scope, Contact: ref, Order: b.Order, AsOf: b.AsOf, State: b.State, EventID: b.EventID}
			s.Touched = s.Merge(f) || s.Touched
		}
	}
	for _, h := range u.Life.held[value] {
		if h.Ref != s.Ref && bytes.Compare(since[:], h.ErasedOrder) > 0 {
			u.inherit(s, h.ErasedOrder, since, event)
		}
	}
}

// consultAll does so for every value that the unit's subjects hold: for work outside a batch, on the values of HeldValues.
func (u *Unit) consultAll() {
	for _, s := range u.Set.List {
		for i := range s.Contacts {
			c := &s.Contacts[i]
			if !c.Live() {
				continue
			}
			for _, v := range c.values(false) {
				u.consult(s, c, v)
			}
		}
	}
}

// HeldValues are the values at which the unit's subjects can be reached.
func (u *Unit) HeldValues() [][32]byte {
	var out [][32]byte
	for _, s := range u.Set.List {
		for i := range s.Contacts {
			if c := &s.Contacts[i]; c.Live() {
				out = append(out, c.values(false)...)
			}
		}
	}
	return out
}

// inherit marks a subject that shares a contact point with somebody who was erased before it held it. Where nothing of the subject is
// older than the erasure it is a new record: what it was granted before the point was known falls, unless the evidence is at hand, because
// nobody can tell any more whether there was some.
func (u *Unit) inherit(s *Subject, erased []byte, since schema.Order, event schema.EventID) {
	if s.has(sinks.ScopeHeir) {
		return
	}
	fresh := true
	for i := range s.Facts {
		fresh = fresh && bytes.Compare(s.Facts[i].Order[:], erased) > 0
	}
	for i := range s.Contacts {
		fresh = fresh && (s.Contacts[i].Order == schema.Order{} || bytes.Compare(s.Contacts[i].Since[:], erased) > 0)
	}
	if fresh {
		for i := range s.Facts {
			f := s.Facts[i]
			if !isConsent(f.Scope) || f.State.Strictness() != sinks.Permission || u.proven(f.EventID) {
				continue
			}
			u.noteEvent(s, FindingRefused, f.Scope, event)
			f.State, f.EventID, f.ValidUntil = sinks.StateInvalidated, event, time.Time{}
			s.replace(i, f)
			s.Touched = true
		}
	}
	s.Merge(sinks.Fact{Scope: sinks.ScopeHeir, Order: since, State: sinks.StateRaised, EventID: event})
	u.noteEvent(s, FindingHeir, "", event)
	s.keep()
}

// proven reports whether a grant of this unit came with evidence.
func (u *Unit) proven(event schema.EventID) bool {
	return slices.ContainsFunc(u.Results, func(x Result) bool {
		grant, ok := x.Event.Body.(*schema.ConsentChange)
		return ok && x.Event.EventID == event && len(grant.Evidence) > 0
	})
}

// reconsents are the notices of consents that fell with their contact points, and were in force: one for each event, purpose and channel,
// under an id that a second delivery gives again. They go out with the receipts, unsigned: they permit nothing.
func (u *Unit) reconsents() ([]ReceiptRow, error) {
	if u.Core.Config.Mode == ModeObserve {
		return nil, nil // nothing fell there
	}
	var out []ReceiptRow
	for _, f := range u.Life.fallen {
		purpose, channel, ok := strings.Cut(strings.TrimPrefix(f.scope, ConsentPrefix), ":")
		q := Question{Kind: KindReconsentDue, Purpose: purpose, Channel: channel, FactScope: f.scope}
		v := sinks.Fold(f.s.Facts, f.s.Erased(), u.Now)
		if !ok || !f.s.reconsentDue(&v, &q, u.Now) {
			continue
		}
		id := u.Core.ids.ReceiptID(f.event, u.Core.Name+"|"+StateReconsent+"|"+f.scope, 0, 0)
		if slices.ContainsFunc(out, func(r ReceiptRow) bool { return r.ID == id }) {
			continue
		}
		body, err := schema.AppendReconsentDue(nil, &schema.ReconsentDue{
			Replica: u.Core.Name, SubjectRef: schema.SubjectRef(f.s.Ref), Purpose: purpose, Channel: channel, Cause: CauseContact,
			Contact: f.contact, EventID: f.event, Order: f.order, At: u.Now,
		})
		if err != nil {
			return nil, err
		}
		out = append(out, ReceiptRow{ID: id, EventID: f.event, Ref: bytes.Clone(f.s.Ref[:]), Part: f.s.Part, State: StateReconsent, Body: body})
	}
	return out, nil
}

// StateReconsent is the state of a ReconsentDue in the table receipt, and CauseContact what its cause says.
const (
	StateReconsent = "reconsent_due"
	CauseContact   = "contact_point_changed"
)
