package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// lookAgain takes in that a row may have come up for some subjects, or that a person has decided about one: they are looked up
// like those who have no row.
func (r *Replica) lookAgain(ctx context.Context, places []sinks.Place) (next time.Time, err error) {
	if r.cfg.Find == nil {
		return time.Time{}, nil
	}
	parts := ledger.PartsOf(places)
	var n int64
	err = r.inTx(ctx, "looking for rows that came up", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, r.ledger.sql(`
			WITH t AS (SELECT id, ref FROM {s}.touch WHERE part = ANY ($1) AND reason = $2 AND at <= now() ORDER BY at LIMIT $3),
			taken AS (DELETE FROM {s}.touch USING t WHERE touch.id = t.id)
			UPDATE {s}.subject s SET recheck_at = now(), unmatched_since = coalesce(unmatched_since, now())
			WHERE s.ref IN (SELECT ref FROM t) AND s.sealed_key IS NOT NULL`), parts, ledger.TouchRow, ledger.DueLimit)
		n = tag.RowsAffected()
		return err
	})
	if err != nil || n > 0 {
		return time.Now(), err
	}
	return r.nextOf(ctx, "looking for rows that came up", `SELECT extract(epoch FROM min(at) - now())::float8 FROM {s}.touch
		WHERE part = ANY ($1) AND reason = $2`, parts, ledger.TouchRow)
}

// foundCases are the cases of subjects whose rows are looked for again, whatever their state.
func (r *Replica) foundCases(ctx context.Context, tx pgx.Tx, refs [][]byte) (map[ledger.Ref]ledger.OpenCase, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`
		SELECT ref, event_id, case_id, committed_at, config_digest, state, matched AND NOT observed, coalesce(error_code, ''), attempts, undo
		FROM {s}.pending WHERE ref = ANY ($1)`), refs)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[ledger.Ref]ledger.OpenCase{}
	for rows.Next() {
		var ref, event, caseID, digest []byte
		var c ledger.OpenCase
		if err := rows.Scan(&ref, &event, &caseID, &c.Committed, &digest, &c.State, &c.Matched, &c.Code, &c.Attempts, &c.Undo); err != nil {
			return nil, err
		}
		copy(c.Event[:], event)
		copy(c.CaseID[:], caseID)
		copy(c.Digest[:], digest)
		out[ledger.Ref(ref)] = c
	}
	return out, rows.Err()
}

// queueDismissed restores the rows that were decided to be somebody else's to what they were before phase 1, and returns the case
// without them.
func (r *Replica) queueDismissed(b *pgx.Batch, m *Mapping, s *ledger.Subject, c ledger.OpenCase) (ledger.OpenCase, error) {
	restore, kept := ledger.Dismiss(c.Undo, s.Effect.Dismissed)
	if len(restore) == 0 {
		return c, nil
	}
	for _, u := range slices.Backward(restore) {
		if err := m.queueUndo(b, u); err != nil {
			return c, err
		}
	}
	c.Undo = kept
	encoded, err := ledger.EncodeUndo(kept)
	if err != nil {
		return c, err
	}
	b.Queue(r.ledger.sql(`UPDATE {s}.pending SET undo = $2 WHERE ref = $1`), s.Ref[:], jsonOrNull(encoded))
	return c, nil
}

// queueFoundRows writes what rows that were found mean for the subject's case.
func (r *Replica) queueFoundRows(b *pgx.Batch, s *ledger.Subject, c ledger.OpenCase, gaps []string, now time.Time) error {
	undo, more := ledger.MergeUndo(c.Undo, s.Effect.Undo)
	s.Effect.Undo = undo
	switch {
	case c.State != ledger.PendingSuppressed:
		if !s.Effect.Left {
			return nil
		}
		b.Queue(r.ledger.sql(`UPDATE {s}.pending p SET state = 'suppressed', wait = 'none', due_at = now(), released = true, attempts = `+sqlNextRound+`,
			error_code = $2 WHERE ref = $1`), s.Ref[:], ledger.ReasonRowFound)
		return nil
	case !c.Matched && s.Effect.Found():
		return r.queueFoundCase(b, s, c, gaps, now)
	case !c.Matched:
		return r.queueDoubtful(b, s, c, schema.ReceiptAmbiguous, ledger.ReasonAmbiguous, gaps, now)
	case more:
		encoded, err := ledger.EncodeUndo(undo)
		if err != nil {
			return err
		}
		b.Queue(r.ledger.sql(`UPDATE {s}.pending SET undo = $2 WHERE ref = $1`), s.Ref[:], jsonOrNull(encoded))
	}
	return nil
}

// queueDoubtful notes that nobody knows whether a row is the subject's, or that none is after all.
func (r *Replica) queueDoubtful(
	b *pgx.Batch, s *ledger.Subject, c ledger.OpenCase, state schema.ReceiptState, reason string, gaps []string, now time.Time,
) error {
	encoded, err := ledger.EncodeUndo(s.Effect.Undo)
	if err != nil {
		return err
	}
	b.Queue(r.ledger.sql(`UPDATE {s}.pending SET undo = $2, observed = $4, error_code = $3 WHERE ref = $1`), s.Ref[:], jsonOrNull(encoded), reason,
		r.cfg.Mode == ledger.ModeObserve)
	return r.queueReceipt(b, r.core.DoubtfulReceipt(s, c, state, reason, gaps, now))
}
