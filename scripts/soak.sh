#!/usr/bin/env bash
# Owns the long suites: scripts/soak.sh crash|histories|faults|disk|fuzz [--rounds N | --minutes M] [--seed S]
# Each is a test program of the same name that also runs, shortly, among all tests. The last line is its report, one JSON
# object with suite, rounds, failed and seed; the exit code is 0 when nothing failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

usage() {
  echo "usage: scripts/soak.sh crash|histories|faults|disk|fuzz [--rounds N | --minutes M] [--seed S]" >&2
  exit 2
}

case "${1:-}" in
  crash | histories | faults | disk | fuzz) suite=$1 ;;
  *) usage ;;
esac
shift
while [ "$#" -gt 0 ]; do
  [ "$#" -ge 2 ] && [[ $2 =~ ^[0-9]+$ ]] || usage
  case "$1" in
    --rounds) export RUVECTOR_SOAK_ROUNDS=$2 ;;
    --minutes) export RUVECTOR_SOAK_MINUTES=$2 ;;
    --seed) export RUVECTOR_SOAK_SEED=$2 ;;
    *) usage ;;
  esac
  shift 2
done

ensure_machine
RUVECTOR_SOAK_REPORT=$(mktemp)
export RUVECTOR_SOAK_REPORT
trap 'rm -f "$RUVECTOR_SOAK_REPORT"' EXIT
status=0
cargo test --locked --test "soak_$suite" -- --nocapture --test-threads=1 </dev/null || status=$?
if [ ! -s "$RUVECTOR_SOAK_REPORT" ]; then
  printf '{"suite":"%s","rounds":0,"failed":1,"error":"ended without a report"}\n' "$suite"
  exit 1
fi
cat "$RUVECTOR_SOAK_REPORT"
exit "$status"
