package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/internal/crashpoint"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlDue lists the cases whose phase 2 is due, with how many cases were opened around each. A case is left alone while
// an operator's decision on it has not been carried out.
const sqlDue = `
	SELECT ` + caseColumns + `, p.released, p.snapshot,
		(SELECT count(*) FROM (SELECT FROM {s}.pending q
			WHERE q.opened_at > p.opened_at - make_interval(secs => $3) AND q.opened_at < p.opened_at + make_interval(secs => $3)
			LIMIT $4) burst)
	FROM {s}.pending p
	WHERE p.part = ANY ($1) AND p.state = 'suppressed' AND p.matched AND NOT p.observed AND NOT p.held
		AND p.wait IN ('none', 'cool_off') AND p.due_at <= now()
		AND NOT EXISTS (SELECT FROM {s}.decision d WHERE d.ref = p.ref AND d.done_at IS NULL){gate} AND ` + sqlScanned + `
	ORDER BY p.due_at, p.ref LIMIT $2 FOR UPDATE OF p`

// sqlNextDue: when the next one is.
const sqlNextDue = `
	SELECT extract(epoch FROM min(due_at) - now())::float8 FROM {s}.pending p
	WHERE part = ANY ($1) AND state = 'suppressed' AND matched AND NOT observed AND NOT held AND wait IN ('none', 'cool_off')
		AND due_at < 'infinity'{gate}`

// runPhase2 destroys what is due, one slice a call: batches come in between. Phase 2 of one case is one transaction:
// rows, receipt and state. Where the replica refuses the statements of a slice its cases are tried one by one, so that
// one case holds up no other.
func (r *Replica) runPhase2(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if r.cfg.Mode != ledger.ModeErase {
		return time.Time{}, nil
	}
	if err := r.reopenGrown(ctx, places); err != nil {
		return time.Time{}, err
	}
	more, err := ledger.EraseDue(
		func(limit int) (int, error) { return r.phase2Batch(ctx, places, limit) },
		func(refused *ledger.RefusedError) error { return r.recordRefusal(ctx, places, refused) })
	if err != nil || more {
		return time.Now(), err
	}
	m, err := r.compiled(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if waiting, err := r.wantScans(ctx, ledger.PartsOf(places), m); err != nil || waiting {
		return time.Now().Add(scanPoll), err
	}
	return r.nextOf(ctx, "looking for due erasures", strings.Replace(sqlNextDue, "{gate}", r.gated(), 1), ledger.PartsOf(places))
}

// phase2Batch erases up to limit cases and returns how many were due.
func (r *Replica) phase2Batch(ctx context.Context, places []sinks.Place, limit int) (n int, err error) {
	var current []*ledger.OpenedCase
	err = r.inTx(ctx, "erasing", func(ctx context.Context, tx pgx.Tx) error {
		current = nil
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		due, err := r.due(ctx, tx, places, limit)
		if err != nil {
			return err
		}
		if n = len(due); n == 0 {
			return nil
		}
		gaps, err := r.readOpenGaps(ctx, tx)
		if err != nil {
			return err
		}
		var now time.Time
		if err := tx.QueryRow(ctx, "SELECT now()").Scan(&now); err != nil {
			return err
		}
		var tripped []*ledger.OpenedCase
		for _, c := range due {
			if c.Trips(r.cfg) {
				tripped = append(tripped, c)
			} else {
				current = append(current, c)
			}
		}
		if err := r.awaitRelease(ctx, tx, tripped, gaps, now); err != nil {
			return err
		}
		return r.erase(ctx, tx, current, gaps, now)
	})
	crashpoint.Hit("sink.after_phase2")
	if err != nil && limit == 1 && len(current) == 1 && sinks.Classify(err) == sinks.Poison {
		return n, &ledger.RefusedError{Ref: current[0].Ref, Code: sinks.CodeOf(err), Err: err}
	}
	return n, err
}

func (r *Replica) due(ctx context.Context, tx pgx.Tx, places []sinks.Place, limit int) ([]*ledger.OpenedCase, error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, r.ledger.sql(strings.Replace(sqlDue, "{gate}", r.gated(), 1)), ledger.PartsOf(places), limit, r.cfg.Breaker.Window.Seconds(), r.cfg.Breaker.NewCases+1, m.findTableNames())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*ledger.OpenedCase
	for rows.Next() {
		var released, snapshot bool
		var burst int
		c, err := scanCase(rows, &released, &snapshot, &burst)
		if err != nil {
			return nil, err
		}
		c.Released, c.Snapshot, c.Burst = released, snapshot, burst
		out = append(out, c)
	}
	return out, rows.Err()
}

