
-- Roles of the whole server, where they may be made. Nobody is in them until somebody is granted one.
DO $pack$
DECLARE
  wanted text;
BEGIN
  FOREACH wanted IN ARRAY ARRAY['ruvector_admin', 'ruvector_operator', 'ruvector_user'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = wanted);
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
      -- What says later that it may be dropped.
      EXECUTE format('COMMENT ON ROLE %I IS %L', wanted, 'made by ruvector');
    EXCEPTION
      WHEN insufficient_privilege THEN
        RAISE WARNING 'there is no role %, and % may not make it: somebody with CREATEROLE has to, then install again', wanted, current_user;
      -- Another database's pack was faster.
      WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
END $pack$;

-- Nobody else may use it until it is granted: who searches sees keys and distances of all rows of a collection, also of rows
-- that row-level security hides from him in the table.
REVOKE ALL ON ALL TABLES IN SCHEMA ruvector FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ruvector FROM PUBLIC;

-- admin: everything. operator: searches, looks, and tunes what is registered; not what is indexed. user: searches by
-- ruvector_search and looks. The tables and functions of single collections, which show vectors and filter columns too, are
-- granted one by one, or by `sqlpack install --grant`.
DO $pack$
DECLARE
  who text;
  what text;
  common text[] := ARRAY['search_options', 'one_filter', 'ruvector_search', 'ruvector_search_batch', 'ruvector_list_collections',
    'ruvector_index_stats', 'ruvector_tier_report', 'ruvector_last_applied_lsn', 'ruvector_version', 'ruvector_simd_info', 'ruvector_memory_stats',
    'check_vectors', 'l2_distance', 'inner_product', 'vector_negative_inner_product', 'cosine_distance', 'l1_distance',
    'vector_dims', 'vector_norm', 'l2_normalize'];
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ruvector_admin') THEN
    GRANT USAGE ON SCHEMA ruvector TO ruvector_admin;
    GRANT ALL ON ALL TABLES IN SCHEMA ruvector TO ruvector_admin;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA ruvector TO ruvector_admin;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ruvector TO ruvector_admin;
  END IF;
  FOREACH who IN ARRAY ARRAY['ruvector_operator', 'ruvector_user'] LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM pg_roles WHERE rolname = who);
    EXECUTE format('GRANT USAGE ON SCHEMA ruvector TO %I', who);
    EXECUTE format('GRANT SELECT ON ruvector.search_table, ruvector.collection_list, ruvector.service_status, ruvector.index_list,
      ruvector.tier_list, ruvector.visibility_list, ruvector.consistency_status, ruvector.visibility_stats, ruvector.my_collections TO %I', who);
    FOR what IN SELECT p.oid::regprocedure::text FROM pg_proc p
                 WHERE p.pronamespace = 'ruvector'::regnamespace AND p.proname = ANY (common) LOOP
      EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', what, who);
    END LOOP;
  END LOOP;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'ruvector_operator') THEN
    GRANT SELECT, UPDATE (tuning) ON ruvector.registrations TO ruvector_operator;
    GRANT SELECT ON ruvector.registration_list TO ruvector_operator;
    GRANT EXECUTE ON FUNCTION ruvector.ruvector_registrations(),
      ruvector.ruvector_set_tiers(text, double precision, double precision, double precision, text),
      ruvector.ruvector_set_compression(text, text, text, text) TO ruvector_operator;
  END IF;
-- Another database's pack was taken out meanwhile, with its roles.
EXCEPTION WHEN undefined_object THEN
  RAISE WARNING '%: install again', SQLERRM;
END $pack$;
