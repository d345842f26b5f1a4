package mysql

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// tableNames are all tables that run needs; schema_version in meta is the last thing that Setup writes.
var tableNames = []string{
	"meta", "partition", "subject", "due", "fact", "pending", "readback", "receipt", "parked", "decision", "gap",
	"pass", "seen", "row_key", "scan", "review", "match_pair",
	"contact", "contact_key", "contact_block", "touch", "alias", "finding",
	"source_report",
}

// migrations make the ledger tables. Element n leads from version n to n+1, {p} is the prefix, {t} the tableOptions. MySQL commits every one of the
// statements by itself, so that each can be run again after a crash behind it. An element is never edited after a release.
//
// Of the choices that the statements alone do not explain:
//   - Everything that belongs to a subject carries part, so that a worker finds the chores of the partitions it owns
//     without a join. Its row in partition is the lock of all of them: whoever changes a subject holds that row.
//   - Character sets and collations are named: the database's own may take two texts for one.
//   - Times are DATETIME in UTC, whatever the server's time zone: a TIMESTAMP ends in 2038 and moves with the session.
//   - contact_ref is the empty string where a fact is bound to no contact point, because it is part of the key.
//   - sealed_key is null where all that is known of a subject is an event that could not be decoded.
//   - The first fact of a subject lies in the row that is inserted for it, from scope to event_id: most people have one, and
//     then their first event costs one row, not two. Those that come later lie in fact; see factTables.
//   - When a subject is due for something lies in due, which has rows of those only that are due some day: an index of
//     subject itself would hold everybody, and cost each new one more than the row does.
//   - pending has one row a subject, so the objections and restrictions that are still to be read back lie in readback.
//   - pending.observed marks a case that was opened in mode observe: phase 1 has not been done, whatever state says.
//   - readback.due_at and pending.due_at are `never` where nothing comes by itself.
//   - Which subjects are blocked is asked of parked: an index would hold every subject, also the many that are not.
//   - Documents are LONGTEXT: only Lethe reads them, and MariaDB's JSON is nothing else.
//   - Constraints have no names: MySQL wants them unique in the whole database.
var migrations = [][]string{{
	`
CREATE TABLE IF NOT EXISTS {p}meta (
  k VARCHAR(64) NOT NULL PRIMARY KEY,
  v VARCHAR(1024) NOT NULL
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}partition (
  part              INT NOT NULL PRIMARY KEY,
  next_offset       BIGINT NOT NULL DEFAULT 0,
  last_event_id     VARBINARY(32),
  last_order        VARBINARY(64),
  last_committed_at DATETIME(6),
  heartbeat_at      DATETIME(6),
  updated_at        DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6))
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}subject (
  ref             VARBINARY(32) NOT NULL PRIMARY KEY,
  part            INT NOT NULL,
  sealed_key      VARBINARY(2048),
  state           VARCHAR(16) NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'suppressed', 'erased')),
  erased_order    VARBINARY(64),
  blocked         VARCHAR(191),
  scope           VARCHAR(191),
  contact_ref     VARBINARY(32),
  ord             VARBINARY(64),
  as_of           DATETIME(6),
  fact_state      VARCHAR(32),
  valid_until     DATETIME(6),
  event_id        VARBINARY(32)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}due (
  ref             VARBINARY(32) NOT NULL PRIMARY KEY,
  part            INT NOT NULL,
  unmatched_since DATETIME(6),
  recheck_at      DATETIME(6),
  next_change_at  DATETIME(6),
  INDEX recheck (part, recheck_at),
  INDEX next_change (part, next_change_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}fact (
  ref         VARBINARY(32) NOT NULL,
  scope       VARCHAR(191) NOT NULL,
  contact_ref VARBINARY(32) NOT NULL,
  ord         VARBINARY(64) NOT NULL,
  as_of       DATETIME(6),
  state       VARCHAR(32) NOT NULL,
  valid_until DATETIME(6),
  event_id    VARBINARY(32) NOT NULL,
  PRIMARY KEY (ref, scope, contact_ref)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}pending (
  ref            VARBINARY(32) NOT NULL PRIMARY KEY,
  case_id        VARBINARY(32) NOT NULL,
  event_id       VARBINARY(32) NOT NULL,
  part           INT NOT NULL,
  state          VARCHAR(16) NOT NULL CHECK (state IN ('suppressed', 'applied', 'verified')),
  wait           VARCHAR(16) NOT NULL CHECK (wait IN ('none', 'cool_off', 'decision', 'breaker', 'gap')),
  held           TINYINT(1) NOT NULL DEFAULT 0,
  released       TINYINT(1) NOT NULL DEFAULT 0,
  snapshot       TINYINT(1) NOT NULL DEFAULT 0,
  run_id         VARCHAR(191),
  matched        TINYINT(1) NOT NULL DEFAULT 1,
  observed       TINYINT(1) NOT NULL DEFAULT 0,
  committed_at   DATETIME(6) NOT NULL,
  config_digest  VARBINARY(32) NOT NULL,
  opened_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  suppressed_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  due_at         DATETIME(6),
  applied_at     DATETIME(6),
  verified_at    DATETIME(6),
  prior          LONGTEXT,
  work           LONGTEXT,
  attempts       INT NOT NULL DEFAULT 0,
  error_code     VARCHAR(191),
  mapping_digest VARBINARY(32),
  INDEX due (part, state, due_at),
  INDEX by_case (case_id),
  INDEX opened (opened_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}readback (
  event_id      VARBINARY(32) NOT NULL PRIMARY KEY,
  ref           VARBINARY(32) NOT NULL,
  part          INT NOT NULL,
  kind          VARCHAR(64) NOT NULL CHECK (kind IN ('Objection', 'ProcessingRestriction')),
  committed_at  DATETIME(6) NOT NULL,
  config_digest VARBINARY(32) NOT NULL,
  added_at      DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  due_at        DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  attempts      INT NOT NULL DEFAULT 0,
  error_code    VARCHAR(191),
  INDEX due (part, due_at),
  INDEX by_ref (ref)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}receipt (
  receipt_id VARBINARY(32) NOT NULL PRIMARY KEY,
  event_id   VARBINARY(32) NOT NULL,
  case_id    VARBINARY(32),
  ref        VARBINARY(32),
  part       INT NOT NULL,
  state      VARCHAR(32) NOT NULL,
  attempt    BIGINT NOT NULL DEFAULT 0,
  body       MEDIUMBLOB NOT NULL,
  made_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  sent_at    DATETIME(6),
  INDEX unsent (part, sent_at, made_at),
  INDEX by_case (case_id)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}parked (
  part       INT NOT NULL,
  off        BIGINT NOT NULL,
  ref        VARBINARY(32),
  event_id   VARBINARY(32),
  bytes      LONGBLOB,
  error_code VARCHAR(191) NOT NULL,
  tries      INT NOT NULL DEFAULT 1,
  want       VARCHAR(16) CHECK (want IN ('replay', 'discard')),
  wanted_by  VARCHAR(191),
  parked_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  done_at    DATETIME(6),
  outcome    VARCHAR(191),
  PRIMARY KEY (part, off),
  INDEX open (ref, done_at),
  INDEX done (done_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}decision (
  event_id   VARBINARY(32) NOT NULL PRIMARY KEY,
  ref        VARBINARY(32) NOT NULL,
  case_id    VARBINARY(32) NOT NULL,
  part       INT NOT NULL,
  decision   VARCHAR(16) NOT NULL CHECK (decision IN ('proceed', 'hold', 'cancel', 'release')),
  reason     TEXT NOT NULL,
  checks     LONGTEXT NOT NULL,
  decided_by VARCHAR(1024) NOT NULL DEFAULT '',
  decided_at DATETIME(6),
  stored_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  done_at    DATETIME(6),
  outcome    VARCHAR(191),
  INDEX open (part, done_at, stored_at),
  INDEX by_ref (ref, done_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}gap (
  gap_id     VARCHAR(191) NOT NULL,
  part       INT NOT NULL,
  cause      TEXT NOT NULL,
  from_order VARBINARY(64),
  to_order   VARBINARY(64),
  opened_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  closed_at  DATETIME(6),
  PRIMARY KEY (gap_id, part)
) {t}`, `
CREATE OR REPLACE SQL SECURITY DEFINER VIEW {p}status AS` + statusColumns,
}, slices.Concat(migration2, findTables, migrationContacts, reportTables, statusView)}

