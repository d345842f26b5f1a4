package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"time"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// lookForRows takes in that a row may have come up for some subjects, or that a person has decided about one: they are looked up
// like those who have no row.
func (r *Replica) lookForRows(ctx context.Context, places []sinks.Place) (next time.Time, err error) {
	const op = "looking for rows that came up"
	if r.cfg.Find == nil {
		return time.Time{}, nil
	}
	where := inParts("t", ledger.PartsOf(places)) + ` AND t.reason = '` + ledger.TouchRow + `'`
	n := 0
	err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		ids, err := column1[int64](ctx, tx, r.ledger.sql(`SELECT t.id FROM {p}touch t WHERE `+where+` AND t.at <= ? ORDER BY t.at LIMIT ?`), tx.now, ledger.DueLimit)
		if n = len(ids); err != nil || n == 0 {
			return err
		}
		list := idsJSON(ids)
		_, err = r.write(ctx, tx, `INSERT INTO {p}due (ref, part, unmatched_since, recheck_at)
			SELECT DISTINCT s.ref, s.part, ?, ? FROM `+idsTable+` STRAIGHT_JOIN {p}touch t ON t.id = v.id STRAIGHT_JOIN {p}subject s ON s.ref = t.ref
			WHERE s.sealed_key IS NOT NULL
			ON DUPLICATE KEY UPDATE unmatched_since = COALESCE({p}due.unmatched_since, VALUES(unmatched_since)), recheck_at = VALUES(recheck_at)`,
			tx.now, tx.now, list)
		if err != nil {
			return err
		}
		_, err = r.write(ctx, tx, `DELETE t FROM `+idsTable+` STRAIGHT_JOIN {p}touch t ON t.id = v.id`, list)
		return err
	})
	if err != nil || n > 0 {
		return time.Now(), err
	}
	return r.nextOf(ctx, op, "touch", "at", `x.reason = '`+ledger.TouchRow+`'`, places)
}

// idsTable is a JSON list of numbers as a table v(id).
const idsTable = `JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS v`

func idsJSON(ids []int64) string {
	doc, _ := json.Marshal(ids) // numbers: no error
	return string(doc)
}

// foundCases are the cases of subjects whose rows are looked for again, whatever their state.
func (r *Replica) foundCases(ctx context.Context, tx *tx, refs [][]byte) (map[ledger.Ref]ledger.OpenCase, error) {
	out := map[ledger.Ref]ledger.OpenCase{}
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT p.ref, p.event_id, p.case_id, p.committed_at, p.config_digest, p.state, p.matched AND NOT p.observed,
		COALESCE(p.error_code, ''), p.attempts, p.prior FROM `+caseTables), []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		var ref, event, caseID, digest, prior sql.RawBytes
		var c ledger.OpenCase
		if err := rows.Scan(&ref, &event, &caseID, &c.Committed, &digest, &c.State, &c.Matched, &c.Code, &c.Attempts, &prior); err != nil {
			return err
		}
		copy(c.Event[:], event)
		copy(c.CaseID[:], caseID)
		copy(c.Digest[:], digest)
		out[ledger.Ref(ref)] = c
		if len(prior) == 0 {
			return nil
		}
		err := json.Unmarshal(prior, &c.Undo)
		out[ledger.Ref(ref)] = c
		return err
	})
	return out, err
}

// dismissed restores the rows that were decided to be somebody else's to what they were before phase 1, and returns the case
// without them.
func (r *Replica) dismissed(ctx context.Context, tx *tx, m *Mapping, s *ledger.Subject, c ledger.OpenCase) (ledger.OpenCase, error) {
	restore, kept := ledger.Dismiss(c.Undo, s.Effect.Dismissed)
	if len(restore) == 0 {
		return c, nil
	}
	for _, u := range slices.Backward(restore) {
		if err := m.takeBack(ctx, tx, u); err != nil {
			return c, err
		}
	}
	c.Undo = kept
	encoded, err := ledger.EncodeUndo(kept)
	if err != nil {
		return c, err
	}
	_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.prior = ? WHERE p.ref = ?`, jsonArg(encoded), s.Ref[:])
	return c, err
}

