-- What a DBA runs once on the source so that ruvector needs no ownership there: a role that may replicate and read, and
-- the publication. Idempotent; the publication then has exactly the tables named. The service then runs with source.create_publication = false.
--
--   psql -v ON_ERROR_STOP=1 -v role=ruvector -v password=... -v publication=ruvector -v tables='public.docs, public.pages' \
--        -f migrations/0001_source.sql "postgresql://owner@host/database"
--
-- Every table needs a primary key (or another replica identity): otherwise publishing it would make its UPDATEs fail.
-- On Amazon RDS and Aurora replace REPLICATION by: GRANT rds_replication TO <role>.

BEGIN;
SET LOCAL lock_timeout = '10s';

-- Refuses tables without a usable primary key; the error's text names them.
SELECT ('no primary key or replica identity: ' || string_agg(trim(t), ', '))::integer
  FROM unnest(string_to_array(:'tables', ',')) t JOIN pg_class c ON c.oid = trim(t)::regclass
 WHERE c.relreplident = 'n'
    OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
HAVING count(*) > 0;

SELECT format('CREATE ROLE %I LOGIN', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN REPLICATION PASSWORD :'password';

-- Row security would hide rows from the copy that the stream shows; BYPASSRLS only where a table has it.
SELECT format('ALTER ROLE %I BYPASSRLS', :'role')
 WHERE EXISTS (SELECT FROM unnest(string_to_array(:'tables', ',')) t JOIN pg_class c ON c.oid = trim(t)::regclass
                WHERE c.relrowsecurity) \gexec

SELECT format('GRANT USAGE ON SCHEMA %I TO %I', nspname, :'role')
  FROM (SELECT DISTINCT n.nspname FROM unnest(string_to_array(:'tables', ',')) t
          JOIN pg_class c ON c.oid = trim(t)::regclass JOIN pg_namespace n ON n.oid = c.relnamespace) s \gexec
GRANT SELECT ON TABLE :tables TO :"role";

SELECT format('CREATE PUBLICATION %I FOR TABLE %s WITH (publish_via_partition_root = true)', :'publication', :'tables')
 WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = :'publication') \gexec
ALTER PUBLICATION :"publication" SET TABLE :tables;

COMMIT;
