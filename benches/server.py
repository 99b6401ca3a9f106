"""A private PostgreSQL for benches."""
import os
import pathlib
import shutil
import subprocess
import tempfile

import psycopg


class Server:
    """A private server in a temporary folder; PostgreSQL refuses to run as root, so then it runs as nobody."""

    def __init__(self, binaries, settings=""):
        self.bin, self.user = pathlib.Path(binaries), "nobody" if os.geteuid() == 0 else None
        self.dir = tempfile.mkdtemp(prefix="ruvector-bench-")
        self.run(f"chmod 755 {self.dir}" if self.user is None else f"chown nobody {self.dir}", user=None)
        self.run(f"{self.bin}/initdb -D {self.dir}/data -U postgres -A trust -N >/dev/null")
        settings += " -c listen_addresses= -c shared_buffers=4GB -c maintenance_work_mem=4GB -c max_wal_size=8GB -c jit=off"
        self.run(f"{self.bin}/pg_ctl -D {self.dir}/data -w -o \"-k {self.dir} {settings}\" -l {self.dir}/log start >/dev/null")

    def run(self, command, user="own"):
        user = self.user if user == "own" else user
        subprocess.run(command, shell=True, check=True, user=user, cwd="/")

    def connect(self):
        return psycopg.connect(host=self.dir, user="postgres", dbname="postgres", autocommit=True)

    def stop(self):
        self.run(f"{self.bin}/pg_ctl -D {self.dir}/data -m immediate -w stop >/dev/null")
        shutil.rmtree(self.dir)
