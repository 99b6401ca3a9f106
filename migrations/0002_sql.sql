-- The SQL pack: vector search from within PostgreSQL, by nothing but postgres_fdw and plain SQL. No superuser, no C. Idempotent;
-- one transaction. `ruvector sqlpack print` fills in the literals and adds one part for each collection.
--
-- Once before, by an administrator of the database:
--   CREATE EXTENSION IF NOT EXISTS postgres_fdw;
--   GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO <the role that runs this>;
--
-- Words between two @ stand for literals: where the service listens for SQL as this server
-- sees it, and one of its [sql.users]. His password is a setting of the session, so that no text of a statement has it:
--   SELECT set_config('ruvector.password', '...', false);

BEGIN;
SET LOCAL lock_timeout = '10s';
SET LOCAL client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS ruvector;

-- fetch_size above the largest k: a search costs one FETCH. Nothing is written through these tables, so an INSERT fails here
-- and nothing is sent. The costs of the service's EXPLAIN are asked for where they decide something (see below).
DO $pack$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = 'ruvector') THEN
    CREATE SERVER ruvector FOREIGN DATA WRAPPER postgres_fdw
      OPTIONS (host 'localhost', port '0', dbname 'ruvector', sslmode 'prefer', fetch_size '10001', use_remote_estimate 'false',
               updatable 'false', truncatable 'false', connect_timeout '5');
  END IF;
  EXECUTE format('ALTER SERVER ruvector OPTIONS (SET host %L, SET port %L, SET sslmode %L)', @host@, @port@, @sslmode@);
  -- pgvector's operators are sent where pgvector is here, too.
  IF EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')
     AND NOT EXISTS (SELECT FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o
                      WHERE s.srvname = 'ruvector' AND o.option_name = 'extensions') THEN
    ALTER SERVER ruvector OPTIONS (ADD extensions 'vector');
  END IF;
  -- One identity for all roles; a mapping for a role of its own takes precedence over it.
  IF NOT EXISTS (SELECT FROM pg_user_mappings WHERE srvname = 'ruvector' AND umuser = 0) THEN
    CREATE USER MAPPING FOR PUBLIC SERVER ruvector OPTIONS (user '', password '');
  END IF;
  EXECUTE format('ALTER USER MAPPING FOR PUBLIC SERVER ruvector OPTIONS (SET user %L, SET password %L)', @sql_user@, current_setting('ruvector.password'));
END $pack$;

-- Tables that are functions: inputs are given by equality.
CREATE FOREIGN TABLE IF NOT EXISTS ruvector.search_table (
  collection text, query real[], k integer, filter text, options jsonb,
  key text COLLATE "C", distance double precision, columns jsonb,
  complete boolean, applied_lsn pg_lsn, staleness_ms double precision, stale text, plan text
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'search');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.stream_table (
  collection text, query real[], filter text, options jsonb, key text COLLATE "C", distance double precision
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'stream', fetch_size '100', use_remote_estimate 'true');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.collection_list (
  name text, table_schema text, table_name text, column_name text, type text, distance_metric text, dimensions integer,
  index_type text, vector_count bigint, row_count bigint, dead_letters bigint, state text
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'collection_list');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.service_status (
  version text, applied_lsn pg_lsn, durable_lsn pg_lsn, received_lsn pg_lsn, source_lsn pg_lsn,
  staleness_ms double precision, stale text, simd text
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'status');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.index_list (
  collection text COLLATE "C", column_name text, type text, distance_metric text, dimensions integer, index_type text,
  vector_count bigint, node_count bigint, linked_count bigint, segment_count bigint, memory_bytes bigint, state text
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'index_list');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.tier_list (
  collection text COLLATE "C", column_name text, tier text, vector_count bigint, memory_bytes bigint,
  compression_ratio double precision, compression text, mean_age_h double precision
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'tier_list');

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.visibility_list (
  collection text COLLATE "C", searches bigint, rechecked bigint, invisible bigint
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'visibility_list');

-- Functions. Every input is `column = (SELECT argument)`: a scalar sub-select is evaluated here and sent as a parameter, whatever
-- is in it; a cast or a COALESCE beside = stays here, and the service would be asked for everything. LIMIT or OFFSET 0 keeps
-- the search apart in joins. STABLE, not STRICT, no SECURITY DEFINER, no SET: so they are inlined.

