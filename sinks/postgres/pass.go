package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlStanding reads the gaps that are open, and behind them the passes that some partition is not done with.
const sqlStanding = `
	SELECT DISTINCT gap_id, NULL::integer, false, false, false FROM {s}.gap WHERE closed_at IS NULL
	UNION ALL SELECT run_id, part, whole, named, ended_at IS NOT NULL FROM {s}.pass WHERE compared_at IS NULL`

func (u *unit) scanStanding(rows pgx.Rows) error {
	for rows.Next() {
		var p ledger.Pass
		var part *int32
		if err := rows.Scan(&p.RunID, &part, &p.Whole, &p.Named, &p.Ended); err != nil {
			return err
		}
		if part == nil {
			u.Gaps[p.RunID] = true
			continue
		}
		p.Part = *part
		u.Passes = append(u.Passes, p)
	}
	return rows.Err()
}

// queuePasses writes where passes began and ended and what they have shown, and makes the log's own cases out of those of a
// pass whose erasure it tells.
func (u *unit) queuePasses(b *pgx.Batch) {
	l := u.r.ledger
	for _, p := range u.PassRows() {
		if !p.Begin {
			b.Queue(l.sql(sqlEnd), p.RunID, p.Part, p.Full)
			u.queueLookAgain(b)
			continue
		}
		b.Queue(l.sql(`INSERT INTO {s}.pass (run_id, part, whole, named, begin_order) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`),
			p.RunID, p.Part, p.Full, p.Named, p.Order[:])
		if p.Full && p.Named {
			b.Queue(l.sql(`INSERT INTO {s}.meta (k, v) VALUES ('`+ledger.MetaNeedsPass+`', $1) ON CONFLICT DO NOTHING`), p.RunID)
		}
		b.Queue(l.sql(`UPDATE {s}.pass SET compared_at = now()
			WHERE part = $2 AND run_id <> $1 AND ended_at IS NULL AND compared_at IS NULL AND begin_order < $3`), p.RunID, p.Part, p.Order[:])
	}
	for _, s := range u.SeenRows() {
		b.Queue(l.sql(`INSERT INTO {s}.seen (run_id, part, off, refs) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`), s.RunID, s.Part, s.Off, s.Refs)
	}
	if len(u.Streamed) > 0 {
		refs := make([][]byte, len(u.Streamed))
		for i, s := range u.Streamed {
			refs[i] = s.Ref[:]
		}
		b.Queue(l.sql(`UPDATE {s}.pending SET snapshot = false, wait = CASE wait WHEN 'breaker' THEN 'cool_off' ELSE wait END
			WHERE ref = ANY ($1) AND snapshot AND state = 'suppressed' AND NOT released`), refs)
	}
}

const sqlEnd = `
	UPDATE {s}.pass SET ended_at = coalesce(ended_at, now()), whole = whole AND $3,
		compared_at = CASE WHEN compared_at IS NULL AND named AND whole AND $3 THEN NULL ELSE coalesce(compared_at, now()) END
	WHERE run_id = $1 AND part = $2`

// queueLookAgain makes due what waits for the end of a gap or of the first pass, in every partition, because this one may be the
// last: whether it has to wait longer is seen then.
func (u *unit) queueLookAgain(b *pgx.Batch) {
	b.Queue(u.r.ledger.sql(`UPDATE {s}.pending SET due_at = now() WHERE state = 'applied' AND wait = 'gap' AND due_at > now()`))
	b.Queue(u.r.ledger.sql(`UPDATE {s}.readback SET due_at = now() WHERE error_code IN ('` + ledger.ReasonGap + `', '` + ledger.ReasonIncomplete +
		`') AND due_at > now() AND due_at < 'infinity'`))
}

// sqlIncomplete: no whole pass has ended in some partition, or none is known yet.
const sqlIncomplete = `(NOT EXISTS (SELECT FROM {s}.partition) OR EXISTS (SELECT FROM {s}.partition p WHERE NOT EXISTS (
	SELECT FROM {s}.pass x WHERE x.part = p.part AND x.whole AND x.named AND x.ended_at IS NOT NULL)))`

