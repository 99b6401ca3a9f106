#!/usr/bin/env bash
# Owns the example of a join: a vector search and a table of PostgreSQL in one statement, with nothing but postgres_fdw.
# shellcheck source=examples/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

say "A PostgreSQL with 2,000 products, and a service that follows their embeddings."
start_postgres
as_user owner -c "
  CREATE TABLE products (id bigint PRIMARY KEY, name text, price int, stock int, embedding real[]);
  INSERT INTO products SELECT i, 'product ' || i, i * 37 % 500, i * 7 % 4,
         ARRAY[sin(i), cos(i * 2), sin(i * 3), cos(i * 5)]::real[] FROM generate_series(1, 2000) i;
  CREATE TABLE orders (product bigint, customer text);
  INSERT INTO orders SELECT i * 13 % 2000 + 1, 'customer ' || i % 50 FROM generate_series(1, 5000) i;
  CREATE FUNCTION far(a real[], b real[]) RETURNS float8 LANGUAGE sql IMMUTABLE AS
    'SELECT sqrt(sum((x - y)::float8 ^ 2)) FROM unnest(a, b) u(x, y)'"
start_service '[[collections]]
table = "public.products"
name = "products"
filter_columns = ["price"]
[[collections.vectors]]
column = "embedding"
metric = "l2"
ef_construction = 200'

query="ARRAY[0.3, 0.1, 0.7, 0.5]"
say "The ten products nearest to something, joined to their rows."
found=$(as_user owner -c "
  SELECT p.id FROM ruvector.products_nearest($query) s JOIN products p USING (id) ORDER BY s.distance LIMIT 10")
expected=$(as_user owner -c "SELECT id FROM products ORDER BY far(embedding, ($query)::real[]) LIMIT 10")
claim "the join finds what a scan of the table finds" "$found" "$expected"

say "Those in stock, under 200: a condition that only the table knows, and one that the index sees to."
found=$(as_user owner -c "
  SELECT p.id FROM ruvector.products_nearest($query, 'price < 200') s JOIN products p USING (id)
   WHERE p.stock > 0 ORDER BY s.distance LIMIT 10")
expected=$(as_user owner -c "
  SELECT id FROM products WHERE price < 200 AND stock > 0 ORDER BY far(embedding, ($query)::real[]) LIMIT 10")
claim "ten rows are left, and they are the right ones" "$found" "$expected"

say "Who ordered something like product 7? One search, two tables, a group."
found=$(as_user owner -c "
  SELECT o.customer, count(*) FROM (
    SELECT s.id FROM ruvector.products_nearest((SELECT embedding FROM products WHERE id = 7)) s LIMIT 20) near
    JOIN orders o ON o.product = near.id GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5")
expected=$(as_user owner -c "
  SELECT o.customer, count(*) FROM (
    SELECT id FROM products ORDER BY far(embedding, (SELECT embedding FROM products WHERE id = 7)) LIMIT 20) near
    JOIN orders o ON o.product = near.id GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5")
claim "the same customers as by a scan" "$found" "$expected"

say "A product that is deleted is gone from the join at once, whatever the index has seen of it."
first=$(as_user owner -c "SELECT id FROM products ORDER BY far(embedding, ($query)::real[]) LIMIT 1")
found=$(as_user owner -c "DELETE FROM products WHERE id = $first" -c "
  SELECT count(*), count(*) FILTER (WHERE p.id = $first) FROM (
    SELECT p.id FROM ruvector.products_nearest($query) s JOIN products p USING (id) ORDER BY s.distance LIMIT 10) p")
claim "ten others are found" "$found" "10|0"
