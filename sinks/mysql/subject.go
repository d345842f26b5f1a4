package mysql

import (
	"context"
	"database/sql"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// subjectColumns are what scan reads: a subject with one of its facts.
const subjectColumns = `s.ref, s.part, s.state, s.erased_order, s.blocked, s.unmatched_since, s.recheck_at, s.next_change_at,
	f.scope, f.contact_ref, f.ord, f.as_of, f.state, f.valid_until, f.event_id`

// sqlSubjects reads subjects with their facts, one row a fact. In the place of the sealed key, which a batch knows already,
// it says whether there is one. The tables are read in the order in which they stand here: the planner would rather read
// all of a small ledger, and remember that.
const sqlSubjects = `SELECT CASE WHEN s.sealed_key IS NOT NULL THEN '' END, ` + subjectColumns + ` FROM ` + refsTable + `
	STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref) LEFT JOIN {p}fact f ON f.ref = s.ref`

// sqlLoad is sqlSubjects with the sealed keys, for work outside a batch; without the subjects whose key is not known.
const sqlLoad = `SELECT s.sealed_key, ` + subjectColumns + ` FROM ` + refsTable + `
	STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref) LEFT JOIN {p}fact f ON f.ref = s.ref
	WHERE s.sealed_key IS NOT NULL ORDER BY s.ref`

// read runs sqlSubjects or sqlLoad and takes the rows into the set.
func (r *Replica) read(ctx context.Context, q querier, query string, refs [][]byte, set *ledger.Set) error {
	var (
		ref, erased, sealed       sql.RawBytes
		part                      int32
		state                     sql.RawBytes
		blocked, scope, factState sql.RawBytes
		contact, order, event     sql.RawBytes
		unmatched, recheck, next  sql.NullTime
		asOf, until               sql.NullTime
	)
	into := []any{
		&sealed, &ref, &part, &state, &erased, &blocked, &unmatched, &recheck, &next, &scope, &contact, &order, &asOf, &factState, &until, &event,
	}
	return eachRow(ctx, q, r.ledger.sql(query), []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		x := set.Get(ledger.Ref(ref), part)
		if !x.Known {
			x.Known, x.State, x.Blocked = true, string(state), string(blocked)
			x.ErasedOrder, x.Sealed = cloneRaw(erased), cloneRaw(sealed)
			x.UnmatchedSince, x.RecheckAt, x.NextChange = unmatched.Time, recheck.Time, next.Time
		}
		if scope == nil {
			return nil
		}
		f := sinks.Fact{Scope: string(scope), State: sinks.State(factState), AsOf: asOf.Time, ValidUntil: until.Time}
		copy(f.Contact[:], contact)
		copy(f.Order[:], order)
		copy(f.EventID[:], event)
		x.Facts = append(x.Facts, f)
		x.Stored = append(x.Stored, 0) // a fact's row is found by its key
		return nil
	})
}

// cloneRaw keeps NULL and the empty value apart.
func cloneRaw(b sql.RawBytes) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

// load reads subjects and their facts by reference: for work outside a batch. Keys are opened.
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
	return set, nil
}
