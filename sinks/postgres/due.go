package postgres

import (
	"bytes"
	"context"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
)

// dueLimit is how many subjects one transaction of a chore works on: it holds the partition rows meanwhile, and so holds
// up the batches.
const dueLimit = 500

// pausedRetry is how soon a paused replica is asked again.
const pausedRetry = 5 * time.Second

// RunDue implements sinks.Chores. Its transactions are small, and each holds the rows of all partitions given, compared
// with places: batches of the same worker wait for it, and a worker that has lost a partition gets ErrFenced. Where there is
// much to do each chore does one slice and asks to be called again at once, so that prohibitions come in between.
func (r *Replica) RunDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if len(places) == 0 {
		return time.Time{}, nil
	}
	if _, err := r.compiled(ctx); err != nil {
		return time.Time{}, err
	}
	paused, err := r.Paused(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if paused {
		return time.Now().Add(pausedRetry), nil
	}
	var next time.Time
	for _, c := range r.chores {
		at, err := c(ctx, places)
		if err != nil {
			return time.Time{}, err
		}
		next = sooner(next, at)
	}
	return next, nil
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// untilDue turns a pause by the replica's clock into a time of ours. nil: nothing in sight.
func untilDue(seconds *float64) time.Time {
	if seconds == nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(max(0, *seconds) * float64(time.Second)))
}

// recheckUnmatched looks again for the rows of subjects that had none: the ETL that makes them is often later than we.
// A row that has appeared gets the fold at once, and phase 1 where the subject is being erased.
func (r *Replica) recheckUnmatched(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if err := r.reopenObserved(ctx, places); err != nil {
		return time.Time{}, err
	}
	return r.eachDue(ctx, places, "recheck_at", "looking up unmatched subjects", func(ctx context.Context, tx pgx.Tx, set *subjects) error {
		return r.recheck(ctx, tx, set)
	})
}

// refoldDue writes the fold anew where a consent's validity or a restriction has run out.
func (r *Replica) refoldDue(ctx context.Context, places []sinks.Place) (time.Time, error) {
	return r.eachDue(ctx, places, "next_change_at", "writing consents that ran out",
		func(ctx context.Context, tx pgx.Tx, set *subjects) error { return r.refold(ctx, tx, set, nil) })
}

