package sinks

import (
	"strings"
	"time"

	"lethe/schema"
)

// State is the state of a fact, as a short code that is stored in lethe.fact.
type State string

// The states. Consent states are those of the W3C DPV.
const (
	StateGiven        State = "given"
	StateRenewedGiven State = "renewed_given"
	StateRefused      State = "refused"
	StateWithdrawn    State = "withdrawn" // by the subject
	StateRevoked      State = "revoked"   // by somebody else
	StateExpired      State = "expired"
	StateInvalidated  State = "invalidated"
	StateRequested    State = "requested"
	StateDeferred     State = "deferred"
	StateUnknown      State = "unknown"
	// StateNoBasis is a grant without purpose or legal basis (Art. 6): it permits nothing.
	StateNoBasis State = "no_basis"

	StateRaised  State = "raised" // objection, Art. 21
	StateImposed State = "imposed"
	StateLifted  State = "lifted" // objection or restriction
)

// Strictness orders what events ask for. It decides nothing inside one scope, where the newest fact holds; it says which
// events of a blocked subject still pass, and what wins where two facts have the very same place in the log.
type Strictness uint8

// The levels, from what permits to what forbids most. Neutral takes a permission away without forbidding: it may also
// take the place of an older prohibition, so of a blocked subject it passes only where it replaces none.
const (
	Permission Strictness = iota
	Neutral
	Refusal
	Withdrawal
	ObjectionRaised
	Restriction
	Erasure
)

// Prohibits reports whether events of this strictness pass a blocked subject.
func (s Strictness) Prohibits() bool { return s >= Refusal }

// Strictness returns how strict a fact in this state is.
func (s State) Strictness() Strictness {
	switch s {
	case StateGiven, StateRenewedGiven, StateLifted:
		return Permission
	case StateRefused:
		return Refusal
	case StateWithdrawn, StateRevoked:
		return Withdrawal
	case StateRaised:
		return ObjectionRaised
	case StateImposed:
		return Restriction
	case StateExpired, StateInvalidated, StateRequested, StateDeferred, StateUnknown, StateNoBasis:
	}
	return Neutral
}

// permits reports whether consent in this state is valid for processing.
func (s State) permits() bool { return s == StateGiven || s == StateRenewedGiven }

// The scopes and their prefixes, as stored in lethe.fact.
const (
	ScopeRestriction     = "restriction"
	consentPrefix        = "consent:"
	objectionPrefix      = "objection:"
	ScopeDirectMarketing = "direct_marketing"
	ScopeProfiling       = "profiling"
	ScopeAll             = "all"

	// ScopeHeir marks a subject that came up after the erasure of another one and shares a contact point with it: its grants
	// need evidence of their own. ScopeMerged marks one that duplicates were joined into. Both are notes to the ledger, which
	// finds them with the facts; the fold passes them over.
	ScopeHeir   = "erased_contact"
	ScopeMerged = "merged"
)

// Carried is the contact of a prohibition whose contact point is gone, or that another record of the same person brought in:
// it follows the person, and forbids until a newer permission in its scope; see Lifts.
var Carried = schema.ContactRef{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
}

// ConsentScope returns the scope of the facts of one purpose and channel.
func ConsentScope(purpose, channel string) string { return consentPrefix + purpose + ":" + channel }

// ObjectionScope returns the scope of the facts of one objection scope.
func ObjectionScope(scope string) string { return objectionPrefix + scope }

// Fact is what a sink knows of one subject in one scope (and, for consents, of one contact point), with the place in the
// log at which it became so.
type Fact struct {
	Scope      string
	Contact    schema.ContactRef // zero where the fact is bound to no contact point; see also Carried
	Order      schema.Order
	AsOf       time.Time // only of history tables; see Newer
	State      State
	ValidUntil time.Time // end of a consent's validity or of a restriction; zero: none
	EventID    schema.EventID
}

