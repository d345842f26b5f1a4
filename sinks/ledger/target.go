package ledger

import (
	"slices"
	"time"

	"lethe/sinks"
	"lethe/sinks/match"
)

// Target is one row of the person's table that a subject was found as, in a replica that finds persons by match keys. It is
// made anew in each transaction, of the row's present values.
type Target struct {
	Subject *Subject
	Person  string // person.key in text form
	Certain bool   // a permission and phase 2 may be applied to it; what forbids may in any case
	// Reach is how far what forbids applies: to the whole row, or to the channels of a number that agrees.
	Reach  match.Reach
	By     match.Keys // the types that decided; empty: the CRM key, or a person
	Keys   match.Keys // all types that agree
	CRMKey bool       // found by the CRM key
	Review bool       // a person has to decide
	// Dismissed says that a person has decided that the row is somebody else's: nothing of the subject applies to it.
	Dismissed bool
	// Rival marks a subject that the transaction does not work on, and that claims the row too: what it forbids holds there.
	Rival bool
}

// StandIns makes one stand-in Subject for each person among the targets: the statements write rows, and a row may be claimed by
// several subjects. Its Key is the person's, its Claims say whose it is; see Subject.Answer. Rows that nothing applies to are
// left away. The result is in the order of the persons' first targets.
func StandIns(targets []*Target) []*Subject {
	byPerson := make(map[string]*Subject, len(targets))
	out := make([]*Subject, 0, len(targets))
	for _, t := range targets {
		if t.Reach == match.Nothing {
			continue
		}
		x := byPerson[t.Person]
		if x == nil {
			x = &Subject{Key: []string{t.Person}, State: SubjectLive}
			byPerson[t.Person] = x
			out = append(out, x)
		}
		x.Claims = append(x.Claims, t)
		if t.Rival { // what it was suppressed for holds on, also where somebody else's case is cancelled
			x.Suppress = x.Suppress || t.Reach == match.Whole && t.Subject.Erased()
			continue
		}
		x.Touched = x.Touched || t.Subject.Touched
		if t.Reach == match.Whole {
			x.Suppress = x.Suppress || t.Subject.Suppress
			if t.Subject.Erased() {
				x.State = SubjectSuppressed
			}
		}
	}
	return slices.DeleteFunc(out, func(x *Subject) bool { return !slices.ContainsFunc(x.Claims, func(t *Target) bool { return !t.Rival }) })
}

// Credit brings what the statements did to stand-ins back to their subjects. What a cancel restores goes to one subject
// alone, of those that phase 1 is done for.
func Credit(standIns []*Subject) {
	for _, x := range standIns {
		undo := x.Effect.Undo
		for i := range undo {
			undo[i].Person = x.Key[0]
		}
		for _, t := range x.Claims {
			if t.Rival {
				continue
			}
			e := &t.Subject.Effect
			e.Matched = true
			e.Certain = e.Certain || t.Certain
			if t.Certain && !slices.Contains(e.Persons, t.Person) {
				e.Persons = append(e.Persons, t.Person)
			}
			for _, row := range x.Effect.Rows {
				e.Changed(row.Table, row.Action, row.Changed)
			}
			if t.Subject.Suppress {
				e.Undo, undo = append(e.Undo, undo...), nil
			}
		}
	}
}

// NoteTargets notes on the subjects what was found, for their receipts: by which keys, and what is left to a person.
func NoteTargets(targets []*Target) {
	for _, t := range targets {
		if t.Rival {
			continue
		}
		e := &t.Subject.Effect
		if t.Dismissed {
			e.Dismissed = append(e.Dismissed, t.Person)
			continue
		}
		if t.Review {
			e.Ambiguous++
		}
		e.Left = e.Left || t.Certain && t.Keys != 0
		if t.Certain || t.Review || t.Reach != match.Nothing {
			e.By |= t.By
			e.ByCRMKey = e.ByCRMKey || t.CRMKey
		}
	}
}

// answerClaims combines what the subjects that claim a row say. What one of them forbids is forbidden, whether the row is
// certainly its own or not; a permission needs that the row is certainly one subject's, and no other one's.
func answerClaims(claims []*Target, q *Question, now time.Time) (value, known bool) {
	owners := 0
	for _, t := range claims {
		if t.Certain {
			owners++
		}
		v := sinks.Fold(t.Subject.Facts, t.Subject.Erased(), now)
		says, knows := t.Subject.Answer(&v, q, now)
		if !knows || t.Reach == match.PhoneChannels && !match.PhoneChannel(q.Channel) {
			continue
		}
		switch q.Kind {
		case KindObjected, KindRestricted:
			if t.Certain || says {
				value, known = value || says, true
			}
		default:
			if t.Certain || t.Subject.forbids(&v, q) {
				value, known = t.Certain && says && (value || !known), true
			}
		}
	}
	if owners > 1 && (q.Kind == KindPermitted || q.Kind == KindReconsentDue) {
		value = false
	}
	return value, known
}

// forbids reports whether the subject's facts forbid what a question asks, beyond merely not permitting it.
func (s *Subject) forbids(v *sinks.Verdict, q *Question) bool {
	if v.Erased() || v.Restricted() || v.Objected(q.Purpose) {
		return true
	}
	return slices.ContainsFunc(s.Facts, func(f sinks.Fact) bool {
		return f.Scope == q.FactScope && f.State.Strictness().Prohibits()
	})
}