// sqlUnproven: the replica is incomplete, and has to be complete; see ledger.MetaNeedsPass.
const sqlUnproven = `SELECT ` + sqlIncomplete + ` AND EXISTS (SELECT FROM {s}.meta WHERE k = '` + ledger.MetaNeedsPass + `')`

// mayVerify asks what keeps anything of this replica from being called verified: open gaps, and that no pass has shown who is
// in the source.
func (r *Replica) mayVerify(ctx context.Context, q querier) (ledger.Standing, error) {
	gaps, err := r.readOpenGaps(ctx, q)
	s := ledger.Standing{Gaps: gaps}
	if err == nil {
		err = classify("reading passes", q.QueryRow(ctx, r.ledger.sql(sqlUnproven)).Scan(&s.Incomplete))
	}
	return s, err
}

// lookForAbsent compares the subjects with what a whole pass has shown, behind its end.
func (r *Replica) lookForAbsent(ctx context.Context, places []sinks.Place) (time.Time, error) {
	next, done, err := r.absences.Look(ctx, places, absenceTables{r})
	if done != nil {
		done.Report(r.log)
		r.gauges.Expire()
	}
	return next, err
}

// Incomplete reports whether nothing of this replica may be called verified before a whole pass has ended, as of the last count
// of its tables.
func (r *Replica) Incomplete() bool { return r.gauges.Incomplete() }

// absenceTables implements ledger.AbsenceTables.
type absenceTables struct{ r *Replica }

const opAbsent = "looking for subjects that a pass did not show"

// Ended implements ledger.AbsenceTables.
func (t absenceTables) Ended(ctx context.Context, parts []int32) (run string, ended []int32, shown int64, err error) {
	rows, err := t.r.opts.Pool.Query(ctx, t.r.ledger.sql(`
		SELECT run_id, array_agg(part ORDER BY part),
			(SELECT coalesce(sum(length(s.refs)), 0)::bigint FROM {s}.seen s WHERE s.run_id = p.run_id AND s.part = ANY ($1))
		FROM {s}.pass p WHERE part = ANY ($1) AND compared_at IS NULL AND ended_at IS NOT NULL
		GROUP BY run_id ORDER BY min(ended_at) LIMIT 1`), parts)
	if err != nil {
		return "", nil, 0, classify(opAbsent, err)
	}
	_, err = pgx.ForEachRow(rows, []any{&run, &ended, &shown}, func() error { return nil })
	return run, ended, shown / ledger.SeenSize, classify(opAbsent, err)
}

// Seen implements ledger.AbsenceTables.
func (t absenceTables) Seen(ctx context.Context, run string, part int32, fn func(refs []byte)) error {
	rows, err := t.r.opts.Pool.Query(ctx, t.r.ledger.sql(`SELECT refs FROM {s}.seen WHERE run_id = $1 AND part = $2`), run, part)
	if err != nil {
		return classify(opAbsent, err)
	}
	var refs pgtype.DriverBytes
	_, err = pgx.ForEachRow(rows, []any{&refs}, func() error {
		fn(refs)
		return nil
	})
	return classify(opAbsent, err)
}

// Compare implements ledger.AbsenceTables.
func (t absenceTables) Compare(ctx context.Context, places []sinks.Place, w *ledger.AbsenceWalk, limit int) (last []byte, err error) {
	err = t.r.inTx(ctx, opAbsent, func(ctx context.Context, tx pgx.Tx) error {
		if err := t.r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		late, err := t.late(ctx, tx, w)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, t.r.ledger.sql(sqlCompare), w.After, w.Until, limit, w.Parts)
		if err != nil {
			return err
		}
		var c ledger.Comparison
		var ref []byte
		var part int32
		var known, listed bool
		if _, err = pgx.ForEachRow(rows, []any{&ref, &part, &known, &listed}, func() error {
			last = append(last[:0], ref...)
			c.Add(w, ledger.Ref(ref), part, known, listed, late)
			return nil
		}); err != nil {
			return err
		}
		w.Fresh += c.Fresh
		return t.list(ctx, tx, &c)
	})
	return last, err
}

