#!/usr/bin/env bash
# Owns the whole check of a checkout: format, lints, every test against private PostgreSQL clusters.
# The last lines are the test runner's own summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

ensure_machine
ensure_rust_components

# A temporary directory of our own: whatever still names it in the end was started here. Open to all, with the sticky bit,
# because root's clusters run in another account.
work=$(mktemp -d "${TMPDIR:-/tmp}/ruvector-test-XXXXXX")
chmod 1777 "$work"
export TMPDIR="$work"

# The tests clean up after themselves, also when they are killed; this is for what they started and lost.
end_leftovers() {
  local status=$? process signal
  trap - EXIT
  for signal in TERM KILL; do
    # The name comes by file, so that grep does not find itself; its exit code says "none".
    for process in $(grep -lsaF -f <(printf '%s\n' "$work") /proc/[0-9]*/cmdline || true); do
      process=${process#/proc/}
      kill -s "$signal" "${process%/cmdline}" 2>/dev/null || true
      sleep 0.2
    done
  done
  rm -rf "$work"
  exit "$status"
}
trap end_leftovers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Each test thread may run a cluster and a service: more than a few starve each other.
threads=$(nproc)
if [ "$threads" -gt 4 ]; then threads=4; fi

cargo fmt --check
cargo clippy --all-targets --locked -- -D warnings
cargo test --locked --no-fail-fast -- --test-threads="$threads" </dev/null