// awaitRelease leaves cases at the breaker until somebody releases them.
func (r *Replica) awaitRelease(ctx context.Context, tx pgx.Tx, cases []*ledger.OpenedCase, gaps []string, now time.Time) error {
	if len(cases) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(r.ledger.sql(`UPDATE {s}.pending SET wait = 'breaker' WHERE ref = ANY ($1)`), ledger.RefsOf(cases))
	for _, c := range cases {
		if err := r.queueReceipt(b, r.core.AwaitingReceipt(c, gaps, now)); err != nil {
			return err
		}
	}
	r.log.Error().Int("cases", len(cases)).Msg("breaker: erasures wait for `lethe release`; the copies are suppressed")
	return send(ctx, tx, b)
}

// erase runs phase 2 of the cases.
func (r *Replica) erase(ctx context.Context, tx pgx.Tx, cases []*ledger.OpenedCase, gaps []string, now time.Time) error {
	if len(cases) == 0 {
		return nil
	}
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	set, err := r.attach(ctx, tx, cases)
	if err != nil {
		return err
	}
	e := &effects{r: r, m: m, cfg: r.cfg, now: now}
	if len(m.finds) > 0 {
		err = r.eraseFound(ctx, tx, m, e, cases)
	} else {
		err = m.eraseKnown(ctx, tx, e, set.List)
	}
	if err != nil {
		return err
	}
	crashpoint.Hit("sink.during_phase2")
	b := &pgx.Batch{}
	for _, c := range cases {
		if err := r.queueErased(b, m, c, gaps, now); err != nil {
			return err
		}
	}
	if err := r.queueSubjects(b, set.List); err != nil {
		return err
	}
	r.queueWitness(b, m)
	if err := send(ctx, tx, b); err != nil {
		return err
	}
	crashpoint.Hit("sink.before_phase2_commit")
	return nil
}

// eraseKnown is phase 2 of subjects that are found by their CRM key.
func (m *Mapping) eraseKnown(ctx context.Context, tx pgx.Tx, e *effects, list []*ledger.Subject) error {
	if err := m.lockPersons(ctx, tx, list); err != nil {
		return err
	}
	b := &pgx.Batch{}
	e.queueAgain(b, list)
	for i := range m.erase {
		m.queueErase(b, &m.erase[i], list)
	}
	return send(ctx, tx, b)
}

// queueAgain runs phase 1 once more in front of phase 2, for rows that it has not seen: a backup was restored, or the ETL
// has made the person's row anew. Without it their flags would stay open, and the read-back would find them so at every
// attempt. It notes no prior values: what they would be good for is over. The persons must have been locked.
func (e *effects) queueAgain(b *pgx.Batch, list []*ledger.Subject) {
	e.queueSuppress(b, list)
	for i := range e.m.folds {
		e.queueFold(b, &e.m.folds[i], list)
	}
}

// lockPersons finds the persons that the subjects are, again: rows may have come and gone since phase 1.
func (m *Mapping) lockPersons(ctx context.Context, tx pgx.Tx, list []*ledger.Subject) error {
	return m.eachPerson(ctx, tx, list, " FOR UPDATE OF t", func(s *ledger.Subject, key string) {
		s.Effect.Matched = true
		s.Effect.Persons = append(s.Effect.Persons, key)
	})
}

// eachPerson tells the persons (person.key in text form) that the subjects' CRM keys lead to now.
func (m *Mapping) eachPerson(ctx context.Context, tx pgx.Tx, list []*ledger.Subject, lock string, tell func(s *ledger.Subject, key string)) error {
	s := &statement{}
	who := s.whoBy(len(m.crm), list)
	s.WriteString("SELECT v.i, t." + m.key.sql() + "::text FROM " + m.person.sql() + " AS t, " + who + " WHERE " + matchesBy(m.crm, "t") + lock)
	rows, err := tx.Query(ctx, s.String(), s.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var i int32
		var key string
		if err := rows.Scan(&i, &key); err != nil {
			return err
		}
		tell(list[i], key)
	}
	return rows.Err()
}

