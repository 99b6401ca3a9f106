"""hnswlib on the files and with the settings of `ruvector bench ann`, printing lines of the same shape.

    python benches/peer_hnswlib.py --base F.npy --queries Q.npy --truth T.npy [--metric cosine|l2|ip] [--ef 16,32,64] [--m 16]
                              [--ef-construction 200] [--threads 1] [--k 10] [--repeats 3]
"""
import argparse, json, time

import hnswlib
import numpy as np


def clocked(work):
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "truth"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--metric", default="cosine", choices=["cosine", "l2", "ip"])
    parser.add_argument("--ef", default="16,32,64,128")
    for name, value in (("m", 16), ("ef-construction", 200), ("threads", 1), ("k", 10), ("repeats", 3)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()

    base, queries = (np.ascontiguousarray(np.load(path), dtype=np.float32) for path in (args.base, args.queries))
    truth = np.load(args.truth)[:, : args.k]
    if args.metric == "cosine":  # once, as the engine does
        base, queries = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (base, queries))
    index = hnswlib.Index("l2" if args.metric == "l2" else "ip", base.shape[1])
    index.init_index(len(base), ef_construction=args.ef_construction, M=args.m, random_seed=1)
    _, wall, cpu = clocked(lambda: index.add_items(base, np.arange(len(base)), num_threads=args.threads))
    print(json.dumps({"what": "build", "engine": "hnswlib", "seconds": round(wall, 3), "threads": args.threads,
                      "vectors_per_second": round(len(base) / wall), "vectors_per_cpu_second": round(len(base) / cpu)}))
    for ef in map(int, args.ef.split(",")):
        index.set_ef(ef)
        best = [float("inf")] * 2
        for _ in range(args.repeats):
            (found, _), wall, cpu = clocked(lambda: index.knn_query(queries, args.k, num_threads=1))
            best = [min(best[0], wall), min(best[1], cpu)]
        hits = sum(len(np.intersect1d(row, wanted)) for row, wanted in zip(found, truth))
        print(json.dumps({"what": "point", "engine": "hnswlib", "ef": ef, "k": args.k,
                          "recall": round(hits / truth.size, 4), "qps": round(len(queries) / best[0]),
                          "qps_cpu": round(len(queries) / best[1])}))


if __name__ == "__main__":
    main()
