package mysql

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// runTouches looks again at the subjects that others have asked for, and tells others about those that have something to tell.
func (r *Replica) runTouches(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "looking at shared contact points"
	due := func() (time.Time, error) { return r.nextOf(ctx, op, "touch", "at", "TRUE", places) }
	if next, err := due(); err != nil || next.IsZero() || time.Until(next) > 0 {
		return next, err // mostly there is nothing, and then no row is locked
	}
	more, err := ledger.WorkDue(ledger.TouchLimit, func(limit int) ([][]byte, error) {
		return r.touchSlice(ctx, places, op, limit)
	}, func(ref []byte, refused error) error {
		r.log.Error().Str("op", op).Str("code", sinks.CodeOf(refused)).Hex("subject", ref).
			Msg("the replica refuses what a subject's facts ask for: mend its row; it is tried again")
		return r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
			_, err := r.write(ctx, tx, `UPDATE {p}touch t SET t.at = ? WHERE t.ref = ?`, tx.now.Add(r.opts.RecheckLater), ref)
			return err
		})
	})
	if err != nil || more {
		return time.Now(), err
	}
	return due()
}

// touchSlice works on up to limit rows of the queue in one transaction. Also with an error it returns whose they were.
func (r *Replica) touchSlice(ctx context.Context, places []sinks.Place, op string, limit int) (refs [][]byte, err error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return nil, err
	}
	err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		var spread [][]byte
		if refs, spread, err = r.takeTouches(ctx, tx, places, limit); err != nil || len(refs) == 0 {
			return err
		}
		set, err := r.load(ctx, tx, refs)
		if err != nil {
			return err
		}
		if err := r.readContacts(ctx, tx, set); err != nil {
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
func (r *Replica) takeTouches(ctx context.Context, tx *tx, places []sinks.Place, limit int) (refs, spread [][]byte, err error) {
	var again []any
	ids := []int64{}
	err = eachRow(ctx, tx, r.ledger.sql(`SELECT t.id, t.ref, t.part, t.reason FROM {p}touch t
		WHERE `+inParts("t", ledger.PartsOf(places))+` AND t.at <= ? ORDER BY t.at, t.id LIMIT ?`), []any{tx.now, limit}, func(rows *sql.Rows) error {
		var id int64
		var part int32
		var ref []byte
		var reason string
		if err := rows.Scan(&id, &ref, &part, &reason); err != nil {
			return err
		}
		ids = append(ids, id)
		is := func(other []byte) bool { return slices.Equal(other, ref) }
		if !slices.ContainsFunc(refs, is) {
			refs = append(refs, ref)
		}
		if reason != ledger.TouchConsult && !slices.ContainsFunc(spread, is) {
			spread = append(spread, ref)
		}
		if reason == ledger.TouchSpread {
			again = append(again, ref, part, ledger.TouchAgain, tx.now.Add(ledger.TouchLater))
		}
		return nil
	})
	if err != nil || len(refs) == 0 {
		return nil, nil, own(err)
	}
	slices.SortFunc(refs, slices.Compare)
	if _, err := tx.insert(ctx, r.ledger.sql(`INSERT INTO {p}touch (ref, part, reason, at) VALUES `), 4, again, ""); err != nil {
		return nil, nil, own(err)
	}
	rows := rowsOf("id", typeInt)
	for _, id := range ids {
		rows.add(id)
	}
	_, err = r.write(ctx, tx, `DELETE t FROM `+rows.table()+` STRAIGHT_JOIN {p}touch t ON t.id = v.id`, rows.arg())
	return refs, spread, err
}

// consult has loaded subjects take in what stands about them elsewhere, and writes what follows.
func (r *Replica) consult(ctx context.Context, tx *tx, m *Mapping, set *ledger.Set) error {
	if len(set.List) == 0 {
		return nil
	}
	u := r.core.Consulting(set, tx.now)
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	for _, id := range gaps {
		u.Gaps[id] = true
	}
	if err := r.meet(ctx, tx, u, u.HeldValues()); err != nil {
		return err
	}
	joined, err := r.joined(ctx, tx, set.Refs())
	if err != nil {
		return err
	}
	u.Consult(joined)
	if err := r.effects(m, u.Now).run(ctx, tx, set.List); err != nil {
		return err
	}
	u.Settle()
	return r.writeAll(ctx, tx, u)
}

// joined reads the other records of some subjects, which may be other partitions': what is committed of them.
func (r *Replica) joined(ctx context.Context, tx *tx, refs [][]byte) (map[ledger.Ref][]ledger.Joined, error) {
	var aliases []ledger.Alias
	doc := refsJSON(refs)
	err := eachRow(ctx, tx, r.ledger.sql(`
		SELECT a.ref, a.absorbed, a.ord, a.event_id, a.committed_at FROM `+refsTable+` STRAIGHT_JOIN {p}alias a ON a.ref = UNHEX(v.ref)
		UNION SELECT a.ref, a.absorbed, a.ord, a.event_id, a.committed_at FROM `+refsTable+` STRAIGHT_JOIN {p}alias a ON a.absorbed = UNHEX(v.ref)`),
		[]any{doc, doc}, func(rows *sql.Rows) error {
			var a ledger.Alias
			var ref, absorbed, order, event sql.RawBytes
			err := rows.Scan(&ref, &absorbed, &order, &event, &a.Committed)
			copy(a.Ref[:], ref)
			copy(a.Absorbed[:], absorbed)
			copy(a.Order[:], order)
			copy(a.EventID[:], event)
			aliases = append(aliases, a)
			return err
		})
	if err != nil || len(aliases) == 0 {
		return nil, own(err)
	}
	all := make([][]byte, 0, 2*len(aliases))
	for i := range aliases {
		all = append(all, aliases[i].Ref[:], aliases[i].Absorbed[:])
	}
	set, err := r.load(ctx, tx, uniqueRefs(all))
	if err != nil {
		return nil, err
	}
	cases, waits, err := r.casesOf(ctx, tx, uniqueRefs(all))
	if err != nil {
		return nil, err
	}
	return ledger.JoinedOf(aliases, set, cases, waits), nil
}

func uniqueRefs(refs [][]byte) [][]byte {
	slices.SortFunc(refs, slices.Compare)
	return slices.CompactFunc(refs, slices.Equal)
}

// casesOf reads the cases of some subjects, and what they wait for.
func (r *Replica) casesOf(ctx context.Context, tx *tx, refs [][]byte) (map[ledger.Ref]*ledger.OpenedCase, map[ledger.Ref]string, error) {
	cases, waits := map[ledger.Ref]*ledger.OpenedCase{}, map[ledger.Ref]string{}
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT `+caseColumns+`, p.snapshot, p.wait FROM `+caseTables), []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		var snapshot bool
		var wait string
		c, err := scanCase(rows, &snapshot, &wait)
		if err != nil {
			return err
		}
		c.Snapshot = snapshot
		cases[c.Ref], waits[c.Ref] = c, wait
		return nil
	})
	return cases, waits, own(err)
}

// followDecisions has the cases of duplicates follow what was decided on that of the record that they were joined into.
func (r *Replica) followDecisions(ctx context.Context, tx *tx, refs [][]byte) error {
	_, err := r.write(ctx, tx, `
		INSERT INTO {p}decision (event_id, ref, case_id, part, decision, reason, checks, decided_by, decided_at, stored_at)
		SELECT LEFT(UNHEX(SHA2(CONCAT(d.event_id, p.ref), 256)), 16), p.ref, p.case_id, p.part, d.decision, d.reason, d.checks, d.decided_by,
			d.decided_at, d.stored_at
		FROM `+refsTable+` STRAIGHT_JOIN {p}alias a FORCE INDEX (by_absorbed) ON a.absorbed = UNHEX(v.ref)
			STRAIGHT_JOIN {p}pending p ON p.ref = a.absorbed AND p.state = 'suppressed'
			STRAIGHT_JOIN {p}decision d FORCE INDEX (by_ref) ON d.ref = a.ref AND d.case_id = p.case_id LEFT JOIN {p}pending o ON o.ref = a.ref
		WHERE d.decided_by <> 'gate' AND d.stored_at >= COALESCE(o.opened_at, p.opened_at) ON DUPLICATE KEY UPDATE part = {p}decision.part`, refsJSON(refs))
	return err
}

// spread asks the owners of those who share a contact point or a person with some subjects to look at them. A record that was joined with one
// of which nothing is known yet asks again later.
func (r *Replica) spread(ctx context.Context, tx *tx, refs [][]byte) error {
	if len(refs) == 0 {
		return nil
	}
	doc := refsJSON(refs)
	others, err := r.refsOf(ctx, tx, `
		SELECT k.ref FROM `+refsTable+` STRAIGHT_JOIN {p}contact_block b FORCE INDEX (by_ref) ON b.ref = UNHEX(v.ref)
			STRAIGHT_JOIN {p}contact_key k FORCE INDEX (by_value) ON k.value = b.value AND k.ref <> b.ref AND k.standing = 'live'
		UNION SELECT o.ref FROM `+refsTable+` STRAIGHT_JOIN {p}subject e ON e.ref = UNHEX(v.ref) AND e.state <> 'live'
			STRAIGHT_JOIN {p}contact_key k FORCE INDEX (PRIMARY) ON k.ref = e.ref AND k.standing <> 'revived'
			STRAIGHT_JOIN {p}contact_key o FORCE INDEX (by_value) ON o.value = k.value AND o.ref <> k.ref AND o.standing = 'live'
			STRAIGHT_JOIN {p}contact c ON c.ref = o.ref AND c.contact_ref = o.contact_ref AND c.since_ord > e.erased_order
		UNION SELECT a.absorbed FROM `+refsTable+` STRAIGHT_JOIN {p}alias a ON a.ref = UNHEX(v.ref)
		UNION SELECT a.ref FROM `+refsTable+` STRAIGHT_JOIN {p}alias a ON a.absorbed = UNHEX(v.ref)`, doc, doc, doc, doc)
	if err != nil {
		return own(err)
	}
	if len(others) > 0 {
		_, err := r.write(ctx, tx, `INSERT INTO {p}touch (ref, part, reason, at)
			SELECT s.ref, s.part, ?, ? FROM `+refsTable+` STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref) WHERE s.sealed_key IS NOT NULL`,
			ledger.TouchConsult, tx.now, refsJSON(others))
		if err != nil {
			return err
		}
	}
	waiting, err := r.refsOf(ctx, tx, `SELECT DISTINCT a.ref FROM `+refsTable+` STRAIGHT_JOIN {p}alias a ON a.ref = UNHEX(v.ref)
		LEFT JOIN {p}subject o ON o.ref = a.absorbed WHERE o.ref IS NULL`, doc)
	if err != nil || len(waiting) == 0 {
		return own(err)
	}
	_, err = r.write(ctx, tx, `INSERT INTO {p}touch (ref, part, reason, at)
		SELECT s.ref, s.part, ?, ? FROM `+refsTable+` STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref)
		WHERE NOT EXISTS (SELECT 1 FROM {p}touch t WHERE t.part = s.part AND t.at > ? AND t.ref = s.ref)`,
		ledger.TouchAgain, tx.now.Add(ledger.JoinLater), refsJSON(waiting), tx.now.Add(ledger.TouchLater))
	return err
}
