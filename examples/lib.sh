# Owns what the examples share: a private PostgreSQL and a service beside it, which end with the script, and claims that are
# checked. Sourced by them. As root, PostgreSQL runs as the user postgres or nobody.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh
exec </dev/null

ruvector=${RUVECTOR_BIN:-}
if [ -z "$ruvector" ]; then
  for ruvector in "${CARGO_TARGET_DIR:-target}"/{release,debug}/ruvector; do
    [ -x "$ruvector" ] && break
  done
fi
[ -x "$ruvector" ] || { echo "build first: cargo build --release, or name the program by RUVECTOR_BIN" >&2; exit 2; }
command -v psql >/dev/null || { echo "psql is missing: sudo apt-get install -y postgresql-client" >&2; exit 2; }
pg_bin=$(find_postgres) || { echo "no PostgreSQL server was found: sudo apt-get install -y postgresql" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/ruvector-example-XXXXXX")
service=
end() {
  local status=$?
  trap - EXIT
  if [ -n "$service" ]; then kill "$service" 2>/dev/null && wait "$service" 2>/dev/null || true; fi
  if [ -f "$work/pg/data/postmaster.pid" ]; then
    as_server "$pg_bin/pg_ctl" -D "$work/pg/data" -m immediate -s stop >/dev/null 2>&1 || true
  fi
  if [ "$status" != 0 ] && [ -f "$work/ruvector.log" ]; then tail -n 20 "$work/ruvector.log" >&2; fi
  rm -rf "$work"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a program of PostgreSQL in an account that it takes.
as_server() {
  if [ "$(id -u)" != 0 ]; then
    "$@"
  elif id postgres >/dev/null 2>&1; then
    (cd / && setpriv --reuid postgres --regid postgres --clear-groups "$@")
  else
    (cd / && setpriv --reuid nobody --regid nogroup --clear-groups "$@")
  fi
}

# A PostgreSQL with postgres_fdw, and a role `owner` who may use it: all that the administrator does.
start_postgres() {
  local attempt
  mkdir "$work/pg"
  chmod 711 "$work"
  if [ "$(id -u)" = 0 ]; then chown "$(id -un postgres 2>/dev/null || echo nobody)" "$work/pg"; fi
  as_server "$pg_bin/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --no-sync >/dev/null
  for attempt in 1 2 3 4 5; do
    pg_port=$((15000 + RANDOM % 16000))
    if as_server "$pg_bin/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -s -w start -o "-p $pg_port -k $work/pg \
      -c listen_addresses=127.0.0.1 -c wal_level=logical -c fsync=off" >/dev/null 2>&1; then break; fi
    [ "$attempt" != 5 ] || { cat "$work/pg/log" >&2; exit 1; }
  done
  as_user postgres -c "CREATE ROLE owner LOGIN" -c "CREATE DATABASE app OWNER owner" >/dev/null
  as_user postgres app -c "CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO owner" >/dev/null
}

# as_user ROLE [DATABASE] PSQL-ARGUMENTS...: bare values, one row a line.
as_user() {
  local role=$1 database=app
  shift
  case "$1" in -*) [ "$role" != postgres ] || database=postgres ;; *) database=$1; shift ;; esac
  psql -X -q -A -t -v ON_ERROR_STOP=1 "host=127.0.0.1 port=$pg_port user=$role dbname=$database" "$@"
}

# A service that follows these collections (TOML), and its SQL pack, owned by `owner`, granted to the other arguments.
start_service() {
  local collections=$1 role grants=()
  shift
  for role in "$@"; do grants+=(--grant "$role"); done
  printf '%s\n' '[source]' "dsn = \"postgresql://postgres@127.0.0.1:$pg_port/app\"" '[storage]' "dir = \"$work/data\"" \
    '[http]' 'listen = "127.0.0.1:0"' '[sql]' 'listen = "127.0.0.1:0"' '[sql.users.app]' 'password = "example"' \
    "$collections" >"$work/ruvector.toml"
  "$ruvector" serve --config "$work/ruvector.toml" >"$work/ruvector.out" 2>"$work/ruvector.log" &
  service=$!
  wait_for "the service listens" grep -q '^listening on ' "$work/ruvector.out"
  url=$(sed -n 's/^listening on //p' "$work/ruvector.out")
  sql_address=$(sed -n 's|^SQL on postgresql://||p' "$work/ruvector.out")
  wait_for "the copy is whole" is_ready
  "$ruvector" sqlpack install --config "$work/ruvector.toml" --dsn "postgresql://owner@127.0.0.1:$pg_port/app" \
    --host 127.0.0.1 --port "${sql_address##*:}" "${grants[@]}" >/dev/null
}

# load_texts ROWS: the table `docs`, owned by `owner`, with so many of the real texts of examples/data and their embeddings.
load_texts() {
  as_user owner -c "CREATE TABLE docs (id bigint PRIMARY KEY, name text, section text, views integer, body text, embedding real[]);
    CREATE TABLE texts (n bigserial, line text); CREATE TABLE embeddings (n bigserial, embedding real[])"
  # What no text has in it, so that a line is one value as it stands.
  head -n "$1" examples/data/docs.jsonl |
    as_user owner -c "COPY texts (line) FROM STDIN (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')"
  half_floats examples/data/docs.f16.npy 384 "$1" | as_user owner -c "COPY embeddings (embedding) FROM STDIN"
  as_user owner -c "
    INSERT INTO docs
    SELECT (text ->> 'id')::bigint, text ->> 'name', text ->> 'section', n % 100, text ->> 'text', embedding
      FROM (SELECT n, line::jsonb AS text, embedding FROM texts JOIN embeddings USING (n)) both_of_them;
    DROP TABLE texts, embeddings"
}

# half_floats FILE COLUMNS ROWS: an .npy file of float16 as arrays of PostgreSQL, one a line. The header has 128 bytes.
half_floats() {
  od -An -v -t u2 -w$((2 * $2)) -j 128 -N $((2 * $2 * $3)) "$1" | awk '
    function value(bits,  exponent, fraction, size) {
      exponent = int(bits / 1024) % 32; fraction = bits % 1024
      size = exponent ? (1 + fraction / 1024) * 2 ^ (exponent - 15) : fraction * 2 ^ -24
      return sprintf("%.9g", bits < 32768 ? size : -size)
    }
    { line = ""
      for (at = 1; at <= NF; at++) {
        if (!($at in known)) known[$at] = value($at)
        line = line (at > 1 ? "," : "") known[$at]
      }
      print "{" line "}" }'
}

is_ready() {
  "$ruvector" status --url "$url" >"$work/status" 2>&1
}

# wait_for WHAT COMMAND...
wait_for() {
  local what=$1 attempt
  shift
  for attempt in $(seq 600); do
    "$@" && return
    [ -z "$service" ] || kill -0 "$service" 2>/dev/null || break
    sleep 0.1
  done
  echo "did not come about: $what ($attempt)" >&2
  exit 1
}

say() { printf '\n%s\n' "$*"; }

# claim WHAT FOUND EXPECTED: told, and the end of the example where it does not hold.
claim() {
  if [ "$2" = "$3" ]; then
    printf 'ok    %s\n' "$1"
  else
    printf 'FAIL  %s\n  found:    %s\n  expected: %s\n' "$1" "$2" "$3"
    exit 1
  fi
}
