package mysql

import (
	"context"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// askForFolds makes every fold due now; refoldDue writes them in slices. The subjects are locked, so that those of a batch
// under way are waited for: their folds may be those of the mapping before.
const askForFolds = `INSERT INTO {p}due (ref, part, next_change_at)
	SELECT s.ref, s.part, UTC_TIMESTAMP(6) FROM {p}subject s WHERE s.state <> 'erased' AND s.sealed_key IS NOT NULL FOR UPDATE
	ON DUPLICATE KEY UPDATE next_change_at = VALUES(next_change_at)`

// refoldGrown asks for the fold of every subject where columns follow from it that did not before: the mapping has
// another digest, or the replica was observed until now. What people have said meanwhile is known, and was written nowhere.
func (r *Replica) refoldGrown(ctx context.Context, places []sinks.Place) (time.Time, error) {
	if r.grown.Folds() {
		return time.Time{}, nil
	}
	want := ledger.FoldedUnder(r.cfg, r.opts.MappingDigest)
	meta, err := r.ledger.readMeta(ctx, r.opts.DB)
	if err != nil {
		return time.Time{}, err
	}
	if meta[ledger.MetaFolded] != want {
		err = r.inTx(ctx, "asking for the folds of a larger mapping", func(ctx context.Context, tx *tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			if want != ledger.FoldedObserving {
				if _, err := r.write(ctx, tx, unbounded+askForFolds); err != nil {
					return err
				}
			}
			_, err := r.write(ctx, tx, `INSERT INTO {p}meta (k, v) VALUES (?, ?) ON DUPLICATE KEY UPDATE v = VALUES(v)`, ledger.MetaFolded, want)
			return err
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
	err := r.inTx(ctx, "reopening cases of an older mapping", func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		_, err := r.write(ctx, tx, `
			UPDATE {p}pending p SET p.state = 'suppressed', p.wait = 'none', p.due_at = ?, p.attempts = `+sqlNextRound+`, p.error_code = NULL
			WHERE `+inParts("p", parts)+` AND p.state IN ('applied', 'verified') AND NOT p.observed AND NOT p.mapping_digest <=> ?`,
			tx.now, r.opts.MappingDigest[:])
		return err
	})
	if err != nil {
		return err
	}
	r.grown.ReopenedCases(parts)
	return nil
}
