#!/usr/bin/env bash
# Owns the whole check of a checkout: format, lints, every test against private PostgreSQL clusters.
# The last lines are the test runner's own summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

ensure_machine
ensure_rust_components
ensure_browser

# The other majors that tests/majors.rs runs beside. Only where npm cannot be had at all are they left out, and said to be.
if [ -z "${RUVECTOR_TEST_MAJORS:-}" ]; then
  installed=$("$(find_postgres)/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
  mapfile -t others < <(printf '%s\n' 14 15 16 17 18 | grep -vx "$installed")
  status=0
  scripts/lib/postgres_majors.sh "${CARGO_TARGET_DIR:-target}/pg" "${others[@]}" || status=$?
  if [ "$status" = 3 ]; then
    echo "SKIPPED: PostgreSQL ${others[*]}, because there is no npm to fetch them with"
    export RUVECTOR_TEST_MAJORS=$installed
  fi
fi

# A temporary directory of our own: whatever still names it in the end was started here. Open to all, with the sticky bit,
# because root's clusters run in another account.
work=$(mktemp -d "${TMPDIR:-/tmp}/ruvector-test-XXXXXX")
chmod 1777 "$work"
export TMPDIR="$work"

# The tests clean up after themselves, also when they are killed; this is for what they started and lost, and for cargo
# where this script is told to stop. Both files, because PostgreSQL writes its process titles over its environment.
end_leftovers() {
  local status=$? signal found files
  trap - EXIT
  for signal in TERM KILL; do
    # grep itself is among those found, and gone.
    mapfile -t files < <(grep -lsaF -e "$work" /proc/[0-9]*/{cmdline,environ} || true)
    mapfile -t found < <(printf '%s\n' "${files[@]}" | cut -d / -f 3 | sort -u)
    kill -s "$signal" "${found[@]}" 2>/dev/null || true
    # Alone with grep there is nothing to wait for.
    if [ "${#found[@]}" -gt 1 ]; then sleep 1; fi
  done
  rm -rf "$work"
  exit "$status"
}
trap end_leftovers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Each test thread may run a cluster and a service: many starve each other. But half of the time they wait.
threads=$(($(nproc) * 3 / 2))
if [ "$threads" -gt 4 ]; then threads=4; fi

# In the background and waited for: a shell acts on a signal only when no command runs in the foreground.
run() {
  "$@" </dev/null &
  wait "$!"
}

run cargo fmt --check
run cargo clippy --all-targets --locked -- -D warnings
# A test that fails is run once more, alone. Where it passes then the run passes, and says so: such a test is a fault to be
# found, in itself or in what it tests, but hardly of this checkout. More than two are no accident.
output=$work/output
tests() {
  cargo test --locked --no-fail-fast --color never -- --test-threads="$threads" 2>&1 | tee "$output"
}
status=0
run tests || status=$?
if [ "$status" = 0 ]; then exit 0; fi
mapfile -t failed < <(awk '
  /^ +Running unittests / { target = "--lib" }
  /^ +Running tests\// { target = $2; sub(/^tests\//, "--test ", target); sub(/(\/main)?\.rs$/, "", target) }
  /^test .* \.\.\. FAILED$/ { print target, $2 }' "$output")
# A target that ended without naming a test, because it crashed, is not tried again.
unnamed=$(comm -23 <(sed -nE 's/^error: test failed, to rerun pass `(.*)`$/\1/p' "$output" | sort -u) \
  <(printf '%s\n' "${failed[@]% *}" | sort -u))
if [ -n "$unnamed" ] || [ "${#failed[@]}" = 0 ] || [ "${#failed[@]}" -gt 2 ]; then exit "$status"; fi
for one in "${failed[@]}"; do
  echo "AGAIN, alone: $one"
  read -ra target <<<"${one% *}"
  run cargo test --locked "${target[@]}" -- --exact "${one##* }"
done
