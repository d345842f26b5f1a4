package mysql

// migration2 leads from version 1 to 2. Where it says no more, the choices are those of migrations.
//
//   - pass has a row for each pass and partition from its begin marker on. named is false where the pass is another
//     replica's; whole says that it reads every mapped table. compared_at is when absence was looked for behind its end.
//   - seen holds what a whole pass has shown: the first bytes of the references, one row a batch and partition instead of
//     a column of subject, because a pass must not write a million rows that say nothing new. It goes once compared.
var migration2 = []string{
	`
CREATE TABLE IF NOT EXISTS {p}pass (
  run_id      VARCHAR(191) NOT NULL,
  part        INT NOT NULL,
  whole       TINYINT(1) NOT NULL,
  named       TINYINT(1) NOT NULL,
  begin_order VARBINARY(64) NOT NULL,
  began_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  ended_at    DATETIME(6),
  compared_at DATETIME(6),
  PRIMARY KEY (run_id, part),
  INDEX open (compared_at),
  INDEX ended (part, ended_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}seen (
  run_id VARCHAR(191) NOT NULL,
  part   INT NOT NULL,
  off    BIGINT NOT NULL,
  refs   MEDIUMBLOB NOT NULL,
  PRIMARY KEY (run_id, part, off)
) {t}`,
}

// statusView is the status view of version 2. It comes behind the tables that it reads.
var statusView = []string{`
CREATE OR REPLACE SQL SECURITY DEFINER VIEW {p}status AS` + statusColumns + `,
  ` + sqlIncomplete + ` AS incomplete,
  (SELECT COUNT(*) FROM {p}finding WHERE kind = 'absent') AS absent,
  (SELECT COUNT(DISTINCT run_id) FROM {p}pass WHERE named AND ended_at IS NULL AND compared_at IS NULL) AS passes_running`}

// statusColumns are those of the status view in version 1.
const statusColumns = `
SELECT
  (SELECT v FROM {p}meta WHERE k = 'replica') AS replica,
  (SELECT v FROM {p}meta WHERE k = 'source') AS source,
  EXISTS (SELECT 1 FROM {p}meta WHERE k = 'paused') AS paused,
  (SELECT COUNT(*) FROM {p}partition) AS partitions,
  (SELECT CAST(SUM(next_offset) AS SIGNED) FROM {p}partition) AS events,
  (SELECT TIMESTAMPDIFF(MICROSECOND, MIN(GREATEST(COALESCE(last_committed_at, heartbeat_at), COALESCE(heartbeat_at, last_committed_at))),
     UTC_TIMESTAMP(6)) / 1000000 FROM {p}partition) AS behind,
  (SELECT MAX(updated_at) FROM {p}partition) AS updated_at,
  (SELECT COUNT(*) FROM {p}due WHERE recheck_at IS NOT NULL) AS unmatched,
  (SELECT COUNT(DISTINCT ref) FROM {p}parked WHERE done_at IS NULL) AS blocked,
  (SELECT COUNT(*) FROM {p}parked WHERE done_at IS NULL) AS parked,
  (SELECT COUNT(DISTINCT gap_id) FROM {p}gap WHERE closed_at IS NULL) AS open_gaps,
  (SELECT COUNT(*) FROM {p}receipt WHERE sent_at IS NULL) AS unsent_receipts,
  (SELECT COALESCE(JSON_OBJECTAGG(p.state, p.n), '{}') FROM
     (SELECT CASE WHEN observed THEN 'observed' ELSE state END AS state, COUNT(*) AS n FROM {p}pending GROUP BY 1) p) AS erasures_by_state,
  (SELECT COALESCE(JSON_OBJECTAGG(p.wait, p.n), '{}') FROM
     (SELECT wait, COUNT(*) AS n FROM {p}pending WHERE state = 'suppressed' GROUP BY wait) p) AS suppressed_by_wait,
  (SELECT COALESCE(JSON_OBJECTAGG(p.error_code, p.n), '{}') FROM
     (SELECT error_code, COUNT(*) AS n FROM {p}pending WHERE error_code IS NOT NULL GROUP BY error_code) p) AS erasure_errors,
  (SELECT MIN(suppressed_at) FROM {p}pending WHERE state <> 'verified') AS oldest_unproven_erasure`
