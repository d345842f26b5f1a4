package postgres

import (
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// queueAll queues everything that a unit leaves in the ledger tables.
func (u *unit) queueAll(b *pgx.Batch) error {
	if err := u.r.queueSubjects(b, u.Set.List); err != nil {
		return err
	}
	u.r.queueFacts(b, u.Set.List)
	if u.Set.NeedContacts {
		u.r.queueContactRows(b, u.Set.List)
	}
	u.queueLife(b)
	if err := u.queueCases(b); err != nil {
		return err
	}
	u.queueReadback(b)
	u.queueSingles(b)
	if err := u.queueReports(b); err != nil {
		return err
	}
	u.queuePasses(b)
	return u.queueReceipts(b)
}

// subjectRows are rows of lethe.subject as arrays.
type subjectRows struct {
	refs, sealed, erased    byteArray
	parts                   pgtype.FlatArray[int32]
	states                  textArray
	blocked                 pgtype.FlatArray[*string]
	unmatched, recheck, nxt pgtype.FlatArray[*time.Time]
}

func (t *subjectRows) grow(n int) {
	t.refs, t.sealed, t.erased = make([][]byte, 0, n), make([][]byte, 0, n), make([][]byte, 0, n)
	t.parts, t.states, t.blocked = make([]int32, 0, n), make([]string, 0, n), make([]*string, 0, n)
	t.unmatched, t.recheck, t.nxt = make([]*time.Time, 0, n), make([]*time.Time, 0, n), make([]*time.Time, 0, n)
}

// add appends one row; n is how many there may be.
func (t *subjectRows) add(s *ledger.Subject, key []byte, n int) {
	if t.refs == nil {
		t.grow(n)
	}
	t.refs, t.parts, t.sealed = append(t.refs, s.Ref[:]), append(t.parts, s.Part), append(t.sealed, key)
	t.states, t.erased = append(t.states, s.State), append(t.erased, s.ErasedOrder)
	t.blocked = append(t.blocked, textOrNull(s.Blocked))
	t.unmatched = append(t.unmatched, timeOrNull(s.UnmatchedSince))
	t.recheck = append(t.recheck, timeOrNull(s.RecheckAt))
	t.nxt = append(t.nxt, timeOrNull(s.NextChange))
}

// queue queues one statement for all rows; arrays is what it calls them.
func (t *subjectRows) queue(b *pgx.Batch, statement string) {
	if len(t.refs) > 0 {
		b.Queue(statement, t.refs, t.parts, t.sealed, t.states, t.erased, t.blocked, timesOrNull(t.unmatched), timesOrNull(t.recheck),
			timesOrNull(t.nxt))
	}
}

const subjectArrays = `unnest($1::bytea[], $2::int[], $3::bytea[], $4::text[], $5::bytea[], $6::text[], $7::timestamptz[],
	$8::timestamptz[], $9::timestamptz[])
	AS v(ref, part, sealed_key, state, erased_order, blocked, unmatched_since, recheck_at, next_change_at)`

// queueSubjects writes the rows of subjects that are new or have changed. An existing sealed key stays: rotation renews
// it, not every event. Whether a row exists is known, because the row of its partition has been ours since it was read;
// so nothing is upserted, which would cost half as much again.
func (r *Replica) queueSubjects(b *pgx.Batch, list []*ledger.Subject) error {
	var inserts, updates subjectRows
	for _, s := range list {
		if !s.Dirty {
			continue
		}
		key, err := r.core.NewKey(s)
		if err != nil {
			return err
		}
		if s.Known {
			updates.add(s, key, len(list))
		} else {
			inserts.add(s, key, len(list))
		}
	}
	inserts.queue(b, r.ledger.sql(`
		INSERT INTO {s}.subject
			(ref, part, sealed_key, state, erased_order, blocked, unmatched_since, recheck_at, next_change_at)
		SELECT * FROM `+subjectArrays))
	updates.queue(b, r.ledger.sql(`
		UPDATE {s}.subject s SET sealed_key = coalesce(s.sealed_key, v.sealed_key), state = v.state,
			erased_order = v.erased_order, blocked = v.blocked, unmatched_since = v.unmatched_since,
			recheck_at = v.recheck_at, next_change_at = v.next_change_at
		FROM `+subjectArrays+` WHERE s.ref = v.ref`))
	return nil
}

// factRows are rows of lethe.fact as arrays.
type factRows struct {
	refs, contacts, orders, events byteArray
	scopes, states                 textArray
	asOf, until                    pgtype.FlatArray[*time.Time]
	places                         pgtype.FlatArray[pgtype.TID] // of those that have a row
}

func (t *factRows) grow(n int) {
	t.refs, t.contacts = make([][]byte, 0, n), make([][]byte, 0, n)
	t.orders, t.events = make([][]byte, 0, n), make([][]byte, 0, n)
	t.scopes, t.states = make([]string, 0, n), make([]string, 0, n)
	t.asOf, t.until = make([]*time.Time, 0, n), make([]*time.Time, 0, n)
}

// add appends one row; n is about how many there will be.
func (t *factRows) add(s *ledger.Subject, f *sinks.Fact, n int) {
	if t.refs == nil {
		t.grow(n)
	}
	t.refs, t.scopes, t.states = append(t.refs, s.Ref[:]), append(t.scopes, f.Scope), append(t.states, string(f.State))
	t.contacts, t.orders, t.events = append(t.contacts, ledger.ContactBytes(f)), append(t.orders, f.Order[:]), append(t.events, f.EventID[:])
	t.asOf, t.until = append(t.asOf, timeOrNull(f.AsOf)), append(t.until, timeOrNull(f.ValidUntil))
}

// columns are the arrays in the order of factArrays.
func (t *factRows) columns() []any {
	return []any{t.refs, t.scopes, t.contacts, t.orders, timesOrNull(t.asOf), t.states, timesOrNull(t.until), t.events}
}

// timesOrNull leaves out an array of nothing but NULL: unnest fills up with NULL what one array has less than another.
func timesOrNull(a pgtype.FlatArray[*time.Time]) pgtype.FlatArray[*time.Time] {
	for _, t := range a {
		if t != nil {
			return a
		}
	}
	return nil
}

const factArrays = `unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::timestamptz[], $6::text[], $7::timestamptz[],
	$8::bytea[]`

// queueFacts writes the facts that are new. The guard has been applied: nobody else can have written them since they
// were read, because the row of their partition is ours. That also holds them in their place: a row is found again by its
// ctid, and a VACUUM FULL waits for this transaction.
func (r *Replica) queueFacts(b *pgx.Batch, list []*ledger.Subject) {
	var inserts, updates factRows
	for _, s := range list {
		for _, i := range s.Fresh {
			if i < len(s.Stored) {
				updates.add(s, &s.Facts[i], len(list))
				updates.places = append(updates.places, tidOf(s.Stored[i]))
			} else {
				inserts.add(s, &s.Facts[i], len(list))
			}
		}
	}
	if len(inserts.refs) > 0 {
		b.Queue(r.ledger.sql(`
			INSERT INTO {s}.fact (ref, scope, contact_ref, ord, as_of, state, valid_until, event_id)
			SELECT * FROM `+factArrays+`)`), inserts.columns()...)
	}
	if n := len(updates.refs); n > 0 {
		b.Queue(r.ledger.sql(`
			UPDATE {s}.fact f SET ord = v.ord, as_of = v.as_of, state = v.state, valid_until = v.valid_until, event_id = v.event_id
			FROM `+factArrays+`, $9::tid[]) AS v(ref, scope, contact_ref, ord, as_of, state, valid_until, event_id, place)
			WHERE f.ctid = v.place AND f.ref = v.ref AND f.scope = v.scope AND f.contact_ref = v.contact_ref`),
			append(updates.columns(), updates.places)...).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() != int64(n) {
				return ledger.ErrFactsMoved()
			}
			return nil
		})
	}
}

