package ledger

import (
	"bytes"
	"slices"
	"strings"

	"lethe/sinks"
	"lethe/sinks/match"
)

// The bounds of a search. A key that leads to more rows is an address that means nobody (a placeholder, a call centre): it leads
// nowhere, and is told of. One that more subjects hold is shared, whoever they are.
const (
	MaxRows   = 200
	MaxRivals = 20
)

// Search finds the rows that some subjects are, in one transaction, where the CRM key does not say it. It is used in this
// order; the dialect answers each question with set-based statements:
//
//	NewSearch     the subjects with their contact points
//	Lookups       which rows does the index of match keys lead to? → Candidate; and the CRM key, and what was decided → Pair
//	Persons       what do those rows say now, locked? → Row
//	Held          which other subjects hold those keys? → Holder
//	Strangers     who are they, with facts and contact points? → Rival
//	Targets       what may be done to which row
//
// What the index says decides nothing: it may be of yesterday.
type Search struct {
	core     *Core
	subjects []*Subject
	place    map[Ref]int
	rows     map[string]*foundRow
	order    []*foundRow
	held     map[[32]byte][]Ref // by key: who holds it
	rivals   map[Ref]*Subject
	pairs    map[pairKey]match.Pair
	known    map[pairKey]bool
}

type pairKey struct {
	ref    Ref
	person string
}

// foundRow is one row of the person's table.
type foundRow struct {
	person string
	read   bool // it is there
	crm    []string
	keys   []StoredKey // of what it says now
	who    []int       // places of the subjects that may be it
}

// NewSearch begins a search.
func (c *Core) NewSearch(subjects []*Subject) *Search {
	s := &Search{
		core: c, subjects: subjects, place: make(map[Ref]int, len(subjects)), rows: make(map[string]*foundRow, len(subjects)),
		held: map[[32]byte][]Ref{}, rivals: map[Ref]*Subject{}, pairs: map[pairKey]match.Pair{}, known: map[pairKey]bool{},
	}
	for i, x := range subjects {
		s.place[x.Ref] = i
	}
	return s
}

// Lookups are the keys by which rows are looked up, each with the place of the subject that holds it. Past contact points
// count, because a copy may be old; those that came up after an erasure do not.
func (s *Search) Lookups() (places []int32, values [][]byte) {
	places, values = make([]int32, 0, 2*len(s.subjects)), make([][]byte, 0, 2*len(s.subjects))
	for i, x := range s.subjects {
		for k := range x.Contacts {
			c := &x.Contacts[k]
			if c.Revived {
				continue
			}
			for j := range c.Keys {
				if Indexed(c.Keys[j].Type) {
					places, values = append(places, int32(i)), append(values, c.Keys[j].Value[:])
				}
			}
		}
	}
	return places, values
}

// Candidate says that a row may be the subject at a place.
func (s *Search) Candidate(place int, person string) {
	r := s.rows[person]
	if r == nil {
		r = &foundRow{person: person}
		s.rows[person] = r
		s.order = append(s.order, r)
	}
	if !slices.Contains(r.who, place) {
		r.who = append(r.who, place)
	}
}

// Pair says what somebody has decided about a subject and a row.
func (s *Search) Pair(ref Ref, person, decision string) {
	s.pairs[pairKey{ref, person}] = PairOf(decision)
}

// Known says that a row was the subject's when phase 2 ran for it: by the CRM key, or by what it said then.
func (s *Search) Known(place int, person string) {
	s.Candidate(place, person)
	s.known[pairKey{s.subjects[place].Ref, person}] = true
}

// Refs are the references of the subjects, for what was decided.
func (s *Search) Refs() [][]byte {
	out := make([][]byte, len(s.subjects))
	for i, x := range s.subjects {
		out[i] = x.Ref[:]
	}
	return out
}

// Persons are the rows to be read.
func (s *Search) Persons() []string {
	out := make([]string, len(s.order))
	for i, r := range s.order {
		out[i] = r.person
	}
	return out
}

// Row says what a row is now: the CRM key that it carries, nil where it has none, and what it says. It may be called once for
// each of the person's rows in the tables of find; crm counts where it is given. A row that it is never called for is gone.
func (s *Search) Row(person string, crm []string, texts *RowTexts) {
	r := s.rows[person]
	if r == nil {
		return
	}
	r.read = true
	if crm != nil {
		r.crm = crm
	}
	if texts != nil {
		r.keys = append(r.keys, s.core.RowKeys(texts)...)
	}
}

// Held are the keys of which it has to be known who else holds them.
func (s *Search) Held() [][]byte {
	out, _ := s.HeldBy()
	return out
}

