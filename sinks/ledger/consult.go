package ledger

import (
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Joined is another record of the same person, as the owner of an alias sees it.
type Joined struct {
	Alias
	Facts []sinks.Fact
	// Survivor says that it is the one that the subject was joined into. Then Case is its erasure, if it has one.
	Survivor bool
	Case     *OpenedCase
	Wait     string // of Case
}

// Consulting makes a unit for work on subjects of the queue touch, which were read with their contact points.
func (c *Core) Consulting(set *Set, now time.Time) *Unit {
	set.NeedContacts = true
	return &Unit{Core: c, Now: now, Set: set, Gaps: map[string]bool{}}
}

// Consult takes in what stands elsewhere about the unit's subjects, after Meet: about the contact points that they share with others, and
// about other records of the same person.
func (u *Unit) Consult(joined map[Ref][]Joined) {
	u.consultAll()
	var cases []*Result
	for _, s := range u.Set.List {
		for i := range joined[s.Ref] {
			j := &joined[s.Ref][i]
			if s.JoinFacts(j.Facts, &j.Alias) {
				u.touch(s, TouchSpread)
			}
			if !s.has(sinks.ScopeMerged) {
				s.Merge(sinks.Fact{Scope: sinks.ScopeMerged, Order: j.Order, State: sinks.StateRaised, EventID: j.EventID})
			}
			if j.Survivor && j.Case != nil && s.State == SubjectLive {
				cases = append(cases, u.eraseAbsorbed(s, j))
			}
		}
	}
	for _, x := range cases {
		u.Results = append(u.Results, *x)
	}
	for i := range u.Results {
		u.Cases = append(u.Cases, &u.Results[i])
	}
}

// eraseAbsorbed opens the case of a record that was joined into one that is erased: of the same case, and by an event that follows from the
// survivor's.
func (u *Unit) eraseAbsorbed(s *Subject, j *Joined) *Result {
	ev := &schema.Event{
		Header: schema.Header{
			EventID: u.Core.derivedEvent(j.Case.Event, s.Ref), Order: j.Order, CaseID: j.Case.ID, Source: u.Core.Source, CommittedAt: j.Case.Committed,
			ConfigDigest: j.Case.Digest,
		},
		Body: &schema.SubjectErasure{Phase2: schema.Phase2Automatic},
	}
	if j.Case.Snapshot {
		ev.Kind = schema.KindSnapshot
	}
	if j.Wait == WaitDecision {
		ev.Body = &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}
	}
	copy(ev.Order[:], j.Case.Subject.ErasedOrder)
	s.State, s.Suppress, s.Touched, s.Dirty = SubjectSuppressed, true, true, true
	s.ErasedOrder = append([]byte{}, ev.Order[:]...)
	x := &Result{Record: &sinks.Record{Partition: s.Part, Event: ev}, Event: ev, Subject: s, Strictness: sinks.Erasure, own: true}
	u.noteEvent(s, FindingAbsorbed, "", ev.EventID)
	u.touch(s, TouchSpread)
	return x
}

// derivedEvent is the id of what an event means for another subject.
func (c *Core) derivedEvent(event schema.EventID, ref Ref) (out schema.EventID) {
	var sum [32]byte
	c.Pseudonym.Compute(&sum, append(append([]byte("absorbed|"), event[:]...), ref[:]...))
	copy(out[:], sum[:])
	return out
}

// JoinedOf says, for each side of some aliases, what the other side is: set holds those that are known.
func JoinedOf(aliases []Alias, set *Set, cases map[Ref]*OpenedCase, waits map[Ref]string) map[Ref][]Joined {
	out := make(map[Ref][]Joined, 2*len(aliases))
	for _, a := range aliases {
		for _, side := range [][2]Ref{{a.Ref, a.Absorbed}, {a.Absorbed, a.Ref}} {
			other := set.ByRef[side[1]]
			if other == nil {
				continue
			}
			j := Joined{Alias: a, Facts: other.Facts, Survivor: other.Ref == a.Ref}
			if c := cases[other.Ref]; c != nil && other.Erased() {
				c.Subject = other
				j.Case, j.Wait = c, waits[other.Ref]
			}
			out[side[0]] = append(out[side[0]], j)
		}
	}
	return out
}
