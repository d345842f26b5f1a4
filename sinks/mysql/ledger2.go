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
