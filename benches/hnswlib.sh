#!/usr/bin/env bash
# Runs `ruvector bench ann` and hnswlib alternately on the same files, one search thread each, and prints both.
# usage: benches/hnswlib.sh --base F.npy --queries Q.npy --truth T.npy [further options both take]
# Without options: the demo's data, too small to say much; give a real set.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --base examples/data/docs.f16.npy --queries examples/data/queries.f32.npy --truth examples/data/truth.i32.npy
venv=target/hnswlib-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import hnswlib' 2>/dev/null || "$venv/bin/pip" install --quiet hnswlib==0.8.0 numpy
cargo build --release --quiet
for round in 1 2; do
  echo "# round $round"
  target/release/ruvector bench ann --metric cosine "$@" --json
  "$venv/bin/python" benches/peer_hnswlib.py "$@"
done
