package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Paused reports whether an operator holds this replica.
func (r *Replica) Paused(ctx context.Context) (bool, error) {
	var paused bool
	err := r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`SELECT EXISTS (SELECT 1 FROM {p}meta WHERE k = '`+ledger.MetaPaused+`')`)).Scan(&paused)
	return paused, classify("reading "+ledger.MetaPaused, err)
}

// Pause holds the replica: no batch is applied and nothing that is due is done until Resume. by is a pseudonym or a role
// and is kept beside it. A batch under way still commits.
func (r *Replica) Pause(ctx context.Context, by string) error {
	const op = "pausing replica"
	return r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		_, err := tx.exec(ctx, r.ledger.sql(`INSERT INTO {p}meta (k, v) VALUES ('`+ledger.MetaPaused+`', ?) ON DUPLICATE KEY UPDATE k = VALUES(k)`),
			by+" "+stamp(tx.now))
		return err
	})
}

// stamp is a time as meta keeps it.
func stamp(at time.Time) string { return at.Format("2006-01-02 15:04:05.000000+00") }

// Resume lets a paused replica go on. The last one that ended a pause is kept in meta with by, a pseudonym or a role, and
// with the pause that it ended; by may be empty, and is written as - then.
func (r *Replica) Resume(ctx context.Context, by string) error {
	if by == "" {
		by = "-"
	}
	return r.inTx(ctx, "resuming replica", func(ctx context.Context, tx *tx) error {
		var paused string
		err := tx.QueryRowContext(ctx, r.ledger.sql(`SELECT v FROM {p}meta WHERE k = '`+ledger.MetaPaused+`' FOR UPDATE`)).Scan(&paused)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(`DELETE FROM {p}meta WHERE k = '`+ledger.MetaPaused+`'`))
		}
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(`INSERT INTO {p}meta (k, v) VALUES ('`+ledger.MetaResumed+`', ?) ON DUPLICATE KEY UPDATE v = VALUES(v)`),
				by+" "+stamp(tx.now)+"; paused by "+paused)
		}
		return err
	})
}

// Parked lists parked events by partition and offset; with done, also those that were replayed or discarded.
func (r *Replica) Parked(ctx context.Context, done bool, limit int) ([]ledger.ParkedEvent, error) {
	var out []ledger.ParkedEvent
	err := eachRow(ctx, r.opts.DB, r.ledger.sql(`
		SELECT part, off, event_id, error_code, tries, COALESCE(want, ''), parked_at, done_at, COALESCE(outcome, '')
		FROM {p}parked WHERE done_at IS NULL OR ? ORDER BY part, off LIMIT ?`), []any{done, limit}, func(rows *sql.Rows) error {
		var p ledger.ParkedEvent
		var event []byte
		var doneAt sql.NullTime
		err := rows.Scan(&p.Partition, &p.Offset, &event, &p.Code, &p.Tries, &p.Want, &p.ParkedAt, &doneAt, &p.Outcome)
		copy(p.EventID[:], event)
		p.DoneAt = doneAt.Time
		out = append(out, p)
		return err
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
	return r.inTx(ctx, "recording decision on parked event", func(ctx context.Context, tx *tx) error {
		// Asked twice, the row does not change, and the server would not count it.
		var one int
		err := tx.QueryRowContext(ctx, r.ledger.sql(`SELECT 1 FROM {p}parked WHERE part = ? AND off = ? AND done_at IS NULL FOR UPDATE`), partition, offset).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return &sinks.Error{
				Class: sinks.Permanent, Op: fmt.Sprintf("recording decision on parked event %d:%d", partition, offset),
				Code: "not_parked", Hint: "`lethe dead-letters list` shows what is parked",
			}
		}
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(`UPDATE {p}parked SET want = ?, wanted_by = ? WHERE part = ? AND off = ?`), want, by, partition, offset)
		}
		return err
	})
}
