package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// ownTables are all tables that run needs; lethe.meta is the last that Setup fills.
var ownTables = []string{
	"meta", "partition", "subject", "fact", "pending", "readback", "receipt", "parked", "decision", "gap",
	"pass", "seen",
	"contact", "contact_key", "contact_block", "touch", "alias", "finding",
	"row_key", "scan", "review", "match_pair",
	"source_report",
}

// migrations make the ledger tables. Element n leads from version n to n+1; {s} is the quoted schema. They run in one
// transaction under the owner's role. An element is never edited after a release.
//
// Of the choices that the statements alone do not explain:
//   - Everything that belongs to a subject carries part, so that a worker finds the chores of the partitions it owns
//     without a join. Its row in partition is the lock of all of them: whoever changes a subject holds that row.
//   - contact_ref is the empty string where a fact is bound to no contact point, because it is part of the key.
//   - sealed_key is null where all that is known of a subject is an event that could not be decoded.
//   - pending has one row a subject, so the objections and restrictions that are still to be read back lie in readback.
//   - pending.observed marks a case that was opened in mode observe: phase 1 has not been done, whatever state says.
//   - receipts hold keyed ids and signatures, which do not get smaller by compressing.
//   - readback.due_at is infinity while the subject has no row.
//   - fillfactor leaves room for heap-only updates: facts and partitions are updated far more often than inserted, and
//     no updated column of theirs is indexed.
var migrations = []string{`
CREATE SCHEMA IF NOT EXISTS {s};

CREATE TABLE {s}.meta (
  k text PRIMARY KEY,
  v text NOT NULL
);

CREATE TABLE {s}.partition (
  part              integer PRIMARY KEY,
  next_offset       bigint NOT NULL DEFAULT 0,
  last_event_id     bytea,
  last_order        bytea,
  last_committed_at timestamptz,
  heartbeat_at      timestamptz,
  updated_at        timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);

CREATE TABLE {s}.subject (
  ref             bytea PRIMARY KEY,
  part            integer NOT NULL,
  sealed_key      bytea,
  state           text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'suppressed', 'erased')),
  erased_order    bytea,
  blocked         text,
  unmatched_since timestamptz,
  recheck_at      timestamptz,
  next_change_at  timestamptz
) WITH (fillfactor = 90);
CREATE INDEX subject_recheck ON {s}.subject (part, recheck_at) WHERE recheck_at IS NOT NULL;
CREATE INDEX subject_next_change ON {s}.subject (part, next_change_at) WHERE next_change_at IS NOT NULL;
CREATE INDEX subject_blocked ON {s}.subject (part) WHERE blocked IS NOT NULL;

CREATE TABLE {s}.fact (
  ref         bytea NOT NULL,
  scope       text COLLATE "C" NOT NULL,
  contact_ref bytea NOT NULL,
  ord         bytea NOT NULL,
  as_of       timestamptz,
  state       text NOT NULL,
  valid_until timestamptz,
  event_id    bytea NOT NULL,
  PRIMARY KEY (ref, scope, contact_ref)
) WITH (fillfactor = 70);

CREATE TABLE {s}.pending (
  ref           bytea PRIMARY KEY,
  case_id       bytea NOT NULL,
  event_id      bytea NOT NULL,
  part          integer NOT NULL,
  state         text NOT NULL CHECK (state IN ('suppressed', 'applied', 'verified')),
  wait          text NOT NULL CHECK (wait IN ('none', 'cool_off', 'decision', 'breaker', 'gap')),
  held          boolean NOT NULL DEFAULT false,
  released      boolean NOT NULL DEFAULT false,
  snapshot      boolean NOT NULL DEFAULT false,
  run_id        text,
  matched       boolean NOT NULL DEFAULT true,
  observed      boolean NOT NULL DEFAULT false,
  committed_at  timestamptz NOT NULL,
  config_digest bytea NOT NULL,
  opened_at     timestamptz NOT NULL DEFAULT now(),
  suppressed_at timestamptz NOT NULL DEFAULT now(),
  due_at        timestamptz,
  applied_at    timestamptz,
  verified_at   timestamptz,
  undo          jsonb,
  work          jsonb,
  attempts      integer NOT NULL DEFAULT 0,
  error_code    text,
  mapping_digest bytea
);
CREATE INDEX pending_due ON {s}.pending (part, due_at) WHERE state <> 'verified';
CREATE INDEX pending_case ON {s}.pending (case_id);
CREATE INDEX pending_opened ON {s}.pending (opened_at);

CREATE TABLE {s}.readback (
  event_id      bytea PRIMARY KEY,
  ref           bytea NOT NULL,
  part          integer NOT NULL,
  kind          text NOT NULL CHECK (kind IN ('Objection', 'ProcessingRestriction')),
  committed_at  timestamptz NOT NULL,
  config_digest bytea NOT NULL,
  added_at      timestamptz NOT NULL DEFAULT now(),
  due_at        timestamptz NOT NULL DEFAULT now(),
  attempts      integer NOT NULL DEFAULT 0,
  error_code    text
);
CREATE INDEX readback_due ON {s}.readback (part, due_at);

CREATE TABLE {s}.receipt (
  receipt_id bytea PRIMARY KEY,
  event_id   bytea NOT NULL,
  case_id    bytea,
  ref        bytea,
  part       integer NOT NULL,
  state      text NOT NULL,
  attempt    bigint NOT NULL DEFAULT 0,
  body       bytea NOT NULL,
  made_at    timestamptz NOT NULL DEFAULT now(),
  sent_at    timestamptz
);
ALTER TABLE {s}.receipt ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX receipt_unsent ON {s}.receipt (part, made_at) WHERE sent_at IS NULL;
CREATE INDEX receipt_case ON {s}.receipt (case_id) WHERE case_id IS NOT NULL;

CREATE TABLE {s}.parked (
  part       integer NOT NULL,
  off        bigint NOT NULL,
  ref        bytea,
  event_id   bytea,
  bytes      bytea,
  error_code text NOT NULL,
  tries      integer NOT NULL DEFAULT 1,
  want       text CHECK (want IN ('replay', 'discard')),
  wanted_by  text,
  parked_at  timestamptz NOT NULL DEFAULT now(),
  done_at    timestamptz,
  outcome    text,
  PRIMARY KEY (part, off)
);
CREATE INDEX parked_open ON {s}.parked (ref) WHERE done_at IS NULL;

CREATE TABLE {s}.decision (
  event_id   bytea PRIMARY KEY,
  ref        bytea NOT NULL,
  case_id    bytea NOT NULL,
  part       integer NOT NULL,
  decision   text NOT NULL CHECK (decision IN ('proceed', 'hold', 'cancel', 'release')),
  reason     text NOT NULL DEFAULT '',
  checks     text[] NOT NULL DEFAULT '{}',
  decided_by text NOT NULL DEFAULT '',
  decided_at timestamptz,
  stored_at  timestamptz NOT NULL DEFAULT now(),
  done_at    timestamptz,
  outcome    text
);
CREATE INDEX decision_open ON {s}.decision (part, stored_at) WHERE done_at IS NULL;

CREATE TABLE {s}.gap (
  gap_id     text NOT NULL,
  part       integer NOT NULL,
  cause      text NOT NULL,
  from_order bytea,
  to_order   bytea,
  opened_at  timestamptz NOT NULL DEFAULT now(),
  closed_at  timestamptz,
  PRIMARY KEY (gap_id, part)
);

CREATE VIEW {s}.status AS` + statusColumns + `;
`, migration2 + findTables + migrationContacts + reportTables + statusView}

