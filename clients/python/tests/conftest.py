"""A real service beside a real PostgreSQL, which `check.sh` starts, and clients of it."""

from __future__ import annotations

import os
from typing import Any, Iterator

import psycopg
import pytest

from ruvector import Client, SyncCollection

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["RUVECTOR_URL"]


@pytest.fixture(scope="session")
def dsn() -> str:
    return os.environ["RUVECTOR_DSN"]


@pytest.fixture
def source(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn) as connection:
        yield connection


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def docs(client: Client) -> SyncCollection:
    return client.collection("docs")


def embedding(source: Connection, key: int) -> list[float]:
    found = source.execute("SELECT embedding FROM docs WHERE id = %s", [key]).fetchone()
    assert found is not None
    return list(found[0])