// stillUndone is what of cases' prior values phase 2 leaves: those of rows that it has not erased, because a person may still
// decide that they are somebody else's.
func (r *Replica) stillUndone(ctx context.Context, tx *tx, cases []*ledger.OpenedCase) (map[ledger.Ref][]byte, error) {
	open, err := r.foundCases(ctx, tx, ledger.RefsOf(cases))
	if err != nil {
		return nil, err
	}
	out := map[ledger.Ref][]byte{}
	for _, c := range cases {
		_, kept := ledger.Dismiss(open[c.Ref].Undo, c.Subject.Effect.Persons)
		kept = slices.DeleteFunc(kept, func(u ledger.UndoEntry) bool { return u.Person == "" })
		if out[c.Ref], err = ledger.EncodeUndo(kept); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// foundRows writes what rows that were found mean for the subject's case, and returns the receipt that says so, if there is one.
func (r *Replica) foundRows(ctx context.Context, tx *tx, s *ledger.Subject, c ledger.OpenCase, gaps []string) (*ledger.Receipt, error) {
	undo, more := ledger.MergeUndo(c.Undo, s.Effect.Undo)
	s.Effect.Undo = undo
	switch {
	case c.State != ledger.PendingSuppressed:
		if !s.Effect.Left {
			return nil, nil
		}
		_, err := r.write(ctx, tx, `UPDATE {p}pending p SET p.state = 'suppressed', p.wait = 'none', p.due_at = ?, p.released = TRUE,
			p.attempts = `+sqlNextRound+`, p.error_code = ? WHERE p.ref = ?`, tx.now, ledger.ReasonRowFound, s.Ref[:])
		return nil, err
	case !c.Matched && s.Effect.Found():
		return r.core.FoundCase(s, c, gaps, tx.now), r.foundCase(ctx, tx, s)
	case !c.Matched:
		return r.doubtful(ctx, tx, s, c, schema.ReceiptAmbiguous, ledger.ReasonAmbiguous, gaps)
	case more:
		encoded, err := ledger.EncodeUndo(undo)
		if err != nil {
			return nil, err
		}
		_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.prior = ? WHERE p.ref = ?`, jsonArg(encoded), s.Ref[:])
		return nil, err
	}
	return nil, nil
}

// doubtful notes that nobody knows whether a row is the subject's, or that none is after all.
func (r *Replica) doubtful(
	ctx context.Context, tx *tx, s *ledger.Subject, c ledger.OpenCase, state schema.ReceiptState, reason string, gaps []string,
) (*ledger.Receipt, error) {
	encoded, err := ledger.EncodeUndo(s.Effect.Undo)
	if err != nil {
		return nil, err
	}
	_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.prior = ?, p.observed = ?, p.error_code = ? WHERE p.ref = ?`, jsonArg(encoded),
		r.cfg.Mode == ledger.ModeObserve, reason, s.Ref[:])
	return r.core.DoubtfulReceipt(s, c, state, reason, gaps, tx.now), err
}

// foundOf writes what it means for a subject's case that its row has appeared, and returns the receipt of it; nil: none.
func (r *Replica) foundOf(ctx context.Context, tx *tx, s *ledger.Subject, c ledger.OpenCase, gaps []string) (*ledger.Receipt, error) {
	if r.cfg.Find != nil {
		return r.foundRows(ctx, tx, s, c, gaps)
	}
	return r.core.FoundCase(s, c, gaps, tx.now), r.foundCase(ctx, tx, s)
}

// decidedAway notes that a case of which a person had to decide has no row after all.
func (r *Replica) decidedAway(ctx context.Context, tx *tx, s *ledger.Subject, c ledger.OpenCase) error {
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	rc, err := r.doubtful(ctx, tx, s, c, schema.ReceiptNoMatch, ledger.ReasonGone, gaps)
	if err != nil {
		return err
	}
	return r.signAndWrite(ctx, tx, rc)
}
