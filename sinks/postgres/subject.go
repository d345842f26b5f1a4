package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/schema"
	"lethe/sinks"
)

// refKey is a subject's key in this replica's tables.
type refKey [32]byte

// subject is one subject while a transaction works on it.
type subject struct {
	ref    refKey
	part   int32
	known  bool     // has a row in lethe.subject
	sealed []byte   // of that row; in a batch empty, but not nil, where there is one
	key    []string // parts of the CRM key, in clear: personal

	state          string
	erasedOrder    []byte
	blocked        string
	unmatchedSince time.Time
	recheckAt      time.Time
	nextChange     time.Time

	facts  []sinks.Fact
	stored []pgtype.TID // where the first of facts have their rows
	fresh  []int        // places in facts of those to be written

	dirty    bool // its row must be written
	touched  bool // its fold must be written
	suppress bool // phase 1 must be done
	// waitedSince is unmatchedSince as it was before a row appeared.
	waitedSince time.Time
	givenUp     bool // not looked up again: the time for it is over
	effect      effect

	// Most subjects have few facts: these save their own allocations.
	firstFacts  [1]sinks.Fact
	firstStored [1]pgtype.TID
	firstFresh  [1]int
}

// effect is what the statements of one transaction did for a subject.
type effect struct {
	matched bool
	persons []string // person.key in text form
	rows    []schema.TableRows
	undo    []undoEntry
}

// undoEntry is what phase 1 changed in one row, kept in lethe.pending until phase 2 or a cancel. It holds flags and codes
// only. Values are in the text form of their types; null is NULL.
type undoEntry struct {
	Table string `json:"t"` // as the config writes it
	// Key is the row's key: person.key for the person's own table, else the primary key.
	Key map[string]string  `json:"k"`
	Set map[string]*string `json:"s,omitempty"`
	// Inserted says that the row is ours: a cancel deletes it.
	Inserted bool `json:"i,omitempty"`
}

// erased reports whether the fold must hold the subject as erased.
func (s *subject) erased() bool { return s.state != subjectLive }

// changed counts rows for the receipt.
func (e *effect) changed(table, action string, n int64) {
	for i := range e.rows {
		if e.rows[i].Table == table && e.rows[i].Action == action {
			e.rows[i].Changed += n
			e.rows[i].Matched += n
			return
		}
	}
	e.rows = append(e.rows, schema.TableRows{Table: table, Action: action, Matched: n, Changed: n})
}

func (e *effect) anyChanged() bool {
	for i := range e.rows {
		if e.rows[i].Changed > 0 {
			return true
		}
	}
	return false
}

// merge takes a fact in where it is newer than what is known, and reports whether it was.
func (s *subject) merge(f sinks.Fact) bool {
	for i := range s.facts {
		old := &s.facts[i]
		if old.Contact != f.Contact || old.Scope != f.Scope {
			continue
		}
		if !sinks.Newer(f, *old) {
			return false
		}
		*old = f
		s.markFresh(i)
		return true
	}
	s.facts = append(s.facts, f)
	s.markFresh(len(s.facts) - 1)
	return true
}

func (s *subject) markFresh(i int) {
	for _, j := range s.fresh {
		if i == j {
			return
		}
	}
	s.fresh = append(s.fresh, i)
}

// find returns the fact of one scope and contact point.
func (s *subject) find(scope string, contact schema.ContactRef) *sinks.Fact {
	for i := range s.facts {
		if s.facts[i].Scope == scope && s.facts[i].Contact == contact {
			return &s.facts[i]
		}
	}
	return nil
}

