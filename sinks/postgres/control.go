package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Paused reports whether an operator holds this replica.
func (r *Replica) Paused(ctx context.Context) (bool, error) {
	_, paused, err := r.ledger.readMeta(ctx, r.opts.Pool, ledger.MetaPaused)
	return paused, err
}

// Pause holds the replica: no batch is applied and nothing that is due is done until Resume. by is a pseudonym or a role
// and is kept beside it. A batch under way still commits.
func (r *Replica) Pause(ctx context.Context, by string) error {
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.meta (k, v) VALUES ($1, $2 || ' ' || now()::text) ON CONFLICT (k) DO NOTHING`), ledger.MetaPaused, by)
	return classify("pausing replica", err)
}

// Resume lets a paused replica go on. The last one that ended a pause is kept in meta with by, a pseudonym or a role, and
// with the pause that it ended; by may be empty, and is written as - then.
func (r *Replica) Resume(ctx context.Context, by string) error {
	if by == "" {
		by = "-"
	}
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		WITH ended AS (DELETE FROM {s}.meta WHERE k = $1 RETURNING v)
		INSERT INTO {s}.meta (k, v) SELECT $2, $3 || ' ' || now()::text || '; paused by ' || v FROM ended
		ON CONFLICT (k) DO UPDATE SET v = excluded.v`), ledger.MetaPaused, ledger.MetaResumed, by)
	return classify("resuming replica", err)
}

// Parked lists parked events by partition and offset; with done, also those that were replayed or discarded.
func (r *Replica) Parked(ctx context.Context, done bool, limit int) ([]ledger.ParkedEvent, error) {
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`
		SELECT part, off, event_id, error_code, tries, coalesce(want, ''), parked_at, done_at, coalesce(outcome, '')
		FROM {s}.parked WHERE done_at IS NULL OR $1 ORDER BY part, off LIMIT $2`), done, limit)
	if err != nil {
		return nil, classify("listing parked events", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p ledger.ParkedEvent, err error) {
		var event []byte
		var doneAt *time.Time
		err = row.Scan(&p.Partition, &p.Offset, &event, &p.Code, &p.Tries, &p.Want, &p.ParkedAt, &doneAt, &p.Outcome)
		copy(p.EventID[:], event)
		if doneAt != nil {
			p.DoneAt = *doneAt
		}
		return p, err
	})
	return out, classify("listing parked events", err)
}

// ReplayParked asks the owner of the partition to apply a parked event once more; DiscardParked to leave it away for
// good. Both are recorded with by, a pseudonym or a role. The subject stays blocked while one of its events is parked.
func (r *Replica) ReplayParked(ctx context.Context, partition int32, offset int64, by string) error {
	return r.wantParked(ctx, partition, offset, ledger.WantReplay, by)
}

// DiscardParked: see ReplayParked.
func (r *Replica) DiscardParked(ctx context.Context, partition int32, offset int64, by string) error {
	return r.wantParked(ctx, partition, offset, ledger.WantDiscard, by)
}

func (r *Replica) wantParked(ctx context.Context, partition int32, offset int64, want, by string) error {
	tag, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`
		UPDATE {s}.parked SET want = $3, wanted_by = $4 WHERE part = $1 AND off = $2 AND done_at IS NULL`),
		partition, offset, want, by)
	if err != nil {
		return classify("recording decision on parked event", err)
	}
	if tag.RowsAffected() == 0 {
		return &sinks.Error{
			Class: sinks.Permanent, Op: fmt.Sprintf("recording decision on parked event %d:%d", partition, offset),
			Code: "not_parked", Hint: "`lethe dead-letters list` shows what is parked",
		}
	}
	return nil
}