// tableOptions make a table of Lethe's own one whatever the server's and the database's defaults are.
const tableOptions = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"

// ledgerTables names the tables of one replica's ledger: they lie in the database of the connection.
type ledgerTables struct{ prefix string }

// sql puts the prefix into a statement: {p} stands for it. It holds nothing that would have to be quoted: config allows
// letters, digits and _.
func (l ledgerTables) sql(statement string) string {
	return strings.ReplaceAll(statement, "{p}", l.prefix)
}

// quote quotes one identifier segment.
func quote(identifier string) string {
	return "`" + strings.ReplaceAll(identifier, "`", "``") + "`"
}

var plainForm = regexp.MustCompile(`^[A-Za-z0-9_.:@%-]*$`)

// literal is a text constant for where no parameter can stand. What a backslash or a quotation mark means depends on
// sql_mode: any but the plainest text is written in hexadecimal digits.
func literal(text string) string {
	if plainForm.MatchString(text) {
		return "'" + text + "'"
	}
	return fmt.Sprintf("_utf8mb4 0x%x", text)
}

// readMeta returns everything in meta by key.
func (l ledgerTables) readMeta(ctx context.Context, q querier) (map[string]string, error) {
	meta := map[string]string{}
	rows, err := q.QueryContext(ctx, l.sql(`SELECT k, v FROM {p}meta`))
	if err != nil {
		return nil, classify("reading ledger tables", err)
	}
	defer rows.Close()
	for rows.Next() {
		var k, v string
		if err := rows.Scan(&k, &v); err != nil {
			return nil, classify("reading ledger tables", err)
		}
		meta[k] = v
	}
	return meta, classify("reading ledger tables", rows.Err())
}

