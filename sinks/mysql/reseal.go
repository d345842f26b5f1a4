package mysql

import (
	"context"
	"database/sql"
	"time"

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
	err = r.inTx(ctx, "sealing CRM keys again", func(ctx context.Context, tx *tx) error {
		last = nil
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		var refs, sealed [][]byte
		err := eachRow(ctx, tx, r.ledger.sql(`SELECT s.ref, s.sealed_key FROM {p}subject s
			WHERE `+inParts("s", ledger.PartsOf(places))+` AND s.ref > ? AND LEFT(s.sealed_key, ?) <> ? ORDER BY s.ref LIMIT ?`),
			[]any{after, ledger.SealIDSize, prefix, ledger.ResealLimit}, func(rows *sql.Rows) error {
				var ref, key []byte
				if err := rows.Scan(&ref, &key); err != nil {
					return err
				}
				refs, sealed = append(refs, ref), append(sealed, key)
				return nil
			})
		if err != nil || len(refs) == 0 {
			return err
		}
		if len(refs) == ledger.ResealLimit {
			last = refs[len(refs)-1]
		}
		renewed := rowsOf("ref", typeKey, "sealed", typeHex)
		for i, ref := range refs {
			again, ok, err := r.core.Reseal(ref, sealed[i])
			if err != nil {
				return err
			}
			if ok {
				renewed.add(ref, again)
			}
		}
		if skipped := len(refs) - renewed.n; skipped > 0 {
			r.log.Error().Int("subjects", skipped).Msg("CRM keys are sealed under a key that is not in the seal keyset: restore it")
		}
		if renewed.n == 0 {
			return nil
		}
		_, err = r.write(ctx, tx, `UPDATE `+renewed.table()+` STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref)
			SET s.sealed_key = UNHEX(v.sealed)`, renewed.arg())
		return err
	})
	return last, err
}