// queueErase queues one step of phase 2.
func (m *Mapping) queueErase(b *pgx.Batch, step *eraseStep, list []*ledger.Subject) {
	s := &statement{}
	who := s.who(m, list)
	from, where, key := m.reach(step.join)
	var set []string
	for k := range step.set {
		set = append(set, step.set[k].column.sql()+" = "+s.value(&step.set[k], "t", key))
	}
	action := ledger.ActionSet
	switch {
	case step.hold:
		action = ledger.ActionHold
		s.WriteString("SELECT v.i FROM " + step.table.sql() + " AS t, " + who + from + " WHERE " + where)
	case step.delete:
		action = ledger.ActionDelete
		s.WriteString("DELETE FROM " + step.table.sql() + " AS t USING " + who + from + " WHERE " + where + " RETURNING v.i")
	case step.unlink:
		action = ledger.ActionUnlink
		set = append(set, step.by.sql()+" = NULL")
		fallthrough
	default:
		if len(set) == 0 {
			return
		}
		s.WriteString("UPDATE " + step.table.sql() + " AS t SET " + strings.Join(set, ", ") + " FROM " + who + from +
			" WHERE " + where + " RETURNING v.i")
	}
	label := step.table.label()
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		return eachPlace(rows, func(i int) { list[i].Effect.Changed(label, action, 1) })
	})
}

// queueErased writes what became of a case.
func (r *Replica) queueErased(b *pgx.Batch, m *Mapping, c *ledger.OpenedCase, gaps []string, now time.Time) error {
	rc, work, lost, err := r.core.Destroyed(c, m.crmErased && len(m.finds) == 0, gaps, now)
	if err != nil {
		return err
	}
	if lost {
		b.Queue(r.ledger.sql(`UPDATE {s}.pending SET matched = false, error_code = $2 WHERE ref = $1`), c.Ref[:], textOrNull(c.Subject.Effect.Doubt()))
		return r.queueReceipt(b, rc)
	}
	b.Queue(r.ledger.sql(`
		UPDATE {s}.pending SET state = 'applied', wait = 'none', applied_at = now(), due_at = now(), attempts = $2,
			undo = (SELECT jsonb_agg(e) FROM jsonb_array_elements(undo) e WHERE e->>'p' <> ALL ($5)),
			work = $3, error_code = NULL, mapping_digest = $4 WHERE ref = $1`), c.Ref[:], rc.Attempt, jsonOrNull(work), r.opts.MappingDigest[:],
		textArray(append([]string{}, c.Subject.Effect.Persons...)))
	return r.queueReceipt(b, rc)
}

// recordRefusal counts an attempt that the replica refused (a constraint, a trigger). After the last one the case is
// failed: it stays suppressed, and only `lethe release` tries it again.
func (r *Replica) recordRefusal(ctx context.Context, places []sinks.Place, refused *ledger.RefusedError) error {
	return r.inTx(ctx, "recording a refused erasure", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		cases, err := collectCases(ctx, tx, r.ledger.sql(`SELECT `+caseColumns+` FROM {s}.pending p
			WHERE ref = $1 AND state = 'suppressed' FOR UPDATE`), refused.Ref[:])
		if err != nil || len(cases) == 0 {
			return err
		}
		return r.failAttempt(ctx, tx, cases[0], true, refused.Code)
	})
}

// failAttempt counts an attempt of a case that did not succeed; suppressed says that phase 2 did not run.
func (r *Replica) failAttempt(ctx context.Context, tx pgx.Tx, c *ledger.OpenedCase, suppressed bool, code string) error {
	pause, over := r.core.Failed(c, suppressed)
	var now time.Time
	err := tx.QueryRow(ctx, r.ledger.sql(`
		UPDATE {s}.pending SET state = 'suppressed', wait = 'none', error_code = $2, attempts = $3,
			due_at = CASE WHEN $4 THEN 'infinity' ELSE now() + make_interval(secs => $5) END
		WHERE ref = $1 RETURNING now()`), c.Ref[:], code, c.Attempts, over, pause.Seconds()).Scan(&now)
	if err != nil || !over {
		return err
	}
	r.log.Error().Stringer("case", c.ID).Str("code", code).Msg("erasure failed: mend the cause, then `lethe release`")
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	if err := r.queueReceipt(b, r.core.FailedReceipt(c, code, gaps, now)); err != nil {
		return err
	}
	return send(ctx, tx, b)
}
