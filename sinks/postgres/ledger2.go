package postgres

// migration2 leads from version 1 to 2. Where it says no more, the choices are those of migrations.
//
//   - pass has a row for each pass and partition from its begin marker on. named is false where the pass is another
//     replica's; whole says that it reads every mapped table. compared_at is when absence was looked for behind its end.
//   - seen holds what a whole pass has shown: the first bytes of the references, one row a batch and partition instead of
//     a column of subject, because a pass must not write a million rows that say nothing new. It goes once compared.
const migration2 = `
CREATE TABLE {s}.pass (
  run_id      text COLLATE "C" NOT NULL,
  part        integer NOT NULL,
  whole       boolean NOT NULL,
  named       boolean NOT NULL,
  begin_order bytea NOT NULL,
  began_at    timestamptz NOT NULL DEFAULT now(),
  ended_at    timestamptz,
  compared_at timestamptz,
  PRIMARY KEY (run_id, part)
);
CREATE INDEX pass_open ON {s}.pass (part) WHERE compared_at IS NULL;
CREATE INDEX pass_ended ON {s}.pass (part, ended_at) WHERE whole AND named;

CREATE TABLE {s}.seen (
  run_id text COLLATE "C" NOT NULL,
  part   integer NOT NULL,
  off    bigint NOT NULL,
  refs   bytea NOT NULL,
  PRIMARY KEY (run_id, part, off)
);
ALTER TABLE {s}.seen ALTER COLUMN refs SET STORAGE EXTERNAL;
`

// statusView is the status view of version 2. It comes behind the tables that it reads.
const statusView = `
CREATE OR REPLACE VIEW {s}.status AS` + statusColumns + `,
  ` + sqlIncomplete + ` AS incomplete,
  (SELECT count(*) FROM {s}.finding WHERE kind = 'absent') AS absent,
  (SELECT count(DISTINCT run_id) FROM {s}.pass WHERE named AND ended_at IS NULL AND compared_at IS NULL) AS passes_running;
`

// statusColumns are those of the status view in version 1. A view can only be replaced by one that has more behind them.
const statusColumns = `
SELECT
  (SELECT v FROM {s}.meta WHERE k = 'replica') AS replica,
  (SELECT v FROM {s}.meta WHERE k = 'source') AS source,
  EXISTS (SELECT FROM {s}.meta WHERE k = 'paused') AS paused,
  (SELECT count(*) FROM {s}.partition) AS partitions,
  (SELECT sum(next_offset)::bigint FROM {s}.partition) AS events,
  (SELECT now() - min(greatest(last_committed_at, heartbeat_at)) FROM {s}.partition) AS behind,
  (SELECT max(updated_at) FROM {s}.partition) AS updated_at,
  (SELECT count(*) FROM {s}.subject WHERE recheck_at IS NOT NULL) AS unmatched,
  (SELECT count(*) FROM {s}.subject WHERE blocked IS NOT NULL) AS blocked,
  (SELECT count(*) FROM {s}.parked WHERE done_at IS NULL) AS parked,
  (SELECT count(DISTINCT gap_id) FROM {s}.gap WHERE closed_at IS NULL) AS open_gaps,
  (SELECT count(*) FROM {s}.receipt WHERE sent_at IS NULL) AS unsent_receipts,
  (SELECT coalesce(jsonb_object_agg(state, n), '{}') FROM
     (SELECT CASE WHEN observed THEN 'observed' ELSE state END AS state, count(*) AS n FROM {s}.pending GROUP BY 1) p) AS erasures_by_state,
  (SELECT coalesce(jsonb_object_agg(wait, n), '{}') FROM
     (SELECT wait, count(*) AS n FROM {s}.pending WHERE state = 'suppressed' GROUP BY wait) p) AS suppressed_by_wait,
  (SELECT coalesce(jsonb_object_agg(error_code, n), '{}') FROM
     (SELECT error_code, count(*) AS n FROM {s}.pending WHERE error_code IS NOT NULL GROUP BY error_code) p)
     AS erasure_errors,
  (SELECT min(suppressed_at) FROM {s}.pending WHERE state <> 'verified') AS oldest_unproven_erasure`
