package postgres

// findTables are the tables of replicas in which persons are found without the CRM key; every replica has them, so that find
// can be added later. Where it says no more, the choices are those of migrations.
//
//   - row_key is an index that Lethe keeps of the mapped tables: what a row says of a person, as keys. It leads to candidates
//     and decides nothing: what a row says is read again before anything is done to it. pk is a canonical key, because there
//     may be several parts; type is a match.Keys.Number. There is no primary key, because an index of the values beside the one
//     of the rows would cost more than all the rest: whoever writes holds the table's row in scan. Of the values a hash is enough,
//     and takes a quarter of the time that a tree of random bytes takes to grow.
//   - scan says how far the reading of a table has come; see scanState.
//   - review and match_pair name a row by person.key in text form. A pair that is decided is decided for good.
const findTables = `
CREATE TABLE {s}.row_key (
  tbl    text COLLATE "C" NOT NULL,
  pk     bytea NOT NULL,
  type   smallint NOT NULL,
  value  bytea NOT NULL,
  person text COLLATE "C" NOT NULL
);
ALTER TABLE {s}.row_key ALTER COLUMN value SET STORAGE PLAIN;
CREATE INDEX row_key_row ON {s}.row_key (tbl, pk);
CREATE INDEX row_key_value ON {s}.row_key USING hash (value);

CREATE TABLE {s}.scan (
  tbl        text COLLATE "C" PRIMARY KEY,
  basis      bytea NOT NULL,
  run        bigint NOT NULL DEFAULT 1,
  stage      text NOT NULL CHECK (stage IN ('idle', 'rows', 'changed', 'gone')),
  after_pk   bytea,
  watermark  text,
  next_mark  text,
  wanted     boolean NOT NULL DEFAULT false,
  seen       bigint NOT NULL DEFAULT 0,
  started_at timestamptz NOT NULL,
  ended_at   timestamptz,
  full_at    timestamptz,
  fresh_at   timestamptz
);

CREATE TABLE {s}.review (
  id         text PRIMARY KEY,
  ref        bytea NOT NULL,
  part       integer NOT NULL,
  kind       text NOT NULL CHECK (kind IN ('erasure', 'permission')),
  person     text NOT NULL,
  evidence   text NOT NULL,
  opened_at  timestamptz NOT NULL DEFAULT now(),
  due_at     timestamptz NOT NULL,
  decided_at timestamptz,
  decided_by text,
  decision   text CHECK (decision IN ('same', 'different', 'obsolete'))
);
CREATE INDEX review_open ON {s}.review (ref) WHERE decided_at IS NULL;

CREATE TABLE {s}.match_pair (
  ref        bytea NOT NULL,
  person     text NOT NULL,
  decision   text NOT NULL CHECK (decision IN ('same', 'different')),
  decided_by text NOT NULL,
  decided_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (ref, person)
);
`