// ledgerTables names the tables of one replica's ledger.
type ledgerTables struct {
	schema string // unquoted
}

// sql puts the quoted schema into a statement: {s} stands for it.
func (l ledgerTables) sql(statement string) string {
	return strings.ReplaceAll(statement, "{s}", quote(l.schema))
}

// quote quotes one identifier segment.
func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

// querier is what both a connection pool and a transaction can do.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readMeta returns the value of one key, and whether there is one.
func (l ledgerTables) readMeta(ctx context.Context, q querier, key string) (string, bool, error) {
	var v string
	err := q.QueryRow(ctx, l.sql(`SELECT v FROM {s}.meta WHERE k = $1`), key).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, classify("reading "+key, err)
	}
	return v, true, nil
}

// verifyTables compares what Setup left in the replica with what this build, this replica's name and this mapping need.
// A newer version or missing tables are Permanent, a digest that is not the active one is ErrDigest.
func (l ledgerTables) verifyTables(ctx context.Context, q querier, replica, source, digest string) error {
	var present int
	err := q.QueryRow(ctx, `
		SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind = 'r'`, l.schema, ownTables).Scan(&present)
	if err != nil {
		return classify("reading ledger tables", err)
	}
	if present < len(ownTables) {
		return &sinks.Error{
			Class: sinks.Permanent, Op: "reading ledger tables", Code: "ledger_missing",
			Hint: fmt.Sprintf("run `lethe setup` for replica %s with the login of the owner", replica),
		}
	}
	rows, err := q.Query(ctx, l.sql(`SELECT k, v FROM {s}.meta`))
	if err != nil {
		return classify("reading ledger tables", err)
	}
	meta := map[string]string{}
	var k, v string
	if _, err = pgx.ForEachRow(rows, []any{&k, &v}, func() error { meta[k] = v; return nil }); err != nil {
		return classify("reading ledger tables", err)
	}
	return ledger.CheckMeta(meta, replica, source, digest, "schema "+l.schema)
}
