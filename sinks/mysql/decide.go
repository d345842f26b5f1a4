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

// openDecision is a row of the table decision that nobody has carried out yet.
type openDecision struct {
	event    []byte
	ref      []byte
	decision string
}

// applyDecisions carries out what operators and the gate decided, in the order in which it came. It runs before phase 2,
// and phase 2 leaves a case alone while a decision on it is open: cancel and hold beat proceed until phase 2 has run. A
// decision whose erasure is still parked waits for it: carried out now it would find no case, and be lost.
func (r *Replica) applyDecisions(ctx context.Context, places []sinks.Place) (next time.Time, err error) {
	err = r.inTx(ctx, "carrying out case decisions", func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		var open []openDecision
		err := eachRow(ctx, tx, r.ledger.sql(`
			SELECT d.event_id, d.ref, d.decision FROM {p}decision d
			WHERE `+inParts("d", ledger.PartsOf(places))+` AND d.done_at IS NULL AND (
				EXISTS (SELECT 1 FROM {p}pending p WHERE p.ref = d.ref)
				OR NOT EXISTS (SELECT 1 FROM {p}parked k WHERE k.ref = d.ref AND k.done_at IS NULL))
			ORDER BY d.stored_at, d.event_id LIMIT ?`), []any{ledger.DecideLimit}, func(rows *sql.Rows) error {
			var d openDecision
			if err := rows.Scan(&d.event, &d.ref, &d.decision); err != nil {
				return err
			}
			open = append(open, d)
			return nil
		})
		if err != nil {
			return err
		}
		for _, d := range open {
			if err := r.decide(ctx, tx, d); err != nil {
				return err
			}
		}
		if len(open) == ledger.DecideLimit {
			next = time.Now()
		}
		return nil
	})
	return next, err
}

// decide carries out one decision. One that the replica refuses is closed as such, so that it holds up nothing else, and its
// case is held: whoever wanted a cancel did not want an erasure.
func (r *Replica) decide(ctx context.Context, tx *tx, d openDecision) error {
	var outcome string
	err := tx.savepoint(ctx, func() (err error) {
		outcome, err = r.decideCase(ctx, tx, d)
		return err
	})
	if refused := r.reduced("carrying out case decision", err); refused != nil {
		if !ledger.RefusesDecision(refused) {
			return err
		}
		code := sinks.CodeOf(refused)
		outcome = ledger.DecisionRefused
		_, err := r.write(ctx, tx, `UPDATE {p}pending p SET p.held = TRUE, p.error_code = ? WHERE p.ref = ? AND p.state = 'suppressed'`, code, d.ref)
		if err != nil {
			return err
		}
		r.log.Error().Hex("event", d.event).Str("code", code).Str("hint", sinks.HintOf(refused)).
			Msg("the replica refuses a decision on a case, which is held: mend the cause, then decide again")
	}
	_, err = r.write(ctx, tx, `UPDATE {p}decision d SET d.done_at = ?, d.outcome = ? WHERE d.event_id = ?`, tx.now, outcome, d.event)
	return err
}

