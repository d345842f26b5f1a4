package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// Desk is what an operator's command line reads and records in one replica, beside the running workers and without their
// keys. Safe for concurrent use.
type Desk struct{ r *Replica }

// NewDesk makes a Desk. It opens nothing; the pool is the caller's.
func NewDesk(cfg *config.Replica, pool *pgxpool.Pool) *Desk {
	return &Desk{&Replica{
		opts: Options{Name: cfg.Name, Config: cfg, Pool: pool, VerifyPool: pool, StatementTimeout: defaultStatementTimeout},
		cfg:  cfg, ledger: ledgerTables{schema: ledgerSchema(cfg)}, log: zerolog.Nop(),
	}}
}

// Pause holds the replica; see Replica.Pause.
func (d *Desk) Pause(ctx context.Context, by string) error { return d.r.Pause(ctx, by) }

// Resume lets the replica go on; see Replica.Resume.
func (d *Desk) Resume(ctx context.Context, by string) error { return d.r.Resume(ctx, by) }

// Parked lists parked events; see Replica.Parked.
func (d *Desk) Parked(ctx context.Context, done bool, limit int) ([]ledger.ParkedEvent, error) {
	return d.r.Parked(ctx, done, limit)
}

// ReplayParked asks for a parked event to be applied once more; see Replica.ReplayParked.
func (d *Desk) ReplayParked(ctx context.Context, partition int32, offset int64, by string) error {
	return d.r.ReplayParked(ctx, partition, offset, by)
}

// DiscardParked asks for a parked event to be left away; see Replica.DiscardParked.
func (d *Desk) DiscardParked(ctx context.Context, partition int32, offset int64, by string) error {
	return d.r.DiscardParked(ctx, partition, offset, by)
}

// FindCase returns the canonical CRM key of a case's subject, opened with the seal key, and whether the replica has the
// case at all. The key is personal: it is for deriving the subject's reference, and nothing else.
func (d *Desk) FindCase(ctx context.Context, id schema.CaseID, seal schema.AEAD) (crmKey []byte, found bool, err error) {
	var ref, sealed []byte
	err = d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`
		SELECT p.ref, s.sealed_key FROM {s}.pending p JOIN {s}.subject s USING (ref)
		WHERE p.case_id = $1 AND s.sealed_key IS NOT NULL LIMIT 1`), id[:]).Scan(&ref, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, classify("looking for the case", err)
	}
	parts, err := ledger.OpenKey(seal, ref, sealed)
	if err != nil {
		return nil, true, err
	}
	raw := make([][]byte, len(parts))
	for i, p := range parts {
		raw[i] = []byte(p)
	}
	return schema.CanonicalKey(nil, raw...), true, nil
}

// DecisionOutcome tells what became of a decision in this replica: empty while its sink has not seen it or not carried it
// out yet.
func (d *Desk) DecisionOutcome(ctx context.Context, id schema.EventID) (string, error) {
	var outcome *string
	err := d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT outcome FROM {s}.decision WHERE event_id = $1 AND done_at IS NOT NULL`), id[:]).Scan(&outcome)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && outcome == nil {
		return "", nil
	}
	if err != nil {
		return "", classify("reading the decision", err)
	}
	return *outcome, nil
}

// DecisionDone is the outcome of a decision that was carried out; any other says why it was not.
const DecisionDone = ledger.DecisionDone

// SealedUnder counts the rows of this replica that need one key of the seal keyset: sealed CRM keys and parked events. keyID
// reads the id from a ciphertext.
func (d *Desk) SealedUnder(ctx context.Context, id uint32, keyID func(sealed []byte) (uint32, error)) (subjects, parked int, err error) {
	const op = "looking for rows sealed under the key"
	prefix := []byte{ledger.SealPrefix, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)} //nolint:gosec // the bytes of the id
	err = d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT count(*) FROM {s}.subject WHERE substring(sealed_key FOR 5) = $1`), prefix).Scan(&subjects)
	if err != nil {
		return 0, 0, classify(op, err)
	}
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`SELECT bytes FROM {s}.parked WHERE done_at IS NULL AND bytes IS NOT NULL`))
	if err != nil {
		return 0, 0, classify(op, err)
	}
	var value []byte
	_, err = pgx.ForEachRow(rows, []any{&value}, func() error {
		parts, err := schema.SealedParts(value)
		if err != nil {
			return nil //nolint:nilerr // no event of ours: no key opens it
		}
		for _, p := range parts {
			if used, err := keyID(p); err == nil && used == id {
				parked++
				break
			}
		}
		return nil
	})
	return subjects, parked, classify(op, err)
}

