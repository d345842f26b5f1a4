-- What Lethe needs on a MySQL (8.0 and later) or MariaDB (10.6 and later) primary, and nothing more. Run it with the mysql
-- client as an administrator:
--
--   mysql --user root < mysql-source.sql                     the CRM of `lethe demo`
--
-- It is plain SQL without variables: put your own names in the place of the database `crm`, of the login `lethe`@`%` and of
-- the tables and columns. It can be run again after every change of the mapping. `lethe check` compares, and prints
-- statements for your own mapping.

-- The login. It is locked until it has a password and, best, has to use TLS:
--   ALTER USER `lethe`@`%` IDENTIFIED BY '…' REQUIRE SSL ACCOUNT UNLOCK;
CREATE USER IF NOT EXISTS `lethe`@`%` WITH MAX_USER_CONNECTIONS 16 ACCOUNT LOCK;

-- To read the binary log, and to ask which logs there are. The log cannot be restricted to tables: who has REPLICATION
-- SLAVE reads every row that is written. Guard this login like a backup, and allow it from Lethe's machine only (in the
-- place of `%`). Lethe skips the rows of tables that are not mapped without decoding them.
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO `lethe`@`%`;

-- A heartbeat changes the one row of this table, so that Lethe knows an idle log from a broken one. It is the only thing
-- that Lethe ever writes here.
CREATE TABLE IF NOT EXISTS `crm`.`lethe_heartbeat` (
  id         TINYINT UNSIGNED NOT NULL PRIMARY KEY,
  emitted_ms BIGINT UNSIGNED  NOT NULL,
  beat       BIGINT UNSIGNED  NOT NULL
) ENGINE=InnoDB;
INSERT IGNORE INTO `crm`.`lethe_heartbeat` (id, emitted_ms, beat) VALUES (1, 0, 0);
GRANT SELECT, UPDATE ON `crm`.`lethe_heartbeat` TO `lethe`@`%`;

-- How the tables are made: `check` walks the foreign keys, because InnoDB writes no cascade into the log. REFERENCES is the
-- least that shows them: it reads no row, and is of use only to who may make tables.
GRANT REFERENCES ON `crm`.* TO `lethe`@`%`;
-- The mapped columns, and the primary keys, along which a pass walks through a table: it reads them in short transactions
-- without locks. `check` compares them with the mapping.
GRANT SELECT (customer_id, last_name, first_name, national_id, birth_date, gender, qualifier_1, qualifier_2, status, blocked,
              ok_for_promo, no_marketing, restricted_until) ON `crm`.`customer` TO `lethe`@`%`;
GRANT SELECT (note_id, customer_id, note_code) ON `crm`.`customer_note` TO `lethe`@`%`;
GRANT SELECT (address_id, customer_id) ON `crm`.`customer_address` TO `lethe`@`%`;
GRANT SELECT (email_id, customer_id) ON `crm`.`customer_email` TO `lethe`@`%`;
GRANT SELECT (phone_id, customer_id) ON `crm`.`customer_phone` TO `lethe`@`%`;
GRANT SELECT (history_id, customer_id) ON `crm`.`email_history` TO `lethe`@`%`;
GRANT SELECT (history_id, customer_id) ON `crm`.`address_history` TO `lethe`@`%`;
GRANT SELECT (auth_id, customer_id) ON `crm`.`auth_record` TO `lethe`@`%`;
GRANT SELECT (epayment_id, customer_id, token, holder_name, iban, active) ON `crm`.`epayment` TO `lethe`@`%`;
GRANT SELECT (answer_id, customer_id, answer_text) ON `crm`.`questionnaire_answer` TO `lethe`@`%`;
GRANT SELECT (vendor_id, customer_id, name, contact, email) ON `crm`.`vendor` TO `lethe`@`%`;
GRANT SELECT (consent_id, customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id, valid_until)
  ON `crm`.`consent` TO `lethe`@`%`;

-- Settings of the server, for its owner to decide. On MySQL SET PERSIST keeps them over a restart; on MariaDB write them
-- into my.cnf too. Sessions that are open keep the old ones until they connect again.
--
--   SET GLOBAL binlog_format = 'ROW';
--   SET GLOBAL binlog_row_image = 'FULL';
--   SET GLOBAL binlog_row_metadata = 'FULL';
--   SET GLOBAL binlog_expire_logs_seconds = 604800;   -- longer than the longest outage of Lethe or Kafka to sleep through
--
-- log_bin and server_id want a restart; gtid_mode = ON (MySQL) goes in the steps that the manual gives, without one.
-- Do not grant SUPER, SESSION_VARIABLES_ADMIN or BINLOG ADMIN to applications: with SET sql_log_bin = 0 they would write what
-- no reader of the log ever sees.
