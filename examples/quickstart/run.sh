#!/usr/bin/env bash
# Owns the first steps: a table with real embeddings, and what can be asked about it over HTTP with curl alone.
# shellcheck source=examples/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
command -v curl >/dev/null || { echo "curl is missing: sudo apt-get install -y curl" >&2; exit 2; }

# ask ROUTE [BODY]: an answer of the service, into the variable `answer`.
ask() {
  printf '$ curl -s %s/v1/collections/docs/%s -d %s\n' "$url" "$1" "'$(cut -c1-140 <<<"$2")'"
  answer=$(curl -s "$url/v1/collections/docs/$1" -d "$2")
}

# in_answer EXPRESSION: SQL over the last answer as jsonb, which is `a`.
in_answer() {
  as_user owner -v answer="$answer" <<<"SELECT $1 FROM (SELECT :'answer'::jsonb AS a) answered"
}

say "A PostgreSQL as it is, with 2,000 real texts and their embeddings, and a service beside it."
start_postgres
load_texts 2000
start_service '[[collections]]
table = "public.docs"
name = "docs"
filter_columns = ["section", "views"]
[[collections.vectors]]
column = "embedding"
metric = "cosine"'

say "Its collections, and how far it is."
answer=$(curl -s "$url/v1/collections")
claim "one collection, live, with all rows" "$(in_answer "a #>> '{collections,0,name}', a #>> '{collections,0,state}', a #>> '{collections,0,rows}'")" "docs|live|2000"

say "The nearest rows to a vector: the embedding of the first query in examples/data, which is a text that no row has."
query=$(od -An -v -t f4 -w1536 -j 128 -N 1536 examples/data/queries.f32.npy | awk '{ gsub(/ +/, ","); print "[" substr($0, 2) "]" }')
ask search "{\"query\": {\"vector\": $query}, \"limit\": 5, \"columns\": [\"name\"], \"search\": {\"exact\": true}}"
in_answer "(SELECT string_agg(format('  %s  %s', left(hit ->> 'distance', 6), hit #>> '{columns,name}'), E'\\n' ORDER BY n)
  FROM jsonb_array_elements(a -> 'hits') WITH ORDINALITY hits (hit, n))"
found=$(in_answer "(SELECT string_agg(hit ->> 'id', ',' ORDER BY n) FROM jsonb_array_elements(a -> 'hits') WITH ORDINALITY hits (hit, n))")
claim "they are the five that PostgreSQL finds by comparing all" "$found" "$(as_user owner -v query="{${query:1:-1}}" <<<"
  SELECT string_agg(id::text, ',' ORDER BY distance) FROM (
    SELECT id, 1 - (SELECT sum(a::float8 * b) / sqrt(sum(a::float8 * a) * sum(b::float8 * b)) FROM unnest(embedding, :'query'::real[]) both_of_them (a, b))
             AS distance FROM docs ORDER BY distance LIMIT 5) nearest")"

say "A row is written, and read at the position of its own COMMIT: never an older answer."
lsn=$(as_user owner -c "INSERT INTO docs SELECT 5000, 'mine', 'net', 7, 'my own text', embedding FROM docs WHERE id = 42" -c "SELECT pg_current_wal_lsn()")
ask search "{\"query\": {\"id\": 42}, \"limit\": 1, \"columns\": [\"name\"], \"consistency\": {\"at_least\": \"$lsn\"}}"
claim "it is the nearest to the row that it is a copy of" "$(in_answer "a #>> '{hits,0,id}', a #>> '{hits,0,columns,name}'")" "5000|mine"
claim "the answer is as of that position or later" "$(in_answer "(a ->> 'applied_lsn')::pg_lsn >= '$lsn'")" t

say "What is deleted is gone at once."
as_user owner -c "DELETE FROM docs WHERE id = 5000"
ask search '{"query": {"id": 42}, "limit": 1}'
claim "another row is the nearest now" "$(in_answer "a #>> '{hits,0,id}' <> '5000'")" t

say "A filter is SQL, its values are parameters."
ask search '{"query": {"id": 42}, "limit": 10, "filter": "section = $1 AND views < 50", "params": ["libs"], "columns": ["section", "views"]}'
claim "ten rows, and all of them pass" "$(in_answer "jsonb_array_length(a -> 'hits'), (SELECT bool_and(hit #>> '{columns,section}' = 'libs'
  AND (hit #>> '{columns,views}')::int < 50) FROM jsonb_array_elements(a -> 'hits') hit)")" "10|t"
ask count '{"filter": "section = '"'libs'"' AND views < 50"}'
claim "their number is PostgreSQL's" "$(in_answer "a ->> 'count'")" "$(as_user owner -c "SELECT count(*) FROM docs WHERE section = 'libs' AND views < 50")"

say "How an answer came about."
ask search '{"query": {"id": 42}, "limit": 3, "explain": true}'
in_answer "'plan ' || (a #>> '{explain,plan}') || ': ' || (a #>> '{explain,reason}') || '; ' || (a #>> '{explain,visited}') || ' distances, ' || (a #>> '{explain,timings_us,total}') || ' us'"
claim "plan, distances and times are told" "$(in_answer "a -> 'explain' ?& array['plan', 'reason', 'visited', 'segments', 'timings_us']")" t

say "What is wrong has a code, and says what to do."
ask search '{"query": {"id": 42}, "filter": "sektion = 1"}'
in_answer "a ->> 'detail', a ->> 'hint'"
claim "the code is stable" "$(in_answer "a ->> 'code', a ->> 'status', a ->> 'retryable'")" "RV1007|400|false"
