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
