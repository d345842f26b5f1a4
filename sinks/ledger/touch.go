package ledger

import (
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Touch asks the owner of a subject's partition to look at it again: nobody else may change it. Rows are only ever added by others, so that
// workers do not wait for each other.
type Touch struct {
	Ref    Ref
	Part   int32
	Reason string
	After  time.Duration // not before
}

// The reasons of Touch. What one transaction adds and what another adds at the same time see nothing of each other: so whoever adds a
// prohibition tells the others once it is committed, and once more when everything that ran beside it has ended.
const (
	TouchSpread  = "spread"  // tell those who share a contact point or a person with it, now and later
	TouchAgain   = "again"   // tell them once more
	TouchConsult = "consult" // take in what stands about it elsewhere
)

// How long after a transaction TouchAgain is due: longer than any transaction lasts that ran beside it; and how often a record that was joined
// with one of which the replica has heard nothing looks whether it has come.
const (
	TouchLater = 2 * time.Minute
	JoinLater  = time.Hour
)

// TouchLimit is how many subjects of the queue one call works through.
const TouchLimit = 200

func (u *Unit) touch(s *Subject, reason string) {
	for i := range u.Life.Touches {
		if t := &u.Life.Touches[i]; t.Ref == s.Ref && t.Reason == reason {
			return
		}
	}
	u.Life.Touches = append(u.Life.Touches, Touch{Ref: s.Ref, Part: s.Part, Reason: reason})
}

// Alias says that a subject was joined into another at the source: they are one person.
type Alias struct {
	Ref       Ref // the survivor
	Absorbed  Ref
	Order     schema.Order
	Committed time.Time
	EventID   schema.EventID
}

// takeMerged joins duplicates. Their facts may lie in partitions of others: each takes in the stricter of both when its owner comes to it.
func (u *Unit) takeMerged(x *Result, body *schema.SubjectMerged) {
	s := x.Subject
	x.Outcome = OutcomeRecorded
	for _, absorbed := range body.Absorbed {
		ref := u.Core.Ref(absorbed)
		if ref == s.Ref {
			continue
		}
		u.Life.Aliases = append(u.Life.Aliases, Alias{
			Ref: s.Ref, Absorbed: ref, Order: x.Event.Order, Committed: x.Event.CommittedAt, EventID: x.Event.EventID,
		})
	}
	s.Merge(sinks.Fact{Scope: sinks.ScopeMerged, Order: x.Event.Order, State: sinks.StateRaised, EventID: x.Event.EventID})
	s.keep()
	u.touch(s, TouchSpread)
	u.touch(s, TouchConsult)
}

// JoinFacts has a subject take in what forbids of the facts of another record of the same person, joined at a place in the log. It counts from there on:
// what was permitted before, on either record, has met the stricter; what is permitted later is newer. It reports whether anything was new.
func (s *Subject) JoinFacts(facts []sinks.Fact, a *Alias) (changed bool) {
	for _, f := range facts {
		if !f.State.Strictness().Prohibits() || f.Scope == sinks.ScopeHeir || f.Scope == sinks.ScopeMerged {
			continue
		}
		if f.Order.Compare(a.Order) < 0 {
			f.Order = a.Order
			if !f.AsOf.IsZero() {
				f.AsOf = a.Committed
			}
		}
		if isConsent(f.Scope) || !f.Contact.IsZero() {
			f.Contact = sinks.Carried
		}
		changed = s.Merge(f) || changed
	}
	s.Touched = s.Touched || changed
	return changed
}