// HeldBy is Held, with a subject of the search that holds each key, and whom nobody needs to be told of; empty: none.
func (s *Search) HeldBy() (values, ours [][]byte) {
	values, ours = make([][]byte, 0, 3*len(s.order)), make([][]byte, 0, 3*len(s.order))
	for _, r := range s.order {
		for i := range r.keys {
			k := &r.keys[i]
			// Whoever holds the strict form of an address holds its loose form too.
			if t := match.KeyOf(k.Type); t&(match.Telling|match.Postal) == 0 || t == match.EmailStrict {
				continue
			}
			if _, asked := s.held[k.Value]; asked {
				continue
			}
			s.held[k.Value] = nil
			owner := noContact
			for _, place := range r.who {
				if held, _ := s.subjects[place].holds(k); held {
					owner = s.subjects[place].Ref[:]
					break
				}
			}
			values, ours = append(values, k.Value[:]), append(ours, owner)
		}
	}
	return values, ours
}

// Holder says that a subject holds a key. A subject of the search that the index did not lead to a row is led to it here.
func (s *Search) Holder(value []byte, ref Ref) {
	v := [32]byte(value)
	if slices.Contains(s.held[v], ref) {
		return
	}
	s.held[v] = append(s.held[v], ref)
}

// Strangers are the holders that the search is not about.
func (s *Search) Strangers() [][]byte {
	seen := map[Ref]bool{}
	var out [][]byte
	for _, r := range s.order {
		for i := range r.keys {
			for _, ref := range s.held[r.keys[i].Value] {
				if _, ours := s.place[ref]; !ours && !seen[ref] {
					seen[ref] = true
					out = append(out, bytes.Clone(ref[:]))
				}
			}
		}
	}
	return out
}

// Rival takes in a subject that Strangers has named, with its facts and contact points. Whoever is erased claims nothing.
func (s *Search) Rival(x *Subject) {
	if x.State != SubjectErased {
		s.rivals[x.Ref] = x
	}
}

// Said are the keys of what a row says now.
func (s *Search) Said(person string) [][]byte {
	r := s.rows[person]
	if r == nil {
		return nil
	}
	out := make([][]byte, len(r.keys))
	for i := range r.keys {
		out[i] = r.keys[i].Value[:]
	}
	return out
}

// Targets decides.
func (s *Search) Targets() []*Target {
	evidence := make([][]match.Evidence, len(s.subjects))
	out := make([]*Target, 0, len(s.order))
	for _, r := range s.order {
		if !r.read {
			continue
		}
		s.leadHolders(r)
		claims := s.claims(r)
		for k := range claims {
			if c := &claims[k]; c.place >= 0 {
				evidence[c.place] = append(evidence[c.place], s.evidence(r, claims, k))
			}
		}
		for k := range claims {
			if claims[k].place < 0 {
				out = s.appendTargets(out, claims[k].subject, []match.Evidence{s.evidence(r, claims, k)})
			}
		}
	}
	for i, x := range s.subjects {
		out = s.appendTargets(out, x, evidence[i])
	}
	disputed(out)
	return out
}

// disputed leaves rows to a person that several subjects certainly are, by different keys: whoever has the CRM key has the row.
func disputed(targets []*Target) {
	owners := map[string]int{}
	for _, t := range targets {
		if t.Certain {
			owners[t.Person]++
		}
	}
	for _, t := range targets {
		if t.Certain && !t.CRMKey && owners[t.Person] > 1 {
			t.Certain, t.Review = false, !t.Rival
		}
	}
}

// leadHolders adds the subjects of the search that hold a key of the row, although the index did not lead them to it.
func (s *Search) leadHolders(r *foundRow) {
	for i := range r.keys {
		for _, ref := range s.held[r.keys[i].Value] {
			if place, ours := s.place[ref]; ours && !slices.Contains(r.who, place) {
				r.who = append(r.who, place)
			}
		}
	}
}

// claim is a subject that may be a row.
type claim struct {
	subject *Subject
	place   int   // in the search; -1: a rival
	agree   []int // places in the row's keys of those that agree
	past    bool  // all of them are of past contact points
}

// claims are the subjects of the search that may be a row, then their rivals.
func (s *Search) claims(r *foundRow) []claim {
	out := make([]claim, 0, len(r.who))
	for _, place := range r.who {
		c := claim{subject: s.subjects[place], place: place}
		c.compare(r)
		out = append(out, c)
	}
	if len(s.rivals) == 0 {
		return out
	}
	for i := range r.keys {
		for _, ref := range s.held[r.keys[i].Value] {
			x := s.rivals[ref]
			if x == nil || slices.ContainsFunc(out, func(c claim) bool { return c.subject == x }) {
				continue
			}
			c := claim{subject: x, place: -1}
			if c.compare(r); len(c.agree) > 0 {
				out = append(out, c)
			}
		}
	}
	return out
}