// decideCase changes the case and makes the receipt that says so.
func (r *Replica) decideCase(ctx context.Context, tx *tx, d openDecision) (outcome string, err error) {
	var (
		c     *ledger.OpenedCase
		state string
		held  bool
		prior []byte
	)
	err = eachRow(ctx, tx, r.ledger.sql(`SELECT `+caseColumns+`, p.state, p.held, p.prior FROM {p}pending p WHERE p.ref = ? FOR UPDATE`), []any{d.ref},
		func(rows *sql.Rows) (err error) {
			c, err = scanCase(rows, &state, &held, &prior)
			return err
		})
	if err != nil {
		return "", err
	}
	if c == nil {
		return ledger.DecisionNoCase, nil
	}
	decision, err := schema.ParseDecision(d.decision)
	if err != nil {
		return "", err
	}
	if outcome := ledger.Unchanged(decision, state, held, c.Erased); outcome != "" {
		return outcome, nil
	}
	switch decision {
	case schema.DecisionProceed:
		_, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.wait = 'cool_off' WHERE p.ref = ? AND p.wait = 'decision'`, d.ref)
	case schema.DecisionRelease:
		err = r.release(ctx, tx, d.ref)
	case schema.DecisionHold:
		if _, err = r.write(ctx, tx, `UPDATE {p}pending p SET p.held = TRUE WHERE p.ref = ?`, d.ref); err == nil {
			err = r.writeDecided(ctx, tx, c, schema.ReceiptHeld)
		}
	default:
		err = r.cancel(ctx, tx, c, prior)
	}
	return ledger.DecisionDone, err
}

// release lets a case go on that is held, waits for a decision or at the breaker, or has failed; a case of a pass takes
// the others of its pass with it, except those that somebody has decided on by themselves or has to. Those are looked for
// without a lock: the partitions of some are another worker's.
func (r *Replica) release(ctx context.Context, tx *tx, ref []byte) error {
	const mate = `p.snapshot AND NOT p.held AND p.wait <> 'decision' AND p.due_at < '` + never + `' AND p.state = 'suppressed'`
	mates, err := r.refsOf(ctx, tx, `SELECT p.ref FROM {p}pending q JOIN {p}pending p ON p.run_id = q.run_id
		WHERE q.ref = ? AND q.snapshot AND p.ref <> q.ref AND `+mate, ref)
	if err != nil {
		return err
	}
	const set = ` SET p.held = FALSE, p.released = TRUE, p.wait = 'cool_off', p.attempts = ` + sqlNextRound + `, p.error_code = NULL,
		p.due_at = CASE WHEN p.due_at = '` + never + `' THEN ? ELSE p.due_at END`
	if _, err := r.write(ctx, tx, `UPDATE {p}pending p`+set+` WHERE p.ref = ? AND p.state = 'suppressed'`, tx.now, ref); err != nil || len(mates) == 0 {
		return err
	}
	_, err = r.write(ctx, tx, `UPDATE `+caseTables+set+` WHERE `+mate, refsJSON(mates), tx.now)
	return err
}

func (r *Replica) writeDecided(ctx context.Context, tx *tx, c *ledger.OpenedCase, state schema.ReceiptState) error {
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	return r.signAndWrite(ctx, tx, r.core.DecidedReceipt(c, state, gaps, tx.now))
}

// cancel takes phase 1 back: the prior values return, then the fold is written, because facts may have changed since.
// The subject's erased_order stays, so that the same marker delivered again does not open the case again.
func (r *Replica) cancel(ctx context.Context, tx *tx, c *ledger.OpenedCase, prior []byte) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	var undo []ledger.UndoEntry
	if len(prior) > 0 {
		if err := json.Unmarshal(prior, &undo); err != nil {
			return err
		}
	}
	for _, u := range slices.Backward(undo) {
		if err := m.takeBack(ctx, tx, u); err != nil {
			return err
		}
	}
	if _, err := r.write(ctx, tx, `DELETE FROM {p}pending WHERE ref = ?`, c.Ref[:]); err != nil {
		return err
	}
	set, err := r.attach(ctx, tx, []*ledger.OpenedCase{c})
	if err != nil {
		return err
	}
	c.Subject.State, c.Subject.Dirty = ledger.SubjectLive, true
	if err := r.refold(ctx, tx, set); err != nil {
		return err
	}
	return r.writeDecided(ctx, tx, c, schema.ReceiptCancelled)
}

// takeBack restores one row. Names come from our own table, and are looked up in the mapping all the same: what is restored
// is a column that phase 1 may change, or nothing.
func (m *Mapping) takeBack(ctx context.Context, tx *tx, u ledger.UndoEntry) error {
	t := m.tables[u.Table]
	if t == nil {
		return ledger.ErrUndoTable(u.Table)
	}
	var set, where []part
	for _, name := range ledger.SortedKeys(u.Set) {
		c := t.column(name)
		if c == nil {
			return ledger.ErrUndoColumn(t.label(), name)
		}
		set = append(set, part{"t." + c.sql() + " = " + c.fromText("?"), []any{textOrNil(u.Set[name])}})
	}
	for _, name := range ledger.SortedKeys(u.Key) {
		c := t.column(name)
		if c == nil {
			return ledger.ErrUndoColumn(t.label(), name)
		}
		condition, err := c.hasText("t."+c.sql(), u.Key[name])
		if err != nil {
			return err
		}
		where = append(where, condition)
	}
	if len(where) == 0 || len(set) == 0 && !u.Inserted {
		return nil
	}
	s := &statement{}
	if u.Inserted {
		s.add("DELETE t FROM " + t.sql() + " AS t")
	} else {
		s.add("UPDATE " + t.sql() + " AS t SET ")
		s.addParts(set, ", ")
	}
	s.add(" WHERE ")
	s.addParts(where, " AND ")
	_, err := tx.exec(ctx, s.String(), s.args...)
	return err
}

// hasText returns the condition that an expression of the column, one of a key, has a value in text form. Values of the
// types that keys are made of go in as such: for a text the server would compare numbers as floating ones.
func (c *column) hasText(expression, text string) (part, error) {
	if !c.comparesAsKey() {
		return part{expression + " = " + c.fromText("?"), []any{text}}, nil
	}
	value, err := c.keyValue(text)
	if c.base == "decimal" {
		return part{expression + " = CAST(? AS " + c.keyType() + ")", []any{value}}, err
	}
	return part{c.resembles(expression, "?"), []any{value}}, err
}

func textOrNil(v *string) any {
	if v == nil {
		return nil
	}
	return *v
}
