-- What Lethe needs on a replica, and nothing more. Run it with psql, connected to the replica's database as a superuser:
--
--   psql -d marketing -f postgres-replica.sql                the mapping of config/testdata/postgres.yaml
--   psql -d reporting -v mapped="$(cat reporting-mapping)" -f postgres-replica.sql
--
-- once before `lethe setup`, and once after it: Lethe's own tables exist only then.
--
-- Three roles, so that no login can do more than its part:
--   lethe_owner   makes and migrates Lethe's own tables; used by `lethe setup` only
--   lethe         what `lethe run` logs in as: DML on mapped columns and on Lethe's tables. A receipt that is written stays
--   lethe_verify  reads mapped columns and `lethe.status`, writes nothing: for reading back (postgres.verify), and for people
--
-- It can be run again after every change of the mapping. `lethe check` compares, and prints statements for your own mapping.
--
-- Variables, all optional:
--   role, owner, verify  the three logins                            lethe, lethe_owner, lethe_verify
--   schema               of Lethe's own tables (postgres.schema)      lethe
--   mapped               VALUES of ('table', '{read}', '{updated}', '{inserted}', delete): columns that are read (primary and
--                        person's key, `by`, what is erased or set, what the audience query uses), set, filled by an insert;
--                        whether rows go, also those that a cancel takes back
\set ON_ERROR_STOP 1
\if :{?role} \else \set role lethe \endif
\if :{?owner} \else \set owner lethe_owner \endif
\if :{?verify} \else \set verify lethe_verify \endif
\if :{?schema} \else \set schema lethe \endif
\if :{?mapped} \else
\set mapped '(''contact'', ''{contact_id,crm_id,firstname,lastname,email,mobile,city,profile,newsletter_optin,reconsent_due,offers_email,offers_sms,offers_phone,no_marketing,frozen,blocked}'', ''{firstname,lastname,email,mobile,city,profile,newsletter_optin,reconsent_due,offers_email,offers_sms,offers_phone,no_marketing,frozen,blocked}'', ''{}'', false)'
\set mapped :mapped ', (''contact_note'', ''{note_id,contact_id}'', ''{}'', ''{}'', true)'
\set mapped :mapped ', (''campaign_send'', ''{send_id,contact_id,address}'', ''{address}'', ''{}'', false)'
\set mapped :mapped ', (''do_not_contact'', ''{contact_id,channel,reason,added_at}'', ''{}'', ''{contact_id,channel,reason,added_at}'', true)'
\endif

-- Passwords come later, with \password, which sends only the hash.
SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT %s', r.name, r.connections)
  FROM (VALUES (:'role', 16), (:'owner', 2), (:'verify', 8)) AS r (name, connections)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r.name) \gexec
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE :"verify" SET default_transaction_read_only = on;
ALTER ROLE :"verify" SET idle_in_transaction_session_timeout = '60s';
-- The replica's own log must not become another copy of the person: of these logins no statements, no parameters, and no
-- error messages, which quote values (Lethe gets them anyway, and reduces them to their code).
SELECT format('ALTER ROLE %I SET %s', r.name, s.setting)
  FROM (VALUES (:'role'), (:'verify')) AS r (name),
       (VALUES ('log_statement = ''none''', 0), ('log_min_duration_statement = -1', 0), ('log_min_error_statement = ''panic''', 0),
               ('log_min_messages = ''fatal''', 0),
               ('log_parameter_max_length = 0', 130000), ('log_parameter_max_length_on_error = 0', 130000)) AS s (setting, since)
 WHERE current_setting('server_version_num')::int >= s.since \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I, %I', current_database(), :'role', :'verify') \gexec
-- For CREATE SCHEMA; it can be taken back once the tables exist.
SELECT format('GRANT CONNECT, CREATE ON DATABASE %I TO %I', current_database(), :'owner') \gexec

-- The mapped tables. A name without a schema is looked up in the search path, as Lethe does.
CREATE TEMPORARY TABLE lethe_mapped AS
SELECT m.name, CASE WHEN m.name LIKE '%.%' THEN to_regclass(format('%I.%I', split_part(m.name, '.', 1), split_part(m.name, '.', 2)))
                    ELSE to_regclass(format('%I', m.name)) END AS oid,
       m.r::text[] AS r, m.u::text[] AS u, m.i::text[] AS i, m.d
  FROM (VALUES :mapped) AS m (name, r, u, i, d);
