package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

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
	err := r.inTx(ctx, "parking record", func(ctx context.Context, tx pgx.Tx) error {
		err := tx.QueryRow(ctx, r.ledger.sql(`
			UPDATE {s}.partition SET next_offset = $3, last_event_id = $4, last_order = $5, updated_at = now()
			WHERE part = $1 AND next_offset = $2 RETURNING updated_at`),
			from.Partition, from.NextOffset, to.NextOffset, to.LastEventID[:], to.LastOrder[:]).Scan(&to.UpdatedAt)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("moving offset: %w", sinks.ErrFenced)
		}
		if err != nil {
			return err
		}
		if err := r.block(ctx, tx, ref[:], rec, code); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, r.ledger.sql(`
			INSERT INTO {s}.parked (part, off, ref, event_id, bytes, error_code) VALUES ($1, $2, $3, $4, $5, $6)`),
			rec.Partition, rec.Offset, ref[:], event, rec.Value, code)
		if err != nil {
			return err
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
func (r *Replica) block(ctx context.Context, tx pgx.Tx, ref []byte, rec *sinks.Record, code string) error {
	var sealed []byte
	if rec.Event != nil && len(rec.Event.CRMKey) > 0 {
		var err error
		if sealed, err = r.core.SealKey(ref, rec.Event.CRMKey); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.subject AS s (ref, part, sealed_key, blocked) VALUES ($1, $2, $3, $4)
		ON CONFLICT (ref) DO UPDATE SET blocked = coalesce(s.blocked, excluded.blocked)`), ref, rec.Partition, sealed, code)
	return err
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
			err = r.inTx(ctx, "discarding parked event", func(ctx context.Context, tx pgx.Tx) error {
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
	err = r.opts.Pool.QueryRow(ctx, r.ledger.sql(`
		SELECT part, off, ref, coalesce(bytes, ''), want FROM {s}.parked p
		WHERE want IS NOT NULL AND done_at IS NULL AND part = ANY ($1) AND NOT (want = 'replay' AND error_code = $2 AND EXISTS (
			SELECT FROM {s}.parked o WHERE o.ref = p.ref AND o.done_at IS NULL AND o.error_code <> $2))
		ORDER BY part, off LIMIT 1`), ledger.PartsOf(places), ledger.CodeBlocked).
		Scan(&p.part, &p.off, &p.ref, &p.bytes, &p.want)
	if errors.Is(err, pgx.ErrNoRows) {
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
	u, err := r.newUnit(m, []sinks.Record{rec})
	if err != nil {
		return err
	}
	u.Replaying = true
	return r.inTx(ctx, "replaying parked event", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&u.Now); err != nil {
			return err
		}
		b := &pgx.Batch{}
		u.queueRead(b)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if err := u.meet(ctx, tx); err != nil {
			return err
		}
		u.Dispatch()
		if err := u.effects().run(ctx, tx, u.Set.List); err != nil {
			return err
		}
		u.Settle()
		last := &pgx.Batch{}
		if err := u.queueAll(last); err != nil {
			return err
		}
		if err := tx.SendBatch(ctx, last).Close(); err != nil {
			return err
		}
		return r.closeParked(ctx, tx, p, u.Results[0].Outcome)
	})
}

// closeParked records what was done, and lets the subject go where nothing else of it is parked. What waited behind the
// event is replayed next; while there is some, the subject stays blocked.
func (r *Replica) closeParked(ctx context.Context, tx pgx.Tx, p parkedRow, outcome string) error {
	b := &pgx.Batch{}
	b.Queue(r.ledger.sql(`
		UPDATE {s}.parked SET done_at = now(), outcome = $3, want = NULL, bytes = NULL WHERE part = $1 AND off = $2`),
		p.part, p.off, outcome)
	b.Queue(r.ledger.sql(`
		UPDATE {s}.parked w SET want = 'replay', wanted_by = 'lethe'
		WHERE w.ref = $1 AND w.done_at IS NULL AND w.want IS NULL AND w.error_code = $2 AND NOT EXISTS (
			SELECT FROM {s}.parked o WHERE o.ref = $1 AND o.done_at IS NULL AND o.error_code <> $2)`), p.ref, ledger.CodeBlocked)
	b.Queue(r.ledger.sql(`
		UPDATE {s}.subject SET blocked = NULL WHERE ref = $1 AND NOT EXISTS (
			SELECT FROM {s}.parked o WHERE o.ref = $1 AND o.done_at IS NULL)`), p.ref)
	return tx.SendBatch(ctx, b).Close()
}

// replayFailed leaves the event parked, with the code of this try.
func (r *Replica) replayFailed(ctx context.Context, p parkedRow, code string) error {
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		UPDATE {s}.parked SET want = NULL, tries = tries + 1, error_code = $3 WHERE part = $1 AND off = $2`), p.part, p.off, code)
	return classify("recording failed replay", err)
}
