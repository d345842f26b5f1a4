package ledger

import (
	"slices"
	"strings"
	"time"

	"lethe/config"
	"lethe/sinks"
)

// Question is what one column asks of the fold: a yes or a no.
type Question struct {
	Kind             string // KindPermitted, KindReconsentDue, KindRestricted or KindObjected
	Purpose, Channel string // KindPermitted and KindReconsentDue
	Scope            string // KindObjected
	FactScope        string // scope of the facts of purpose and channel
}

// Answer is what the fold says to one question. known is false where no fact of the subject bears on it: the column then
// keeps what the replica's owner put there.
func (s *Subject) Answer(v *sinks.Verdict, q *Question, now time.Time) (value, known bool) {
	switch q.Kind {
	case KindPermitted:
		return v.Permitted(q.Purpose, q.Channel), v.Erased() || s.bearsOnConsent(q)
	case KindReconsentDue:
		return s.reconsentDue(v, q, now), v.Erased() || s.has(q.FactScope)
	case KindObjected:
		return v.Objected(q.Scope), s.bearsOnObjection(q.Scope)
	case KindRestricted:
		return v.Restricted(), s.has(sinks.ScopeRestriction)
	}
	return false, false
}

func (s *Subject) has(scope string) bool {
	for i := range s.Facts {
		if s.Facts[i].Scope == scope {
			return true
		}
	}
	return false
}

// bearsOnConsent reports whether any fact says something about the question's purpose and channel. Facts that were lifted
// again count: while they held, the column was written, and nobody but the fold can say what it is now.
func (s *Subject) bearsOnConsent(q *Question) bool {
	for i := range s.Facts {
		scope := s.Facts[i].Scope
		if scope == q.FactScope || scope == sinks.ScopeRestriction {
			return true
		}
	}
	return s.bearsOnObjection(q.Purpose)
}

func (s *Subject) bearsOnObjection(scope string) bool {
	for i := range s.Facts {
		of, ok := strings.CutPrefix(s.Facts[i].Scope, objectionPrefix)
		if ok && covers(of, scope) {
			return true
		}
	}
	return false
}

// covers reports whether an objection of one scope covers another, as the fold has it.
func covers(of, scope string) bool {
	return of == scope || of == sinks.ScopeAll || of == sinks.ScopeDirectMarketing && scope != sinks.ScopeProfiling && scope != sinks.ScopeAll
}

// reconsentDue reports whether the subject could be asked again: what consent there was ended without the subject's
// doing, because it ran out or its contact point was replaced, and nothing forbids to ask.
func (s *Subject) reconsentDue(v *sinks.Verdict, q *Question, now time.Time) bool {
	if v.Erased() || v.Restricted() || v.Objected(q.Purpose) || v.Permitted(q.Purpose, q.Channel) {
		return false
	}
	due := false
	for i := range s.Facts {
		f := &s.Facts[i]
		if f.Scope != q.FactScope {
			continue
		}
		switch over := !f.ValidUntil.IsZero() && !now.Before(f.ValidUntil); {
		case f.Contact == sinks.Carried && slices.ContainsFunc(s.Facts, func(p sinks.Fact) bool { return sinks.Lifts(p, *f) }):
		case f.State.Strictness().Prohibits():
			return false
		case f.State == sinks.StateExpired, f.State == sinks.StateInvalidated, f.State.Strictness() == sinks.Permission && over:
			due = true
		}
	}
	return due
}

// Answers are the values of the columns of one table that follow from the fold, for the subjects that it says something
// about.
type Answers struct {
	List   []*Subject
	Values [][]*bool // by question, then subject as in List; nil: the fold says nothing about it
	Used   []bool    // by question: some subject has a value
	Holes  []bool    // by question: some subject has none
}

// Ask asks n questions about every subject at one time.
func Ask(n int, question func(i int) *Question, list []*Subject, now time.Time) Answers {
	out := Answers{
		Values: make([][]*bool, n), Used: make([]bool, n), Holes: make([]bool, n), List: make([]*Subject, 0, len(list)),
	}
	for c := range out.Values {
		out.Values[c] = make([]*bool, 0, len(list))
	}
	row := make([]*bool, n)
	for _, x := range list {
		if !x.answerAll(question, row, now) {
			continue
		}
		out.List = append(out.List, x)
		for c := range row {
			out.Values[c] = append(out.Values[c], row[c])
			out.Used[c] = out.Used[c] || row[c] != nil
			out.Holes[c] = out.Holes[c] || row[c] == nil
		}
	}
	return out
}

// answerAll answers the questions; nil where the fold says nothing. It reports whether it says anything at all.
func (s *Subject) answerAll(question func(i int) *Question, row []*bool, now time.Time) (any bool) {
	who, claims := s, s.Claims
	if len(claims) == 1 && claims[0].Certain {
		who, claims = claims[0].Subject, nil
	}
	var v sinks.Verdict
	if claims == nil {
		v = sinks.Fold(who.Facts, who.Erased(), now)
	}
	for c := range row {
		row[c] = nil
		var value, known bool
		if claims == nil {
			value, known = who.Answer(&v, question(c), now)
		} else {
			value, known = answerClaims(claims, question(c), now)
		}
		if known {
			row[c], any = boolPointer(value), true
		}
	}
	return any
}

// yes and no are what values point to: a slice of pointers says NULL where there is none.
var yes, no = true, false

func boolPointer(v bool) *bool {
	if v {
		return &yes
	}
	return &no
}

// Uncontactable are the subjects whom the fold lets nobody contact for any mapped purpose because of an objection or a
// restriction: they may be in no audience.
func Uncontactable(cfg *config.Replica, list []*Subject, now time.Time) []*Subject {
	var out []*Subject
	for _, x := range list {
		v := sinks.Fold(x.Facts, x.Erased(), now)
		objected := len(cfg.Consent) > 0
		for _, a := range cfg.Consent {
			objected = objected && v.Objected(a.Purpose)
		}
		if v.Restricted() || objected {
			out = append(out, x)
		}
	}
	return out
}
