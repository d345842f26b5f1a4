package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// runTouches looks again at the subjects that others have asked for, and tells others about those that have something to tell.
func (r *Replica) runTouches(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "looking at shared contact points"
	due := func() (time.Time, error) {
		return r.nextOf(ctx, op, `SELECT extract(epoch FROM min(at) - now())::float8 FROM {s}.touch WHERE part = ANY ($1)`, ledger.PartsOf(places))
	}
	if next, err := due(); err != nil || next.IsZero() || time.Until(next) > 0 {
		return next, err // mostly there is nothing, and then no row is locked
	}
	more, err := ledger.WorkDue(ledger.TouchLimit, func(limit int) ([][]byte, error) {
		return r.touchSlice(ctx, places, op, limit)
	}, func(ref []byte, refused error) error {
		r.log.Error().Str("op", op).Str("code", sinks.CodeOf(refused)).Hex("subject", ref).
			Msg("the replica refuses what a subject's facts ask for: mend its row; it is tried again")
		return r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.touch SET at = now() + make_interval(secs => $2) WHERE ref = $1`),
				ref, r.opts.RecheckLater.Seconds())
			return err
		})
	})
	if err != nil || more {
		return time.Now(), err
	}
	return due()
}

// touchSlice works on up to limit subjects of the queue in one transaction. Also with an error it returns which ones they were.
func (r *Replica) touchSlice(ctx context.Context, places []sinks.Place, op string, limit int) (refs [][]byte, err error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return nil, err
	}
	err = r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		var spread [][]byte
		if refs, spread, err = r.takeTouches(ctx, tx, places, limit); err != nil || len(refs) == 0 {
			return err
		}
		set, err := r.loadWithContacts(ctx, tx, refs)
		if err != nil {
			return err
		}
		if err := r.consult(ctx, tx, m, set); err != nil {
			return err
		}
		if err := r.followDecisions(ctx, tx, refs); err != nil {
			return err
		}
		return r.spread(ctx, tx, spread)
	})
	return refs, err
}

// takeTouches takes what is due out of the queue: each subject once. spread are those that tell others; the first time they do so again
// later.
func (r *Replica) takeTouches(ctx context.Context, tx pgx.Tx, places []sinks.Place, limit int) (refs, spread [][]byte, err error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`
		WITH w AS (SELECT DISTINCT ref FROM (SELECT ref FROM {s}.touch WHERE part = ANY ($1) AND at <= now() ORDER BY at, id LIMIT $2) due),
			gone AS (DELETE FROM {s}.touch t USING w WHERE t.ref = w.ref AND t.part = ANY ($1) AND t.at <= now() RETURNING t.ref, t.part, t.reason),
			again AS (INSERT INTO {s}.touch (ref, part, reason, at)
				SELECT DISTINCT ref, part, $3, now() + make_interval(secs => $4) FROM gone WHERE reason = $5)
		SELECT ref, bool_or(reason <> $6) FROM gone GROUP BY ref ORDER BY ref`),
		ledger.PartsOf(places), limit, ledger.TouchAgain, ledger.TouchLater.Seconds(), ledger.TouchSpread, ledger.TouchConsult)
	if err != nil {
		return nil, nil, err
	}
	var ref []byte
	var tells bool
	_, err = pgx.ForEachRow(rows, []any{&ref, &tells}, func() error {
		refs = append(refs, slices.Clone(ref))
		if tells {
			spread = append(spread, refs[len(refs)-1])
		}
		return nil
	})
	return refs, spread, err
}

// consult has loaded subjects take in what stands about them elsewhere, and writes what follows.
func (r *Replica) consult(ctx context.Context, tx pgx.Tx, m *Mapping, set *ledger.Set) error {
	if len(set.List) == 0 {
		return nil
	}
	var now time.Time
	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return err
	}
	u := &unit{Unit: r.core.Consulting(set, now), r: r, m: m}
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	for _, id := range gaps {
		u.Gaps[id] = true
	}
	if err := u.meetValues(ctx, tx, u.HeldValues()); err != nil {
		return err
	}
	joined, err := r.joined(ctx, tx, set.Refs())
	if err != nil {
		return err
	}
	u.Consult(joined)
	if err := u.effects().run(ctx, tx, set.List); err != nil {
		return err
	}
	u.Settle()
	b := &pgx.Batch{}
	if err := u.queueAll(b); err != nil {
		return err
	}
	return send(ctx, tx, b)
}

// joined reads the other records of some subjects, which may be other partitions': what is committed of them.
func (r *Replica) joined(ctx context.Context, tx pgx.Tx, refs [][]byte) (map[ledger.Ref][]ledger.Joined, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`
		SELECT ref, absorbed, ord, event_id, committed_at FROM {s}.alias WHERE ref = ANY ($1) OR absorbed = ANY ($1)`), refs)
	if err != nil {
		return nil, err
	}
	aliases, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a ledger.Alias, err error) {
		var ref, absorbed, order, event []byte
		err = row.Scan(&ref, &absorbed, &order, &event, &a.Committed)
		copy(a.Ref[:], ref)
		copy(a.Absorbed[:], absorbed)
		copy(a.Order[:], order)
		copy(a.EventID[:], event)
		return a, err
	})
	if err != nil || len(aliases) == 0 {
		return nil, err
	}
	all := make([][]byte, 0, 2*len(aliases))
	for i := range aliases {
		all = append(all, aliases[i].Ref[:], aliases[i].Absorbed[:])
	}
	set, err := r.load(ctx, tx, all)
	if err != nil {
		return nil, err
	}
	cases, waits, err := r.casesOf(ctx, tx, all)
	if err != nil {
		return nil, err
	}
	return ledger.JoinedOf(aliases, set, cases, waits), nil
}

// casesOf reads the cases of some subjects, and what they wait for.
func (r *Replica) casesOf(ctx context.Context, tx pgx.Tx, refs [][]byte) (map[ledger.Ref]*ledger.OpenedCase, map[ledger.Ref]string, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`SELECT `+caseColumns+`, p.snapshot, p.wait FROM {s}.pending p WHERE p.ref = ANY ($1)`), refs)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	cases, waits := map[ledger.Ref]*ledger.OpenedCase{}, map[ledger.Ref]string{}
	for rows.Next() {
		var snapshot bool
		var wait string
		c, err := scanCase(rows, &snapshot, &wait)
		if err != nil {
			return nil, nil, err
		}
		c.Snapshot = snapshot
		cases[c.Ref], waits[c.Ref] = c, wait
	}
	return cases, waits, rows.Err()
}

// followDecisions has the cases of duplicates follow what was decided on that of the record that they were joined into.
func (r *Replica) followDecisions(ctx context.Context, tx pgx.Tx, refs [][]byte) error {
	_, err := tx.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.decision (event_id, ref, case_id, part, decision, reason, checks, decided_by, decided_at, stored_at)
		SELECT substring(sha256(d.event_id || p.ref) FROM 1 FOR 16), p.ref, p.case_id, p.part, d.decision, d.reason, d.checks, d.decided_by,
			d.decided_at, d.stored_at
		FROM {s}.alias a JOIN {s}.pending p ON p.ref = a.absorbed AND p.state = 'suppressed'
			JOIN {s}.decision d ON d.ref = a.ref AND d.case_id = p.case_id LEFT JOIN {s}.pending o ON o.ref = a.ref
		WHERE a.absorbed = ANY ($1) AND d.decided_by <> 'gate' AND d.stored_at >= coalesce(o.opened_at, p.opened_at) ON CONFLICT DO NOTHING`), refs)
	return err
}

