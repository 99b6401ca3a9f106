#!/usr/bin/env bash
# Owns the example of one's own writes: a search that waits for exactly the position of one's own COMMIT.
# shellcheck source=examples/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

say "A table of messages, and a service that follows it."
start_postgres
as_user owner -c "
  CREATE TABLE messages (id bigint PRIMARY KEY, body text, embedding real[]);
  INSERT INTO messages SELECT i, 'message ' || i, ARRAY[sin(i), cos(i * 2), sin(i * 3)]::real[] FROM generate_series(1, 1000) i"
start_service '[[collections]]
table = "public.messages"
name = "messages"
[[collections.vectors]]
column = "embedding"
metric = "l2"'

say "Fifty times: write a row, and search for it in the next statement with the position of the commit."
seen=0
for i in $(seq 2001 2050); do
  found=$(as_user owner -c "INSERT INTO messages VALUES ($i, 'mine', ARRAY[$i, $i, $i])" -c "
    SELECT id FROM ruvector.ruvector_search('messages', ARRAY[$i, $i, $i], 1, min_lsn => pg_current_wal_lsn())")
  if [ "$found" = "$i" ]; then seen=$((seen + 1)); fi
done
claim "every one of them was found" "$seen" 50

say "The same for what is deleted."
found=$(as_user owner -c "DELETE FROM messages WHERE id = 2050" -c "
  SELECT id FROM ruvector.ruvector_search('messages', ARRAY[2050, 2050, 2050], 1, min_lsn => pg_current_wal_lsn())")
claim "the next one is found instead" "$found" 2049

say "The answer says as of when it is."
found=$(as_user owner -c "INSERT INTO messages VALUES (3000, 'mine', ARRAY[9, 9, 9])" -c "
  WITH mine AS (SELECT pg_current_wal_lsn() AS lsn)
  SELECT s.applied_lsn >= (SELECT lsn FROM mine)
    FROM ruvector.ruvector_search('messages', ARRAY[9, 9, 9], 1, min_lsn => (SELECT lsn FROM mine)) s")
claim "applied_lsn is at or behind the position that was asked for" "$found" t

say "A position that does not come is an error after the time that one is willing to wait, not an old answer."
if as_user owner -c "SELECT id FROM ruvector.ruvector_search('messages', ARRAY[1, 1, 1], 1, min_lsn => 'FFFF/0',
     options => '{\"consistency\": {\"timeout_ms\": 300}}')" >/dev/null 2>"$work/refused"; then found=answered; else found=refused; fi
claim "it is refused" "$found" refused
