package mysql

import (
	"context"
	"database/sql"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// subjectColumns are what read takes: a subject with its first fact, and with one of those that came later.
const subjectColumns = `s.ref, s.part, s.state, s.erased_order, s.blocked, d.unmatched_since, d.recheck_at, d.next_change_at,
	s.scope, s.contact_ref, s.ord, s.as_of, s.fact_state, s.valid_until, s.event_id,
	f.scope, f.contact_ref, f.ord, f.as_of, f.state, f.valid_until, f.event_id`

// subjectTables are the tables that subjectColumns come from.
const subjectTables = refsTable + `
	STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref) LEFT JOIN {p}due d ON d.ref = s.ref LEFT JOIN {p}fact f ON f.ref = s.ref`

// Where a fact is stored, for Stored of its subject: in a row of its own, or in the subject's.
const (
	storedInFact uint64 = iota
	storedInSubject
)

// sqlSubjects reads subjects with their facts, one row for each fact in a row of its own, or one. In the place of the sealed key, which a batch knows already,
// it says whether there is one. The tables are read in the order in which they stand here: the planner would rather read
// all of a small ledger, and remember that.
const sqlSubjects = `SELECT CASE WHEN s.sealed_key IS NOT NULL THEN '' END, ` + subjectColumns + ` FROM ` + subjectTables

// sqlLoad is sqlSubjects with the sealed keys, for work outside a batch; without the subjects whose key is not known.
const sqlLoad = `SELECT s.sealed_key, ` + subjectColumns + ` FROM ` + subjectTables + `
	WHERE s.sealed_key IS NOT NULL ORDER BY s.ref`

// read runs sqlSubjects or sqlLoad and takes the rows into the set.
func (r *Replica) read(ctx context.Context, q querier, query string, refs [][]byte, set *ledger.Set) error {
	var (
		ref, erased, sealed      sql.RawBytes
		part                     int32
		state, blocked           sql.RawBytes
		unmatched, recheck, next sql.NullTime
		first, later             factRow
	)
	into := []any{&sealed, &ref, &part, &state, &erased, &blocked, &unmatched, &recheck, &next}
	into = append(append(into, first.into()...), later.into()...)
	return eachRow(ctx, q, r.ledger.sql(query), []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		x := set.Get(ledger.Ref(ref), part)
		if !x.Known {
			x.Known, x.State, x.Blocked = true, string(state), string(blocked)
			x.ErasedOrder, x.Sealed = cloneRaw(erased), cloneRaw(sealed)
			x.UnmatchedSince, x.RecheckAt, x.NextChange = unmatched.Time, recheck.Time, next.Time
			first.addTo(x, storedInSubject)
		}
		later.addTo(x, storedInFact)
		return nil
	})
}

// factRow is a fact as it is read; without a scope there is none.
type factRow struct {
	scope, state, contact, order, event sql.RawBytes
	asOf, until                         sql.NullTime
}

func (r *factRow) into() []any {
	return []any{&r.scope, &r.contact, &r.order, &r.asOf, &r.state, &r.until, &r.event}
}

func (r *factRow) addTo(x *ledger.Subject, stored uint64) {
	if r.scope == nil {
		return
	}
	f := sinks.Fact{Scope: string(r.scope), State: sinks.State(r.state), AsOf: r.asOf.Time, ValidUntil: r.until.Time}
	copy(f.Contact[:], r.contact)
	copy(f.Order[:], r.order)
	copy(f.EventID[:], r.event)
	x.Facts, x.Stored = append(x.Facts, f), append(x.Stored, stored)
}

// cloneRaw keeps NULL and the empty value apart.
func cloneRaw(b sql.RawBytes) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

// load reads subjects and their facts by reference: for work outside a batch. Keys are opened. Where persons are found by match
// keys the contact points come too.
func (r *Replica) load(ctx context.Context, q querier, refs [][]byte) (*ledger.Set, error) {
	set := ledger.NewSet(len(refs))
	if err := r.read(ctx, q, sqlLoad, refs, set); err != nil {
		return nil, classify("reading subjects", err)
	}
	for _, x := range set.List {
		var err error
		if x.Key, err = r.core.OpenKey(x.Ref[:], x.Sealed); err != nil {
			return nil, err
		}
	}
	if r.cfg.Find == nil {
		return set, nil
	}
	return set, r.readContacts(ctx, q, set)
}
