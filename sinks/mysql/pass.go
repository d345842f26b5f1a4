package mysql

import (
	"context"
	"database/sql"
	"time"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlGuards reads what a unit asks of the replica as a whole: two values of meta, the open gaps, and the passes that some partition is
// not done with.
const sqlGuards = `
	SELECT k, v, 0, 0, 0, 0 FROM {p}meta WHERE k IN ('` + ledger.MetaDigest + `', '` + ledger.MetaPaused + `')
	UNION ALL SELECT 'gap', gap_id, 0, 0, 0, 0 FROM {p}gap WHERE closed_at IS NULL
	UNION ALL SELECT 'pass', run_id, part, whole, named, ended_at IS NOT NULL FROM {p}pass WHERE compared_at IS NULL`

// writePasses writes where passes began and ended and what they have shown, and makes the log's own cases out of those of a
// pass whose erasure it tells.
func (r *Replica) writePasses(ctx context.Context, tx *tx, u *ledger.Unit) (err error) {
	run := func(statement string, args ...any) {
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(statement), args...)
		}
	}
	for _, p := range u.PassRows() {
		if !p.Begin {
			run(sqlEnd, tx.now, p.Full, p.Full, tx.now, p.RunID, p.Part)
			r.lookAgain(run, tx.now)
			continue
		}
		run(`INSERT INTO {p}pass (run_id, part, whole, named, begin_order, began_at) VALUES (?, ?, ?, ?, ?, ?)
			ON DUPLICATE KEY UPDATE part = {p}pass.part`, p.RunID, p.Part, p.Full, p.Named, p.Order[:], tx.now)
		if p.Full && p.Named {
			run(`INSERT INTO {p}meta (k, v) VALUES ('`+ledger.MetaNeedsPass+`', ?) ON DUPLICATE KEY UPDATE k = {p}meta.k`, p.RunID)
		}
		run(`UPDATE {p}pass SET compared_at = ? WHERE part = ? AND run_id <> ? AND ended_at IS NULL AND compared_at IS NULL AND begin_order < ?`,
			tx.now, p.Part, p.RunID, p.Order[:])
	}
	for _, s := range u.SeenRows() {
		run(`INSERT INTO {p}seen (run_id, part, off, refs) VALUES (?, ?, ?, ?) ON DUPLICATE KEY UPDATE part = {p}seen.part`, s.RunID, s.Part, s.Off, s.Refs)
	}
	if len(u.Streamed) > 0 {
		refs := make([][]byte, len(u.Streamed))
		for i, s := range u.Streamed {
			refs[i] = s.Ref[:]
		}
		run(`UPDATE `+caseTables+` SET p.snapshot = 0, p.wait = CASE p.wait WHEN 'breaker' THEN 'cool_off' ELSE p.wait END
			WHERE p.snapshot AND p.state = 'suppressed' AND NOT p.released`, refsJSON(refs))
	}
	return own(err)
}

// sqlEnd changes its columns from left to right, and each sees what was changed before it.
const sqlEnd = `
	UPDATE {p}pass SET ended_at = COALESCE(ended_at, ?),
		whole = whole AND ?, compared_at = CASE WHEN compared_at IS NULL AND named AND whole AND ? THEN NULL ELSE COALESCE(compared_at, ?) END
	WHERE run_id = ? AND part = ?`

// lookAgain makes due what waits for the end of a gap or of the first pass, in every partition, because this one may be the
// last: whether it has to wait longer is seen then.
func (r *Replica) lookAgain(run func(statement string, args ...any), now time.Time) {
	run(`UPDATE {p}pending SET due_at = ? WHERE state = 'applied' AND wait = 'gap' AND due_at > ?`, now, now)
	run(`UPDATE {p}readback SET due_at = ? WHERE error_code IN ('`+ledger.ReasonGap+`', '`+ledger.ReasonIncomplete+`')
		AND due_at > ? AND due_at < '`+never+`'`, now, now)
}