// answer is what the fold says to one column. known is false where no fact of the subject bears on it: the column then
// keeps what the replica's owner put there.
func (s *subject) answer(v *sinks.Verdict, c *foldColumn, now time.Time) (value, known bool) {
	switch c.kind {
	case kindPermitted:
		return v.Permitted(c.purpose, c.channel), v.Erased() || s.bearsOnConsent(c)
	case kindReconsentDue:
		return s.reconsentDue(v, c, now), v.Erased() || s.has(c.factScope)
	case kindObjected:
		return v.Objected(c.scope), s.bearsOnObjection(c.scope)
	case kindRestricted:
		return v.Restricted(), s.has(sinks.ScopeRestriction)
	}
	return false, false
}

func (s *subject) has(scope string) bool {
	for i := range s.facts {
		if s.facts[i].Scope == scope {
			return true
		}
	}
	return false
}

// bearsOnConsent reports whether any fact says something about the column's purpose and channel. Facts that were lifted
// again count: while they held, the column was written, and nobody but the fold can say what it is now.
func (s *subject) bearsOnConsent(c *foldColumn) bool {
	for i := range s.facts {
		scope := s.facts[i].Scope
		if scope == c.factScope || scope == sinks.ScopeRestriction {
			return true
		}
	}
	return s.bearsOnObjection(c.purpose)
}

func (s *subject) bearsOnObjection(scope string) bool {
	for i := range s.facts {
		of, ok := strings.CutPrefix(s.facts[i].Scope, objectionPrefix)
		if !ok {
			continue
		}
		if of == scope || of == sinks.ScopeAll ||
			of == sinks.ScopeDirectMarketing && scope != sinks.ScopeProfiling && scope != sinks.ScopeAll {
			return true
		}
	}
	return false
}

var consentPrefix = strings.TrimSuffix(sinks.ConsentScope("", ""), ":")

var objectionPrefix = sinks.ObjectionScope("")

// reconsentDue reports whether the subject could be asked again: what consent there was ended without the subject's
// doing, because it ran out or its contact point was replaced, and nothing forbids to ask.
func (s *subject) reconsentDue(v *sinks.Verdict, c *foldColumn, now time.Time) bool {
	if v.Erased() || v.Restricted() || v.Objected(c.purpose) || v.Permitted(c.purpose, c.channel) {
		return false
	}
	due := false
	for i := range s.facts {
		f := &s.facts[i]
		if f.Scope != c.factScope {
			continue
		}
		switch over := !f.ValidUntil.IsZero() && !now.Before(f.ValidUntil); {
		case f.State.Strictness().Prohibits():
			return false
		case f.State == sinks.StateExpired, f.State == sinks.StateInvalidated, f.State.Strictness() == sinks.Permission && over:
			due = true
		}
	}
	return due
}

// sqlSubjects reads subjects with their facts, one row a fact. In the place of the sealed key, which a batch knows
// already, it says whether there is one. For subjects that are new nothing is looked up in fact. OFFSET 0 keeps the
// planner from joining otherwise: before the first ANALYZE of fact it takes every subject for one of two hundred.
const sqlSubjects = `
	SELECT s.ref, s.part, s.state, s.erased_order, s.blocked, s.unmatched_since, s.recheck_at, s.next_change_at,
		CASE WHEN s.sealed_key IS NOT NULL THEN ''::bytea END, f.scope, f.contact_ref, f.ord, f.as_of, f.state, f.valid_until,
		f.event_id, f.ctid
	FROM unnest($1::bytea[]) AS v(ref) CROSS JOIN LATERAL (SELECT * FROM {s}.subject s WHERE s.ref = v.ref OFFSET 0) s
	LEFT JOIN LATERAL (SELECT *, ctid FROM {s}.fact f WHERE f.ref = s.ref OFFSET 0) f ON true`

// sqlLoad is sqlSubjects with the sealed keys, for work outside a batch; without the subjects whose key is not known.
const sqlLoad = `
	SELECT s.ref, s.part, s.state, s.erased_order, s.blocked, s.unmatched_since, s.recheck_at, s.next_change_at, s.sealed_key,
		f.scope, f.contact_ref, f.ord, f.as_of, f.state, f.valid_until, f.event_id, f.ctid
	FROM {s}.subject s LEFT JOIN LATERAL (SELECT *, ctid FROM {s}.fact f WHERE f.ref = s.ref OFFSET 0) f ON true
	WHERE s.ref = ANY ($1) AND s.sealed_key IS NOT NULL ORDER BY s.ref`

