package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"lethe/internal/crashpoint"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Park implements sinks.Applier. The record's subject is blocked: of it only what forbids is applied until the record is
// replayed or discarded. Bytes that name no subject cannot be parked, because nothing could hold back what follows them:
// the partition stops.
func (r *Replica) Park(ctx context.Context, from sinks.Place, rec *sinks.Record, code string) (sinks.Place, error) {
	ref, event, ok := r.core.ParkedSubject(rec)
	if !ok {
		return from, ledger.ErrPartsStop(rec)
	}
	to := from
	to.NextOffset = rec.Offset + 1
	if rec.Event != nil {
		to.LastEventID, to.LastOrder = rec.Event.EventID, rec.Event.Order
	}
	err := r.inTx(ctx, "parking record", func(ctx context.Context, tx *tx) error {
		to.UpdatedAt = tx.now
		n, err := tx.exec(ctx, r.ledger.sql(`
			UPDATE {p}partition SET next_offset = ?, last_event_id = ?, last_order = ?, updated_at = ? WHERE part = ? AND next_offset = ?`),
			to.NextOffset, to.LastEventID[:], to.LastOrder[:], tx.now, from.Partition, from.NextOffset)
		if err != nil {
			return own(err)
		}
		if n == 0 {
			return fmt.Errorf("moving offset: %w", sinks.ErrFenced)
		}
		if err := r.block(ctx, tx, ref[:], rec, code); err != nil {
			return err
		}
		_, err = tx.exec(ctx, r.ledger.sql(`
			INSERT INTO {p}parked (part, off, ref, event_id, bytes, error_code, parked_at) VALUES (?, ?, ?, ?, ?, ?, ?)`),
			rec.Partition, rec.Offset, ref[:], event, rec.Value, code, tx.now)
		if err != nil {
			return own(err)
		}
		crashpoint.Hit("sink.before_commit")
		return nil
	})
	if err != nil {
		return from, err
	}
	crashpoint.Hit("sink.after_commit")
	r.metrics.Events.WithLabelValues(ledger.OutcomeParked).Inc()
	return to, nil
}

// block marks the subject, keeping the code of the first event that blocks it.
func (r *Replica) block(ctx context.Context, tx *tx, ref []byte, rec *sinks.Record, code string) error {
	var sealed []byte
	if rec.Event != nil && len(rec.Event.CRMKey) > 0 {
		var err error
		if sealed, err = r.core.SealKey(ref, rec.Event.CRMKey); err != nil {
			return err
		}
	}
	_, err := tx.exec(ctx, r.ledger.sql(`
		INSERT INTO {p}subject (ref, part, sealed_key, blocked) VALUES (?, ?, ?, ?)
		ON DUPLICATE KEY UPDATE blocked = COALESCE({p}subject.blocked, VALUES(blocked))`), ref, rec.Partition, sealed, code)
	return own(err)
}

// parkedRow is a parked event that somebody has decided on.
type parkedRow struct {
	part  int32
	off   int64
	ref   []byte
	bytes []byte
	want  string
}

