package mysql

// migrationContacts are the tables of contact points and of what stands about them, a part of migration2.
//
//   - contact has a row for each contact point of a subject that is not proven to be erased. An identity, the name in the subject's
//     own row, may have the same reference as a contact point of that row.
//   - contact_key keeps the values that a point had beside those that it has, and outlives the contact of an erased person: as
//     its tombstone, keyed under the replica's own key.
//   - contact_block holds withdrawals about a contact point, for whoever else holds it.
//   - touch is a queue that is only ever added to by others: its rows belong to the owner of part, who takes them away.
//   - finding has a row for each thing that somebody ought to know about a subject.
var migrationContacts = []string{
	`
CREATE TABLE IF NOT EXISTS {p}contact (
  ref         VARBINARY(32) NOT NULL,
  contact_ref VARBINARY(32) NOT NULL,
  kind        VARCHAR(16) NOT NULL CHECK (kind IN ('email', 'phone', 'postal', 'identity')),
  part        INT NOT NULL,
  past        TINYINT(1) NOT NULL DEFAULT 0,
  removed     TINYINT(1) NOT NULL DEFAULT 0,
  revived     TINYINT(1) NOT NULL DEFAULT 0,
  ord         VARBINARY(64) NOT NULL,
  event_id    VARBINARY(32) NOT NULL,
  since_ord   VARBINARY(64) NOT NULL,
  void_ord    VARBINARY(64),
  void_at     DATETIME(6),
  void_event  VARBINARY(32),
  PRIMARY KEY (ref, contact_ref, kind)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}contact_key (
  ref          VARBINARY(32) NOT NULL,
  contact_ref  VARBINARY(32) NOT NULL,
  value        VARBINARY(32) NOT NULL,
  type         VARCHAR(32) NOT NULL,
  key_id       BIGINT NOT NULL,
  norm_version BIGINT NOT NULL,
  standing     VARCHAR(16) NOT NULL CHECK (standing IN ('live', 'past', 'revived')),
  PRIMARY KEY (ref, contact_ref, value),
  INDEX by_value (value)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}contact_block (
  value    VARBINARY(32) NOT NULL,
  scope    VARCHAR(191) NOT NULL,
  ref      VARBINARY(32) NOT NULL,
  ord      VARBINARY(64) NOT NULL,
  as_of    DATETIME(6),
  state    VARCHAR(32) NOT NULL,
  event_id VARBINARY(32) NOT NULL,
  PRIMARY KEY (value, scope, ref),
  INDEX by_ref (ref)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}touch (
  id     BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  ref    VARBINARY(32) NOT NULL,
  part   INT NOT NULL,
  reason VARCHAR(16) NOT NULL CHECK (reason IN ('spread', 'again', 'consult', 'row')),
  at     DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  INDEX due (part, at)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}alias (
  ref          VARBINARY(32) NOT NULL,
  absorbed     VARBINARY(32) NOT NULL,
  ord          VARBINARY(64) NOT NULL,
  event_id     VARBINARY(32) NOT NULL,
  committed_at DATETIME(6) NOT NULL,
  PRIMARY KEY (ref, absorbed),
  INDEX by_absorbed (absorbed)
) {t}`, `
CREATE TABLE IF NOT EXISTS {p}finding (
  ref      VARBINARY(32) NOT NULL,
  kind     VARCHAR(32) NOT NULL,
  scope    VARCHAR(191) NOT NULL,
  part     INT NOT NULL,
  event_id VARBINARY(32) NOT NULL,
  times    BIGINT NOT NULL DEFAULT 1,
  first_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  last_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (ref, kind, scope),
  INDEX last (last_at)
) {t}`,
}
