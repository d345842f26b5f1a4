package mysql

import (
	"context"
	"database/sql"
	"time"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// RunDue implements sinks.Chores. Its transactions are small, and each holds the rows of all partitions given, compared
// with places: batches of the same worker wait for it, and a worker that has lost a partition gets ErrFenced.
func (r *Replica) RunDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if len(places) == 0 {
		return time.Time{}, nil
	}
	if _, err := r.compiled(ctx); err != nil {
		return time.Time{}, err
	}
	return ledger.RunChores(ctx, places, r.Paused, r.chores)
}

// recheckUnmatched looks again for the rows of subjects that had none: the ETL that makes them is often later than we.
// A row that has appeared gets the fold at once, and phase 1 where the subject is being erased.
func (r *Replica) recheckUnmatched(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if err := r.reopenObserved(ctx, places); err != nil {
		return time.Time{}, err
	}
	return r.eachDue(ctx, places, "recheck_at", "looking up unmatched subjects", r.recheck)
}

// refoldDue writes the fold anew where a consent's validity or a restriction has run out.
func (r *Replica) refoldDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	return r.eachDue(ctx, places, "next_change_at", "writing consents that ran out", r.refold)
}

// reopenObserved makes the cases that were opened in mode observe due for phase 1 once the mode is another.
func (r *Replica) reopenObserved(ctx context.Context, places []sinks.Place) error {
	const op = "reopening observed cases"
	if r.cfg.Mode == ledger.ModeObserve {
		return nil
	}
	refs, err := r.refsOf(ctx, r.opts.DB, `SELECT p.ref FROM {p}pending p LEFT JOIN {p}due d ON d.ref = p.ref
		WHERE `+inParts("p", ledger.PartsOf(places))+` AND p.state = 'suppressed' AND p.observed AND d.recheck_at IS NULL`)
	if err != nil || len(refs) == 0 {
		return classify(op, err)
	}
	return r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := r.write(ctx, tx, `INSERT INTO {p}due (ref, part, recheck_at)
			SELECT s.ref, s.part, ? FROM `+refsTable+` STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref)
			ON DUPLICATE KEY UPDATE recheck_at = COALESCE({p}due.recheck_at, VALUES(recheck_at))`, tx.now, refsJSON(refs))
		return err
	})
}

// refsOf runs a query of references.
func (r *Replica) refsOf(ctx context.Context, q querier, query string, args ...any) (refs [][]byte, err error) {
	err = eachRow(ctx, q, r.ledger.sql(query), args, func(rows *sql.Rows) error {
		var ref []byte
		if err := rows.Scan(&ref); err != nil {
			return err
		}
		refs = append(refs, ref)
		return nil
	})
	return refs, err
}

// eachDue runs fn on the subjects whose column is due, one slice a call, and returns when the next one is. One that the
// replica refuses is left for RecheckLater.
func (r *Replica) eachDue(
	ctx context.Context, places []sinks.Place, column, op string, fn func(context.Context, *tx, *ledger.Set) error,
) (time.Time, error) {
	more, err := ledger.WorkDue(ledger.DueLimit, func(limit int) ([][]byte, error) {
		return r.dueSlice(ctx, places, column, op, limit, fn)
	}, func(ref []byte, refused error) error {
		code := sinks.CodeOf(refused)
		r.log.Error().Str("op", op).Str("code", code).Hex("subject", ref).
			Msg("the replica refuses what a subject's facts ask for: mend its row; it is tried again")
		return r.leaveForLater(ctx, places, column, op, ref, code)
	})
	if err != nil || more {
		return time.Now(), err
	}
	return r.nextOf(ctx, op, "due", column, "TRUE", places)
}

// dueSlice runs fn on up to limit due subjects in one transaction. Also with an error it returns which ones they were. Their
// order does not matter, because whoever is due is done in the end: without one the server reads no more than it is asked for.
func (r *Replica) dueSlice(
	ctx context.Context, places []sinks.Place, column, op string, limit int, fn func(context.Context, *tx, *ledger.Set) error,
) (refs [][]byte, err error) {
	err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		refs, err = r.refsOf(ctx, tx, `SELECT d.ref FROM {p}due d
			WHERE `+inParts("d", ledger.PartsOf(places))+` AND d.`+column+` <= ? LIMIT ?`, tx.now, limit)
		if err != nil || len(refs) == 0 {
			return err
		}
		set, err := r.load(ctx, tx, refs)
		if err != nil {
			return err
		}
		return fn(ctx, tx, set)
	})
	return refs, err
}