-- Options of a search out of arguments: the body of a search over HTTP. What an argument says holds beside what `options`
-- say of the same object, and against them where both say the same.
CREATE OR REPLACE FUNCTION ruvector.search_options(options jsonb, recheck text, ef_search integer, exactness text, min_lsn pg_lsn)
RETURNS jsonb LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  body jsonb := jsonb_build_object('recheck', coalesce(recheck, 'none')) || coalesce(options, '{}'::jsonb);
  search jsonb := jsonb_strip_nulls(jsonb_build_object('ef', ef_search, 'exact', nullif(exactness = 'exact', false),
                                                         'exactness', CASE WHEN exactness IN ('fast', 'balanced') THEN exactness END));
BEGIN
  IF exactness NOT IN ('exact', 'balanced', 'fast', 'approximate') THEN
    RAISE 'exactness is %', quote_literal(exactness) USING ERRCODE = '22023', HINT = 'exact, balanced, fast, approximate, or NULL';
  END IF;
  IF search <> '{}'::jsonb THEN
    body := body || jsonb_build_object('search', coalesce(body->'search', '{}'::jsonb) || search);
  END IF;
  IF min_lsn IS NOT NULL THEN
    body := body || jsonb_build_object('consistency',
              coalesce(body->'consistency', '{}'::jsonb) || jsonb_build_object('at_least', min_lsn::text));
  END IF;
  RETURN body;
END $$;

-- One of two forms of a filter.
CREATE OR REPLACE FUNCTION ruvector.one_filter(condition text, filter jsonb)
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF condition <> '' AND filter <> '{}'::jsonb THEN
    RAISE 'both filter and condition are given' USING ERRCODE = '22023', HINT = 'write all of it into condition';
  END IF;
  RETURN coalesce(nullif(condition, ''), filter::text, '');
END $$;

-- The k nearest rows of a collection, checked to exist as over HTTP. `filter`: an object of equalities, `condition`: SQL on the
-- collection's filter columns.
CREATE OR REPLACE FUNCTION ruvector.ruvector_search(
  collection text, query double precision[], k integer DEFAULT 10, ef_search integer DEFAULT NULL, use_gnn boolean DEFAULT false,
  filter jsonb DEFAULT NULL, exactness text DEFAULT NULL, condition text DEFAULT NULL, options jsonb DEFAULT NULL,
  min_lsn pg_lsn DEFAULT NULL)
RETURNS TABLE (id text, distance double precision, score double precision, columns jsonb, complete boolean, applied_lsn pg_lsn)
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10
BEGIN ATOMIC
  SELECT s.key COLLATE "default", s.distance, 1 / (1 + abs(s.distance)), s.columns, s.complete, s.applied_lsn
    FROM ruvector.search_table s
   WHERE s.collection = (SELECT ruvector_search.collection)
     AND s.query = (SELECT ruvector_search.query::real[])
     AND s.k = (SELECT coalesce(ruvector_search.k, 10))
     AND s.filter = (SELECT ruvector.one_filter(ruvector_search.condition, ruvector_search.filter))
     AND s.options = (SELECT ruvector.search_options(
           CASE WHEN ruvector_search.use_gnn THEN coalesce(ruvector_search.options, '{}') || '{"use_gnn": true}'::jsonb
                ELSE ruvector_search.options END,
           'exists', ruvector_search.ef_search, ruvector_search.exactness, ruvector_search.min_lsn))
   ORDER BY s.distance LIMIT coalesce(ruvector_search.k, 10);
END;

-- Several searches, one after the other, on one state of the index: queries as an array of vectors.
CREATE OR REPLACE FUNCTION ruvector.ruvector_search_batch(collection text, queries double precision[], k integer DEFAULT 10)
RETURNS TABLE (query_idx integer, id text, distance double precision)
LANGUAGE sql STABLE PARALLEL RESTRICTED
BEGIN ATOMIC
  SELECT i, s.key COLLATE "default", s.distance
    FROM generate_subscripts(ruvector_search_batch.queries, 1) i
   CROSS JOIN LATERAL (
     SELECT t.key, t.distance FROM ruvector.search_table t
      WHERE t.collection = (SELECT ruvector_search_batch.collection)
        AND t.query = (SELECT array_agg(e ORDER BY o)::real[]
                         FROM unnest(ruvector_search_batch.queries[i:i]) WITH ORDINALITY u(e, o))
        AND t.k = (SELECT coalesce(ruvector_search_batch.k, 10))
        AND t.options = (SELECT '{"recheck": "exists"}'::jsonb)
      ORDER BY t.distance LIMIT coalesce(ruvector_search_batch.k, 10)) s;