// compare notes which of the row's keys the subject holds.
func (c *claim) compare(r *foundRow) {
	c.past = true
	for i := range r.keys {
		held, past := c.subject.holds(&r.keys[i])
		if !held {
			continue
		}
		c.agree = append(c.agree, i)
		if match.KeyOf(r.keys[i].Type)&(match.Name|match.NameBirthDate) == 0 {
			c.past = c.past && past
		}
	}
}

// holds reports whether a key is one of the subject's, and whether it is only one that it had once.
func (s *Subject) holds(k *StoredKey) (held, past bool) {
	past = true
	for i := range s.Contacts {
		c := &s.Contacts[i]
		if c.Revived {
			continue
		}
		for j := range c.Keys {
			if c.Keys[j].Value == k.Value {
				held, past = true, past && (c.Past || c.Removed || c.Keys[j].Past)
			}
		}
	}
	return held, past
}

// named reports whether the subject's name is known.
func (s *Subject) named() bool {
	for i := range s.Contacts {
		c := &s.Contacts[i]
		if !c.Revived && slices.ContainsFunc(c.Keys, func(k StoredKey) bool { return k.Type == KeyName }) {
			return true
		}
	}
	return false
}

// evidence is what speaks for one of the claims on a row.
func (s *Search) evidence(r *foundRow, claims []claim, k int) match.Evidence {
	c := &claims[k]
	e := match.Evidence{
		Person: r.person, Past: c.past && len(c.agree) > 0, Named: c.subject.named(), Pair: s.pairs[pairKey{c.subject.Ref, r.person}],
	}
	if r.crm != nil {
		e.CRMKey = c.subject.Key != nil && slices.Equal(r.crm, c.subject.Key)
		e.OtherCRMKey = !e.CRMKey
	}
	for _, i := range c.agree {
		t := match.KeyOf(r.keys[i].Type)
		e.Keys |= t
		if t == match.EmailStrict && !slices.Contains(e.Emails, r.keys[i].Value) {
			e.Emails = append(e.Emails, r.keys[i].Value)
		}
	}
	for i := range r.keys {
		if r.keys[i].Type == KeyName {
			e.Names = append(e.Names, r.keys[i].Value)
		}
	}
	switch {
	case s.known[pairKey{c.subject.Ref, r.person}] && e.Pair == match.Undecided:
		e.Pair = match.Same
	case e.Keys == 0 && !e.CRMKey:
		e.Pair = match.Undecided // what was decided held for what the row said then
	}
	for o := range claims {
		if o == k || claims[o].subject.State == SubjectErased {
			continue
		}
		var both match.Keys
		for _, i := range c.agree {
			if slices.Contains(claims[o].agree, i) {
				both |= match.KeyOf(r.keys[i].Type)
			}
		}
		if both != 0 {
			e.Others = append(e.Others, both)
		}
	}
	return e
}

// permits reports whether some consent of the subject's is in force, as far as its own facts say.
func (s *Subject) permits() bool {
	return slices.ContainsFunc(s.Facts, func(f sinks.Fact) bool {
		return f.State.Strictness() == sinks.Permission && strings.HasPrefix(f.Scope, ConsentPrefix)
	})
}

// appendTargets decides about the rows of one subject.
func (s *Search) appendTargets(out []*Target, x *Subject, evidence []match.Evidence) []*Target {
	if len(evidence) == 0 {
		return out
	}
	_, ours := s.place[x.Ref]
	sure, forbid := match.Decide(evidence, match.Erase), match.Decide(evidence, match.Prohibit)
	for i := range evidence {
		t := &Target{
			Subject: x, Person: evidence[i].Person, Certain: sure[i].Apply == match.Whole, Reach: forbid[i].Apply, By: sure[i].By,
			Keys: evidence[i].Keys, CRMKey: evidence[i].CRMKey, Rival: !ours,
			Review: ours && (forbid[i].Review || sure[i].Review && (x.State != SubjectLive || x.permits())),
		}
		t.Dismissed = ours && evidence[i].Pair == match.Different
		if t.Certain || t.Review || t.Dismissed || t.Reach != match.Nothing {
			out = append(out, t)
		}
	}
	return out
}

// TouchRow is the reason of a Touch for whoever may have a row that was not known: look for the subject's rows again.
const TouchRow = "row"
