package ledger

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/match"
)

// Ref is a subject's key in one replica's tables; see Core.Ref.
type Ref [32]byte

// Subject is one subject while a transaction works on it.
type Subject struct {
	Ref    Ref
	Part   int32
	Known  bool     // has a row in the table subject
	Sealed []byte   // of that row; in a batch empty, but not nil, where there is one
	Key    []string // parts of the CRM key, in clear: personal

	State          string
	ErasedOrder    []byte
	Blocked        string // code of the parked event that blocks the subject
	UnmatchedSince time.Time
	RecheckAt      time.Time
	NextChange     time.Time

	Facts  []sinks.Fact
	Stored []uint64 // where the first of Facts have their rows, in a form of the dialect's own; those behind have none yet
	Fresh  []int    // places in Facts of those to be written

	// Contacts are the contact points, with the values that they had. They are read only where Set.NeedContacts asks for it.
	Contacts []Contact
	was      map[int]sinks.Fact // what stored facts were that are bound to a contact point and changed

	Dirty    bool // its row must be written
	Touched  bool // its fold must be written
	Suppress bool // phase 1 must be done
	// WaitedSince is UnmatchedSince as it was before a row appeared.
	WaitedSince time.Time
	GivenUp     bool // not looked up again: the time for it is over
	// Claims are set where this stands for a row of the person's table, which those subjects claim; see StandIns.
	Claims []*Target
	Effect Effect

	// Most subjects have few facts: these save their own allocations.
	firstFacts  [1]sinks.Fact
	firstStored [1]uint64
	firstFresh  [1]int
}

// Effect is what the statements of one transaction did for a subject.
type Effect struct {
	Matched bool
	Persons []string // person.key in text form
	Rows    []schema.TableRows
	Undo    []UndoEntry

	// In a replica that finds persons by match keys: Matched alone says that some row may be the subject's.
	Certain   bool // some row certainly is
	Ambiguous int  // rows that a person has to decide on
	Left      bool // a row that certainly is the subject's still says something that finds it
	ByCRMKey  bool
	By        match.Keys // the types of keys that it was found by
	Dismissed []string   // rows that it would be found as, had a person not decided that they are somebody else's
}

// UndoEntry is what phase 1 changed in one row, kept with the case until phase 2 or a cancel. It holds flags and codes
// only. Values are in the text form of their types; nil is NULL.
type UndoEntry struct {
	Table string `json:"t"` // as the config writes it
	// Key is the row's key: person.key for the person's own table, else the primary key.
	Key map[string]string  `json:"k"`
	Set map[string]*string `json:"s,omitempty"`
	// Inserted says that the row is ours: a cancel deletes it.
	Inserted bool `json:"i,omitempty"`
	// Person is the row of the person's table that this belongs to, where persons are found by match keys: it may turn out to be
	// somebody else.
	Person string `json:"p,omitempty"`
}

// EncodeUndo returns the JSON of some entries; nil for none.
func EncodeUndo(entries []UndoEntry) ([]byte, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	return json.Marshal(entries)
}

// Erased reports whether the fold must hold the subject as erased.
func (s *Subject) Erased() bool { return s.State != SubjectLive }

// Found reports whether some row is the subject's for certain. Without one it may be that a person has to decide about some.
func (e *Effect) Found() bool { return e.Matched && (e.Certain || e.Ambiguous == 0) }

// Doubt is the error code of a case of which no row is certain; empty: none may be the subject's.
func (e *Effect) Doubt() string {
	if e.Ambiguous > 0 && !e.Found() {
		return ReasonAmbiguous
	}
	return ""
}

// MergeUndo adds what phase 1 changed later to what it had changed before. A row that is in it stays as it was first: what
// phase 1 found later is what phase 1 itself had written. more says that there is something new.
func MergeUndo(before, later []UndoEntry) (all []UndoEntry, more bool) {
	all = slices.Clone(before)
	for _, u := range later {
		if slices.ContainsFunc(before, func(o UndoEntry) bool { return o.Table == u.Table && maps.Equal(o.Key, u.Key) }) {
			continue
		}
		all, more = append(all, u), true
	}
	return all, more
}

// Changed counts rows for the receipt.
func (e *Effect) Changed(table, action string, n int64) {
	for i := range e.Rows {
		if e.Rows[i].Table == table && e.Rows[i].Action == action {
			e.Rows[i].Changed += n
			e.Rows[i].Matched += n
			return
		}
	}
	e.Rows = append(e.Rows, schema.TableRows{Table: table, Action: action, Matched: n, Changed: n})
}

