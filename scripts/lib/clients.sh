#!/usr/bin/env bash
# Owns what tests use from pip, npm and apt: the drivers that tests/sql/clients.rs tries, and the judges of tests/openapi.rs. Fetched
# once, kept below cargo's target folder.
# scripts/lib/clients.sh FOLDER python|node|java|openapi. Exit code 3: it cannot be installed here.
set -euo pipefail

[ "$#" = 2 ] || { echo "usage: $0 FOLDER python|node|java|openapi" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
# Whole before it gets its name.
fresh=$(mktemp -d "$folder/fetching-XXXXXX")
trap 'rm -rf "$fresh"' EXIT

python() {
  packages python 'psycopg[binary]==3.3.*' 'asyncpg==0.32.*' 'sqlalchemy==2.1.*' greenlet 'pg8000==1.31.*'
}

openapi() {
  packages openapi 'openapi-spec-validator==0.9.0' 'schemathesis==4.32.5'
}

# packages NAME PACKAGES...: a folder of that name, with a Python that has these packages.
packages() {
  local name=$1
  shift
  [ -x "$folder/$name/bin/python" ] && return
  # A virtual environment cannot be moved: the packages alone have a folder of their own.
  python3 -m pip install -q --disable-pip-version-check --target "$fresh/packages" "$@" >&2 || exit 3
  mkdir -p "$fresh/bin"
  printf '#!/bin/sh\nPYTHONPATH=%s exec python3 "$@"\n' "$folder/$name/packages" >"$fresh/bin/python"
  chmod +x "$fresh/bin/python"
  mv -T "$fresh" "$folder/$name" 2>/dev/null || [ -x "$folder/$name/bin/python" ]
}

node() {
  [ -d "$folder/node/node_modules/pg" ] && return
  command -v npm >/dev/null && command -v node >/dev/null || { echo "there is no npm" >&2; exit 3; }
  (cd "$fresh" && npm install --no-audit --no-fund --silent --prefix . 'pg@8') </dev/null >&2 || exit 3
  mv -T "$fresh" "$folder/node" 2>/dev/null || [ -d "$folder/node/node_modules/pg" ]
}

java() {
  [ -f "$folder/java/postgresql.jar" ] && return
  command -v java >/dev/null || { echo "there is no java" >&2; exit 3; }
  # Unpacked here, not installed.
  (cd "$fresh" && apt-get download -qq libpostgresql-jdbc-java && dpkg -x ./*.deb .) </dev/null >&2 || exit 3
  cp -L "$fresh/usr/share/java/postgresql.jar" "$fresh/postgresql.jar"
  mv -T "$fresh" "$folder/java" 2>/dev/null || [ -f "$folder/java/postgresql.jar" ]
}

case "$2" in
  python | node | java | openapi) "$2" ;;
  *) exit 2 ;;
esac