// reopenObserved makes the cases that were opened in mode observe due for phase 1 once the mode is another.
func (r *Replica) reopenObserved(ctx context.Context, places []sinks.Place) error {
	if r.cfg.Mode == modeObserve {
		return nil
	}
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		UPDATE {s}.subject s SET recheck_at = now() FROM {s}.pending p
		WHERE p.ref = s.ref AND p.observed AND p.state = 'suppressed' AND s.recheck_at IS NULL AND p.part = ANY ($1)`),
		partsOf(places))
	return classify("reopening observed cases", err)
}

// eachDue runs fn on the subjects whose column is due, one slice a call, and returns when the next one is. A slice that the
// replica refuses is halved down to the one subject that it refuses (a constraint, a trigger): that one is left for
// RecheckLater, and holds up neither the others nor the chores behind this one.
func (r *Replica) eachDue(
	ctx context.Context, places []sinks.Place, column, op string, fn func(context.Context, pgx.Tx, *subjects) error,
) (time.Time, error) {
	for limit := dueLimit; ; {
		refs, err := r.dueSlice(ctx, places, column, op, limit, fn)
		switch {
		case err == nil && len(refs) == limit:
			return time.Now(), nil
		case err == nil:
			return r.nextOf(ctx, op, `SELECT extract(epoch FROM min(`+column+`) - now())::float8
				FROM {s}.subject WHERE part = ANY ($1)`, partsOf(places))
		case sinks.Classify(err) != sinks.Poison || len(refs) == 0:
			return time.Time{}, err
		case len(refs) == 1:
			r.log.Error().Str("op", op).Str("code", sinks.CodeOf(err)).Hex("subject", refs[0]).
				Msg("the replica refuses what a subject's facts ask for: mend its row; it is tried again")
			return time.Now(), r.leaveForLater(ctx, places, column, op, refs[0], sinks.CodeOf(err))
		}
		limit = len(refs) / 2
	}
}

// dueSlice runs fn on up to limit due subjects in one transaction. Also with an error it returns which ones they were.
func (r *Replica) dueSlice(
	ctx context.Context, places []sinks.Place, column, op string, limit int, fn func(context.Context, pgx.Tx, *subjects) error,
) (refs [][]byte, err error) {
	err = r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.ledger.sql(`SELECT ref FROM {s}.subject
			WHERE part = ANY ($1) AND `+column+` <= now() ORDER BY `+column+`, ref LIMIT $2`), partsOf(places), limit)
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
func (r *Replica) refold(ctx context.Context, tx pgx.Tx, set *subjects, prepare func(now time.Time)) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	e := &effects{r: r, m: m, cfg: r.cfg}
	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&e.now); err != nil {
		return err
	}
	for _, s := range set.list {
		s.touched = true
	}
	if prepare != nil {
		prepare(e.now)
	}
	if err := e.run(ctx, tx, set.list); err != nil {
		return err
	}
	for _, s := range set.list {
		r.settleSubject(s, e.now)
	}
	b := &pgx.Batch{}
	if err := r.queueSubjects(b, set.list); err != nil {
		return err
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

// foundAttempt is the attempt of receipts made when a row appeared: above every offset's, so that they are the effective
// ones.
const foundAttempt = math.MaxUint32

// replayAttempt is the attempt of the receipt of a replayed event.
const replayAttempt = foundAttempt - 1

// openCase is an erasure whose phase 1 is still to be done, because its subject had no row or the mode was observe.
type openCase struct {
	event     schema.EventID
	caseID    schema.CaseID
	committed time.Time
	digest    [32]byte
}

// recheck works on subjects without a row.
func (r *Replica) recheck(ctx context.Context, tx pgx.Tx, set *subjects) error {
	cases, err := r.openCases(ctx, tx, set.refs())
	if err != nil {
		return err
	}
	var now time.Time
	err = r.refold(ctx, tx, set, func(at time.Time) {
		now = at
		for _, s := range set.list {
			_, s.suppress = cases[s.ref]
			s.waitedSince, s.recheckAt = s.unmatchedSince, r.recheckAgain(s, at)
			s.givenUp, s.dirty = s.recheckAt.IsZero(), true
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
	for _, s := range set.list {
		if !s.effect.matched {
			r.metrics.rechecks.WithLabelValues(outcomeNoMatch).Inc()
			continue
		}
		r.metrics.rechecks.WithLabelValues("found").Inc()
		if err := r.queueFound(ctx, tx, b, s, cases, gaps, now); err != nil {
			return err
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

// recheckAgain returns when a subject that is still unmatched is looked up again; zero: no more.
func (r *Replica) recheckAgain(s *subject, now time.Time) time.Time {
	keep := r.cfg.Recheck
	if keep.IsZero() {
		keep = config.Period{Days: defaultRecheckDays}
	}
	age := now.Sub(s.unmatchedSince)
	switch {
	case s.unmatchedSince.IsZero():
		return now.Add(r.opts.RecheckFirst)
	case !now.Before(keep.After(s.unmatchedSince)):
		return time.Time{}
	case age >= time.Hour:
		return now.Add(r.opts.RecheckLater)
	}
	return now.Add(r.opts.RecheckFirst)
}

func (r *Replica) openCases(ctx context.Context, tx pgx.Tx, refs [][]byte) (map[refKey]openCase, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`
		SELECT ref, event_id, case_id, committed_at, config_digest FROM {s}.pending
		WHERE ref = ANY ($1) AND state = 'suppressed' AND (observed OR NOT matched)`), refs)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[refKey]openCase{}
	for rows.Next() {
		var ref, event, caseID, digest []byte
		var c openCase
		if err := rows.Scan(&ref, &event, &caseID, &c.committed, &digest); err != nil {
			return nil, err
		}
		copy(c.event[:], event)
		copy(c.caseID[:], caseID)
		copy(c.digest[:], digest)
		out[refKey(ref)] = c
	}
	return out, rows.Err()
}

// queueFound writes the receipts of a subject whose row has appeared: of its erasure, of its objections and
// restrictions, and one that lists its consents.
func (r *Replica) queueFound(
	ctx context.Context, tx pgx.Tx, b *pgx.Batch, s *subject, cases map[refKey]openCase, gaps []string, now time.Time,
) error {
	if c, ok := cases[s.ref]; ok {
		if err := r.queueFoundCase(b, s, c, gaps, now); err != nil {
			return err
		}
	}
	state, reason, evidence := schema.ReceiptApplied, reasonRowFound, schema.EvidenceApplied
	followed := `UPDATE {s}.readback SET due_at = now() WHERE ref = $1 AND due_at = 'infinity'`
	if r.cfg.Mode == modeObserve { // nothing was written: there is nothing to read back
		state, reason, evidence = schema.ReceiptPlanned, reasonObserve, schema.EvidenceAttempted
		followed = `DELETE FROM {s}.readback WHERE ref = $1 AND due_at = 'infinity'`
	}
	rows, err := tx.Query(ctx, r.ledger.sql(followed+` RETURNING event_id, kind, committed_at, config_digest`), s.ref[:])
	if err != nil {
		return err
	}
	defer rows.Close()
	if err := r.queueFoundConsents(b, s, gaps, now); err != nil {
		return err
	}
	for rows.Next() {
		var event, digest []byte
		var kind string
		var committed time.Time
		if err := rows.Scan(&event, &kind, &committed, &digest); err != nil {
			return err
		}
		typ, err := schema.ParseType(kind)
		if err != nil {
			return err
		}
		rc := r.newReceipt(schema.EventID(event), typ, state, 0)
		rc.Reason, rc.Evidence, rc.Rows, rc.Gaps = reason, evidence, s.effect.rows, gaps
		rc.CommittedAt, rc.MadeAt, rc.ref, rc.part = committed, now, s.ref[:], s.part
		copy(rc.ConfigDigest[:], digest)
		if err := r.queueReceipt(b, rc); err != nil {
			return err
		}
	}
	return rows.Err()
}

// queueFoundConsents states that the consents of a subject are in force, by the events that its facts come from. The
// commit times of those events are no longer known here: the time at which the first of them found no row stands for them.
func (r *Replica) queueFoundConsents(b *pgx.Batch, s *subject, gaps []string, now time.Time) error {
	var events []schema.EventOutcome
	var newest *sinks.Fact // the receipt is named for it: a row may vanish and be found again
	for i := range s.facts {
		f := &s.facts[i]
		if !strings.HasPrefix(f.Scope, consentPrefix) {
			continue
		}
		events = append(events, schema.EventOutcome{EventID: f.EventID, Outcome: outcomeApplied})
		if newest == nil || bytes.Compare(f.Order[:], newest.Order[:]) > 0 {
			newest = f
		}
	}
	if len(events) == 0 || r.cfg.Mode == modeObserve {
		return nil
	}
	rc := r.newReceipt(newest.EventID, schema.TypeConsentChange, schema.ReceiptApplied, foundAttempt)
	rc.Reason, rc.Evidence, rc.Events, rc.Rows, rc.Gaps = reasonRowFound, schema.EvidenceApplied, events, s.effect.rows, gaps
	rc.CommittedAt, rc.MadeAt, rc.part = s.waitedSince, now, s.part
	return r.queueReceipt(b, rc)
}

func (r *Replica) queueFoundCase(b *pgx.Batch, s *subject, c openCase, gaps []string, now time.Time) error {
	undo, err := encodeUndo(s.effect.undo)
	if err != nil {
		return err
	}
	observe, state, reason, evidence := r.cfg.Mode == modeObserve, schema.ReceiptSuppressed, reasonRowFound, schema.EvidenceApplied
	if observe {
		state, reason, evidence = schema.ReceiptPlanned, reasonObserve, schema.EvidenceAttempted
	}
	// The cool-off begins with the suppression, however old the case: somebody may want to cancel what they see only now. A
	// failed case stays failed.
	b.Queue(r.ledger.sql(`
		UPDATE {s}.pending SET matched = true, observed = $3, suppressed_at = now(), undo = $2, error_code = NULL,
			due_at = CASE WHEN due_at < 'infinity' THEN now() + make_interval(secs => $4) ELSE due_at END WHERE ref = $1`),
		s.ref[:], jsonOrNull(undo), observe, r.cfg.Erase.CoolOff.Seconds())
	rc := r.newReceipt(c.event, schema.TypeSubjectErasure, state, 0)
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest, rc.MadeAt = c.caseID, c.committed, c.digest, now
	rc.Reason, rc.Evidence, rc.Rows, rc.Gaps = reason, evidence, s.effect.rows, gaps
	rc.ref, rc.part = s.ref[:], s.part
	return r.queueReceipt(b, rc)
}