// hasMeta reports whether the login sees the table meta.
func (l ledgerTables) hasMeta(ctx context.Context, q querier) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?`,
		l.prefix+"meta").Scan(&n)
	return n > 0, classify("reading ledger tables", err)
}

// present counts how many of the ledger tables the login can see.
func (l ledgerTables) present(ctx context.Context, q querier) (int, error) {
	args := make([]any, len(tableNames))
	for i, name := range tableNames {
		args[i] = l.prefix + name
	}
	var n int
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE'
		AND TABLE_NAME IN (?`+strings.Repeat(", ?", len(args)-1)+`)`, args...).Scan(&n)
	return n, classify("reading ledger tables", err)
}

// verifyTables compares what Setup left in the replica with what this build, this replica's name and this mapping need.
// A newer version or missing tables are Permanent, a digest that is not the active one is ErrDigest.
func (l ledgerTables) verifyTables(ctx context.Context, q querier, replica, source, digest string) error {
	present, err := l.present(ctx, q)
	if err != nil {
		return err
	}
	meta := map[string]string{}
	if present == len(tableNames) {
		if meta, err = l.readMeta(ctx, q); err != nil {
			return err
		}
	}
	// schema_version is written last: without it a setup was cut off.
	if _, err := strconv.Atoi(meta[ledger.MetaSchemaVersion]); present < len(tableNames) || err != nil {
		return &sinks.Error{
			Class: sinks.Permanent, Op: "reading ledger tables", Code: "ledger_missing",
			Hint: fmt.Sprintf("run `lethe setup` for replica %s with the login of the owner", replica),
		}
	}
	return ledger.CheckMeta(meta, replica, source, digest, l.where())
}

// where is what findings and errors call the tables.
func (l ledgerTables) where() string { return "the tables with prefix " + l.prefix }
