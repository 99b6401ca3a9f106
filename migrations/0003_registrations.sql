
-- What the service is to follow beside its configuration file, said in rows. It reads them when its slot tells that they
-- changed, which is when a transaction is committed. What became of a row: ruvector_registrations().

-- `service`: the slot (source.slot) of the service it is for; empty: for each. `spec`: what stands under [[collections]] in
-- a configuration file, without the name. `tuning`: what operators may set, who may not say what is indexed: `tiers` and
-- `encoding`.
CREATE TABLE IF NOT EXISTS ruvector.registrations (
  id integer GENERATED ALWAYS AS IDENTITY UNIQUE,
  service text NOT NULL DEFAULT '',
  name text NOT NULL CHECK (name <> ''),
  spec jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
  tuning jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tuning) = 'object'),
  registered_by text NOT NULL DEFAULT session_user,
  registered_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (service, name)
);
CREATE UNIQUE INDEX IF NOT EXISTS registrations_table ON ruvector.registrations (service, (spec ->> 'table'));

CREATE FOREIGN TABLE IF NOT EXISTS ruvector.registration_list (
  service text COLLATE "C", name text COLLATE "C", seen text COLLATE "C", state text, reason text
) SERVER ruvector OPTIONS (schema_name 'ruvector', table_name 'registration_list');

-- What is indexed can be searched: also who writes rows himself registers only what he may read.
CREATE OR REPLACE FUNCTION ruvector.check_registration() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  named text := NEW.spec ->> 'table';
  relation regclass := to_regclass(CASE WHEN named IS NULL THEN NULL WHEN strpos(named, '.') > 0
    THEN format('%I.%I', split_part(named, '.', 1), substr(named, strpos(named, '.') + 1)) ELSE format('public.%I', named) END);
BEGIN
  IF relation IS NOT NULL AND NOT has_table_privilege(relation, 'SELECT') THEN
    RAISE 'permission denied for table %', named USING ERRCODE = '42501';
  END IF;
  NEW.registered_by := session_user;
  RETURN NEW;
END $$;
DROP TRIGGER IF EXISTS check_registration ON ruvector.registrations;
CREATE TRIGGER check_registration BEFORE INSERT OR UPDATE OF spec, name, service ON ruvector.registrations
  FOR EACH ROW EXECUTE FUNCTION ruvector.check_registration();

-- A collection over a table that the caller may read. `options`: m, ef_construction, encoding, index, lists, and tiers. Gives its
-- number; it is searchable when ruvector_registrations() says live.
CREATE OR REPLACE FUNCTION ruvector.ruvector_register_collection(
  p_name text, p_table_schema text, p_table_name text, p_column_name text, p_dimensions integer DEFAULT NULL,
  p_distance_metric text DEFAULT 'l2', p_filter_columns text[] DEFAULT '{}', p_options jsonb DEFAULT '{}', p_service text DEFAULT '')
RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  relation regclass;
  wanted text;
  number integer;
BEGIN
  IF p_name IS NULL OR p_table_schema IS NULL OR p_table_name IS NULL OR p_column_name IS NULL THEN
    RAISE 'name, schema, table and column are needed' USING ERRCODE = '22004';
  END IF;
  IF p_distance_metric IS NULL
     OR p_distance_metric NOT IN ('l2', 'cosine', 'ip', 'l1', 'hamming', 'jaccard', 'poincare', 'lorentz') THEN
    RAISE 'distance_metric is %', quote_nullable(p_distance_metric)
      USING ERRCODE = '22023', HINT = 'l2, cosine, ip, l1, hamming, jaccard, poincare or lorentz';
  END IF;
  IF p_dimensions NOT BETWEEN 1 AND 16000 THEN
    RAISE 'dimensions is %', p_dimensions USING ERRCODE = '22023', HINT = '1 to 16000, or NULL to learn it from the column';
  END IF;
  -- What the service takes for the end of the schema's name.
  IF p_table_schema LIKE '%.%' THEN
    RAISE 'the schema''s name has a dot in it: %', quote_ident(p_table_schema) USING ERRCODE = '0A000';
  END IF;
  relation := to_regclass(format('%I.%I', p_table_schema, p_table_name));
  IF relation IS NULL THEN
    RAISE 'relation "%.%" does not exist', p_table_schema, p_table_name USING ERRCODE = '42P01';
  END IF;
  FOREACH wanted IN ARRAY p_column_name || coalesce(p_filter_columns, '{}') LOOP
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = relation AND attname = wanted AND attnum > 0 AND NOT attisdropped) THEN
      RAISE 'column "%" of relation "%.%" does not exist', wanted, p_table_schema, p_table_name USING ERRCODE = '42703';
    END IF;
  END LOOP;
  -- What is indexed can be searched.
  IF NOT has_table_privilege(relation, 'SELECT') THEN
    RAISE 'permission denied for table %.%', p_table_schema, p_table_name USING ERRCODE = '42501';
  END IF;
  INSERT INTO ruvector.registrations (service, name, spec)
  VALUES (coalesce(p_service, ''), p_name, jsonb_strip_nulls(jsonb_build_object(
    'table', p_table_schema || '.' || p_table_name,
    'vectors', jsonb_build_array(
      coalesce(p_options, '{}') - 'tiers'
      || jsonb_build_object('column', p_column_name, 'metric', p_distance_metric, 'dimensions', p_dimensions)),
    'filter_columns', to_jsonb(coalesce(p_filter_columns, '{}')),
    'tiers', p_options -> 'tiers')))
  RETURNING id INTO number;
  RETURN number;