// leaveForLater puts a refused subject off. If it is being erased its case shows the code.
func (r *Replica) leaveForLater(ctx context.Context, places []sinks.Place, column, op string, ref []byte, code string) error {
	return r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := r.write(ctx, tx, `UPDATE {p}due d SET d.`+column+` = ? WHERE d.ref = ?`, tx.now.Add(r.opts.RecheckLater), ref)
		if err != nil {
			return err
		}
		_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.error_code = ? WHERE p.ref = ? AND p.state = 'suppressed'`, code, ref)
		return err
	})
}

// write runs a statement that writes into Lethe's own tables, and returns how many rows it has changed.
func (r *Replica) write(ctx context.Context, tx *tx, query string, args ...any) (int64, error) {
	n, err := tx.exec(ctx, r.ledger.sql(query), args...)
	return n, own(err)
}

// refold writes the current fold of loaded subjects, and their rows of the table subject.
func (r *Replica) refold(ctx context.Context, tx *tx, set *ledger.Set) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	for _, s := range set.List {
		s.Touched = true
	}
	e := r.effects(m, tx.now)
	e.settles = true
	if err := e.run(ctx, tx, set.List); err != nil {
		return err
	}
	for _, s := range set.List {
		r.core.SettleSubject(s, tx.now)
	}
	return r.writeSubjects(ctx, tx, set.List)
}

// recheck works on subjects without a row.
func (r *Replica) recheck(ctx context.Context, tx *tx, set *ledger.Set) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	open := r.openCases
	if r.cfg.Find != nil {
		open = r.foundCases
	}
	cases, err := open(ctx, tx, set.Refs())
	if err != nil {
		return err
	}
	for _, s := range set.List {
		_, s.Suppress = cases[s.Ref]
		s.WaitedSince, s.RecheckAt = s.UnmatchedSince, r.core.RecheckAgain(s, tx.now)
		s.GivenUp, s.Dirty = s.RecheckAt.IsZero(), true
	}
	if err := r.refold(ctx, tx, set); err != nil {
		return err
	}
	var found []*ledger.Subject
	for _, s := range set.List {
		if c, ok := cases[s.Ref]; ok && len(s.Effect.Dismissed) > 0 {
			if cases[s.Ref], err = r.dismissed(ctx, tx, m, s, c); err != nil {
				return err
			}
		}
		if !s.Effect.Matched {
			r.metrics.Rechecks.WithLabelValues(ledger.OutcomeNoMatch).Inc()
			if c, ok := cases[s.Ref]; ok && c.Code == ledger.ReasonAmbiguous && !c.Matched && s.Effect.Ambiguous == 0 {
				if err := r.decidedAway(ctx, tx, s, c); err != nil {
					return err
				}
			}
			continue
		}
		r.metrics.Rechecks.WithLabelValues("found").Inc()
		found = append(found, s)
	}
	if len(found) == 0 {
		return nil
	}
	return r.concludeFound(ctx, tx, found, cases)
}

func (r *Replica) openCases(ctx context.Context, tx *tx, refs [][]byte) (map[ledger.Ref]ledger.OpenCase, error) {
	out := map[ledger.Ref]ledger.OpenCase{}
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT p.ref, p.event_id, p.case_id, p.committed_at, p.config_digest FROM `+caseTables+`
		WHERE p.state = 'suppressed' AND (p.observed OR NOT p.matched)`), []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		var ref, event, caseID, digest sql.RawBytes
		var c ledger.OpenCase
		if err := rows.Scan(&ref, &event, &caseID, &c.Committed, &digest); err != nil {
			return err
		}
		copy(c.Event[:], event)
		copy(c.CaseID[:], caseID)
		copy(c.Digest[:], digest)
		out[ledger.Ref(ref)] = c
		return nil
	})
	return out, err
}

