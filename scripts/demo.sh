#!/usr/bin/env bash
# Owns the way from a fresh checkout to the demo: set-up, release build, `ruvector demo`. Arguments go to the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/setup.sh
. scripts/lib/setup.sh

ensure_machine
cargo build --release --locked
exec "${CARGO_TARGET_DIR:-target}/release/ruvector" demo "$@"
