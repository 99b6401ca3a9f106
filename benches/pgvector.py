"""pgvector on a PostgreSQL of its own beside our engine, the same vectors in the same minutes: build, searches at equal recall,
searches with a filter, single inserts, and updates of another column.

Searches run in a loop inside the server, so that neither statements nor rows travel; time is CPU time of that backend, as
ours is of the searching thread. Inserts and updates are one statement and one commit each, as ours are one transaction.
"""
import argparse
import json
import pathlib
import shutil
import struct
import subprocess
import tempfile
import time

import numpy as np

from filters import RECALL, exact, mask, recall
from server import Server

LOOP = """CREATE OR REPLACE FUNCTION bench_{name}(width int) RETURNS TABLE (query int, ids int[]) LANGUAGE plpgsql AS $$
DECLARE q record;
BEGIN
  FOR q IN SELECT queries.id, queries.embedding FROM queries WHERE queries.id < {count} ORDER BY queries.id LOOP
    query := q.id;
    ids := ARRAY(SELECT items.id FROM items {where} ORDER BY items.embedding <=> q.embedding LIMIT width);
    RETURN NEXT;
  END LOOP;
END $$"""


class Backend:
    """A session, and the CPU time its backend has taken."""

    def __init__(self, server):
        self.connection = server.connect()
        self.pid = self.connection.info.backend_pid

    def run(self, statement, *arguments):
        return self.connection.execute(statement, arguments or None)

    def cpu(self):
        return int(pathlib.Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def timed(self, work, repeats=1):
        best = float("inf")
        for _ in range(repeats):
            before = self.cpu()
            result = work()
            best = min(best, self.cpu() - before)
        return result, best


def binary(vector):
    """pgvector's binary form."""
    return struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes()


def load(backend, base, queries, masks):
    columns = "".join(f", f_{name} boolean" for name in masks)
    backend.run("CREATE EXTENSION vector")
    backend.run(f"CREATE TABLE items (id int PRIMARY KEY, payload int{columns}, embedding vector({base.shape[1]}))")
    backend.run(f"CREATE TABLE queries (id int PRIMARY KEY, embedding vector({base.shape[1]}))")
    boolean = [b"\0", b"\1"]
    with backend.connection.cursor() as cursor:
        for table, vectors, more in (("items", base, masks), ("queries", queries, None)):
            with cursor.copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
                copy.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">II", 0, 0))
                for number, vector in enumerate(vectors):
                    fields = [struct.pack(">i", number)]
                    if more is not None:
                        fields += [struct.pack(">i", 0)] + [boolean[int(rows[number])] for rows in more.values()]
                    fields.append(binary(vector))
                    copy.write(struct.pack(">h", len(fields)) + b"".join(struct.pack(">i", len(f)) + f for f in fields))
                copy.write(struct.pack(">h", -1))
    for name in masks:
        backend.run(f"CREATE INDEX ON items (id) WHERE f_{name}")
    backend.run("VACUUM ANALYZE")


def searched(backend, name, queries, truth, k, repeats):
    def once():
        return [found for _, found in backend.run(f"SELECT query, ids FROM bench_{name}(%s)", k).fetchall()]

    found, seconds = backend.timed(once, repeats)
    short = sum(len(row) < min(k, truth.shape[1]) for row in found)
    return {"recall": round(recall(found, truth), 4), "short": short, "qps_cpu": round(len(queries) / seconds, 1)}


def plain(backend, queries, truth, args):
    """The smallest measured ef that reaches each recall."""
    backend.run(LOOP.format(name="all", where="", count=len(queries)))
    reached = {}
    for ef in (20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 300, 400, 600, 1000):
        backend.run(f"SET hnsw.ef_search = {ef}")
        point = searched(backend, "all", queries, truth, args.k, 1)
        for target in (0.95, 0.99):
            if point["recall"] >= target and target not in reached:
                reached[target] = {"ef": ef} | searched(backend, "all", queries, truth, args.k, args.repeats)
        if len(reached) == 2:
            break
    return reached