// SignedUnder reports whether a receipt of this replica is signed with a key of its proof keyset.
func (d *Desk) SignedUnder(ctx context.Context, id uint32) (found bool, err error) {
	const op = "looking for receipts signed with the key"
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`SELECT body FROM {s}.receipt WHERE state <> $1 ORDER BY made_at`), ledger.StateReconsent)
	if err != nil {
		return false, classify(op, err)
	}
	defer rows.Close()
	for rows.Next() {
		signed, err := schema.DecodeSignedReceipt(rows.RawValues()[0])
		if err != nil {
			return false, fmt.Errorf("%s: %w", op, err)
		}
		if signed.KeyID == id {
			return true, nil
		}
	}
	return false, classify(op, rows.Err())
}

// Status reads the ledger tables.
func (d *Desk) Status(ctx context.Context) (*ledger.Status, error) {
	const op = "reading Lethe's tables"
	s := &ledger.Status{}
	var pausedBy *string
	var oldest, behind *float64
	err := d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`
		SELECT (SELECT v FROM {s}.meta WHERE k = 'replica'), (SELECT v FROM {s}.meta WHERE k = 'source'),
			(SELECT v FROM {s}.meta WHERE k = 'paused'), (SELECT v FROM {s}.meta WHERE k = 'mapping_digest'),
			(SELECT count(*) FROM {s}.parked WHERE done_at IS NULL), (SELECT count(*) FROM {s}.subject WHERE blocked IS NOT NULL),
			(SELECT count(*) FROM {s}.subject WHERE recheck_at IS NOT NULL), (SELECT count(*) FROM {s}.receipt WHERE sent_at IS NULL),
			(SELECT coalesce(array_agg(DISTINCT gap_id), '{}') FROM {s}.gap WHERE closed_at IS NULL),
			(SELECT extract(epoch FROM now() - min(opened_at))::float8 FROM {s}.pending WHERE state <> 'verified'),
			(SELECT extract(epoch FROM now() - min(greatest(last_committed_at, heartbeat_at)))::float8 FROM {s}.partition)`)).
		Scan(&s.Replica, &s.Source, &pausedBy, &s.Digest, &s.Parked, &s.Blocked, &s.Unmatched, &s.Unsent, &s.OpenGaps, &oldest, &behind)
	if err != nil {
		return nil, classify(op, err)
	}
	if pausedBy != nil {
		s.Paused, s.PausedBy = true, *pausedBy
	}
	s.OldestProof, s.Behind = seconds(oldest), seconds(behind)
	if err := d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT `+sqlReviews)).Scan(&s.Reviews, &s.Overdue); err != nil {
		return nil, classify(op, err)
	}
	if s.Places, err = d.r.Places(ctx); err != nil {
		return nil, err
	}
	if err := d.passes(ctx, s); err != nil {
		return nil, err
	}
	for _, q := range []struct {
		into *map[string]int
		sql  string
	}{
		{&s.Erasures, `SELECT CASE WHEN observed THEN 'observed' ELSE state END, count(*) FROM {s}.pending GROUP BY 1`},
		{&s.Waiting, `SELECT CASE WHEN held THEN 'held' WHEN error_code = 'ambiguous' THEN 'review' WHEN NOT matched THEN 'no_row' WHEN wait = 'none' THEN coalesce(error_code, wait) ELSE wait END, count(*)
			FROM {s}.pending WHERE state <> 'verified' GROUP BY 1`},
		{&s.Errors, `SELECT error_code, count(*) FROM {s}.pending WHERE error_code IS NOT NULL GROUP BY 1`},
	} {
		if *q.into, err = d.counts(ctx, d.r.ledger.sql(q.sql)); err != nil {
			return nil, err
		}
	}
	s.Receipts, err = d.r.effectiveReceipts(ctx)
	return s, err
}

func seconds(v *float64) time.Duration {
	if v == nil {
		return 0
	}
	return time.Duration(*v * float64(time.Second))
}

func (d *Desk) counts(ctx context.Context, sql string) (map[string]int, error) {
	rows, err := d.r.opts.Pool.Query(ctx, sql)
	if err != nil {
		return nil, classify("reading Lethe's tables", err)
	}
	out := map[string]int{}
	var key string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&key, &n}, func() error {
		out[key] = n
		return nil
	})
	return out, classify("reading Lethe's tables", err)
}