END $$;

-- The service forgets it. False where there was none.
CREATE OR REPLACE FUNCTION ruvector.ruvector_unregister_collection(p_name text, p_service text DEFAULT '')
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM ruvector.registrations r WHERE r.name = p_name AND r.service = coalesce(p_service, '');
  RETURN FOUND;
END $$;

-- Hours after which a row that no search gave is no longer hot, warm, cool.
CREATE OR REPLACE FUNCTION ruvector.ruvector_set_tiers(
  p_collection_name text, p_hot_hours double precision DEFAULT 24, p_warm_hours double precision DEFAULT 168,
  p_cool_hours double precision DEFAULT 720, p_service text DEFAULT '')
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_hot_hours IS NULL OR p_warm_hours IS NULL OR p_cool_hours IS NULL
     OR NOT (0 <= p_hot_hours AND p_hot_hours <= p_warm_hours AND p_warm_hours <= p_cool_hours AND p_cool_hours <= 1e6) THEN
    RAISE 'hours are %, %, %', p_hot_hours, p_warm_hours, p_cool_hours
      USING ERRCODE = '22023', HINT = '0 to 1000000, and none less than the one before';
  END IF;
  UPDATE ruvector.registrations r
     SET tuning = jsonb_set(r.tuning, '{tiers}', coalesce(r.tuning -> 'tiers', r.spec -> 'tiers', '{}')
       || jsonb_build_object('warm_after_h', p_hot_hours, 'cool_after_h', p_warm_hours, 'cold_after_h', p_cool_hours))
   WHERE r.name = p_collection_name AND r.service = coalesce(p_service, '');
  IF NOT FOUND THEN
    RAISE 'Collection not found: %', p_collection_name
      USING ERRCODE = '42704', HINT = 'one of the configuration file is changed there; ruvector_registrations() shows the others';
  END IF;
  RETURN true;
END $$;

-- What walks compare in a tier: hot is all rows where there are no tiers. False where there is no such collection.
CREATE OR REPLACE FUNCTION ruvector.ruvector_set_compression(
  p_collection_name text, p_tier text, p_compression text, p_service text DEFAULT '')
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  code text := CASE p_compression WHEN 'none' THEN 'f32' ELSE p_compression END;
BEGIN
  IF code IS NULL OR code NOT IN ('f32', 'f16', 'sq8', 'sq4', 'pq8', 'pq16', 'pq32', 'bq') THEN
    RAISE 'compression is %', quote_nullable(p_compression)
      USING ERRCODE = '22023', HINT = 'none, f16, sq8, sq4, pq8, pq16, pq32 or bq';
  END IF;
  IF p_tier IS NULL OR p_tier NOT IN ('hot', 'warm', 'cool', 'cold') THEN
    RAISE 'tier is %', quote_nullable(p_tier) USING ERRCODE = '22023', HINT = 'hot, warm, cool or cold';
  END IF;
  UPDATE ruvector.registrations r
     SET tuning = CASE p_tier
       WHEN 'hot' THEN r.tuning || jsonb_build_object('encoding', code)
       ELSE jsonb_set(r.tuning, '{tiers}',
              coalesce(r.tuning -> 'tiers', r.spec -> 'tiers', '{}') || jsonb_build_object(p_tier, code)) END
   WHERE r.name = p_collection_name AND r.service = coalesce(p_service, '');
  RETURN FOUND;
END $$;

-- What became of what is registered: waiting (the service has not looked yet), copying, live, paused, or refused with the reason.
CREATE OR REPLACE FUNCTION ruvector.ruvector_registrations()
RETURNS TABLE (id integer, name text, table_ref text, service text, registered_by text, registered_at timestamptz, state text, reason text)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT r.id, r.name, r.spec ->> 'table', r.service, r.registered_by, r.registered_at, coalesce(l.state, 'waiting'), l.reason
    FROM ruvector.registrations r
    LEFT JOIN (SELECT * FROM ruvector.registration_list OFFSET 0) l
      ON l.service = r.service AND l.name = r.name
     AND l.seen = hashtextextended(r.spec::text || r.tuning::text, 0)::text
   ORDER BY r.id;
END;
