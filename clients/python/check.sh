#!/usr/bin/env bash
# Owns the check of the Python client: types, then its tests, against a real service beside a real PostgreSQL.
# clients/python/check.sh [PYTEST-ARGUMENTS...]. Exit code 3: its packages cannot be installed here.
# shellcheck source=examples/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../examples/lib.sh"

# Kept between runs; another list of packages is another folder.
packages=('httpx==0.28.*' 'typing_extensions>=4.6' 'mypy==2.*' 'pytest==9.*' 'pytest-timeout==2.*' 'psycopg[binary]==3.3.*')
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
kept=$target/clients/python-client-$(printf '%s\n' "${packages[@]}" "$(python3 --version)" | cksum | cut -d ' ' -f 1)
if [ ! -d "$kept" ]; then
  mkdir -p "${kept%/*}"
  python3 -m pip install -q --disable-pip-version-check --target "$work/packages" "${packages[@]}" >&2 || exit 3
  # Whole before it gets its name.
  mv -T "$work/packages" "$kept" 2>/dev/null || [ -d "$kept" ]
fi

# The client as its users get it, so that what the package leaves out is missed. Built from a copy, beside which it leaves files.
cp -r clients/python "$work/client"
python3 -m pip install -q --disable-pip-version-check --no-deps --target "$work/installed" "$work/client" >&2
export PYTHONPATH=$work/installed:$kept PYTHONDONTWRITEBYTECODE=1

say "Types, by mypy --strict."
(cd clients/python && python3 -m mypy --strict --cache-dir "$work/mypy" src && python3 -m mypy --strict --cache-dir "$work/mypy" tests)

say "A PostgreSQL with 500 real texts, and a service beside it."
start_postgres
load_texts 500
as_user owner -c "
  INSERT INTO docs (id, name, section) VALUES (900, 'none', 'odd');
  INSERT INTO docs (id, name, section, embedding) VALUES (901, 'short', 'odd', '{1,2}');
  CREATE TABLE pairs (a integer, b uuid, tag text, bits bit(8), PRIMARY KEY (a, b));
  INSERT INTO pairs SELECT i, md5(i::text)::uuid, 'tag ' || i % 3, (i % 256)::bit(8) FROM generate_series(1, 300) i"
start_service '[[collections]]
table = "public.docs"
name = "docs"
filter_columns = ["section", "views"]
[[collections.vectors]]
column = "embedding"
metric = "cosine"
[[collections]]
table = "public.pairs"
name = "pairs of things"
filter_columns = ["tag"]
[[collections.vectors]]
column = "bits"
metric = "hamming"'

# One that cannot be copied; at a start it would be refused.
printf '[[collections]]\ntable = "public.missing"\nname = "missing"\n[[collections.vectors]]\ncolumn = "embedding"\n' >>"$work/ruvector.toml"
kill -HUP "$service"
is_told() { is_ready; grep -q missing "$work/status"; }
wait_for "the collection without a table is told of" is_told

export RUVECTOR_URL=$url RUVECTOR_DSN="host=127.0.0.1 port=$pg_port user=owner dbname=app"
(cd clients/python && python3 -m pytest --basetemp "$work/pytest" "$@")
say "ok    the client's own tests"