// subjects is the set that one transaction works on, in the order in which they came up.
type subjects struct {
	list  []*subject
	byRef map[refKey]*subject
	slab  []subject // those not handed out yet
}

func newSubjects(capacity int) *subjects {
	return &subjects{
		list: make([]*subject, 0, capacity), byRef: make(map[refKey]*subject, capacity), slab: make([]subject, capacity),
	}
}

// sort brings the subjects into the order of their references: rows are then written in the order of the indexes.
func (s *subjects) sort() {
	slices.SortFunc(s.list, func(a, b *subject) int { return bytes.Compare(a.ref[:], b.ref[:]) })
}

// get returns the subject, adding a live one that has no row yet.
func (s *subjects) get(ref refKey, part int32) *subject {
	if x := s.byRef[ref]; x != nil {
		return x
	}
	if len(s.slab) == 0 {
		s.slab = make([]subject, 16)
	}
	x := &s.slab[0]
	s.slab = s.slab[1:]
	x.ref, x.part, x.state = ref, part, subjectLive
	x.facts, x.stored, x.fresh = x.firstFacts[:0], x.firstStored[:0], x.firstFresh[:0]
	s.byRef[ref] = x
	s.list = append(s.list, x)
	return x
}

func (s *subjects) refs() [][]byte {
	out := make([][]byte, len(s.list))
	for i, x := range s.list {
		out[i] = x.ref[:]
	}
	return out
}

// scan reads the rows of sqlSubjects or sqlLoad.
func (s *subjects) scan(rows pgx.Rows) error {
	var (
		ref, erased, sealed       []byte
		part                      int32
		state                     string
		blocked, scope, factState *string
		contact, order, event     []byte
		unmatched, recheck, nxt   pgtype.Timestamptz
		asOf, until               pgtype.Timestamptz
		place                     pgtype.TID
	)
	for rows.Next() {
		err := rows.Scan(&ref, &part, &state, &erased, &blocked, &unmatched, &recheck, &nxt, &sealed,
			&scope, &contact, &order, &asOf, &factState, &until, &event, &place)
		if err != nil {
			return err
		}
		x := s.get(refKey(ref), part)
		if !x.known {
			x.known, x.state, x.erasedOrder, x.sealed = true, state, erased, sealed
			x.unmatchedSince, x.recheckAt, x.nextChange = unmatched.Time, recheck.Time, nxt.Time
			if blocked != nil {
				x.blocked = *blocked
			}
		}
		if scope == nil {
			continue
		}
		f := sinks.Fact{Scope: *scope, State: sinks.State(*factState), AsOf: asOf.Time, ValidUntil: until.Time}
		copy(f.Contact[:], contact)
		copy(f.Order[:], order)
		copy(f.EventID[:], event)
		x.facts = append(x.facts, f)
		x.stored = append(x.stored, place)
	}
	return rows.Err()
}

// load reads subjects and their facts by reference: for work outside a batch. Keys are opened.
func (r *Replica) load(ctx context.Context, tx querier, refs [][]byte) (*subjects, error) {
	set := newSubjects(len(refs))
	rows, err := tx.Query(ctx, r.ledger.sql(sqlLoad), refs)
	if err != nil {
		return nil, classify("reading subjects", err)
	}
	err = set.scan(rows)
	rows.Close()
	if err != nil {
		return nil, classify("reading subjects", err)
	}
	for _, x := range set.list {
		if x.key, err = r.openKey(x.ref[:], x.sealed); err != nil {
			return nil, err
		}
	}
	return set, nil
}

func encodeUndo(entries []undoEntry) ([]byte, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	return json.Marshal(entries)
}
