"""One's own writes, errors, and what there is, against the real service."""

from __future__ import annotations

import asyncio
import time

import pytest
from conftest import Connection, embedding

from ruvector import ApiError, AsyncClient, Client, ConnectionFailed, Lsn, StaleRead, SyncCollection, committed


def test_ones_own_writes_are_in_the_answer(client: Client, docs: SyncCollection, source: Connection) -> None:
    vector = embedding(source, 42)
    for key in range(2001, 2031):
        source.execute("INSERT INTO docs SELECT %s, 'mine', 'own', 0, '', embedding FROM docs WHERE id = 42", [key])
        source.commit()
        lsn = committed(source)
        answer = docs.search(vector=vector, filter="section = 'own'", recheck="none", limit=100, at_least=lsn)
        assert answer.applied_lsn >= lsn and [hit.id for hit in answer] == list(range(2001, key + 1))
        assert docs.count("section = 'own'", at_least=lsn).count == key - 2000
    source.execute("DELETE FROM docs WHERE section = 'own'")
    source.commit()
    gone = committed(source)
    assert client.lsn(gone, timeout_ms=5000).applied_lsn >= gone
    assert not list(docs.scroll("section = 'own'", recheck="none", at_least=committed(source)))


def test_a_position_that_does_not_come_is_an_error_after_ones_patience(docs: SyncCollection) -> None:
    asked = time.monotonic()
    with pytest.raises(StaleRead) as raised:
        docs.search(id=42, at_least=Lsn("FFFF/0"), timeout_ms=300)
    assert 0.3 <= time.monotonic() - asked < 3, "it was not tried again"
    error = raised.value
    assert error.code == "RV1203" and error.status == 503 and error.retryable and error.retry_after == 1.0
    assert error.applied_lsn is not None and error.applied_lsn < Lsn("FFFF/0")


def test_problems_have_code_hint_and_place(client: Client, docs: SyncCollection) -> None:
    with pytest.raises(ApiError) as raised:
        docs.search(id=42, filter="section = 'a' AND nothing = 1")
    error = raised.value
    assert error.code == "RV1007" and not error.retryable and error.hint and error.position and "nothing" in str(error)
    with pytest.raises(ApiError) as raised:
        client.collection("none/such").search(id=42)
    assert (raised.value.code, raised.value.status) == ("RV1101", 404)
    with pytest.raises(ApiError) as raised:
        client.collection("missing").count()
    assert raised.value.code == "RV1207" and raised.value.retryable


def test_what_there_is(client: Client, docs: SyncCollection) -> None:
    found = {collection.name: collection for collection in client.collections()}
    assert found["docs"].state == "live" and found["docs"].rows == 502 and found["docs"].table == "public.docs"
    assert found["missing"].state == "refused" and found["missing"].reason
    shown = docs.show()
    assert shown.dead_letters == 1 and shown.vectors[0]["vectors"] == 500 and shown.raw["filter_columns"]
    letters = docs.dead_letters()
    assert letters.total == 1 and (letters.letters[0].key, letters.letters[0].column) == ("901", "embedding")
    ready = client.ready()
    assert ready.ready and "missing" in ready.not_following
    status = client.status()
    assert status["version"] == client.version() and Lsn(status["positions"]["applied"]) > 0
    assert "ruvector_http_requests_total" in client.metrics()


def test_what_an_operator_asks_for(docs: SyncCollection) -> None:
    verification = docs.verify()
    assert verification.same and verification.source_rows == verification.index_rows == 502
    docs.compact()
    assert docs.promote(10**9) is False
    docs.rebuild()
    assert docs.search(id=42).hits, "it answers meanwhile"


def test_nobody_is_there() -> None:
    with Client("http://127.0.0.1:9", retry=None) as client, pytest.raises(ConnectionFailed) as raised:
        client.version()
    assert raised.value.retryable


def test_the_asynchronous_client_does_the_same(url: str, docs: SyncCollection) -> None:
    async def asked() -> None:
        async with AsyncClient(url) as client:
            same = client.collection("docs")
            answers = await asyncio.gather(*(same.search(id=key, limit=5, exact=True) for key in range(20)))
            for key, answer in enumerate(answers):
                assert answer.hits == docs.search(id=key, limit=5, exact=True).hits
            rows = [row.id async for row in same.scroll("views < 30", page_rows=11)]
            assert rows == [row.id for row in docs.scroll("views < 30")]
            assert (await same.batch([{"id": 42}]))[0].hits == docs.search(id=42).hits
            with pytest.raises(StaleRead):
                await same.count(at_least="FFFF/0", timeout_ms=1)
            assert (await client.ready()).ready

    asyncio.run(asked())