// FactOf returns the fact that an event states, and how strict the event is. ok is false for events that state none
// (erasures, decisions, contact points, gaps, heartbeats, passes); their strictness holds all the same.
func FactOf(ev *schema.Event) (f Fact, s Strictness, ok bool) {
	f.Order, f.EventID = ev.Order, ev.EventID
	switch b := ev.Body.(type) {
	case *schema.ConsentChange:
		f.Scope = ConsentScope(b.Purpose, b.Channel)
		f.Contact = b.Contact
		f.State = consentState(b)
		f.ValidUntil = b.ValidUntil
		f.AsOf = b.AsOf
		// A record cannot have been made after it was committed. Without this bound a row dated 2099 by mistake would
		// beat every withdrawal until then.
		if !ev.CommittedAt.IsZero() && f.AsOf.After(ev.CommittedAt) {
			f.AsOf = ev.CommittedAt
			// A pass does not know when the row was committed: bound by its own time, the row would beat what was withdrawn
			// since. A permission loses against whatever has a time.
			if ev.Kind == schema.KindSnapshot && f.State.Strictness() == Permission {
				f.AsOf = time.Time{}
			}
		}
	case *schema.Objection:
		f.Scope, f.Contact, f.State = ObjectionScope(b.Scope), b.Contact, StateLifted
		if b.Raised {
			f.State = StateRaised
		}
	case *schema.ProcessingRestriction:
		f.Scope, f.State = ScopeRestriction, StateLifted
		if b.Imposed {
			f.State, f.ValidUntil = StateImposed, b.Until
		}
	case *schema.SubjectErasure:
		return Fact{}, Erasure, false
	default:
		return Fact{}, Neutral, false
	}
	return f, f.State.Strictness(), true
}

func consentState(b *schema.ConsentChange) State {
	switch b.State {
	case schema.ConsentGiven, schema.ConsentRenewedGiven:
		if b.LegalBasis == "" || b.Purpose == "" {
			return StateNoBasis
		}
		if b.State == schema.ConsentGiven {
			return StateGiven
		}
		return StateRenewedGiven
	case schema.ConsentRefused:
		return StateRefused
	case schema.ConsentWithdrawn:
		return StateWithdrawn
	case schema.ConsentRevoked:
		return StateRevoked
	case schema.ConsentExpired:
		return StateExpired
	case schema.ConsentInvalidated:
		return StateInvalidated
	case schema.ConsentRequested:
		return StateRequested
	case schema.ConsentRequestDeferred:
		return StateDeferred
	case schema.ConsentUnknown:
		return StateUnknown
	}
	return StateUnknown
}

// Newer is the guard: it reports whether a replaces b, two facts of one subject, scope and contact point. They compare
// by (as_of, order), an absent as_of being the smallest; so facts of current tables, which have none, compare by order
// alone, and the relation stays a total one if a mapping changes from one kind to the other. At the very same place
// (rows of one pass) the stricter wins. A fact is not newer than itself: redelivery changes nothing.
func Newer(a, b Fact) bool {
	if c := a.AsOf.Compare(b.AsOf); c != 0 {
		return c > 0
	}
	if c := a.Order.Compare(b.Order); c != 0 {
		return c > 0
	}
	return a.State.Strictness() > b.State.Strictness()
}

// Verdict is what follows from all facts of one subject at one moment. It is a value without shared state.
type Verdict struct {
	erased     bool
	restricted bool
	objections []string // scopes of raised objections
	consents   []consentVerdict
	next       time.Time
}

type consentVerdict struct {
	purposeChannel string // "purpose:channel"
	given          bool   // at least one contact point consents
	forbidden      bool   // at least one live contact point does not
}

// smallLog is up to how many facts the newest of each are found by comparing all with all, without allocating.
const smallLog = 24

// Fold says what follows from the facts of one subject at the time now. It is pure, the facts may come in any order and
// any number of times, and erased absorbs: nothing is ever permitted again, whatever grants follow.
//
// A purpose on a channel is permitted when the subject is neither erased nor restricted, no raised objection covers the
// purpose, and the newest state of every live contact point in that scope is given (or renewed) and not past its
// validity. An invalidated record neither permits nor forbids: its contact point has no consent any more. Any other
// state on any contact point forbids. What is Carried forbids until a newer permission on a contact point that is left.
func Fold(facts []Fact, erased bool, now time.Time) Verdict {
	v := Verdict{erased: erased}
	var newest map[factKey]int
	carried := false
	if len(facts) > smallLog {
		newest = newestByKey(facts)
	}
	for i := range facts {
		f := &facts[i]
		if newest != nil {
			if newest[factKey{f.Scope, f.Contact}] != i {
				continue
			}
		} else if superseded(facts, i) {
			continue
		}
		if f.Contact == Carried {
			carried = true
		} else {
			v.add(f, now)
		}
	}
	if carried {
		v.carry(facts)
	}
	if erased {
		v.next = time.Time{}
	}
	return v
}

type factKey struct {
	scope   string
	contact schema.ContactRef
}

func newestByKey(facts []Fact) map[factKey]int {
	m := make(map[factKey]int, len(facts))
	for i := range facts {
		k := factKey{facts[i].Scope, facts[i].Contact}
		if j, known := m[k]; !known || Newer(facts[i], facts[j]) {
			m[k] = i
		}
	}
	return m
}

