package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// applyDecisions carries out what operators and the gate decided, in the order in which it came. It runs before phase 2,
// and phase 2 leaves a case alone while a decision on it is open: cancel and hold beat proceed until phase 2 has run. A
// decision whose erasure is still parked waits for it: carried out now it would find no case, and be lost.
func (r *Replica) applyDecisions(ctx context.Context, places []sinks.Place) (next time.Time, err error) {
	err = r.inTx(ctx, "carrying out case decisions", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.ledger.sql(`
			SELECT event_id, ref, decision FROM {s}.decision d WHERE done_at IS NULL AND part = ANY ($1)
				AND (EXISTS (SELECT FROM {s}.pending p WHERE p.ref = d.ref)
					OR NOT EXISTS (SELECT FROM {s}.parked k WHERE k.ref = d.ref AND k.done_at IS NULL))
			ORDER BY stored_at, event_id LIMIT $2`), ledger.PartsOf(places), ledger.DecideLimit)
		if err != nil {
			return err
		}
		open, err := pgx.CollectRows(rows, pgx.RowToStructByPos[openDecision])
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

// openDecision is a row of lethe.decision that nobody has carried out yet.
type openDecision struct {
	Event    []byte
	Ref      []byte
	Decision string
}

// decide carries out one decision. One that the replica refuses is closed as such, so that it holds up nothing else, and its
// case is held: whoever wanted a cancel did not want an erasure.
func (r *Replica) decide(ctx context.Context, tx pgx.Tx, d openDecision) error {
	var outcome string
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		outcome, err = r.decideCase(ctx, tx, d)
		return err
	})
	if refused := r.reduced("carrying out case decision", err); refused != nil {
		if !ledger.RefusesDecision(refused) {
			return err
		}
		code := sinks.CodeOf(refused)
		outcome = ledger.DecisionRefused
		_, err := tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.pending SET held = true, error_code = $2 WHERE ref = $1 AND state = 'suppressed'`), d.Ref, code)
		if err != nil {
			return err
		}
		r.log.Error().Hex("event", d.Event).Str("code", code).Str("hint", sinks.HintOf(refused)).
			Msg("the replica refuses a decision on a case, which is held: mend the cause, then decide again")
	}
	_, err = tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.decision SET done_at = now(), outcome = $2 WHERE event_id = $1`), d.Event, outcome)
	return err
}

// decideCase changes the case and makes the receipt that says so.
func (r *Replica) decideCase(ctx context.Context, tx pgx.Tx, d openDecision) (outcome string, err error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`SELECT `+caseColumns+`, p.state, p.held, p.undo, now() FROM {s}.pending p WHERE ref = $1 FOR UPDATE`), d.Ref)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	if !rows.Next() {
		return ledger.DecisionNoCase, rows.Err()
	}
	var (
		state string
		held  bool
		undo  []ledger.UndoEntry
		now   time.Time
	)
	c, err := scanCase(rows, &state, &held, &undo, &now)
	rows.Close()
	if err := errors.Join(err, rows.Err()); err != nil {
		return "", err
	}
	decision, err := schema.ParseDecision(d.Decision)
	if err != nil {
		return "", err
	}
	if outcome := ledger.Unchanged(decision, state, held, c.Erased); outcome != "" {
		return outcome, nil
	}
	switch decision {
	case schema.DecisionProceed:
		_, err = tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.pending SET wait = 'cool_off' WHERE ref = $1 AND wait = 'decision'`), d.Ref)
		return ledger.DecisionDone, err
	case schema.DecisionRelease:
		return ledger.DecisionDone, r.release(ctx, tx, d.Ref)
	case schema.DecisionHold:
		if _, err := tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.pending SET held = true WHERE ref = $1`), d.Ref); err != nil {
			return "", err
		}
		return ledger.DecisionDone, r.storeCaseReceipt(ctx, tx, c, schema.ReceiptHeld, now)
	default:
		return ledger.DecisionDone, r.cancel(ctx, tx, c, undo, now)
	}
}

// release lets a case go on that is held, waits for a decision or at the breaker, or has failed; a case of a pass takes
// the others of its pass with it, except those that somebody has decided on by themselves or has to.
func (r *Replica) release(ctx context.Context, tx pgx.Tx, ref []byte) error {
	_, err := tx.Exec(ctx, r.ledger.sql(`
		UPDATE {s}.pending p SET held = false, released = true, wait = 'cool_off', attempts = `+sqlNextRound+`, error_code = NULL,
			due_at = CASE WHEN p.due_at = 'infinity' THEN now() ELSE p.due_at END
		FROM {s}.pending q
		WHERE q.ref = $1 AND p.state = 'suppressed' AND (p.ref = q.ref OR q.snapshot AND p.snapshot AND p.run_id = q.run_id
			AND NOT p.held AND p.wait <> 'decision' AND p.due_at < 'infinity')`), ref)
	return err
}

func (r *Replica) storeCaseReceipt(ctx context.Context, tx pgx.Tx, c *ledger.OpenedCase, state schema.ReceiptState, now time.Time) error {
	gaps, err := r.readOpenGaps(ctx, tx)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	if err := r.queueReceipt(b, r.core.DecidedReceipt(c, state, gaps, now)); err != nil {
		return err
	}
	return send(ctx, tx, b)
}

// cancel takes phase 1 back: the prior values return, then the fold is written, because facts may have changed since.
// The subject's erased_order stays, so that the same marker delivered again does not open the case again.
func (r *Replica) cancel(ctx context.Context, tx pgx.Tx, c *ledger.OpenedCase, undo []ledger.UndoEntry, now time.Time) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	for _, u := range slices.Backward(undo) {
		if err := m.queueUndo(b, u); err != nil {
			return err
		}
	}
	b.Queue(r.ledger.sql(`DELETE FROM {s}.pending WHERE ref = $1`), c.Ref[:])
	if err := send(ctx, tx, b); err != nil {
		return err
	}
	set, err := r.attach(ctx, tx, []*ledger.OpenedCase{c})
	if err != nil {
		return err
	}
	c.Subject.State, c.Subject.Dirty = ledger.SubjectLive, true
	if err := r.refold(ctx, tx, set, nil); err != nil {
		return err
	}
	return r.storeCaseReceipt(ctx, tx, c, schema.ReceiptCancelled, now)
}

// queueUndo restores one row. Names come from our own table, and are looked up in the mapping all the same: what is
// restored is a column that phase 1 may change, or nothing.
func (m *Mapping) queueUndo(b *pgx.Batch, u ledger.UndoEntry) error {
	t := m.tables[u.Table]
	if t == nil {
		return ledger.ErrUndoTable(u.Table)
	}
	s := &statement{}
	equal := func(sep string, values map[string]*string) (string, error) {
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(values)) {
			col := t.column(name)
			if col == nil {
				return "", ledger.ErrUndoColumn(t.label(), name)
			}
			parts = append(parts, col.sql()+" = "+s.arg(values[name])+"::text::"+col.typ)
		}
		return strings.Join(parts, sep), nil
	}
	keys := make(map[string]*string, len(u.Key))
	for k, v := range u.Key {
		keys[k] = &v
	}
	set, err := equal(", ", u.Set)
	if err != nil {
		return err
	}
	where, err := equal(" AND ", keys)
	if err != nil || where == "" {
		return err
	}
	switch {
	case u.Inserted:
		s.WriteString("DELETE FROM " + t.sql() + " WHERE " + where)
	case set == "":
		return nil
	default:
		s.WriteString("UPDATE " + t.sql() + " SET " + set + " WHERE " + where)
	}
	b.Queue(s.String(), s.args...)
	return nil
}
