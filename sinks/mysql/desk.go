package mysql

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// Desk is what an operator's command line reads and records in one replica, beside the running workers and without their
// keys. Safe for concurrent use.
type Desk struct{ r *Replica }

// NewDesk makes a Desk on a pool of Open, which stays the caller's. It opens nothing.
func NewDesk(cfg *config.Replica, db *sql.DB) *Desk {
	return &Desk{&Replica{
		opts: Options{Name: cfg.Name, Config: cfg, DB: db, VerifyDB: db, StatementTimeout: defaultStatementTimeout},
		cfg:  cfg, ledger: tablesOf(cfg), log: zerolog.Nop(),
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
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`
		SELECT p.ref, s.sealed_key FROM {p}pending p JOIN {p}subject s ON s.ref = p.ref
		WHERE p.case_id = ? AND s.sealed_key IS NOT NULL LIMIT 1`), id[:]).Scan(&ref, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
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
// out yet. ledger.DecisionDone is that of one that was carried out; any other says why it was not.
func (d *Desk) DecisionOutcome(ctx context.Context, id schema.EventID) (string, error) {
	var outcome sql.NullString
	err := d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT outcome FROM {p}decision WHERE event_id = ? AND done_at IS NOT NULL`), id[:]).Scan(&outcome)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", classify("reading the decision", err)
	}
	return outcome.String, nil
}

// SealedUnder counts the rows of this replica that need one key of the seal keyset: sealed CRM keys and parked events. keyID
// reads the id from a ciphertext.
func (d *Desk) SealedUnder(ctx context.Context, id uint32, keyID func(sealed []byte) (uint32, error)) (subjects, parked int, err error) {
	const op = "looking for rows sealed under the key"
	prefix := binary.BigEndian.AppendUint32([]byte{ledger.SealPrefix}, id)
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT COUNT(*) FROM {p}subject WHERE LEFT(sealed_key, 5) = ?`), prefix).Scan(&subjects)
	if err != nil {
		return 0, 0, classify(op, err)
	}
	err = eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`SELECT bytes FROM {p}parked WHERE done_at IS NULL AND bytes IS NOT NULL`), nil, func(rows *sql.Rows) error {
		var value sql.RawBytes
		if err := rows.Scan(&value); err != nil {
			return err
		}
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

// errFound ends a search.
var errFound = errors.New("found")

// SignedUnder reports whether a receipt of this replica is signed with a key of its proof keyset.
func (d *Desk) SignedUnder(ctx context.Context, id uint32) (found bool, err error) {
	const op = "looking for receipts signed with the key"
	var damaged error
	err = eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`SELECT body FROM {p}receipt WHERE state <> ?`), []any{ledger.StateReconsent}, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		signed, err := schema.DecodeSignedReceipt(body)
		if err != nil {
			damaged = fmt.Errorf("%s: %w", op, err)
			return damaged
		}
		if signed.KeyID == id {
			return errFound
		}
		return nil
	})
	switch {
	case errors.Is(err, errFound):
		return true, nil
	case damaged != nil:
		return false, damaged
	}
	return false, classify(op, err)
}

// Status reads the ledger tables.
func (d *Desk) Status(ctx context.Context) (*ledger.Status, error) {
	const op = "reading Lethe's tables"
	s := &ledger.Status{}
	meta, err := d.r.ledger.readMeta(ctx, d.r.opts.DB)
	if err != nil {
		return nil, err
	}
	s.Replica, s.Source, s.Digest = meta[ledger.MetaReplica], meta[ledger.MetaSource], meta[ledger.MetaDigest]
	s.PausedBy, s.Paused = meta[ledger.MetaPaused]
	var oldest, behind sql.NullFloat64
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`
		SELECT (SELECT COUNT(*) FROM {p}parked WHERE done_at IS NULL), (SELECT COUNT(DISTINCT ref) FROM {p}parked WHERE done_at IS NULL),
			(SELECT COUNT(*) FROM {p}due WHERE recheck_at IS NOT NULL), (SELECT COUNT(*) FROM {p}receipt WHERE sent_at IS NULL),
			(SELECT `+ageOf("MIN(opened_at)")+` FROM {p}pending WHERE state <> 'verified'),
			(SELECT `+ageOf("MIN(GREATEST(COALESCE(last_committed_at, heartbeat_at), COALESCE(heartbeat_at, last_committed_at)))")+` FROM {p}partition)`)).
		Scan(&s.Parked, &s.Blocked, &s.Unmatched, &s.Unsent, &oldest, &behind)
	if err != nil {
		return nil, classify(op, err)
	}
	s.OldestProof, s.Behind = seconds(oldest), seconds(behind)
	if err := d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT `+sqlReviews)).Scan(&s.Reviews, &s.Overdue); err != nil {
		return nil, classify(op, err)
	}
	if s.OpenGaps, err = column1[string](ctx, d.r.opts.DB, d.r.ledger.sql(`SELECT DISTINCT gap_id FROM {p}gap WHERE closed_at IS NULL ORDER BY gap_id`)); err != nil {
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
		{&s.Erasures, `SELECT CASE WHEN observed THEN 'observed' ELSE state END AS s, COUNT(*) FROM {p}pending GROUP BY s`},
		{&s.Waiting, `SELECT w, COUNT(*) FROM (SELECT CASE WHEN held THEN 'held' WHEN error_code = 'ambiguous' THEN 'review' WHEN NOT matched THEN 'no_row' WHEN wait = 'none' THEN COALESCE(error_code, wait)
			ELSE wait END AS w FROM {p}pending WHERE state <> 'verified') x GROUP BY w`},
		{&s.Errors, `SELECT error_code, COUNT(*) FROM {p}pending WHERE error_code IS NOT NULL GROUP BY error_code`},
	} {
		if *q.into, err = d.r.counts(ctx, op, q.sql); err != nil {
			return nil, err
		}
	}
	s.Receipts, err = d.r.effectiveReceipts(ctx)
	return s, err
}