// superseded reports whether another fact takes the place of facts[i]; of equal ones the first stays.
func superseded(facts []Fact, i int) bool {
	a := &facts[i]
	for j := range facts {
		b := &facts[j]
		if j == i || b.Contact != a.Contact || b.Scope != a.Scope {
			continue
		}
		if Newer(*b, *a) || j < i && !Newer(*a, *b) {
			return true
		}
	}
	return false
}

func (v *Verdict) add(f *Fact, now time.Time) {
	runsOut := !f.ValidUntil.IsZero()
	over := runsOut && !now.Before(f.ValidUntil)
	switch {
	case f.Scope == ScopeRestriction:
		if f.State == StateImposed && !over {
			v.restricted = true
			v.wake(f.ValidUntil)
		}
	case strings.HasPrefix(f.Scope, objectionPrefix):
		if f.State == StateRaised {
			v.objections = append(v.objections, f.Scope[len(objectionPrefix):])
		}
	case strings.HasPrefix(f.Scope, consentPrefix):
		c := v.consent(f.Scope[len(consentPrefix):])
		switch {
		case f.State == StateInvalidated:
		case f.State.permits() && !over:
			c.given = true
			v.wake(f.ValidUntil)
		default:
			c.forbidden = true
		}
	}
}

// carry adds the prohibitions that nothing has lifted. It is rare, and compares all with all.
func (v *Verdict) carry(facts []Fact) {
	for i := range facts {
		f := &facts[i]
		if f.Contact != Carried || superseded(facts, i) || lifted(facts, f) {
			continue
		}
		switch {
		case strings.HasPrefix(f.Scope, consentPrefix):
			v.consent(f.Scope[len(consentPrefix):]).forbidden = true
		case strings.HasPrefix(f.Scope, objectionPrefix) && f.State == StateRaised:
			v.objections = append(v.objections, f.Scope[len(objectionPrefix):])
		}
	}
}

func lifted(facts []Fact, carried *Fact) bool {
	for j := range facts {
		if Lifts(facts[j], *carried) && !superseded(facts, j) {
			return true
		}
	}
	return false
}

// Lifts reports whether f is a permission, or the lift of an objection, that takes a carried prohibition away: later in the log, in the same scope, and,
// where both claim a time, not claimed for an earlier one. That its validity runs out one day does not bring the prohibition
// back: then nothing permits.
func Lifts(f, carried Fact) bool {
	return f.Contact != Carried && f.Scope == carried.Scope && f.State.Strictness() == Permission && f.Order.Compare(carried.Order) > 0 &&
		(f.AsOf.IsZero() || carried.AsOf.IsZero() || !f.AsOf.Before(carried.AsOf))
}

func (v *Verdict) wake(t time.Time) {
	if !t.IsZero() && (v.next.IsZero() || t.Before(v.next)) {
		v.next = t
	}
}

func (v *Verdict) consent(purposeChannel string) *consentVerdict {
	for i := range v.consents {
		if v.consents[i].purposeChannel == purposeChannel {
			return &v.consents[i]
		}
	}
	v.consents = append(v.consents, consentVerdict{purposeChannel: purposeChannel})
	return &v.consents[len(v.consents)-1]
}

// Permitted reports whether the subject may be contacted for this purpose on this channel.
func (v Verdict) Permitted(purpose, channel string) bool {
	if v.erased || v.restricted || v.Objected(purpose) {
		return false
	}
	for i := range v.consents {
		c := &v.consents[i]
		if len(c.purposeChannel) == len(purpose)+1+len(channel) && c.purposeChannel[len(purpose)] == ':' &&
			strings.HasPrefix(c.purposeChannel, purpose) && strings.HasSuffix(c.purposeChannel, channel) {
			return c.given && !c.forbidden
		}
	}
	return false
}

// Objected reports whether a raised objection (Art. 21) covers the scope: direct_marketing, profiling, all, or the name
// of a purpose. An objection to all covers everything, one to direct marketing every purpose; one to profiling or to a
// single purpose only itself.
func (v Verdict) Objected(scope string) bool {
	for _, o := range v.objections {
		if o == scope || o == ScopeAll ||
			o == ScopeDirectMarketing && scope != ScopeProfiling && scope != ScopeAll {
			return true
		}
	}
	return false
}

// Restricted reports whether a restriction (Art. 18) is in force.
func (v Verdict) Restricted() bool { return v.restricted }

// Erased reports whether the subject is erased.
func (v Verdict) Erased() bool { return v.erased }

// NextChange returns the time at which this verdict changes by itself, because a consent's validity or a restriction
// runs out; zero: never.
func (v Verdict) NextChange() time.Time { return v.next }
