package mysql

// findTables are the tables of replicas in which persons are found without the CRM key; every replica has them, so that find
// can be added later. Where it says no more, the choices are those of migrations.
//
//   - row_key is an index that Lethe keeps of the mapped tables: what a row says of a person, as keys. Its value leads to
//     candidates and decides nothing: what a row says is read again before anything is done to it. pk and person are the
//     replica's own keys in text form; pk is a canonical key, because there may be several parts.
//     type is a match.Keys.Number.
//   - scan says how far the reading of a table has come; see scanState.
//   - review and match_pair name a row by person.key in text form. A pair that is decided is decided for good.
var findTables = []string{
	`
CREATE TABLE IF NOT EXISTS {p}row_key (
  tbl    VARCHAR(191) NOT NULL,
  pk     VARBINARY(1024) NOT NULL,
  type   TINYINT UNSIGNED NOT NULL,
  value  BINARY(32) NOT NULL,
  person VARCHAR(512) NOT NULL,
  PRIMARY KEY (tbl, pk, type, value),
  INDEX by_value (value)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}scan (
  tbl        VARCHAR(191) NOT NULL PRIMARY KEY,
  basis      VARBINARY(32) NOT NULL,
  run        BIGINT NOT NULL,
  stage      VARCHAR(16) NOT NULL CHECK (stage IN ('idle', 'rows', 'changed', 'gone')),
  after_pk   VARBINARY(1280),
  watermark  VARCHAR(64),
  next_mark  VARCHAR(64),
  wanted     TINYINT(1) NOT NULL DEFAULT 0,
  seen       BIGINT NOT NULL DEFAULT 0,
  started_at DATETIME(6) NOT NULL,
  ended_at   DATETIME(6),
  full_at    DATETIME(6),
  fresh_at   DATETIME(6)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}review (
  id         VARCHAR(64) NOT NULL PRIMARY KEY,
  ref        VARBINARY(32) NOT NULL,
  part       INT NOT NULL,
  kind       VARCHAR(16) NOT NULL CHECK (kind IN ('erasure', 'permission')),
  person     VARCHAR(512) NOT NULL,
  evidence   VARCHAR(191) NOT NULL,
  opened_at  DATETIME(6) NOT NULL,
  due_at     DATETIME(6) NOT NULL,
  decided_at DATETIME(6),
  decided_by VARCHAR(191),
  decision   VARCHAR(16) CHECK (decision IN ('same', 'different', 'obsolete')),
  INDEX by_ref (ref),
  INDEX open (decided_at, due_at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}match_pair (
  ref        VARBINARY(32) NOT NULL,
  person     VARCHAR(512) NOT NULL,
  decision   VARCHAR(16) NOT NULL CHECK (decision IN ('same', 'different')),
  decided_by VARCHAR(191) NOT NULL,
  decided_at DATETIME(6) NOT NULL,
  PRIMARY KEY (ref, person)
) {t}`,
}
