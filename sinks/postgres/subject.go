package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

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

// scanSubjects reads the rows of sqlSubjects or sqlLoad. Where a fact has its row is kept as packed by placeOf.
func scanSubjects(rows pgx.Rows, set *ledger.Set) error {
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
		x := set.Get(ledger.Ref(ref), part)
		if !x.Known {
			x.Known, x.State, x.ErasedOrder, x.Sealed = true, state, erased, sealed
			x.UnmatchedSince, x.RecheckAt, x.NextChange = unmatched.Time, recheck.Time, nxt.Time
			if blocked != nil {
				x.Blocked = *blocked
			}
		}
		if scope == nil {
			continue
		}
		f := sinks.Fact{Scope: *scope, State: sinks.State(*factState), AsOf: asOf.Time, ValidUntil: until.Time}
		copy(f.Contact[:], contact)
		copy(f.Order[:], order)
		copy(f.EventID[:], event)
		x.Facts = append(x.Facts, f)
		x.Stored = append(x.Stored, placeOf(place))
	}
	return rows.Err()
}

// placeOf packs a row's place (ctid): block, then the line in it. tidOf unpacks it.
func placeOf(t pgtype.TID) uint64 { return uint64(t.BlockNumber)<<16 | uint64(t.OffsetNumber) }

func tidOf(place uint64) pgtype.TID {
	return pgtype.TID{BlockNumber: uint32(place >> 16), OffsetNumber: uint16(place & 0xffff), Valid: true} //nolint:gosec // as packed
}

// load reads subjects and their facts by reference: for work outside a batch. Keys are opened. Where persons are found by match
// keys the contact points come too.
func (r *Replica) load(ctx context.Context, tx runner, refs [][]byte) (*ledger.Set, error) {
	if r.cfg.Find != nil {
		return r.loadWithContacts(ctx, tx, refs)
	}
	return r.loadFacts(ctx, tx, refs)
}

// loadFacts is load without the contact points.
func (r *Replica) loadFacts(ctx context.Context, tx querier, refs [][]byte) (*ledger.Set, error) {
	set := ledger.NewSet(len(refs))
	rows, err := tx.Query(ctx, r.ledger.sql(sqlLoad), refs)
	if err != nil {
		return nil, classify("reading subjects", err)
	}
	err = scanSubjects(rows, set)
	rows.Close()
	if err != nil {
		return nil, classify("reading subjects", err)
	}
	for _, x := range set.List {
		if x.Key, err = r.core.OpenKey(x.Ref[:], x.Sealed); err != nil {
			return nil, err
		}
	}
	return set, nil
}
