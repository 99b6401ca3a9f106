#!/usr/bin/env python3
# Makes this folder's 4,000-document sample from the full debian-minilm set (50,000 documents).
# Usage: make_subset.py PATH_OF_FULL_SET   (needs: pip install numpy zstandard)
"""The sample is deterministic: the same input folder gives the same bytes."""

import io
import json
import pathlib
import sys

import numpy as np
import zstandard

DOCUMENTS = 4000
QUERIES = 50
KEPT = 20  # nearest documents of the full set kept for each query
NEIGHBOURS = 10  # columns of truth.i32.npy
SEED = 20


def lines(path):
    with open(path, "rb") as raw:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        return [json.loads(line) for line in text]


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def pick_queries(random, queries, best_similarity):
    """Random queries, one a section while there are sections, those with a near best hit first: a demo shows variety."""
    order = random.permutation(len(queries))
    sections, picked = set(), []
    for least in (0.60, 0.50, 0.0):
        for number in order:
            section = queries[number]["section"]
            if len(picked) == QUERIES:
                return sorted(picked)
            if section not in sections and best_similarity[number] >= least:
                sections.add(section)
                picked.append(int(number))
    # Fewer sections than queries: the rest come from any section.
    for number in order:
        if len(picked) == QUERIES:
            break
        if number not in picked and best_similarity[number] >= 0.60:
            picked.append(int(number))
    return sorted(picked)


def main(source, target):
    random = np.random.default_rng(SEED)
    base = np.load(source / "base.f16.npy")
    query_vectors = np.load(source / "queries.f32.npy")
    full_truth = np.load(source / "groundtruth.i32.npy")
    documents, queries = lines(source / "docs.jsonl.zst"), lines(source / "queries.jsonl.zst")

    def unit(rows):
        rows = rows.astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    best = np.einsum("ij,ij->i", unit(base[full_truth[:, 0]]), unit(query_vectors))
    picked = pick_queries(random, queries, best)

    kept = set(full_truth[picked, :KEPT].ravel().tolist())
    rest = np.array([n for n in range(len(documents)) if n not in kept])
    filling = random.choice(rest, DOCUMENTS - len(kept), replace=False)
    chosen = np.array(sorted(kept | set(filling.tolist())))

    vectors = base[chosen]
    asked = query_vectors[picked].astype(np.float32)
    # The truth is over the stored float16 rows, widened and scaled to unit length again, as in the full set.
    # float64, and ties (there are none at rank 10) by id: the order does not depend on the linear algebra library.
    similarity = unit(asked).astype(np.float64) @ unit(vectors).astype(np.float64).T
    truth = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS].astype(np.int32)
    ranked = -np.sort(-similarity, axis=1)
    gap = (ranked[:, NEIGHBOURS - 1] - ranked[:, NEIGHBOURS]).min()
    assert gap > 1e-7, f"tie at rank {NEIGHBOURS}: {gap}"

    def renumbered(rows, numbers):
        return [
            {"id": new, "name": rows[old]["name"], "section": rows[old]["section"], "text": rows[old]["text"]}
            for new, old in enumerate(numbers)
        ]

    write_lines(target / "docs.jsonl", renumbered(documents, chosen))
    write_lines(target / "queries.jsonl", renumbered(queries, picked))
    np.save(target / "docs.f16.npy", vectors.astype("<f2"))
    np.save(target / "queries.f32.npy", asked.astype("<f4"))
    np.save(target / "truth.i32.npy", truth.astype("<i4"))
    print(f"{len(chosen)} documents, {len(kept)} of them near a query; {len(picked)} queries")
    print(f"cosine of query to rank 1 / {NEIGHBOURS}, median: "
          f"{np.median(ranked[:, 0]):.3f} / {np.median(ranked[:, NEIGHBOURS - 1]):.3f}; least gap at rank {NEIGHBOURS}: {gap:.1e}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_subset.py PATH_OF_FULL_SET")
    main(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent)
