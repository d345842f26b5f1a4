-- What Lethe needs on the primary, and nothing more. Run it with psql, connected to the CRM's database as a superuser
-- (or as the owner of the tables, with a role made beforehand), from PostgreSQL 11 on:
--
--   psql -d crm -f postgres-source.sql                       the mapping of config/testdata/postgres.yaml
--   psql -d crm -v slot=lethe -v publication=lethe -v tables="('public.customer','{customer_id,status}')" -f postgres-source.sql
--
-- It can be run again after every change of the mapping. `lethe check` compares, and prints statements for your own mapping.
--
-- Variables, all optional:
--   role         login of Lethe                                                  lethe
--   slot         name of the replication slot                                    lethe
--   publication  name of the publication                                         lethe
--   tables       VALUES of ('schema.table', '{columns}'): the mapped columns and the replica identity's; '{}' sends all
--   wal_limit    max_slot_wal_keep_size, set only where the server has no limit  20GB
--   passes       1 grants SELECT on the mapped columns, for passes over the present state and for reading back   1
\set ON_ERROR_STOP 1
\if :{?role} \else \set role lethe \endif
\if :{?slot} \else \set slot lethe \endif
\if :{?publication} \else \set publication lethe \endif
\if :{?wal_limit} \else \set wal_limit 20GB \endif
\if :{?passes} \else \set passes 1 \endif
\if :{?tables} \else
\set tables '(''public.customer'', ''{customer_id,last_name,first_name,national_id,birth_date,gender,qualifier_1,qualifier_2,status,blocked,ok_for_promo,no_marketing,restricted_until}'')'
\set tables :tables ', (''public.customer_note'', ''{note_id,customer_id,note_code}'')'
\set tables :tables ', (''public.customer_address'', ''{address_id,customer_id}'')'
\set tables :tables ', (''public.customer_email'', ''{email_id,customer_id}'')'
\set tables :tables ', (''public.customer_phone'', ''{phone_id,customer_id}'')'
\set tables :tables ', (''public.email_history'', ''{history_id,customer_id}'')'
\set tables :tables ', (''public.address_history'', ''{history_id,customer_id}'')'
\set tables :tables ', (''public.auth_record'', ''{auth_id,customer_id}'')'
\set tables :tables ', (''public.epayment'', ''{epayment_id,customer_id,token,holder_name,iban,active}'')'
\set tables :tables ', (''public.questionnaire_answer'', ''{answer_id,customer_id,answer_text}'')'
\set tables :tables ', (''public.vendor'', ''{vendor_id,customer_id,name,contact,email}'')'
\set tables :tables ', (''public.consent'', ''{consent_id,customer_id,purpose_code,channel_code,contact_id,status,legal_basis,document_id,valid_until}'')'
\endif

-- Nothing below can work without it, and only a restart changes it.
SELECT current_setting('wal_level') = 'logical' AS logical \gset
\if :logical \else
  \warn 'wal_level is not logical: run ALTER SYSTEM SET wal_level = logical; and restart the server'
  SELECT 1 / 0 AS "wal_level must be logical";
\endif

-- The login. REPLICATION lets it read the slot; it owns nothing and can create nothing. Give it a password with
-- \password, which sends only the hash.
SELECT format('CREATE ROLE %I LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 8', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
-- The CRM never waits for Lethe: it gives up a lock, and a session that has gone quiet inside a transaction ends.
ALTER ROLE :"role" SET lock_timeout = '5s';
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '60s';
-- The server's log must not become another copy of the person.
SELECT format('ALTER ROLE %I SET %s', :'role', s.setting)
  FROM (VALUES ('log_statement = ''none''', 0), ('log_min_duration_statement = -1', 0), ('log_min_error_statement = ''panic''', 0),
               ('log_parameter_max_length = 0', 130000), ('log_parameter_max_length_on_error = 0', 130000)) AS s (setting, since)
 WHERE current_setting('server_version_num')::int >= s.since \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec

CREATE TEMPORARY TABLE lethe_mapped AS
SELECT m.name, split_part(m.name, '.', 1) AS nsp, split_part(m.name, '.', 2) AS rel,
       to_regclass(format('%I.%I', split_part(m.name, '.', 1), split_part(m.name, '.', 2))) AS oid, m.cols::text[] AS cols
  FROM (VALUES :tables) AS m (name, cols);
SELECT count(*) > 0 AS missing, coalesce(string_agg(name, ', '), '') AS missing_names FROM lethe_mapped WHERE oid IS NULL \gset
\if :missing
  \warn 'these tables do not exist:' :missing_names
  SELECT 1 / 0 AS "a mapped table does not exist";
\endif

SELECT DISTINCT format('GRANT USAGE ON SCHEMA %I TO %I', nsp, :'role') FROM lethe_mapped \gexec
\if :passes
SELECT format('GRANT SELECT %s ON %I.%I TO %I',
              CASE WHEN cols = '{}' THEN '' ELSE (SELECT format('(%s)', string_agg(format('%I', c), ', ')) FROM unnest(cols) AS c) END,
              nsp, rel, :'role')
  FROM lethe_mapped \gexec
\endif

-- The publication names each table, never ALL TABLES: a REPLICATION login reads whatever is published. A column list
-- (PostgreSQL 15 and later) keeps other columns inside the server; under REPLICA IDENTITY FULL it would make the CRM's
-- own UPDATEs fail, so it is left out there.
SELECT string_agg(format('%I.%I%s', m.nsp, m.rel,
         CASE WHEN m.cols = '{}' OR c.relreplident = 'f' OR current_setting('server_version_num')::int < 150000 THEN ''
              ELSE (SELECT format(' (%s)', string_agg(format('%I', x), ', ')) FROM unnest(m.cols) AS x) END), ', ' ORDER BY m.name) AS list,
       CASE WHEN current_setting('server_version_num')::int >= 130000 THEN ', publish_via_partition_root = true' ELSE '' END AS root
  FROM lethe_mapped m JOIN pg_class c ON c.oid = m.oid \gset
SELECT format('CREATE PUBLICATION %I FOR TABLE %s WITH (publish = ''insert, update, delete, truncate''%s)', :'publication', :'list', :'root')
 WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = :'publication')
UNION ALL
SELECT format('ALTER PUBLICATION %I SET TABLE %s', :'publication', :'list')
 WHERE EXISTS (SELECT FROM pg_publication WHERE pubname = :'publication') \gexec

-- The slot, after the publication: pgoutput reads the catalog as it was at each place in the log.
SELECT pg_create_logical_replication_slot(:'slot', 'pgoutput')
 WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot');

-- A slot that nobody reads holds the log back for ever. With this limit the CRM's disk is safe whatever happens to Lethe:
-- the slot is lost instead, Lethe says so (gap), and a pass makes good for it. Keep Lethe's max_retained_wal below it.
SELECT current_setting('max_slot_wal_keep_size') = '-1' AS unlimited \gset
\if :unlimited
  ALTER SYSTEM SET max_slot_wal_keep_size = :'wal_limit';
  SELECT pg_reload_conf();
\endif

-- pg_hba.conf: the database's name, and no line for the pseudo-database `replication`. Logical streaming goes by the
-- first; without the second this login cannot take a base backup, which would hold every table.
--
--   hostssl  crm          lethe  10.0.0.0/8   scram-sha-256
--   host     replication  lethe  all          reject
DROP TABLE lethe_mapped;
