package mysql

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"lethe/internal/crashpoint"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// dueCase is the condition that a case (p) is one that phase 2 takes once its time has come.
const dueCase = `p.state = 'suppressed' AND p.matched AND NOT p.observed AND NOT p.held AND p.wait IN ('none', 'cool_off')`

// sqlDue lists the cases whose phase 2 is due. A case is left alone while an operator's decision on it has not been carried
// out.
const sqlDue = `SELECT p.ref FROM {p}pending p WHERE {parts} AND ` + dueCase + ` AND p.due_at <= ?
	AND NOT EXISTS (SELECT 1 FROM {p}decision d WHERE d.ref = p.ref AND d.done_at IS NULL){gate} AND {scanned}
	ORDER BY p.due_at, p.ref LIMIT ?`

// sqlBurst looks for one case more than the breaker allows between two times. It is asked once a case: of a query about all
// of them MariaDB would read the whole index for each.
const sqlBurst = `SELECT 1 FROM {p}pending q WHERE q.opened_at > ? AND q.opened_at < ? LIMIT 1 OFFSET ?`

// runPhase2 destroys what is due, one slice a call: batches come in between. Phase 2 of one case is one transaction:
// rows, receipt and state.
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
	if waiting, err := r.wantScans(ctx, places, m); err != nil || waiting {
		return time.Now().Add(scanPoll), err
	}
	return r.nextOf(ctx, "looking for due erasures", "pending", "due_at",
		"x.state = 'suppressed' AND x.matched AND NOT x.observed AND NOT x.held AND x.wait IN ('none', 'cool_off')"+r.gated("x"), places)
}

// phase2Batch erases up to limit cases and returns how many were due.
func (r *Replica) phase2Batch(ctx context.Context, places []sinks.Place, limit int) (n int, err error) {
	var current []*ledger.OpenedCase
	err = r.inTx(ctx, "erasing", func(ctx context.Context, tx *tx) error {
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
		var tripped []*ledger.OpenedCase
		for _, c := range due {
			if c.Trips(r.cfg) {
				tripped = append(tripped, c)
			} else {
				current = append(current, c)
			}
		}
		if err := r.awaitRelease(ctx, tx, tripped, gaps); err != nil {
			return err
		}
		return r.erase(ctx, tx, current, gaps)
	})
	crashpoint.Hit("sink.after_phase2")
	if err != nil && limit == 1 && len(current) == 1 && sinks.Classify(err) == sinks.Poison {
		return n, &ledger.RefusedError{Ref: current[0].Ref, Code: sinks.CodeOf(err), Err: err}
	}
	return n, err
}

// due finds cases whose phase 2 is due and locks their rows: somebody who owns other partitions may release them.
func (r *Replica) due(ctx context.Context, tx *tx, places []sinks.Place, limit int) ([]*ledger.OpenedCase, error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return nil, err
	}
	query := strings.NewReplacer("{parts}", inParts("p", ledger.PartsOf(places)), "{scanned}", m.scanned(), "{gate}", r.gated("p")).Replace(sqlDue)
	refs, err := r.refsOf(ctx, tx, query, tx.now, limit)
	if err != nil || len(refs) == 0 {
		return nil, err
	}
	var out []*ledger.OpenedCase
	var opened []time.Time
	query = r.ledger.sql(`SELECT ` + caseColumns + `, p.released, p.snapshot, p.opened_at FROM ` + caseTables + ` WHERE ` + dueCase + lockRows)
	err = eachRow(ctx, tx, query, []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		var released, snapshot bool
		var at time.Time
		c, err := scanCase(rows, &released, &snapshot, &at)
		if err != nil {
			return err
		}
		c.Released, c.Snapshot = released, snapshot
		out, opened = append(out, c), append(opened, at)
		return nil
	})
	if err != nil {
		return nil, err
	}
	known := map[time.Time]int{} // many are of one batch
	for i, c := range out {
		n, ok := known[opened[i]]
		if !ok && !c.Released && !c.Snapshot {
			if n, err = r.burst(ctx, tx, opened[i]); err != nil {
				return nil, err
			}
			known[opened[i]] = n
		}
		c.Burst = n
	}
	return out, nil
}

// burst counts the cases that were opened around a time, up to one more than the breaker allows; fewer are 0.
func (r *Replica) burst(ctx context.Context, tx *tx, opened time.Time) (n int, err error) {
	allowed, window := r.cfg.Breaker.NewCases, r.cfg.Breaker.Window
	err = eachPlace(ctx, tx, r.ledger.sql(sqlBurst), []any{opened.Add(-window), opened.Add(window), allowed}, func(int) { n = allowed + 1 })
	return n, err
}

