"""Our graph beside hnswlib, faiss and usearch on the same vectors: build, and the smallest ef that reaches a recall.

Every engine builds with one thread and the same M and ef_construction and is compared at equal recall, never at equal ef.
Time is CPU time of the searching thread, the best of some passes, which other work on the machine disturbs least. Ours runs
before and after the peers, so that a change of the machine's speed meanwhile shows.
"""
import argparse
import json
import shutil
import subprocess
import tempfile
import time

import faiss
import hnswlib
import numpy as np
import usearch.index


class Hnswlib:
    name = "hnswlib f32"

    def build(self, base, args):
        self.index = hnswlib.Index("l2" if args.metric == "l2" else "ip", base.shape[1])
        self.index.init_index(len(base), ef_construction=args.ef_construction, M=args.m, random_seed=1)
        self.index.add_items(base, np.arange(len(base)), num_threads=1)

    def search(self, queries, k, ef):
        self.index.set_ef(ef)
        return self.index.knn_query(queries, k, num_threads=1)[0]


class Faiss:
    def __init__(self, quantizer):
        self.name = "faiss hnsw " + (quantizer or "f32")
        self.kind = "HNSW{m}" + (",SQ8" if quantizer else ",Flat")

    def build(self, base, args):
        faiss.omp_set_num_threads(1)
        metric = faiss.METRIC_L2 if args.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.index_factory(base.shape[1], self.kind.format(m=args.m), metric)
        self.index.hnsw.efConstruction = args.ef_construction
        self.index.train(base)
        self.index.add(base)

    def search(self, queries, k, ef):
        self.index.hnsw.efSearch = ef
        return self.index.search(queries, k)[1]


class Usearch:
    def __init__(self, dtype):
        self.name, self.dtype = "usearch " + dtype, dtype

    def build(self, base, args):
        metric = "l2sq" if args.metric == "l2" else "ip"
        self.index = usearch.index.Index(ndim=base.shape[1], metric=metric, dtype=self.dtype, connectivity=args.m,
                                         expansion_add=args.ef_construction)
        self.index.add(np.arange(len(base)), base, threads=1)

    def search(self, queries, k, ef):
        self.index.expansion_search = ef
        return self.index.search(queries, k, threads=1).keys


PEERS = [Faiss("sq8"), Hnswlib(), Faiss(None), Usearch("bf16")]


def recall(found, truth):
    return sum(len(np.intersect1d(row, wanted)) for row, wanted in zip(found, truth)) / truth.size


def smallest_ef(engine, queries, truth, k, target):
    low, high = k, 4096
    if recall(engine.search(queries, k, high), truth) < target:
        return None
    while low < high:
        middle = (low + high) // 2
        if recall(engine.search(queries, k, middle), truth) >= target:
            high = middle
        else:
            low = middle + 1
    return high


def measure(engine, base, queries, truth, args):
    started = time.process_time()
    engine.build(base, args)
    took = time.process_time() - started
    result = {"engine": engine.name, "vectors_per_cpu_second": round(len(base) / took)}
    for target in args.targets:
        ef = smallest_ef(engine, queries, truth, args.k, target)
        if ef is None:
            continue
        best = float("inf")
        for _ in range(args.repeats):
            started = time.process_time()
            found = engine.search(queries, args.k, ef)
            best = min(best, time.process_time() - started)
        result[str(target)] = {"ef": ef, "recall": round(recall(found, truth), 4), "qps_cpu": round(len(queries) / best)}
    return result


def ours(encoding, args):
    command = [args.binary, "bench", "ann", "--json", "--base", args.base, "--queries", args.queries, "--truth", args.truth]
    command += ["--metric", args.metric, "--encoding", encoding, "--k", str(args.k), "--m", str(args.m), "--ef", "32"]
    command += ["--ef-construction", str(args.ef_construction), "--repeats", str(args.repeats)]
    command += ["--targets", ",".join(map(str, args.targets))]
    result = {"engine": "ruvector " + encoding}
    for line in lines(command):
        if line["what"] == "build":
            result["vectors_per_cpu_second"] = line["vectors_per_cpu_second"]
        if line["what"] == "target":
            result[str(line["target"])] = point(line)
    return result


def lines(command):
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def point(line):
    return {key: line[key] for key in ("ef", "recall", "qps_cpu", "p50_us", "p99_us")}


def sealed(directory, args):
    """The same vectors through the whole engine: copied in, sealed, opened by another process; full vectors on disk."""
    command = [args.binary, "bench", "restart", "--json", "--base", args.base, "--queries", args.queries, "--truth", args.truth]
    command += ["--metric", args.metric, "--k", str(args.k), "--m", str(args.m), "--ef-construction", str(args.ef_construction)]
    command += ["--ef", "32", "--repeats", str(args.repeats), "--targets", ",".join(map(str, args.targets)), "--dir", directory]
    found = [line for line in lines(command) if line["what"] == "target"]
    return {"engine": "ruvector sq8 sealed", "vectors_per_cpu_second": 0} | {str(line["target"]): point(line) for line in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "truth", "binary"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--metric", default="cosine", choices=["cosine", "l2", "ip"])
    parser.add_argument("--encodings", default="sq8,sq4,f32")
    parser.add_argument("--peers", help="some of: " + ", ".join(peer.name for peer in PEERS))
    for name, value in (("m", 16), ("ef-construction", 200), ("k", 10), ("repeats", 5)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()
    args.targets = [0.95, 0.99]

    base, queries = (np.ascontiguousarray(np.load(path), dtype=np.float32) for path in (args.base, args.queries))
    truth = np.load(args.truth)[:, : args.k]
    if args.metric == "cosine":  # once, as every engine does
        base, queries = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (base, queries))
    directory = tempfile.mkdtemp(prefix="ruvector-bench-")
    results = [ours(encoding, args) for encoding in args.encodings.split(",")] + [sealed(directory + "/index", args)]
    for peer in (peer for peer in PEERS if not args.peers or peer.name in args.peers.split(",")):
        results.append(measure(peer, base, queries, truth, args))
    results += [ours(encoding, args) for encoding in args.encodings.split(",")] + [sealed(directory + "/index", args)]
    shutil.rmtree(directory)
    for result in results:
        print(json.dumps(result), flush=True)
    table(results, args)


def table(results, args):
    def best(name, value):
        return max((value(r) for r in results if r["engine"] == name), default=0)

    measures = [(f"queries per CPU second at recall@{args.k} {target}",
                 lambda r, t=str(target): r.get(t, {}).get("qps_cpu", 0)) for target in args.targets]
    measures.append(("vectors linked per CPU second", lambda r: r["vectors_per_cpu_second"]))
    peers = list(dict.fromkeys(r["engine"] for r in results if not r["engine"].startswith("ruvector")))
    names = list(dict.fromkeys(r["engine"] for r in results if r["engine"].startswith("ruvector")))
    print("\n| | " + " | ".join(names + peers) + " | ratios to the best peer |")
    print("|---" * (len(names) + len(peers) + 2) + "|")
    for what, value in measures:
        own = [" / ".join(str(value(r) or "") for r in results if r["engine"] == name) for name in names]
        others = [str(best(peer, value) or "never") for peer in peers]
        top = max(best(peer, value) for peer in peers)
        ratios = [max(value(r) for r in results if r["engine"] == name) / top for name in names]
        print(f"| {what} | " + " | ".join(own + others) + " | " + ", ".join(f"{ratio:.2f}" for ratio in ratios if ratio) + " |")


if __name__ == "__main__":
    main()
