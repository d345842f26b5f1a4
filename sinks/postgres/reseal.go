package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// resealKeys seals the CRM keys of subjects again that were sealed under an older key, so that it can be retired. A row
// that no key of the ring opens is left as it is: what needs it will say so.
func (r *Replica) resealKeys(ctx context.Context, places []sinks.Place) (time.Time, error) {
	due, after := r.reseal.Due()
	if time.Now().Before(due) {
		return due, nil
	}
	prefix, err := r.core.PrimaryPrefix()
	if err != nil || prefix == nil {
		return time.Time{}, err
	}
	last, err := r.resealSlice(ctx, places, prefix, after)
	if err != nil {
		return time.Time{}, err
	}
	return r.reseal.Done(last), nil
}

// resealSlice works on the subjects behind a reference and returns the last one, nil at the end.
func (r *Replica) resealSlice(ctx context.Context, places []sinks.Place, prefix, after []byte) (last []byte, err error) {
	err = r.inTx(ctx, "sealing CRM keys again", func(ctx context.Context, tx pgx.Tx) error {
		last = nil
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.ledger.sql(`
			SELECT ref, sealed_key FROM {s}.subject WHERE part = ANY ($1) AND ref > $2 AND substring(sealed_key FOR 5) <> $3
			ORDER BY ref LIMIT $4`), ledger.PartsOf(places), after, prefix, ledger.ResealLimit)
		if err != nil {
			return err
		}
		type row struct{ Ref, Sealed []byte }
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil || len(list) == 0 {
			return err
		}
		var refs, sealed [][]byte
		for _, x := range list {
			again, ok, err := r.core.Reseal(x.Ref, x.Sealed)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			refs, sealed = append(refs, x.Ref), append(sealed, again)
		}
		if skipped := len(list) - len(refs); skipped > 0 {
			r.log.Error().Int("subjects", skipped).Msg("CRM keys are sealed under a key that is not in the seal keyset: restore it")
		}
		_, err = tx.Exec(ctx, r.ledger.sql(`
			UPDATE {s}.subject s SET sealed_key = w.sealed FROM unnest($1::bytea[], $2::bytea[]) w(ref, sealed) WHERE s.ref = w.ref`), refs, sealed)
		if len(list) == ledger.ResealLimit {
			last = list[len(list)-1].Ref
		}
		return err
	})
	return last, err
}
