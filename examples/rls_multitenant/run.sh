#!/usr/bin/env bash
# Owns the example of tenants: row-level security decides who finds what, and everybody finds as many rows as he asked for.
# shellcheck source=examples/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

say "One table of notes of three tenants, of very different sizes, and a policy."
start_postgres
as_user postgres app -c "CREATE ROLE big LOGIN; CREATE ROLE small LOGIN; CREATE ROLE tiny LOGIN"
as_user owner -c "
  CREATE TABLE notes (id bigint PRIMARY KEY, tenant text, body text, embedding real[]);
  INSERT INTO notes SELECT i, CASE WHEN i % 500 = 0 THEN 'tiny' WHEN i % 20 = 3 THEN 'small' ELSE 'big' END, 'note ' || i,
         ARRAY[sin(i), cos(i * 2), sin(i * 3), cos(i * 5)]::real[] FROM generate_series(1, 4000) i;
  ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
  CREATE POLICY tenants ON notes FOR SELECT USING (tenant = current_user);
  GRANT SELECT ON notes TO big, small, tiny;
  CREATE FUNCTION far(a real[], b real[]) RETURNS float8 LANGUAGE sql IMMUTABLE AS
    'SELECT sqrt(sum((x - y)::float8 ^ 2)) FROM unnest(a, b) u(x, y)'"
start_service '[[collections]]
table = "public.notes"
name = "notes"
filter_columns = ["tenant"]
[[collections.vectors]]
column = "embedding"
metric = "l2"' big small tiny

query="ARRAY[0.3, 0.1, 0.7, 0.5]"
search="SELECT (s.\"row\").id FROM ruvector.notes_search($query, 10) s"
say "Each asks for his ten nearest notes with the same statement. Nothing in it names a tenant."
for tenant in big small tiny; do
  found=$(as_user "$tenant" -c "$search")
  expected=$(as_user "$tenant" -c "SELECT id FROM notes ORDER BY far(embedding, ($query)::real[]) LIMIT 10")
  claim "$tenant finds his own notes, the nearest" "$found" "$expected"
done
claim "tiny has eight notes and finds eight of ten" "$(as_user tiny -c "$search" | wc -l)" 8

say "A note changes hands: the policy decides, before the index has heard of it."
first=$(as_user big -c "SELECT id FROM notes ORDER BY far(embedding, ($query)::real[]) LIMIT 1")
as_user owner -c "UPDATE notes SET tenant = 'tiny' WHERE id = $first"
claim "its old tenant does not find it" "$(as_user big -c "SELECT count(*) FROM ($search) s(id) WHERE id = $first")" 0
claim "its new one does" "$(as_user tiny -c "SELECT count(*) FROM ($search) s(id) WHERE id = $first")" 1

say "Who was granted nothing sees nothing, not even distances."
as_user postgres app -c "CREATE ROLE stranger LOGIN"
if as_user stranger -c "$search" >/dev/null 2>"$work/refused"; then found=found; else found=refused; fi
claim "a role without grants is refused" "$found" refused
claim "and told why" "$(grep -c 'permission denied' "$work/refused")" 1
