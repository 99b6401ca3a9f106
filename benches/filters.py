"""Searches with a filter: ours beside faiss, which walks its graph with a bitmap of the passing rows or scans these alone.

A peer's scan gets the passing rows gathered beforehand, which flatters it. Recall is against exact neighbours among the rows
that pass. Time is CPU time of the searching thread, the best of some passes; a peer's graph is asked with growing ef until it
reaches the recall or the largest.
"""
import argparse
import json
import subprocess
import time

import faiss
import numpy as np

RECALL = 0.95
LARGEST = 4096


def mask(text, count):
    """`modN` for each Nth row, or NAME=FILE, as `bench filter` takes them."""
    if "=" in text:
        name, path = text.split("=", 1)
        return name, np.load(path).astype(bool)
    return text, np.arange(count) % int(text.removeprefix("mod")) == 0


def exact(base, queries, rows, k):
    """Numbers of the nearest rows of those given, for each query."""
    near = np.argsort(-(queries @ base[rows].T), axis=1, kind="stable")[:, :k]
    return rows[near]


def recall(found, truth):
    return sum(len(np.intersect1d(row, wanted)) for row, wanted in zip(found, truth)) / truth.size


def timed(search, repeats):
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        found = search()
        best = min(best, time.process_time() - started)
    return found, best


def ours(args):
    command = [args.binary, "bench", "filter", "--json", "--base", args.base, "--queries", args.queries]
    command += ["--filters", ",".join(args.filters), "--count", str(args.count), "--k", str(args.k), "--ef", "64"]
    command += ["--metric", "cosine", "--repeats", str(args.repeats)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    lines = [json.loads(line) for line in lines]
    return {line["filter"]: line for line in lines if line["what"] == "filter"}


def graph(index, queries, passing, truth, args):
    """The best a graph does: at the smallest measured ef that reaches the recall, else at the largest."""
    selector = faiss.IDSelectorBitmap(np.packbits(passing, bitorder="little"))
    ef = args.k
    while True:
        ef = min(2 * ef, LARGEST)
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
        reached = recall(index.search(queries, args.k, params=parameters)[1], truth)
        if reached >= RECALL or ef == LARGEST:
            break
    _, seconds = timed(lambda: index.search(queries, args.k, params=parameters), args.repeats)
    return {"ef": ef, "recall": round(reached, 4), "qps_cpu": round(len(queries) / seconds)}


def scan(base, queries, rows, args):
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base[rows])
    _, seconds = timed(lambda: index.search(queries, min(args.k, len(rows))), args.repeats)
    return {"qps_cpu": round(len(queries) / seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "binary"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--filters", default="mod10,mod100,mod1000")
    for name, value in (("k", 10), ("repeats", 5), ("count", 300)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()
    args.filters = args.filters.split(",")

    base, queries = (np.ascontiguousarray(np.load(path), dtype=np.float32) for path in (args.base, args.queries))
    base, queries = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (base, queries))
    queries = queries[: args.count]
    faiss.omp_set_num_threads(1)
    # One query after another, as they come, and not as one product of matrices.
    faiss.cvar.distance_compute_blas_threshold = 1 << 30
    index = faiss.index_factory(base.shape[1], "HNSW16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.train(base)
    index.add(base)
    before, peers = ours(args), {}
    for text in args.filters:
        name, passing = mask(text, len(base))
        rows = np.flatnonzero(passing)
        truth = exact(base, queries, rows, args.k)
        peers[name] = (graph(index, queries, passing, truth, args), scan(base, queries, rows, args))
    after = ours(args)
    print("| filter | passing | ours: plan | recall | short | QPS | faiss graph SQ8 (recall, QPS) | faiss scan of the passing rows, exact | ratio to the better |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (walked, scanned) in peers.items():
        own, again = before[name], after[name]
        # A graph that does not reach the recall is no answer.
        best = max(scanned["qps_cpu"], walked["qps_cpu"] if walked["recall"] >= RECALL else 0)
        ratio = max(own["qps_cpu"], again["qps_cpu"]) / best
        print(json.dumps({"filter": name, "ours": [own, again], "graph": walked, "scan": scanned}), flush=True)
        print(f"| {name} | {own['selectivity']:.2%} | {own['plan']} | {own['recall']} | {own['short']} | {own['qps_cpu']:.0f} / {again['qps_cpu']:.0f} "
              f"| {walked['recall']}, {walked['qps_cpu']} | {scanned['qps_cpu']} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
