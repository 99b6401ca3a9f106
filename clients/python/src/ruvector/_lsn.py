"""Positions in PostgreSQL's WAL, which say how new an answer has to be."""

from __future__ import annotations

import re
from typing import Any, Protocol, Union

_WRITTEN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A position, as `16/B374D848` or as a number of bytes. Later ones are greater."""

    def __new__(cls, position: Union[str, int]) -> Lsn:
        if isinstance(position, str):
            found = _WRITTEN.fullmatch(position.strip())
            if found is None:
                raise ValueError(f"{position!r} is not an LSN; expected two hexadecimal numbers as in 16/B374D848")
            position = int(found[1], 16) << 32 | int(found[2], 16)
        if not 0 <= position < 1 << 64:
            raise ValueError(f"{position} is not an LSN: it has 64 bits and no sign")
        return super().__new__(cls, position)

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


class _Cursor(Protocol):
    def execute(self, query: str, /) -> Any: ...
    def fetchone(self) -> Any: ...
    def close(self) -> Any: ...


class _Connection(Protocol):
    def cursor(self) -> _Cursor: ...


def committed(connection: _Connection) -> Lsn:
    """The position behind everything committed so far: pass it as `at_least` and a search shows what you have written.

    `connection` is a connection of psycopg, psycopg2, pg8000 or any other of Python's DB-API; call it after the COMMIT.
    With asyncpg: `Lsn(await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text"))`.
    """
    cursor = connection.cursor()
    try:
        # Not pg_current_wal_lsn(): with synchronous_commit = off a COMMIT returns before it is written.
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        return Lsn(str(cursor.fetchone()[0]))
    finally:
        cursor.close()
