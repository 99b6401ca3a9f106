"""The whole service over HTTP on many vectors: from a table in PostgreSQL to answers, then a restart, in a memory cgroup if wanted.

Prints what the copy took, how soon a restarted service answers, recall and latency over HTTP, and the memory it needed. A
limit needs root and the memory controller of cgroups, version 1 or 2; page cache counts.
"""
import argparse
import http.client
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import numpy as np

from filters import recall
from server import Server

CONFIG = """[source]
dsn = "host={host} user=postgres dbname=postgres"
[storage]
dir = "{dir}/data"
[http]
listen = "127.0.0.1:{port}"
[[collections]]
table = "public.items"
name = "items"
[[collections.vectors]]
column = "embedding"
metric = "cosine"
encoding = "{encoding}"
"""


class Service:
    def __init__(self, args, config, port, group=None):
        self.port, self.log = port, open(config + ".log", "ab")

        def enter():
            if group:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        self.started = time.monotonic()
        self.process = subprocess.Popen([args.binary, "serve", "--config", config], stdout=self.log, stderr=self.log, preexec_fn=enter)
        self.connection = None

    def ask(self, method, path, body=None):
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            self.connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            return response.status, response.read()
        except OSError:
            self.connection = None
            if self.process.poll() is not None:
                log = pathlib.Path(self.log.name).read_text()
                raise RuntimeError(f"the service ended with {self.process.returncode}:\n{log}")
            return 0, b""

    def ready(self, pause):
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(pause)
        return time.monotonic() - self.started

    def metric(self, name, label=""):
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")) and label in line)

    def memory(self, name):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))

    def sizes(self):
        """Resident: all of it, what is the process's own, and what is of mapped files."""
        return {name: self.memory(of) // 10**6 for name, of in (("rss_mb", "VmRSS"), ("own_mb", "RssAnon"), ("mapped_mb", "RssFile"))}

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(600)


def group(megabytes):
    """A memory cgroup of its own."""
    root = pathlib.Path("/sys/fs/cgroup")
    first = (root / "memory") if (root / "memory").is_dir() else root
    made = first / f"ruvector-bench-{os.getpid()}"
    made.mkdir()
    limit = made / ("memory.limit_in_bytes" if first != root else "memory.max")
    limit.write_text(str(megabytes * 1_000_000))
    return made


def load(server, base):
    connection = server.connect()
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, embedding real[])")
    dim = base.shape[1]
    # Each element of an array has its length before it.
    rows = np.empty((1, dim), dtype=[("length", ">i4"), ("value", ">f4")])
    rows["length"] = 4
    head = struct.pack(">iiiii", 1, 0, 700, dim, 1)
    with connection.cursor() as cursor, cursor.copy("COPY items FROM STDIN (FORMAT binary)") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">II", 0, 0))
        for number in range(len(base)):
            rows["value"] = base[number]
            value = head + rows.tobytes()
            copy.write(struct.pack(">hiii", 2, 4, number, len(value)) + value)
        copy.write(struct.pack(">h", -1))
    connection.execute("ANALYZE items")
    connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "queries", "truth", "binary", "postgres"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--encoding", default="bq")
    parser.add_argument("--ef", default="64,100,128")
    parser.add_argument("--limit-mb", type=int)
    parser.add_argument("--dir", help="where table and index stay, to be used again")
    for name, value in (("k", 10), ("port", 18480)):
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()
    args.binary = os.path.abspath(args.binary)

    base = np.load(args.base, mmap_mode="r")
    queries, truth = np.load(args.queries).astype(np.float32), np.load(args.truth)[:, : args.k]
    folder = args.dir or tempfile.mkdtemp(prefix="ruvector-bench-")
    filled = os.path.exists(folder + "/data/CURRENT")
    server = Server(args.postgres, "-c wal_level=logical", os.path.abspath(folder) + "/source")
    config = folder + "/ruvector.toml"
    pathlib.Path(config).write_text(CONFIG.format(host=server.dir, dir=folder, port=args.port, encoding=args.encoding))
    service = limited = None
    try:
        if not filled:
            load(server, base)
            service = Service(args, config, args.port)
            copied = service.ready(1)
            while service.metric("ruvector_index_tier_vectors", 'tier="growing"') > 0:
                time.sleep(1)
            show("fill", rows=len(base), dim=base.shape[1], encoding=args.encoding, seconds=round(copied, 1),
                 sealed_after_s=round(time.monotonic() - service.started, 1), peak_rss_mb=service.memory("VmHWM") // 10**6)
            service.stop()
        if args.limit_mb:
            # What another process has read is charged to that one.
            os.sync()
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            limited = group(args.limit_mb)
        service = Service(args, config, args.port, limited)
        ready = service.ready(0.01)
        show("restart", ready_s=round(ready, 2), limit_mb=args.limit_mb, **service.sizes())
        for ef in map(int, args.ef.split(",")):
            found, took = [], []
            for query in queries:
                body = {"query": {"vector": query.tolist()}, "limit": args.k, "search": {"ef": ef}, "recheck": "none"}
                begun = time.perf_counter()
                status, text = service.ask("POST", "/v1/collections/items/search", body)
                took.append(time.perf_counter() - begun)
                assert status == 200, text
                found.append([hit["id"] for hit in json.loads(text)["hits"]])
            middle, late = np.percentile(took, [50, 99]) * 1e3
            show("http", ef=ef, recall=round(recall(found, truth), 4), p50_ms=round(middle, 2), p99_ms=round(late, 2))
        show("memory", peak_rss_mb=service.memory("VmHWM") // 10**6, index_mb=int(service.metric("ruvector_index_bytes")) // 10**6,
             **service.sizes())
        service.stop()
    finally:
        if service and service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        if limited:
            limited.rmdir()
        server.stop()
        if not args.dir:
            shutil.rmtree(folder)


def show(what, **figures):
    print(json.dumps({"what": what} | figures), flush=True)


if __name__ == "__main__":
    main()