// queueCases opens lethe.pending for new erasures. The time at which phase 2 is due is the replica's, not ours.
func (u *unit) queueCases(b *pgx.Batch) error {
	rows, err := u.PendingRows()
	if err != nil {
		return err
	}
	for i := range rows {
		p := &rows[i]
		b.Queue(u.r.ledger.sql(`
			INSERT INTO {s}.pending AS p (ref, case_id, event_id, part, state, wait, snapshot, run_id, matched, observed,
				committed_at, config_digest, due_at, undo, error_code)
			VALUES ($1, $2, $3, $4, 'suppressed', $5, $6, $7, $8, $9, $10, $11, now() + make_interval(secs => $12), $13, $14)
			ON CONFLICT (ref) DO UPDATE SET case_id = excluded.case_id, event_id = excluded.event_id, state = excluded.state,
				wait = excluded.wait, held = false, released = false, snapshot = excluded.snapshot, run_id = excluded.run_id,
				matched = excluded.matched, observed = excluded.observed, committed_at = excluded.committed_at,
				config_digest = excluded.config_digest, opened_at = now(), suppressed_at = now(), due_at = excluded.due_at,
				applied_at = NULL, verified_at = NULL, undo = excluded.undo, work = NULL, attempts = 0, error_code = excluded.error_code,
				mapping_digest = NULL`),
			p.Ref[:], p.CaseID[:], p.EventID[:], p.Part, p.Wait, p.Snapshot, textOrNull(p.RunID), p.Matched, p.Observed, p.CommittedAt,
			p.ConfigDigest[:], p.CoolOff.Seconds(), jsonOrNull(p.Undo), textOrNull(p.Code))
	}
	return nil
}