// AnyChanged reports whether any row was changed.
func (e *Effect) AnyChanged() bool {
	for i := range e.Rows {
		if e.Rows[i].Changed > 0 {
			return true
		}
	}
	return false
}

// Merge takes a fact in where it is newer than what is known, and reports whether it was.
func (s *Subject) Merge(f sinks.Fact) bool {
	for i := range s.Facts {
		old := &s.Facts[i]
		if old.Contact != f.Contact || old.Scope != f.Scope {
			continue
		}
		if !sinks.Newer(f, *old) {
			return false
		}
		s.replace(i, f)
		return true
	}
	s.Facts = append(s.Facts, f)
	s.markFresh(len(s.Facts) - 1)
	return true
}

// replace puts a fact into another one's place. What a stored fact that is bound to a contact point was is remembered.
func (s *Subject) replace(i int, f sinks.Fact) {
	if i < len(s.Stored) && !f.Contact.IsZero() && !slices.Contains(s.Fresh, i) {
		if s.was == nil {
			s.was = map[int]sinks.Fact{}
		}
		s.was[i] = s.Facts[i]
	}
	s.Facts[i] = f
	s.markFresh(i)
}

// forgetUnchanged drops from Fresh what has become what it was: a prohibition that is delivered again goes over to the person
// again, and the dialects take a row that does not change for one that is gone.
func (s *Subject) forgetUnchanged() {
	s.Fresh = slices.DeleteFunc(s.Fresh, func(i int) bool {
		old, ok := s.was[i]
		f := s.Facts[i]
		return ok && old.State == f.State && old.Order == f.Order && old.EventID == f.EventID && old.AsOf.Equal(f.AsOf) && old.ValidUntil.Equal(f.ValidUntil)
	})
}

func (s *Subject) markFresh(i int) {
	for _, j := range s.Fresh {
		if i == j {
			return
		}
	}
	s.Fresh = append(s.Fresh, i)
}

// Find returns the fact of one scope and contact point; nil where there is none.
func (s *Subject) Find(scope string, contact schema.ContactRef) *sinks.Fact {
	for i := range s.Facts {
		if s.Facts[i].Scope == scope && s.Facts[i].Contact == contact {
			return &s.Facts[i]
		}
	}
	return nil
}

// Set is the set of subjects that one transaction works on, in the order in which they came up.
type Set struct {
	List  []*Subject
	ByRef map[Ref]*Subject
	// NeedContacts says that the contact points of the subjects are wanted too. Most batches hold consents that are bound to
	// none, and do without.
	NeedContacts bool
	slab         []Subject // those not handed out yet
}

// NewSet makes a set for about so many subjects.
func NewSet(capacity int) *Set {
	return &Set{
		List: make([]*Subject, 0, capacity), ByRef: make(map[Ref]*Subject, capacity), slab: make([]Subject, capacity),
	}
}

// Sort brings the subjects into the order of their references: rows are then written in the order of the indexes.
func (s *Set) Sort() {
	slices.SortFunc(s.List, func(a, b *Subject) int { return bytes.Compare(a.Ref[:], b.Ref[:]) })
}

// Get returns the subject, adding a live one that has no row yet.
func (s *Set) Get(ref Ref, part int32) *Subject {
	if x := s.ByRef[ref]; x != nil {
		return x
	}
	if len(s.slab) == 0 {
		s.slab = make([]Subject, 16)
	}
	x := &s.slab[0]
	s.slab = s.slab[1:]
	x.Ref, x.Part, x.State = ref, part, SubjectLive
	x.Facts, x.Stored, x.Fresh = x.firstFacts[:0], x.firstStored[:0], x.firstFresh[:0]
	s.ByRef[ref] = x
	s.List = append(s.List, x)
	return x
}

// Refs returns the references of List.
func (s *Set) Refs() [][]byte {
	out := make([][]byte, len(s.List))
	for i, x := range s.List {
		out[i] = x.Ref[:]
	}
	return out
}

// ConsentPrefix is what the scopes of consent facts begin with.
var ConsentPrefix = strings.TrimSuffix(sinks.ConsentScope("", ""), ":")

func isConsent(scope string) bool { return strings.HasPrefix(scope, ConsentPrefix) }

var objectionPrefix = sinks.ObjectionScope("")