// runParked does what operators have decided on parked events, one at a time and in their order.
func (r *Replica) runParked(ctx context.Context, places []sinks.Place) (time.Time, error) {
	for range ledger.ParkedLimit {
		p, found, err := r.nextParked(ctx, places)
		if err != nil || !found {
			return time.Time{}, err
		}
		if p.want == ledger.WantReplay {
			err = r.replay(ctx, places, p)
			if class := sinks.Classify(err); err != nil && class == sinks.Poison {
				err = r.replayFailed(ctx, p, sinks.CodeOf(err))
			}
		} else {
			err = r.inTx(ctx, "discarding parked event", func(ctx context.Context, tx *tx) error {
				if err := r.lockPlaces(ctx, tx, places); err != nil {
					return err
				}
				return r.closeParked(ctx, tx, p, "discarded")
			})
		}
		if err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

// nextParked finds a parked event that somebody has decided on. What waits behind a refused event of its subject goes on
// waiting, whoever asks for it: the refused one may be what forbids.
func (r *Replica) nextParked(ctx context.Context, places []sinks.Place) (p parkedRow, found bool, err error) {
	err = r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`
		SELECT p.part, p.off, p.ref, COALESCE(p.bytes, ''), p.want FROM `+partsTable+` STRAIGHT_JOIN {p}parked p ON p.part = w.part
		WHERE p.done_at IS NULL AND p.want IS NOT NULL AND NOT (p.want = 'replay' AND p.error_code = ? AND EXISTS (
			SELECT 1 FROM {p}parked o WHERE o.ref = p.ref AND o.done_at IS NULL AND o.error_code <> ?))
		ORDER BY p.part, p.off LIMIT 1`), jsonList(ledger.PartsOf(places)), ledger.CodeBlocked, ledger.CodeBlocked).
		Scan(&p.part, &p.off, &p.ref, &p.bytes, &p.want)
	if errors.Is(err, sql.ErrNoRows) {
		return p, false, nil
	}
	return p, err == nil, classify("reading parked events", err)
}

// replay applies a parked event as Apply would, except that no offset moves and its subject's block does not hold it.
func (r *Replica) replay(ctx context.Context, places []sinks.Place, p parkedRow) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	rec := sinks.Record{Partition: p.part, Offset: p.off, Value: p.bytes}
	if rec.Event, err = r.decoder.Decode(p.bytes); err != nil {
		return ledger.Poison(ledger.CodeUndecodable, "the record is not an event of this Lethe: discard it")
	}
	u, err := r.core.NewUnit(len(m.crm), []sinks.Record{rec})
	if err != nil {
		return err
	}
	u.Replaying = true
	return r.inTx(ctx, "replaying parked event", func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		u.Now = tx.now
		if err := r.applyUnit(ctx, tx, m, u); err != nil {
			return err
		}
		return r.closeParked(ctx, tx, p, u.Results[0].Outcome)
	})
}

// closeParked records what was done, and lets the subject go where nothing else of it is parked. What waited behind the
// event is replayed next; while there is some, the subject stays blocked.
func (r *Replica) closeParked(ctx context.Context, tx *tx, p parkedRow, outcome string) error {
	_, err := tx.exec(ctx, r.ledger.sql(`
		UPDATE {p}parked SET done_at = ?, outcome = ?, want = NULL, bytes = NULL WHERE part = ? AND off = ?`), tx.now, outcome, p.part, p.off)
	if err != nil {
		return own(err)
	}
	// No statement may read the table that it writes: what is left of the subject is counted in front.
	var refused, left int
	err = tx.QueryRowContext(ctx, r.ledger.sql(`
		SELECT COALESCE(SUM(error_code <> ?), 0), COUNT(*) FROM {p}parked WHERE ref = ? AND done_at IS NULL`), ledger.CodeBlocked, p.ref).
		Scan(&refused, &left)
	switch {
	case err != nil:
		return err
	case left == 0:
		_, err = tx.exec(ctx, r.ledger.sql(`UPDATE {p}subject SET blocked = NULL WHERE ref = ?`), p.ref)
	case refused == 0:
		_, err = tx.exec(ctx, r.ledger.sql(`
			UPDATE {p}parked SET want = 'replay', wanted_by = 'lethe' WHERE ref = ? AND done_at IS NULL AND want IS NULL AND error_code = ?`),
			p.ref, ledger.CodeBlocked)
	}
	return own(err)
}

// replayFailed leaves the event parked, with the code of this try.
func (r *Replica) replayFailed(ctx context.Context, p parkedRow, code string) error {
	_, err := r.opts.DB.ExecContext(ctx, r.ledger.sql(`
		UPDATE {p}parked SET want = NULL, tries = tries + 1, error_code = ? WHERE part = ? AND off = ?`), code, p.part, p.off)
	return classify("recording failed replay", err)
}