SELECT count(*) > 0 AS missing, coalesce(string_agg(name, ', '), '') AS missing_names FROM lethe_mapped WHERE oid IS NULL \gset
\if :missing
  \warn 'these tables do not exist:' :missing_names
  SELECT 1 / 0 AS "a mapped table does not exist";
\endif
SELECT DISTINCT format('GRANT USAGE ON SCHEMA %s TO %I, %I', c.relnamespace::regnamespace, :'role', :'verify')
  FROM lethe_mapped m JOIN pg_class c ON c.oid = m.oid \gexec
SELECT format('GRANT %s (%s) ON %s TO %s', p.privilege, (SELECT string_agg(format('%I', x), ', ') FROM unnest(p.cols) AS x), m.oid, p.roles)
  FROM lethe_mapped m,
       LATERAL (VALUES ('SELECT', m.r, format('%I, %I', :'role', :'verify')), ('UPDATE', m.u, format('%I', :'role')),
                       ('INSERT', m.i, format('%I', :'role'))) AS p (privilege, cols, roles)
 WHERE p.cols <> '{}' \gexec
SELECT format('GRANT DELETE ON %s TO %I', oid, :'role') FROM lethe_mapped WHERE d \gexec

-- Setup makes one small table in each mapped schema: its row is raised at every phase 2, and tells a restored part of the
-- database from the rest.
SELECT DISTINCT format('GRANT USAGE, CREATE ON SCHEMA %s TO %I', c.relnamespace::regnamespace, :'owner')
  FROM lethe_mapped m JOIN pg_class c ON c.oid = m.oid \gexec
SELECT DISTINCT format('GRANT SELECT, UPDATE ON %s TO %I', w.oid::regclass, :'role')
  FROM lethe_mapped m JOIN pg_class c ON c.oid = m.oid
  JOIN pg_class w ON w.relnamespace = c.relnamespace AND w.relname = 'lethe_witness' \gexec
DROP TABLE lethe_mapped;

-- Lethe's own tables. A receipt may be marked as sent and nothing else; nothing that proves anything can be deleted.
SELECT format('GRANT USAGE ON SCHEMA %I TO %I, %I', :'schema', :'role', :'verify')
 WHERE EXISTS (SELECT FROM pg_namespace WHERE nspname = :'schema') \gexec
SELECT format('GRANT %s ON %s TO %I', t.privileges, c.oid::regclass, :'role')
  FROM (VALUES ('meta',      'SELECT, INSERT, UPDATE, DELETE'),
               ('partition', 'SELECT, INSERT, UPDATE'),
               ('subject',   'SELECT, INSERT, UPDATE'),
               ('fact',      'SELECT, INSERT, UPDATE, DELETE'),
               ('pending',   'SELECT, INSERT, UPDATE, DELETE'),
               ('readback',  'SELECT, INSERT, UPDATE, DELETE'),
               ('receipt',   'SELECT, INSERT, UPDATE (sent_at)'),
               ('parked',    'SELECT, INSERT, UPDATE'),
               ('decision',  'SELECT, INSERT, UPDATE'),
               ('gap',       'SELECT, INSERT, UPDATE'),
               ('pass',      'SELECT, INSERT, UPDATE'),
               ('seen',      'SELECT, INSERT, DELETE'),
               ('contact',   'SELECT, INSERT, UPDATE, DELETE'),
               ('contact_key', 'SELECT, INSERT, UPDATE, DELETE'),
               ('contact_block', 'SELECT, INSERT, UPDATE, DELETE'),
               ('touch',     'SELECT, INSERT, UPDATE, DELETE'),
               ('alias',     'SELECT, INSERT, UPDATE, DELETE'),
               ('finding',   'SELECT, INSERT, UPDATE, DELETE'),
               ('row_key',   'SELECT, INSERT, DELETE'),
               ('scan',      'SELECT, INSERT, UPDATE'),
               ('review',    'SELECT, INSERT, UPDATE'),
               ('match_pair', 'SELECT, INSERT'),
               ('source_report', 'SELECT, INSERT, UPDATE, DELETE'),
               ('source_report', 'SELECT, INSERT, UPDATE, DELETE'),
               ('status',    'SELECT')) AS t (name, privileges)
  JOIN pg_class c ON c.relname = t.name
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = :'schema' \gexec
SELECT format('GRANT SELECT ON %s TO %I', c.oid::regclass, :'verify')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :'schema' AND c.relname = 'status' \gexec
