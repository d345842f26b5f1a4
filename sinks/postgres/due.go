package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

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
	return r.eachDue(ctx, places, "recheck_at", "looking up unmatched subjects", func(ctx context.Context, tx pgx.Tx, set *ledger.Set) error {
		return r.recheck(ctx, tx, set)
	})
}

// refoldDue writes the fold anew where a consent's validity or a restriction has run out.
func (r *Replica) refoldDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	return r.eachDue(ctx, places, "next_change_at", "writing consents that ran out",
		func(ctx context.Context, tx pgx.Tx, set *ledger.Set) error { return r.refold(ctx, tx, set, nil) })
}

// reopenObserved makes the cases that were opened in mode observe due for phase 1 once the mode is another.
func (r *Replica) reopenObserved(ctx context.Context, places []sinks.Place) error {
	if r.cfg.Mode == ledger.ModeObserve {
		return nil
	}
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		UPDATE {s}.subject s SET recheck_at = now() FROM {s}.pending p
		WHERE p.ref = s.ref AND p.observed AND p.state = 'suppressed' AND s.recheck_at IS NULL AND p.part = ANY ($1)`),
		ledger.PartsOf(places))
	return classify("reopening observed cases", err)
}

// eachDue runs fn on the subjects whose column is due, one slice a call, and returns when the next one is. One that the
// replica refuses is left for RecheckLater.
func (r *Replica) eachDue(
	ctx context.Context, places []sinks.Place, column, op string, fn func(context.Context, pgx.Tx, *ledger.Set) error,
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
	return r.nextOf(ctx, op, `SELECT extract(epoch FROM min(`+column+`) - now())::float8
		FROM {s}.subject WHERE part = ANY ($1)`, ledger.PartsOf(places))
}

// dueSlice runs fn on up to limit due subjects in one transaction. Also with an error it returns which ones they were.
func (r *Replica) dueSlice(
	ctx context.Context, places []sinks.Place, column, op string, limit int, fn func(context.Context, pgx.Tx, *ledger.Set) error,
) (refs [][]byte, err error) {
	err = r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.ledger.sql(`SELECT ref FROM {s}.subject
			WHERE part = ANY ($1) AND `+column+` <= now() ORDER BY `+column+`, ref LIMIT $2`), ledger.PartsOf(places), limit)
		if err != nil {
			return err
		}
		if refs, err = pgx.CollectRows(rows, pgx.RowTo[[]byte]); err != nil || len(refs) == 0 {
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
	return r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.subject SET `+column+` = now() + make_interval(secs => $2) WHERE ref = $1`),
			ref, r.opts.RecheckLater.Seconds())
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.pending SET error_code = $2 WHERE ref = $1 AND state = 'suppressed'`), ref, code)
		return err
	})
}

// refold writes the current fold of loaded subjects, and their rows of lethe.subject. prepare, if not nil, runs between
// reading the clock and the statements.
func (r *Replica) refold(ctx context.Context, tx pgx.Tx, set *ledger.Set, prepare func(now time.Time)) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	e := &effects{r: r, m: m, cfg: r.cfg, settles: true}
	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&e.now); err != nil {
		return err
	}
	for _, s := range set.List {
		s.Touched = true
	}
	if prepare != nil {
		prepare(e.now)
	}
	if err := e.run(ctx, tx, set.List); err != nil {
		return err
	}
	for _, s := range set.List {
		r.core.SettleSubject(s, e.now)
	}
	b := &pgx.Batch{}
	if err := r.queueSubjects(b, set.List); err != nil {
		return err
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

// recheck works on subjects without a row.
func (r *Replica) recheck(ctx context.Context, tx pgx.Tx, set *ledger.Set) error {
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
	var now time.Time
	err = r.refold(ctx, tx, set, func(at time.Time) {
		now = at
		for _, s := range set.List {
			_, s.Suppress = cases[s.Ref]
			s.WaitedSince, s.RecheckAt = s.UnmatchedSince, r.core.RecheckAgain(s, at)
			s.GivenUp, s.Dirty = s.RecheckAt.IsZero(), true
		}
	})
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	for _, s := range set.List {
		if c, ok := cases[s.Ref]; ok && len(s.Effect.Dismissed) > 0 {
			if cases[s.Ref], err = r.queueDismissed(b, m, s, c); err != nil {
				return err
			}
		}
		if !s.Effect.Matched {
			r.metrics.Rechecks.WithLabelValues(ledger.OutcomeNoMatch).Inc()
			if c, ok := cases[s.Ref]; ok && c.Code == ledger.ReasonAmbiguous && !c.Matched && s.Effect.Ambiguous == 0 { // decided: nobody's row is left
				if err := r.queueDoubtful(b, s, c, schema.ReceiptNoMatch, ledger.ReasonGone, gaps, now); err != nil {
					return err
				}
			}
			continue
		}
		r.metrics.Rechecks.WithLabelValues("found").Inc()
		if err := r.queueFound(ctx, tx, b, s, cases, gaps, now); err != nil {
			return err
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

func (r *Replica) openCases(ctx context.Context, tx pgx.Tx, refs [][]byte) (map[ledger.Ref]ledger.OpenCase, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`
		SELECT ref, event_id, case_id, committed_at, config_digest FROM {s}.pending
		WHERE ref = ANY ($1) AND state = 'suppressed' AND (observed OR NOT matched)`), refs)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[ledger.Ref]ledger.OpenCase{}
	for rows.Next() {
		var ref, event, caseID, digest []byte
		var c ledger.OpenCase
		if err := rows.Scan(&ref, &event, &caseID, &c.Committed, &digest); err != nil {
			return nil, err
		}
		copy(c.Event[:], event)
		copy(c.CaseID[:], caseID)
		copy(c.Digest[:], digest)
		out[ledger.Ref(ref)] = c
	}
	return out, rows.Err()
}

// queueFound writes the receipts of a subject whose row has appeared: of its erasure, of its objections and
// restrictions, and one that lists its consents.
func (r *Replica) queueFound(
	ctx context.Context, tx pgx.Tx, b *pgx.Batch, s *ledger.Subject, cases map[ledger.Ref]ledger.OpenCase, gaps []string, now time.Time,
) error {
	if c, ok := cases[s.Ref]; ok {
		found := r.queueFoundCase
		if r.cfg.Find != nil {
			found = r.queueFoundRows
		}
		if err := found(b, s, c, gaps, now); err != nil {
			return err
		}
	}
	followed := `UPDATE {s}.readback SET due_at = now() WHERE ref = $1 AND due_at = 'infinity'`
	if r.cfg.Mode == ledger.ModeObserve { // nothing was written: there is nothing to read back
		followed = `DELETE FROM {s}.readback WHERE ref = $1 AND due_at = 'infinity'`
	}
	rows, err := tx.Query(ctx, r.ledger.sql(followed+` RETURNING event_id, kind, committed_at, config_digest`), s.Ref[:])
	if err != nil {
		return err
	}
	defer rows.Close()
	if rc := r.core.FoundConsents(s, gaps, now); rc != nil {
		if err := r.queueReceipt(b, rc); err != nil {
			return err
		}
	}
	for rows.Next() {
		var event, digest []byte
		var kind string
		var committed time.Time
		if err := rows.Scan(&event, &kind, &committed, &digest); err != nil {
			return err
		}
		f := &ledger.Followed{Event: schema.EventID(event), Committed: committed}
		copy(f.Digest[:], digest)
		if f.Kind, err = schema.ParseType(kind); err != nil {
			return err
		}
		rc := r.core.FoundFollowed(s, f, gaps, now)
		if err := r.queueReceipt(b, rc); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (r *Replica) queueFoundCase(b *pgx.Batch, s *ledger.Subject, c ledger.OpenCase, gaps []string, now time.Time) error {
	undo, err := ledger.EncodeUndo(s.Effect.Undo)
	if err != nil {
		return err
	}
	// The cool-off begins with the suppression, however old the case: somebody may want to cancel what they see only now. A
	// failed case stays failed.
	b.Queue(r.ledger.sql(`
		UPDATE {s}.pending SET matched = true, observed = $3, suppressed_at = now(), undo = $2, error_code = NULL,
			due_at = CASE WHEN due_at < 'infinity' THEN now() + make_interval(secs => $4) ELSE due_at END WHERE ref = $1`),
		s.Ref[:], jsonOrNull(undo), r.cfg.Mode == ledger.ModeObserve, r.cfg.Erase.CoolOff.Seconds())
	return r.queueReceipt(b, r.core.FoundCase(s, c, gaps, now))
}