// awaitRelease leaves cases at the breaker until somebody releases them.
func (r *Replica) awaitRelease(ctx context.Context, tx *tx, cases []*ledger.OpenedCase, gaps []string) error {
	if len(cases) == 0 {
		return nil
	}
	_, err := r.write(ctx, tx, `UPDATE `+caseTables+` SET p.wait = 'breaker'`, refsJSON(ledger.RefsOf(cases)))
	if err != nil {
		return err
	}
	receipts := make([]*ledger.Receipt, len(cases))
	for i, c := range cases {
		receipts[i] = r.core.AwaitingReceipt(c, gaps, tx.now)
	}
	r.log.Error().Int("cases", len(cases)).Msg("breaker: erasures wait for `lethe release`; the copies are suppressed")
	return r.signAndWrite(ctx, tx, receipts...)
}

// erase runs phase 2 of the cases.
func (r *Replica) erase(ctx context.Context, tx *tx, cases []*ledger.OpenedCase, gaps []string) error {
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
	err = m.joining(ctx, tx, func() error {
		if len(m.finds) > 0 {
			return r.destroyFound(ctx, tx, m, cases)
		}
		return r.destroy(ctx, tx, m, set.List)
	})
	if err != nil {
		return err
	}
	crashpoint.Hit("sink.during_phase2")
	if err := r.concludeErased(ctx, tx, m, cases, gaps); err != nil {
		return err
	}
	if err := r.writeSubjects(ctx, tx, set.List); err != nil {
		return err
	}
	if err := r.raiseWitness(ctx, tx, m); err != nil {
		return err
	}
	crashpoint.Hit("sink.before_phase2_commit")
	return nil
}

// destroy does what phase 2 does in the mapped tables.
func (r *Replica) destroy(ctx context.Context, tx *tx, m *Mapping, list []*ledger.Subject) error {
	if err := m.lockPersons(ctx, tx, list); err != nil {
		return err
	}
	if err := r.effects(m, tx.now).again(ctx, tx, list); err != nil {
		return err
	}
	for i := range m.erase {
		if err := m.eraseRows(ctx, tx, &m.erase[i], list); err != nil {
			return err
		}
	}
	return nil
}

// again runs phase 1 once more in front of phase 2, for rows that it has not seen: a backup was restored, or the ETL has made
// the person's row anew. Without it their flags would stay open, and the read-back would find them so at every attempt. It
// notes no prior values: what they would be good for is over. The persons must have been locked.
func (e *effects) again(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	if err := e.suppress(ctx, tx, list); err != nil {
		return err
	}
	return e.fold(ctx, tx, list)
}

// lockPersons finds the persons that the subjects are, again: rows may have come and gone since phase 1.
func (m *Mapping) lockPersons(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	return m.eachPerson(ctx, tx, list, m.lock(), func(s *ledger.Subject, key string) {
		s.Effect.Matched = true
		s.Effect.Persons = append(s.Effect.Persons, key)
	})
}

// eachPerson tells the persons (person.key in text form) that the subjects' CRM keys lead to now.
func (m *Mapping) eachPerson(ctx context.Context, q querier, list []*ledger.Subject, lock string, tell func(s *ledger.Subject, key string)) error {
	who, err := whoBy(m.crm, list)
	if err != nil {
		return err
	}
	query := "SELECT v.i, " + m.key.text("t."+m.key.sql()) + " FROM " + m.tablesOf(who, join{table: m.person}, "") + " WHERE " + matchesBy(m.crm, "t") + lock
	return eachRow(ctx, q, query, who.args, func(rows *sql.Rows) error {
		var i int
		var person string
		if err := rows.Scan(&i, &person); err != nil {
			return err
		}
		tell(list[i], person)
		return nil
	})
}

// eraseRows runs one step of phase 2. Its rows are locked and counted first, because the server does not tell which rows an
// UPDATE or DELETE has met.
func (m *Mapping) eraseRows(ctx context.Context, tx *tx, step *eraseStep, list []*ledger.Subject) error {
	who, err := m.who(list)
	if err != nil {
		return err
	}
	from, where, key := m.reach(step.join)
	tables := m.tablesOf(who, step.join, from)
	change, action := &statement{}, ledger.ActionSet
	set := assignments(step.set, "t", key)
	switch {
	case step.hold:
		action = ledger.ActionHold
	case step.delete:
		action = ledger.ActionDelete
		change.add("DELETE t FROM "+tables+" WHERE "+where, who.args...)
	default:
		if step.unlink {
			action = ledger.ActionUnlink
			set = append(set, part{sql: "t." + step.by.sql() + " = NULL"})
		}
		if len(set) == 0 {
			return nil
		}
		change.add("UPDATE "+tables+" SET ", who.args...)
		change.addParts(set, ", ")
		change.add(" WHERE " + where)
	}
	query, label, found := "SELECT v.i FROM "+tables+" WHERE "+where, step.table.label(), false
	if !step.hold {
		query += m.lock()
	}
	err = eachPlace(ctx, tx, query, who.args, func(i int) {
		found = true
		list[i].Effect.Changed(label, action, 1)
	})
	if err != nil || !found || step.hold {
		return err
	}
	_, err = tx.exec(ctx, change.String(), change.args...)
	return err
}