// queueReadback leaves the objections and restrictions that took effect to verification; those of a subject without a
// row wait for it.
func (u *unit) queueReadback(b *pgx.Batch) {
	for _, row := range u.ReadbackRows() {
		b.Queue(u.r.ledger.sql(`
			INSERT INTO {s}.readback (event_id, ref, part, kind, committed_at, config_digest, due_at)
			VALUES ($1, $2, $3, $4, $5, $6, CASE WHEN $7 THEN now() ELSE 'infinity' END) ON CONFLICT DO NOTHING`),
			row.EventID[:], row.Ref[:], row.Part, row.Kind, row.CommittedAt, row.ConfigDigest[:], row.Due)
	}
}

// queueSingles writes what few records leave: decisions, gaps and records parked behind another.
func (u *unit) queueSingles(b *pgx.Batch) {
	l := u.r.ledger
	u.Singles(func(p ledger.ParkedRow) {
		b.Queue(l.sql(`
			INSERT INTO {s}.parked (part, off, ref, event_id, bytes, error_code) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT DO NOTHING`),
			p.Part, p.Offset, p.Ref[:], p.EventID[:], p.Bytes, p.Code)
	}, func(d ledger.DecisionRow) { // stored_at is their order, within a batch too: the last word of an operator holds
		b.Queue(l.sql(`
			INSERT INTO {s}.decision (event_id, ref, case_id, part, decision, reason, checks, decided_by, decided_at, stored_at, done_at, outcome)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp(), CASE WHEN $10::text IS NOT NULL THEN now() END, $10) ON CONFLICT DO NOTHING`),
			d.EventID[:], d.Ref[:], d.CaseID[:], d.Part, d.Decision, d.Reason, d.Checks, d.DecidedBy, timeOrNull(d.DecidedAt), textOrNull(d.Outcome))
		b.Queue(l.sql(`INSERT INTO {s}.touch (ref, part, reason) SELECT s.ref, s.part, $2 FROM {s}.alias a JOIN {s}.subject s ON s.ref = a.absorbed
			WHERE a.ref = $1`), d.Ref[:], ledger.TouchConsult)
	}, func(g ledger.GapRow) { u.queueGap(b, g.Part, g.Gap) })
}

// queueGap opens or closes a gap for one partition; see ledger.GapRow.
func (u *unit) queueGap(b *pgx.Batch, part int32, g *schema.Gap) {
	statement := `
		INSERT INTO {s}.gap (gap_id, part, cause, from_order, to_order) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
	if !g.Opened {
		statement = `
			INSERT INTO {s}.gap AS g (gap_id, part, cause, from_order, to_order, closed_at) VALUES ($1, $2, $3, $4, $5, now())
			ON CONFLICT (gap_id, part) DO UPDATE SET closed_at = coalesce(g.closed_at, now()), to_order = excluded.to_order`
	}
	b.Queue(u.r.ledger.sql(statement), g.GapID, part, g.Cause, g.From[:], g.To[:])
	if !g.Opened {
		u.queueLookAgain(b)
	}
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	text := s
	return &text
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	at := t // only what is not null is moved to the heap
	return &at
}

// jsonOrNull passes JSON as text: a []byte parameter of type jsonb would be read as the binary form.
func jsonOrNull(b []byte) any {
	if b == nil {
		return nil
	}
	return json.RawMessage(b)
}
