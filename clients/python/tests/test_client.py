"""The client alone: retries, keys, answers that are none, its two halves, its page."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Callable

import httpx
import psycopg
import pytest
from conftest import embedding

import ruvector
from ruvector import ApiError, BadAnswer, Client, ConnectionFailed, Lsn, Overloaded, Retry

HERE = Path(__file__).parent
OVERLOADED = {"code": "RV1301", "detail": "the queue is full", "retryable": True}


class Network(httpx.BaseTransport):
    """Answers in turn, and remembers what was asked."""

    def __init__(self, *answers: Callable[[], httpx.Response]) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers.pop(0)()


def problem(status: int, body: dict[str, object], **headers: str) -> Callable[[], httpx.Response]:
    headers = {"content-type": "application/problem+json", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return lambda: httpx.Response(status, json=body, headers=headers)


def version() -> httpx.Response:
    return httpx.Response(200, json={"version": "1"})


def broken() -> httpx.Response:
    raise httpx.ReadError("reset")


QUICK = Retry(attempts=3, first_s=0.001)


def test_what_may_pass_is_tried_again() -> None:
    network = Network(problem(503, OVERLOADED), broken, version)
    with Client(transport=network, retry=QUICK) as client:
        assert client.version() == "1"
    assert len(network.asked) == 3


def test_not_for_ever_not_what_is_wrong_and_not_where_it_is_turned_off() -> None:
    for retry, answers, kind, asked in [
        (QUICK, [problem(503, OVERLOADED)] * 3, Overloaded, 3),
        (QUICK, [problem(400, {"code": "RV1001", "retryable": False})], ApiError, 1),
        (None, [problem(503, OVERLOADED)], Overloaded, 1),
        (None, [broken], ConnectionFailed, 1),
        # A proxy, which has no codes.
        (QUICK, [lambda: httpx.Response(502, text="<html>")] * 3, ApiError, 3),
        (QUICK, [lambda: httpx.Response(404, text="<html>")], ApiError, 1),
    ]:
        network = Network(*answers)
        with Client(transport=network, retry=retry) as client, pytest.raises(kind):
            client.version()
        assert len(network.asked) == asked


def test_a_pause_is_what_the_service_asks_for_or_there_is_none() -> None:
    network = Network(problem(503, OVERLOADED, retry_after="1"), version)
    began = time.monotonic()
    with Client(transport=network, retry=QUICK) as client:
        client.version()
    assert 1.0 <= time.monotonic() - began < 2
    error = ApiError(503, OVERLOADED, retry_after=60.0)
    assert Retry(longest_s=10).pause(1, error) is None
    pauses = [Retry(attempts=99, longest_s=2).pause(attempt, ConnectionFailed()) for attempt in range(1, 99)]
    assert all(pause is not None and pause <= 2 for pause in pauses) and Retry().pause(4, ConnectionFailed()) is None


def test_the_key_is_sent_and_not_shown() -> None:
    network = Network(version)
    with Client(transport=network, api_key="rvk_secret") as client:
        client.version()
        assert "rvk_secret" not in repr(client) + repr(vars(client))
    assert network.asked[0].headers["authorization"] == "Bearer rvk_secret"


def test_something_else_listens() -> None:
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"hits": 3}), httpx.Response(200, json=[])):
        with Client(transport=Network(lambda: answer)) as client, pytest.raises(BadAnswer):
            client.collection("docs").search(id=1)


def test_a_request_that_waits_has_the_time() -> None:
    network = Network(problem(400, {}), problem(400, {}))
    with Client(transport=network, timeout_s=5) as client:
        for ask in (lambda: client.collection("d").count(timeout_ms=60_000), lambda: client.collection("d").verify()):
            with pytest.raises(ApiError):
                ask()
    assert [request.extensions["timeout"]["read"] for request in network.asked] == [65.0, None]


def test_positions() -> None:
    assert str(Lsn("16/B374D848")) == "16/B374D848" and Lsn("0/10") == 16 and Lsn("1/0") > Lsn("0/FFFFFFFF")
    assert repr(Lsn(16)) == "Lsn('0/10')"
    for bad in ("", "16", "1/2/3", "x/1", "123456789/0", -1, 1 << 64):
        with pytest.raises(ValueError):
            Lsn(bad)


def test_both_clients_are_one() -> None:
    package = Path(ruvector.__file__).parent
    asynchronous = (package / "_async.py").read_text()
    for there, here in [
        ("for row in page.rows:\n                yield row", "yield from page.rows"),
        ("import asyncio\nimport ssl\n", "import ssl\nimport time\n"),
        ("await asyncio.sleep", "time.sleep"),
        ("For one event loop.", "Safe to share among threads."),
        ("The asyncio client", "The blocking client"),
        ("AsyncCollection", "SyncCollection"),
    ]:
        asynchronous = asynchronous.replace(there, here)
    asynchronous = re.sub(r"async |await |Async|(?<=__)a(?=enter|exit)", "", asynchronous).replace("aclose", "close")
    assert asynchronous == (package / "_client.py").read_text()


def test_its_page_says_what_works(url: str, dsn: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (HERE.parent / "README.md").read_text(), re.S)
    assert len(examples) == 2
    with psycopg.connect(dsn) as connection:
        for example in examples:
            exec(example, {"url": url, "connection": connection, "vector": embedding(connection, 42)})
