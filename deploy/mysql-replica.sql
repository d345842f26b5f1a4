-- What Lethe needs on a MySQL (8.0 and later) or MariaDB (10.6 and later) replica, and nothing more. Run it with the mysql
-- client as an administrator, before `lethe setup`:
--
--   mysql --user root < mysql-replica.sql                    the marketing replica of `lethe demo`
--
-- It is plain SQL without variables: put your own names in the place of the database `marketing`, of the logins and of the
-- tables and columns. It can be run again after every change of the mapping. `lethe check` compares, and prints statements
-- for your own mapping.
--
-- Three logins, so that none can do more than its part:
--   lethe_owner   makes and migrates Lethe's own tables; used by `lethe setup` only
--   lethe         what `lethe run` logs in as: DML on mapped columns and, by grants of `lethe setup`, on Lethe's tables
--   lethe_verify  reads mapped columns, writes nothing: for reading back (mysql.verify)
-- They are locked until they have a password and, best, have to use TLS:
--   ALTER USER `lethe`@`%` IDENTIFIED BY '…' REQUIRE SSL ACCOUNT UNLOCK;
CREATE USER IF NOT EXISTS `lethe`@`%` WITH MAX_USER_CONNECTIONS 16 ACCOUNT LOCK;
CREATE USER IF NOT EXISTS `lethe_owner`@`%` WITH MAX_USER_CONNECTIONS 4 ACCOUNT LOCK;
CREATE USER IF NOT EXISTS `lethe_verify`@`%` WITH MAX_USER_CONNECTIONS 8 ACCOUNT LOCK;

-- The mapped tables: what is read (primary and person's key, `by`, what is erased or set, what the audience query uses), what
-- is set, what an insert fills, and whether rows go, also those that a cancel takes back.
GRANT SELECT (contact_id, crm_id, firstname, lastname, email, mobile, city, profile, newsletter_optin, offers_email, offers_sms,
              offers_phone, frozen, blocked),
      UPDATE (firstname, lastname, email, mobile, city, profile, newsletter_optin, offers_email, offers_sms, offers_phone,
              frozen, blocked)
  ON `marketing`.`contact` TO `lethe`@`%`;
GRANT SELECT (note_id, contact_id), DELETE ON `marketing`.`contact_note` TO `lethe`@`%`;
GRANT SELECT (send_id, contact_id, address), UPDATE (address) ON `marketing`.`campaign_send` TO `lethe`@`%`;
-- (UPDATE where an insert fills: it passes over a row that is there already, and the server wants that allowed.)
GRANT SELECT (contact_id, channel, reason, added_at), INSERT (contact_id, channel, reason, added_at),
      UPDATE (contact_id, channel, reason, added_at), DELETE
  ON `marketing`.`do_not_contact` TO `lethe`@`%`;

GRANT SELECT (contact_id, crm_id, firstname, lastname, email, mobile, city, profile, newsletter_optin, offers_email, offers_sms,
              offers_phone, frozen, blocked)
  ON `marketing`.`contact` TO `lethe_verify`@`%`;
GRANT SELECT (note_id, contact_id) ON `marketing`.`contact_note` TO `lethe_verify`@`%`;
GRANT SELECT (send_id, contact_id, address) ON `marketing`.`campaign_send` TO `lethe_verify`@`%`;
GRANT SELECT (contact_id, channel, reason, added_at) ON `marketing`.`do_not_contact` TO `lethe_verify`@`%`;

-- Owner and run role see how the tables of the database are made, so that one that the mapping forgot is found. REFERENCES
-- is the least that shows it: it reads no row, and is of use only to who may make tables. In the name of a database a grant
-- takes _ for any letter: write `my\_database`.*
GRANT REFERENCES ON `marketing`.* TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT REFERENCES ON `marketing`.* TO `lethe`@`%`;

-- Lethe's own tables, by name, because a grant on the database would hold the mapped tables too. The owner hands on what
-- the other logins need: a receipt may be marked as sent and nothing else, and what proves anything cannot be deleted.
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_meta` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_partition` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_subject` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_fact` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_pending` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_readback` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_receipt` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_parked` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_decision` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_gap` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_pass` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_seen` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_due` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_row_key` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_scan` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_review` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_match_pair` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_source_report` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_contact` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_contact_key` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_contact_block` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_touch` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_alias` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_finding` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_source_report` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON `marketing`.`lethe_witness` TO `lethe_owner`@`%` WITH GRANT OPTION;
GRANT CREATE, CREATE VIEW, SHOW VIEW, DROP, SELECT ON `marketing`.`lethe_status` TO `lethe_owner`@`%` WITH GRANT OPTION;