// spread asks the owners of those who share a contact point or a person with some subjects to look at them. A record that was joined with one
// of which nothing is known yet asks again later.
func (r *Replica) spread(ctx context.Context, tx pgx.Tx, refs [][]byte) error {
	if len(refs) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.touch (ref, part, reason)
		SELECT s.ref, s.part, $2 FROM {s}.subject s WHERE s.sealed_key IS NOT NULL AND s.ref IN (
			SELECT k.ref FROM {s}.contact_block b JOIN {s}.contact_key k ON k.value = b.value AND k.ref <> b.ref AND k.standing = 'live'
				WHERE b.ref = ANY ($1)
			UNION SELECT o.ref FROM {s}.subject e JOIN {s}.contact_key k ON k.ref = e.ref AND k.standing <> 'revived'
				JOIN {s}.contact_key o ON o.value = k.value AND o.ref <> k.ref AND o.standing = 'live'
				JOIN {s}.contact c ON c.ref = o.ref AND c.contact_ref = o.contact_ref AND c.since_ord > e.erased_order
				WHERE e.ref = ANY ($1) AND e.state <> 'live'
			UNION SELECT absorbed FROM {s}.alias WHERE ref = ANY ($1)
			UNION SELECT ref FROM {s}.alias WHERE absorbed = ANY ($1))`), refs, ledger.TouchConsult)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.touch (ref, part, reason, at)
		SELECT DISTINCT s.ref, s.part, $2, now() + make_interval(secs => $3) FROM {s}.alias a JOIN {s}.subject s ON s.ref = a.ref
		WHERE a.ref = ANY ($1) AND NOT EXISTS (SELECT FROM {s}.subject o WHERE o.ref = a.absorbed)
			AND NOT EXISTS (SELECT FROM {s}.touch t WHERE t.ref = a.ref AND t.part = s.part AND t.at > now() + make_interval(secs => $4))`),
		refs, ledger.TouchAgain, ledger.JoinLater.Seconds(), ledger.TouchLater.Seconds())
	return err
}