def filtered(backend, name, queries, truth, args):
    """The fastest of its settings that reaches the recall, or the one with the best recall: graph or exact scan."""
    backend.run(LOOP.format(name="filtered", where=f"WHERE items.f_{name}", count=len(queries)))
    points = []
    for scan in ("relaxed_order", "strict_order", "off"):
        for ef in (40, 200, 1000):
            backend.run(f"SET hnsw.iterative_scan = {scan}")
            backend.run(f"SET hnsw.ef_search = {ef}")
            backend.run("SET enable_seqscan = off")
            backend.run("SET enable_bitmapscan = off")
            backend.run("SET enable_sort = off")
            points.append({"setting": f"{scan}, ef {ef}"} | searched(backend, "filtered", queries, truth, args.k, 1))
    for name in ("seqscan", "bitmapscan", "sort"):
        backend.run(f"RESET enable_{name}")
    # A sort of all passing rows: the planner is kept from the graph.
    backend.run("BEGIN")
    backend.run("DROP INDEX graph")
    points.append({"setting": "exact scan"} | searched(backend, "filtered", queries, truth, args.k, 1))
    backend.run("ROLLBACK")
    graph = max((p for p in points[:-1]), key=lambda p: (p["recall"] >= RECALL, p["qps_cpu"] if p["recall"] >= RECALL else p["recall"]))
    return graph, points[-1]


def ours(args, *command):
    command = [args.binary, "bench", *command, "--json", "--base", args.base, "--queries", args.queries]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "truth", "binary", "postgres"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--filters", default="mod10,mod100,mod1000")
    for name, value in (("k", 10), ("repeats", 3), ("count", 300), ("changes", 1000)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()

    base, queries = (np.ascontiguousarray(np.load(path), dtype=np.float32) for path in (args.base, args.queries))
    truth = np.load(args.truth)[: args.count, : args.k]
    masks = dict(mask(text, len(base)) for text in args.filters.split(","))
    unit, unit_queries = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (base, queries))
    queries, unit_queries = queries[: args.count], unit_queries[: args.count]
    files = {"truth": args.truth, "dir": tempfile.mkdtemp(prefix="ruvector-bench-") + "/index"}
    server = Server(args.postgres)
    try:
        backend = Backend(server)
        load(backend, base, queries, masks)
        backend.run("SET max_parallel_maintenance_workers = 0")
        create = "CREATE INDEX graph ON items USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 200)"
        _, seconds = backend.timed(lambda: backend.run(create))
        show("build", "vectors per CPU second", len(base) / seconds, None)
        points = plain(backend, queries, truth, args)
        own = [line for line in ours(args, "restart", "--truth", files["truth"], "--dir", files["dir"], "--ef", "32",
                                     "--targets", "0.95,0.99") if line["what"] == "target"]
        for line in own:
            show(f"recall {line['target']}", "queries per CPU second", points.get(line["target"]), line)
        own = {line["filter"]: line for line in ours(args, "filter", "--filters", args.filters, "--count", str(args.count))
               if line["what"] == "filter"}
        for name, rows in masks.items():
            wanted = exact(unit, unit_queries, np.flatnonzero(rows), args.k)
            graph, scan = filtered(backend, name, queries, wanted, args)
            show(f"filter {name}", "queries per CPU second", [graph, scan], own[name])
        changes(backend, base, files, args)
    finally:
        server.stop()
        shutil.rmtree(files["dir"], ignore_errors=True)


def changes(backend, base, files, args):
    """Single transactions: inserts, and updates of another column, with the graph and without it."""
    rows = [np.round(base[(7 * at) % len(base)] + 1e-3, 6).tolist() for at in range(args.changes)]
    others = ", ".join(["0"] + ["false"] * (len(args.filters.split(","))))

    def insert():
        for at, row in enumerate(rows):
            backend.run(f"INSERT INTO items VALUES (%s, {others}, %s)", len(base) + at, str(row))

    def update():
        for at in range(args.changes):
            backend.run("UPDATE items SET payload = payload + 1 WHERE id = %s", at * (len(base) // args.changes))

    started = time.monotonic()
    _, seconds = backend.timed(insert)
    wall = time.monotonic() - started
    _, with_graph = backend.timed(update)
    shutil.rmtree(files["dir"])
    own = {line["what"]: line for line in ours(args, "mixed", "--truth", files["truth"], "--dir", files["dir"], "--ef", "32",
                                               "--seconds", "1", "--per-transaction", "1", "--changes", str(args.changes))}
    show("insert", "a second", {"rows_per_s": round(args.changes / wall, 1), "per_cpu_second": round(args.changes / seconds)},
         own["insert"])
    show("payload", "per CPU second", {"per_cpu_second": round(args.changes / with_graph)}, own["payload"])
    backend.run("DROP INDEX graph")
    _, without = backend.timed(update)
    show("payload without the graph", "per CPU second", {"per_cpu_second": round(args.changes / without)}, None)
    graph = (with_graph - without) / args.changes * 1e6
    show("payload, what an index costs", "microseconds of CPU a row", round(graph, 1), 1e6 / own["payload"]["per_cpu_second"])


def show(what, unit, pgvector, ruvector):
    print(json.dumps({"what": what, "unit": unit, "pgvector": pgvector, "ruvector": ruvector}), flush=True)


if __name__ == "__main__":
    main()
