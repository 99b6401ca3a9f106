
-- pgvector's operators and functions over real[], for a server without pgvector: exact, and as slow as a scan. With pgvector
-- they are beside its own, which take other types. NULL gives NULL, as there; what is no vector there is refused in the same words.
CREATE OR REPLACE FUNCTION ruvector.check_vectors(a real[], b real[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF array_ndims(a) > 1 OR array_ndims(b) > 1 THEN
    RAISE 'array must be 1-D' USING ERRCODE = '22000';
  ELSIF cardinality(a) = 0 OR cardinality(b) = 0 THEN
    RAISE 'vector must have at least 1 dimension' USING ERRCODE = '22000';
  ELSIF array_position(a, NULL) IS NOT NULL OR array_position(b, NULL) IS NOT NULL THEN
    RAISE 'array must not contain nulls' USING ERRCODE = '22004';
  ELSIF 'NaN' = ANY (a) OR 'NaN' = ANY (b) THEN
    RAISE 'NaN not allowed in vector' USING ERRCODE = '22000';
  ELSIF a && '{Infinity,-Infinity}' OR b && '{Infinity,-Infinity}' THEN
    RAISE 'infinite value not allowed in vector' USING ERRCODE = '22000';
  ELSIF cardinality(a) <> cardinality(b) THEN
    RAISE 'different vector dimensions % and %', cardinality(a), cardinality(b) USING ERRCODE = '22000';
  END IF;
END $$;

CREATE OR REPLACE FUNCTION ruvector.l2_distance(a real[], b real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, b);
  RETURN (SELECT sqrt(sum((x::float8 - y::float8) ^ 2)) FROM unnest(a, b) u(x, y));
END $$;

CREATE OR REPLACE FUNCTION ruvector.inner_product(a real[], b real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, b);
  RETURN (SELECT sum(x::float8 * y::float8) FROM unnest(a, b) u(x, y));
END $$;

CREATE OR REPLACE FUNCTION ruvector.vector_negative_inner_product(a real[], b real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, b);
  RETURN (SELECT -sum(x::float8 * y::float8) FROM unnest(a, b) u(x, y));
END $$;

-- NaN where one of them has no direction.
CREATE OR REPLACE FUNCTION ruvector.cosine_distance(a real[], b real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, b);
  RETURN (SELECT CASE WHEN p = 0 OR q = 0 THEN 'NaN' ELSE 1 - greatest(-1, least(1, s / (sqrt(p) * sqrt(q)))) END
            FROM (SELECT sum(x::float8 * y::float8), sum(x::float8 ^ 2), sum(y::float8 ^ 2) FROM unnest(a, b) u(x, y)) t(s, p, q));
END $$;

CREATE OR REPLACE FUNCTION ruvector.l1_distance(a real[], b real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, b);
  RETURN (SELECT sum(abs(x::float8 - y::float8)) FROM unnest(a, b) u(x, y));
END $$;

CREATE OR REPLACE FUNCTION ruvector.vector_dims(a real[]) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, a);
  RETURN cardinality(a);
END $$;

CREATE OR REPLACE FUNCTION ruvector.vector_norm(a real[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ruvector.check_vectors(a, a);
  RETURN (SELECT sqrt(sum(x::float8 ^ 2)) FROM unnest(a) u(x));
END $$;

-- What has no direction stays as it is.
CREATE OR REPLACE FUNCTION ruvector.l2_normalize(a real[]) RETURNS real[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  norm double precision := ruvector.vector_norm(a);
BEGIN
  RETURN (SELECT array_agg((CASE WHEN norm > 0 THEN x / norm ELSE x END)::real ORDER BY o) FROM unnest(a) WITH ORDINALITY u(x, o));
END $$;

DO $pack$
DECLARE
  one text[];
BEGIN
  FOREACH one SLICE 1 IN ARRAY ARRAY[['<->', 'l2_distance'], ['<#>', 'vector_negative_inner_product'],
                                     ['<=>', 'cosine_distance'], ['<+>', 'l1_distance']] LOOP
    CONTINUE WHEN to_regoperator(format('ruvector.%s(real[],real[])', one[1])) IS NOT NULL;
    EXECUTE format('CREATE OPERATOR ruvector.%s (LEFTARG = real[], RIGHTARG = real[], FUNCTION = ruvector.%I, COMMUTATOR = OPERATOR(ruvector.%1$s))', one[1], one[2]);
  END LOOP;
END $pack$;
