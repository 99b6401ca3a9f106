"""A private PostgreSQL for benches."""
import os
import pathlib
import shutil
import subprocess
import tempfile

import psycopg


class Server:
    """A private server, in a temporary folder or in one that stays; PostgreSQL refuses to run as root, so then it runs as
    nobody."""

    def __init__(self, binaries, settings="", folder=None):
        self.bin, self.user = pathlib.Path(binaries), "nobody" if os.geteuid() == 0 else None
        self.stays = folder is not None
        self.dir = folder or tempfile.mkdtemp(prefix="ruvector-bench-")
        os.makedirs(self.dir, exist_ok=True)
        self.run(f"chmod 755 {self.dir}" if self.user is None else f"chown nobody {self.dir}", user=None)
        if not os.path.exists(self.dir + "/data"):
            self.run(f"{self.bin}/initdb -D {self.dir}/data -U postgres -A trust -N >/dev/null")
        settings += " -c listen_addresses= -c shared_buffers=4GB -c maintenance_work_mem=4GB -c max_wal_size=8GB -c jit=off"
        self.run(f"{self.bin}/pg_ctl -D {self.dir}/data -w -o \"-k {self.dir} {settings}\" -l {self.dir}/log start >/dev/null")

    def run(self, command, user="own"):
        user = self.user if user == "own" else user
        subprocess.run(command, shell=True, check=True, user=user, cwd="/")

    def connect(self):
        return psycopg.connect(host=self.dir, user="postgres", dbname="postgres", autocommit=True)

    def stop(self):
        self.run(f"{self.bin}/pg_ctl -D {self.dir}/data -m fast -w stop >/dev/null")
        if not self.stays:
            shutil.rmtree(self.dir)
