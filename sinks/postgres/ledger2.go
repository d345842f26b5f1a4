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