// sqlIncomplete: no whole pass has ended in some partition, or none is known yet.
const sqlIncomplete = `(NOT EXISTS (SELECT 1 FROM {p}partition) OR EXISTS (SELECT 1 FROM {p}partition p WHERE NOT EXISTS (
	SELECT 1 FROM {p}pass x WHERE x.part = p.part AND x.whole AND x.named AND x.ended_at IS NOT NULL)))`

// sqlUnproven: the replica is incomplete, and has to be complete; see ledger.MetaNeedsPass.
const sqlUnproven = `SELECT ` + sqlIncomplete + ` AND EXISTS (SELECT 1 FROM {p}meta WHERE k = '` + ledger.MetaNeedsPass + `')`

// mayVerify asks what keeps anything of this replica from being called verified: open gaps, and that no pass has shown who is
// in the source.
func (r *Replica) mayVerify(ctx context.Context, q querier) (ledger.Standing, error) {
	gaps, err := r.readOpenGaps(ctx, q)
	s := ledger.Standing{Gaps: gaps}
	if err == nil {
		err = classify("reading passes", q.QueryRowContext(ctx, r.ledger.sql(sqlUnproven)).Scan(&s.Incomplete))
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
	err = eachRow(ctx, t.r.opts.DB, t.r.ledger.sql(`SELECT p.run_id, p.part,
			(SELECT COALESCE(SUM(LENGTH(s.refs)), 0) FROM {p}seen s WHERE s.run_id = p.run_id AND s.part = p.part)
		FROM `+partsTable+` STRAIGHT_JOIN {p}pass p ON p.part = w.part
		WHERE p.compared_at IS NULL AND p.ended_at IS NOT NULL ORDER BY p.ended_at, p.run_id, p.part`), []any{jsonList(parts)}, func(rows *sql.Rows) error {
		var of string
		var part int32
		var bytes int64
		if err := rows.Scan(&of, &part, &bytes); err != nil {
			return err
		}
		if run == "" {
			run = of
		}
		if run == of {
			ended, shown = append(ended, part), shown+bytes
		}
		return nil
	})
	return run, ended, shown / ledger.SeenSize, classify(opAbsent, err)
}

// Seen implements ledger.AbsenceTables.
func (t absenceTables) Seen(ctx context.Context, run string, part int32, fn func(refs []byte)) error {
	var refs sql.RawBytes
	err := eachRow(ctx, t.r.opts.DB, t.r.ledger.sql(`SELECT refs FROM {p}seen WHERE run_id = ? AND part = ?`), []any{run, part}, func(rows *sql.Rows) error {
		err := rows.Scan(&refs)
		fn(refs)
		return err
	})
	return classify(opAbsent, err)
}

// Compare implements ledger.AbsenceTables.
func (t absenceTables) Compare(ctx context.Context, places []sinks.Place, w *ledger.AbsenceWalk, limit int) (last []byte, err error) {
	err = t.r.inTx(ctx, opAbsent, func(ctx context.Context, tx *tx) error {
		if err := t.r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		late, err := t.late(ctx, tx, w)
		if err != nil {
			return err
		}
		until, args := "", []any{w.After}
		if w.Until != nil {
			until, args = " AND s.ref < ?", append(args, w.Until)
		}
		mine := make(map[int32]bool, len(w.Parts))
		for _, part := range w.Parts {
			mine[part] = true
		}
		var c ledger.Comparison
		err = eachRow(ctx, tx, t.r.ledger.sql(sqlCompare+until+` ORDER BY s.ref LIMIT ?`), append(args, limit), func(rows *sql.Rows) error {
			var ref []byte
			var part int32
			var known, listed bool
			if err := rows.Scan(&ref, &part, &known, &listed); err != nil {
				return err
			}
			last = ref
			if mine[part] {
				c.Add(w, ledger.Ref(ref), part, known, listed, late)
			}
			return nil
		})
		if err != nil {
			return err
		}
		w.Fresh += c.Fresh
		return t.list(ctx, tx, &c)
	})
	return last, err
}

// sqlCompare reads subjects in their order, whether they can be absent, and whether they are listed.
const sqlCompare = `
	SELECT s.ref, s.part, s.state = 'live' AND s.blocked IS NULL AND s.sealed_key IS NOT NULL
			AND NOT EXISTS (SELECT 1 FROM {p}alias a WHERE a.absorbed = s.ref),
		EXISTS (SELECT 1 FROM {p}finding f WHERE f.ref = s.ref AND f.kind = '` + ledger.FindingAbsent + `')
	FROM {p}subject s WHERE s.ref > ?`

// late reads what was shown since the walk has loaded the rest.
func (t absenceTables) late(ctx context.Context, tx *tx, w *ledger.AbsenceWalk) (late []uint64, err error) {
	rows := rowsOf("part", typeInt, "since", typeInt)
	for _, part := range w.Parts {
		rows.add(part, w.Since(part))
	}
	err = eachRow(ctx, tx, t.r.ledger.sql(`SELECT s.refs FROM `+rows.table()+` STRAIGHT_JOIN {p}seen s
		ON s.run_id = ? AND s.part = v.part AND s.off >= v.since`), []any{rows.arg(), w.Run}, func(rows *sql.Rows) error {
		var refs []byte
		err := rows.Scan(&refs)
		late = ledger.AppendSeen(late, refs)
		return err
	})
	return late, err
}

// list writes who is absent, and takes away who is not any more.
func (t absenceTables) list(ctx context.Context, tx *tx, c *ledger.Comparison) error {
	const width = 7
	values := make([]any, 0, width*len(c.Absent))
	for i, ref := range c.Absent {
		values = append(values, ref, ledger.FindingAbsent, "", c.Parts[i], make([]byte, len(schema.EventID{})), tx.now, tx.now)
	}
	_, err := tx.insert(ctx, t.r.ledger.sql(`INSERT INTO {p}finding (ref, kind, scope, part, event_id, first_at, last_at) VALUES `), width, values,
		` ON DUPLICATE KEY UPDATE times = times + 1, last_at = VALUES(last_at)`)
	if err != nil || len(c.Present) == 0 {
		return own(err)
	}
	_, err = tx.exec(ctx, t.r.ledger.sql(`DELETE f FROM `+refsTable+` STRAIGHT_JOIN {p}finding f
		ON f.ref = UNHEX(v.ref) AND f.kind = '`+ledger.FindingAbsent+`'`), refsJSON(c.Present))
	return own(err)
}

// Compared implements ledger.AbsenceTables.
func (t absenceTables) Compared(ctx context.Context, places []sinks.Place, w *ledger.AbsenceWalk) (absent int, err error) {
	parts := jsonList(w.Parts)
	err = t.r.inTx(ctx, opAbsent, func(ctx context.Context, tx *tx) error {
		if err := t.r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := tx.exec(ctx, t.r.ledger.sql(`UPDATE `+partsTable+` STRAIGHT_JOIN {p}pass p ON p.part = w.part SET p.compared_at = ? WHERE p.run_id = ?`),
			parts, tx.now, w.Run)
		if err != nil {
			return own(err)
		}
		// Also what passes that never came to an end have left.
		_, err = tx.exec(ctx, t.r.ledger.sql(`DELETE s FROM `+partsTable+` STRAIGHT_JOIN {p}seen s ON s.part = w.part
			LEFT JOIN {p}pass p ON p.run_id = s.run_id AND p.part = s.part AND p.compared_at IS NULL WHERE p.run_id IS NULL`), parts)
		if err != nil {
			return own(err)
		}
		return tx.QueryRowContext(ctx, t.r.ledger.sql(`SELECT COUNT(*) FROM `+partsTable+` STRAIGHT_JOIN {p}finding f ON f.part = w.part
			WHERE f.kind = '`+ledger.FindingAbsent+`'`), parts).Scan(&absent)
	})
	return absent, err
}