// concludeErased writes what became of the cases.
func (r *Replica) concludeErased(ctx context.Context, tx *tx, m *Mapping, cases []*ledger.OpenedCase, gaps []string) error {
	lost := rowsOf("ref", typeKey, "code", typeWord)
	applied := rowsOf("ref", typeKey, "attempts", typeInt, "work", typeText, "prior", typeText)
	undone := map[ledger.Ref][]byte{}
	if len(m.finds) > 0 {
		var err error
		if undone, err = r.stillUndone(ctx, tx, cases); err != nil {
			return err
		}
	}
	receipts := make([]*ledger.Receipt, len(cases))
	for i, c := range cases {
		rc, work, isLost, err := r.core.Destroyed(c, m.crmErased && len(m.finds) == 0, gaps, tx.now)
		if err != nil {
			return err
		}
		receipts[i] = rc
		if isLost {
			lost.add(c.Ref[:], textArg(c.Subject.Effect.Doubt()))
		} else {
			applied.add(c.Ref[:], int64(rc.Attempt), jsonArg(work), jsonArg(undone[c.Ref]))
		}
	}
	if lost.n > 0 {
		_, err := r.write(ctx, tx, `UPDATE `+lost.table()+` STRAIGHT_JOIN {p}pending p ON p.ref = UNHEX(v.ref) SET p.matched = FALSE, p.error_code = v.code`, lost.arg())
		if err != nil {
			return err
		}
	}
	if applied.n > 0 {
		_, err := r.write(ctx, tx, `UPDATE `+applied.table()+` STRAIGHT_JOIN {p}pending p ON p.ref = UNHEX(v.ref)
			SET p.state = 'applied', p.wait = 'none', p.applied_at = ?, p.due_at = ?, p.attempts = v.attempts, p.prior = v.prior,
				p.work = v.work, p.error_code = NULL, p.mapping_digest = ?`,
			applied.arg(), tx.now, tx.now, r.opts.MappingDigest[:])
		if err != nil {
			return err
		}
	}
	return r.signAndWrite(ctx, tx, receipts...)
}

// recordRefusal counts an attempt that the replica refused (a constraint, a trigger). After the last one the case is
// failed: it stays suppressed, and only `lethe release` tries it again.
func (r *Replica) recordRefusal(ctx context.Context, places []sinks.Place, refused *ledger.RefusedError) error {
	return r.inTx(ctx, "recording a refused erasure", func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		return r.failAttempts(ctx, tx, [][]byte{refused.Ref[:]}, refused.Code)
	})
}

// failAttempts counts an attempt of some cases that did not succeed.
func (r *Replica) failAttempts(ctx context.Context, tx *tx, refs [][]byte, code string) error {
	if len(refs) == 0 {
		return nil
	}
	var cases []*ledger.OpenedCase
	states := map[ledger.Ref]string{}
	query := r.ledger.sql(`SELECT ` + caseColumns + `, p.state FROM ` + caseTables + lockRows)
	err := eachRow(ctx, tx, query, []any{refsJSON(refs)}, func(rows *sql.Rows) error {
		var state string
		c, err := scanCase(rows, &state)
		if err != nil {
			return err
		}
		cases, states[c.Ref] = append(cases, c), state
		return nil
	})
	if err != nil {
		return err
	}
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	var receipts []*ledger.Receipt
	for _, c := range cases {
		pause, over := r.core.Failed(c, states[c.Ref] == ledger.PendingSuppressed)
		due := any(tx.now.Add(pause))
		if over {
			due = never
			r.log.Error().Stringer("case", c.ID).Str("code", code).Msg("erasure failed: mend the cause, then `lethe release`")
			receipts = append(receipts, r.core.FailedReceipt(c, code, gaps, tx.now))
		}
		_, err := r.write(ctx, tx, `UPDATE {p}pending p SET p.state = 'suppressed', p.wait = 'none', p.error_code = ?, p.attempts = ?, p.due_at = ?
			WHERE p.ref = ?`, code, c.Attempts, due, c.Ref[:])
		if err != nil {
			return err
		}
	}
	return r.signAndWrite(ctx, tx, receipts...)
}