// concludeFound writes the receipts of subjects whose rows have appeared: of their erasures, of their objections and
// restrictions, and one each that lists their consents.
func (r *Replica) concludeFound(ctx context.Context, tx *tx, found []*ledger.Subject, cases map[ledger.Ref]ledger.OpenCase) error {
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	followed, err := r.foundFollowed(ctx, tx, found)
	if err != nil {
		return err
	}
	var receipts []*ledger.Receipt
	for _, s := range found {
		if c, ok := cases[s.Ref]; ok {
			rc, err := r.foundOf(ctx, tx, s, c, gaps)
			if err != nil {
				return err
			}
			receipts = append(receipts, rc)
		}
		if rc := r.core.FoundConsents(s, gaps, tx.now); rc != nil {
			receipts = append(receipts, rc)
		}
		for _, f := range followed[s.Ref] {
			receipts = append(receipts, r.core.FoundFollowed(s, f, gaps, tx.now))
		}
	}
	return r.signAndWrite(ctx, tx, receipts...)
}

// foundCase notes that phase 1 of a case is done. The cool-off begins with the suppression, however old the case: somebody
// may want to cancel what they see only now. A failed case stays failed.
func (r *Replica) foundCase(ctx context.Context, tx *tx, s *ledger.Subject) error {
	undo, err := ledger.EncodeUndo(s.Effect.Undo)
	if err != nil {
		return err
	}
	_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.matched = TRUE, p.observed = ?, p.suppressed_at = ?, p.prior = ?, p.error_code = NULL,
		p.due_at = CASE WHEN p.due_at < '`+never+`' THEN ? ELSE p.due_at END WHERE p.ref = ?`,
		r.cfg.Mode == ledger.ModeObserve, tx.now, jsonArg(undo), tx.now.Add(r.cfg.Erase.CoolOff), s.Ref[:])
	return err
}

// foundFollowed makes the objections and restrictions of subjects whose rows have appeared due for the read-back. In mode
// observe nothing was written, and there is nothing to read back.
func (r *Replica) foundFollowed(ctx context.Context, tx *tx, found []*ledger.Subject) (map[ledger.Ref][]*ledger.Followed, error) {
	refs := make([][]byte, len(found))
	for i, s := range found {
		refs[i] = s.Ref[:]
	}
	const waiting = refsTable + ` STRAIGHT_JOIN {p}readback b ON b.ref = UNHEX(v.ref)`
	out := map[ledger.Ref][]*ledger.Followed{}
	list, err := r.collectFollowed(ctx, tx, `SELECT `+followedColumns+` FROM `+waiting+` WHERE b.due_at = '`+never+`'`, refsJSON(refs))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	for _, f := range list {
		out[f.Ref] = append(out[f.Ref], f)
	}
	if r.cfg.Mode == ledger.ModeObserve {
		_, err = r.write(ctx, tx, `DELETE b FROM `+waiting+` WHERE b.due_at = '`+never+`'`, refsJSON(refs))
	} else {
		_, err = r.write(ctx, tx, `UPDATE `+waiting+` SET b.due_at = ? WHERE b.due_at = '`+never+`'`, refsJSON(refs), tx.now)
	}
	return out, err
}

// collectFollowed runs a query of followedColumns.
func (r *Replica) collectFollowed(ctx context.Context, q querier, query string, args ...any) ([]*ledger.Followed, error) {
	var out []*ledger.Followed
	err := eachRow(ctx, q, r.ledger.sql(query), args, func(rows *sql.Rows) error {
		var event, ref, digest sql.RawBytes
		var kind string
		f := &ledger.Followed{}
		if err := rows.Scan(&event, &ref, &f.Part, &kind, &f.Committed, &digest, &f.Attempts); err != nil {
			return err
		}
		copy(f.Event[:], event)
		copy(f.Ref[:], ref)
		copy(f.Digest[:], digest)
		var err error
		f.Kind, err = schema.ParseType(kind)
		out = append(out, f)
		return err
	})
	return out, err
}

// followedColumns are what collectFollowed reads.
const followedColumns = `b.event_id, b.ref, b.part, b.kind, b.committed_at, b.config_digest, b.attempts`