END;

CREATE OR REPLACE FUNCTION ruvector.ruvector_list_collections()
RETURNS TABLE (id integer, name text, table_ref text, dimensions integer, distance_metric text, index_type text, vector_count bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT row_number() OVER (ORDER BY c.name, c.column_name)::integer, c.name,
         c.table_schema || '.' || c.table_name || '.' || c.column_name,
         c.dimensions, c.distance_metric, c.index_type, c.vector_count
    FROM ruvector.collection_list c;
END;

CREATE OR REPLACE FUNCTION ruvector.ruvector_last_applied_lsn() RETURNS pg_lsn LANGUAGE sql STABLE
BEGIN ATOMIC SELECT s.applied_lsn FROM ruvector.service_status s; END;

CREATE OR REPLACE FUNCTION ruvector.ruvector_version() RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC SELECT s.version FROM ruvector.service_status s; END;

CREATE OR REPLACE FUNCTION ruvector.ruvector_simd_info() RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC SELECT s.simd FROM ruvector.service_status s; END;

-- Of a collection, or of one vector column of it as `collection.column`: what its indexes are and hold. NULL where there is none.
CREATE OR REPLACE FUNCTION ruvector.ruvector_index_stats(p_index_name text) RETURNS jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object('collection', min(i.collection), 'indexes', jsonb_agg(to_jsonb(i) - 'collection'))
    FROM (SELECT * FROM ruvector.index_list OFFSET 0) i
   WHERE p_index_name IN (i.collection, i.collection || '.' || i.column_name)
  HAVING count(*) > 0;
END;

-- What is kept how, hottest first; `growing` is not sealed yet, `none` has no tiers. Sizes are of memory.
CREATE OR REPLACE FUNCTION ruvector.ruvector_tier_report(p_collection_name text)
RETURNS TABLE (tier_name text, vector_count bigint, size_mb real, compression text, avg_age_hours real, compression_ratio real, column_name text)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT t.tier, t.vector_count, (t.memory_bytes / 1048576.0)::real, t.compression, t.mean_age_h::real,
         t.compression_ratio::real, t.column_name
    FROM (SELECT * FROM ruvector.tier_list OFFSET 0) t
   WHERE t.collection = p_collection_name
   ORDER BY t.column_name, array_position(ARRAY['growing', 'hot', 'warm', 'cool', 'cold', 'none'], t.tier);
END;

-- Bytes of vectors, codes and links in memory, of all indexes and by collection.
CREATE OR REPLACE FUNCTION ruvector.ruvector_memory_stats() RETURNS jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object('index_bytes', coalesce(sum(i.bytes), 0),
                            'collections', coalesce(jsonb_object_agg(i.collection, i.bytes), '{}'))
    FROM (SELECT l.collection, sum(l.memory_bytes)::bigint AS bytes
            FROM (SELECT * FROM ruvector.index_list OFFSET 0) l GROUP BY l.collection) i;
END;

-- How many of the rows found the source did not show, since the service began.
CREATE OR REPLACE VIEW ruvector.visibility_stats AS
  SELECT v.collection AS collection_name, v.searches AS total_searches, v.rechecked AS visibility_rechecks,
         v.invisible AS invisible_filtered, round(100.0 * v.invisible / nullif(v.rechecked, 0), 3) AS invisible_pct
    FROM (SELECT * FROM ruvector.visibility_list OFFSET 0) v;

-- The collections over tables that the caller may read.
CREATE OR REPLACE VIEW ruvector.my_collections AS
  SELECT c.name, c.table_schema, c.table_name, c.column_name, c.type, c.distance_metric, c.dimensions, c.index_type,
         c.vector_count, c.state
    FROM (SELECT * FROM ruvector.collection_list OFFSET 0) c
   WHERE EXISTS (SELECT FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
                  WHERE n.nspname = c.table_schema AND r.relname = c.table_name
                    AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(r.oid, 'SELECT'));

CREATE OR REPLACE VIEW ruvector.consistency_status AS
  SELECT c.name AS collection, s.source_lsn AS last_heap_lsn, s.applied_lsn AS last_index_lsn, s.staleness_ms AS lag_ms,
         s.source_lsn - s.applied_lsn AS lag_bytes, s.stale
    FROM (SELECT * FROM ruvector.service_status OFFSET 0) s CROSS JOIN (SELECT * FROM ruvector.collection_list OFFSET 0) c;
