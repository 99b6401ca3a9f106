#!/usr/bin/env bash
# Runs `ruvector bench ann` and the best in-process libraries on the same files in the same minutes, one search thread each,
# and prints each one's figures and the ratios.
# usage: benches/peers.sh --base F.npy --queries Q.npy --truth T.npy [--metric cosine|l2|ip] [--encodings sq8,sq4,f32]
# Without options: the demo's data, too small to say much; give a real set.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --base examples/data/docs.f16.npy --queries examples/data/queries.f32.npy --truth examples/data/truth.i32.npy
venv=target/peers-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import faiss, hnswlib, usearch' 2>/dev/null ||
  "$venv/bin/pip" install --quiet numpy hnswlib==0.8.0 faiss-cpu==1.15.1 usearch==2.26.6
cargo build --release --quiet
exec "$venv/bin/python" benches/peers.py --binary target/release/ruvector "$@"
