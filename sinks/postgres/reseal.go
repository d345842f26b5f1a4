package postgres

import (
	"bytes"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
)

const (
	// sealPrefix begins every ciphertext that carries the id of its key in the four bytes after it (Tink).
	sealPrefix = 0x01
	sealIDSize = 5
	// resealEvery is how often rows of older keys are looked for: a key is rotated once in months, and the processes restart
	// for it.
	resealEvery = time.Hour
	resealLimit = 500
)

// primaryPrefix is what ciphertexts of the primary seal key begin with; nil for an AEAD whose ciphertexts carry no id of a
// key, which is never rotated. Two are compared, because a nonce at the front may look like an id once.
func (r *Replica) primaryPrefix() ([]byte, error) {
	one, err := r.opts.Seal.AppendSeal(nil, nil, nil)
	if err != nil {
		return nil, err
	}
	two, err := r.opts.Seal.AppendSeal(nil, nil, nil)
	if err != nil {
		return nil, err
	}
	if len(one) < sealIDSize || one[0] != sealPrefix || !bytes.Equal(one[:sealIDSize], two[:sealIDSize]) {
		return nil, nil
	}
	return one[:sealIDSize], nil
}

// resealKeys seals the CRM keys of subjects again that were sealed under an older key, so that it can be retired. A row
// that no key of the ring opens is left as it is: what needs it will say so.
func (r *Replica) resealKeys(ctx context.Context, places []sinks.Place) (time.Time, error) {
	r.mu.Lock()
	due, after := r.resealAt, r.resealAfter
	r.mu.Unlock()
	if time.Now().Before(due) {
		return due, nil
	}
	prefix, err := r.primaryPrefix()
	if err != nil || prefix == nil {
		return time.Time{}, err
	}
	if after == nil {
		after = []byte{}
	}
	if after, err = r.resealBatch(ctx, places, prefix, after); err != nil {
		return time.Time{}, err
	}
	next := time.Now()
	if after == nil {
		next = next.Add(resealEvery)
	}
	r.mu.Lock()
	r.resealAt, r.resealAfter = next, after
	r.mu.Unlock()
	return next, nil
}

// resealBatch works on the subjects behind a reference and returns the last one, nil at the end.
func (r *Replica) resealBatch(ctx context.Context, places []sinks.Place, prefix, after []byte) (last []byte, err error) {
	err = r.inTx(ctx, "sealing CRM keys again", func(ctx context.Context, tx pgx.Tx) error {
		last = nil
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.ledger.sql(`
			SELECT ref, sealed_key FROM {s}.subject WHERE part = ANY ($1) AND ref > $2 AND substring(sealed_key FOR 5) <> $3
			ORDER BY ref LIMIT $4`), partsOf(places), after, prefix, resealLimit)
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
			plain, err := r.opts.Seal.Open(x.Sealed, x.Ref)
			if err != nil {
				continue
			}
			again, err := r.opts.Seal.AppendSeal(nil, plain, x.Ref)
			clear(plain)
			if err != nil {
				return err
			}
			refs, sealed = append(refs, x.Ref), append(sealed, again)
		}
		if skipped := len(list) - len(refs); skipped > 0 {
			r.log.Error().Int("subjects", skipped).Msg("CRM keys are sealed under a key that is not in the seal keyset: restore it")
		}
		_, err = tx.Exec(ctx, r.ledger.sql(`
			UPDATE {s}.subject s SET sealed_key = w.sealed FROM unnest($1::bytea[], $2::bytea[]) w(ref, sealed) WHERE s.ref = w.ref`), refs, sealed)
		if len(list) == resealLimit {
			last = list[len(list)-1].Ref
		}
		return err
	})
	return last, err
}
