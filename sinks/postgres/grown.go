package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// refoldGrown asks for the fold of every subject where columns follow from it that did not before: the mapping has
// another digest, or the replica was observed until now. What people have said meanwhile is known, and was written nowhere.
// Their rows are reached through next_change_at, in slices.
func (r *Replica) refoldGrown(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if r.grown.Folds() {
		return time.Time{}, nil
	}
	want := ledger.FoldedUnder(r.cfg, r.opts.MappingDigest)
	have, _, err := r.ledger.readMeta(ctx, r.opts.Pool, ledger.MetaFolded)
	if err != nil {
		return time.Time{}, err
	}
	if have != want {
		err = r.inTx(ctx, "asking for the folds of a larger mapping", func(ctx context.Context, tx pgx.Tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			b := &pgx.Batch{}
			b.Queue(`SELECT set_config('statement_timeout', '0', true)`) // it grows with the ledger
			if want != ledger.FoldedObserving {
				b.Queue(r.ledger.sql(`UPDATE {s}.subject SET next_change_at = now() WHERE state <> 'erased' AND sealed_key IS NOT NULL`))
			}
			b.Queue(r.ledger.sql(`INSERT INTO {s}.meta (k, v) VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v`), ledger.MetaFolded, want)
			return send(ctx, tx, b)
		})
		if err != nil {
			return time.Time{}, err
		}
	}
	r.grown.AskedFolds()
	return time.Time{}, nil
}

// reopenGrown sends erased subjects through phase 2 again when the mapping has changed since: a column that is mapped
// now may still hold what was not erased then. Those that such a column has kept from being verified are among them.
func (r *Replica) reopenGrown(ctx context.Context, places []sinks.Place) error {
	parts := r.grown.Cases(places)
	if len(parts) == 0 {
		return nil
	}
	err := r.inTx(ctx, "reopening cases of an older mapping", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, r.ledger.sql(`
			UPDATE {s}.pending p SET state = 'suppressed', wait = 'none', due_at = now(), attempts = `+sqlNextRound+`, error_code = NULL
			WHERE part = ANY ($1) AND state IN ('applied', 'verified') AND NOT observed AND mapping_digest IS DISTINCT FROM $2`), parts, r.opts.MappingDigest[:])
		return err
	})
	if err != nil {
		return err
	}
	r.grown.ReopenedCases(parts)
	return nil
}