// sqlCompare reads subjects of some partitions, in their order, whether they can be absent, and whether they are listed.
const sqlCompare = `
	SELECT s.ref, s.part,
		s.part = ANY ($4) AND s.state = 'live' AND s.blocked IS NULL AND s.sealed_key IS NOT NULL
			AND NOT EXISTS (SELECT FROM {s}.alias a WHERE a.absorbed = s.ref),
		s.part = ANY ($4) AND EXISTS (SELECT FROM {s}.finding f WHERE f.ref = s.ref AND f.kind = '` + ledger.FindingAbsent + `')
	FROM {s}.subject s WHERE s.ref > $1 AND ($2::bytea IS NULL OR s.ref < $2) ORDER BY s.ref LIMIT $3`

// late reads what was shown since the walk has loaded the rest.
func (t absenceTables) late(ctx context.Context, tx pgx.Tx, w *ledger.AbsenceWalk) (late []uint64, err error) {
	since := make([]int64, len(w.Parts))
	for i, part := range w.Parts {
		since[i] = w.Since(part)
	}
	rows, err := tx.Query(ctx, t.r.ledger.sql(`SELECT s.refs FROM unnest($2::int[], $3::bigint[]) v(part, since)
		JOIN {s}.seen s ON s.run_id = $1 AND s.part = v.part AND s.off >= v.since`), w.Run, w.Parts, since)
	if err != nil {
		return nil, err
	}
	var refs pgtype.DriverBytes
	_, err = pgx.ForEachRow(rows, []any{&refs}, func() error {
		late = ledger.AppendSeen(late, refs)
		return nil
	})
	return late, err
}

// list writes who is absent, and takes away who is not any more.
func (t absenceTables) list(ctx context.Context, tx pgx.Tx, c *ledger.Comparison) error {
	b := &pgx.Batch{}
	if len(c.Absent) > 0 {
		b.Queue(t.r.ledger.sql(`INSERT INTO {s}.finding AS f (ref, kind, scope, part, event_id)
			SELECT v.ref, '`+ledger.FindingAbsent+`', '', v.part, $3 FROM unnest($1::bytea[], $2::int[]) v(ref, part)
			ON CONFLICT (ref, kind, scope) DO UPDATE SET times = f.times + 1, last_at = now()`), c.Absent, c.Parts, make([]byte, len(schema.EventID{})))
	}
	if len(c.Present) > 0 {
		b.Queue(t.r.ledger.sql(`DELETE FROM {s}.finding WHERE kind = '`+ledger.FindingAbsent+`' AND ref = ANY ($1)`), c.Present)
	}
	return send(ctx, tx, b)
}

// Compared implements ledger.AbsenceTables.
func (t absenceTables) Compared(ctx context.Context, places []sinks.Place, w *ledger.AbsenceWalk) (absent int, err error) {
	err = t.r.inTx(ctx, opAbsent, func(ctx context.Context, tx pgx.Tx) error {
		if err := t.r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, t.r.ledger.sql(`UPDATE {s}.pass SET compared_at = now() WHERE run_id = $1 AND part = ANY ($2)`), w.Run, w.Parts)
		if err != nil {
			return err
		}
		// Also what passes that never came to an end have left.
		_, err = tx.Exec(ctx, t.r.ledger.sql(`DELETE FROM {s}.seen s WHERE part = ANY ($1) AND NOT EXISTS (
			SELECT FROM {s}.pass p WHERE p.run_id = s.run_id AND p.part = s.part AND p.compared_at IS NULL)`), w.Parts)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, t.r.ledger.sql(`SELECT count(*) FROM {s}.finding WHERE kind = '`+ledger.FindingAbsent+`' AND part = ANY ($1)`), w.Parts).
			Scan(&absent)
	})
	return absent, err
}
