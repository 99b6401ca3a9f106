"""The blocking client."""

from __future__ import annotations

import ssl
import time
from typing import Any, Iterator, List, Mapping, Optional, Sequence, TypeVar, Union

import httpx
from typing_extensions import Self, Unpack

from . import _calls
from ._answers import (
    Answer,
    Collection,
    Count,
    DeadLetters,
    Facets,
    OneRow,
    Page,
    Position,
    Readiness,
    Recall,
    Row,
    Verification,
)
from ._errors import RuvectorError
from ._requests import AtLeast, Exactness, Filter, Id, Rechecked, Search, Vector
from ._retry import NEVER, Retry

T = TypeVar("T")


class Client:
    """A service, over connections that are kept open. Safe to share among threads.

    `api_key` is sent as a bearer token. `verify` is a TLS context, for a certificate authority or a client certificate of
    your own. `timeout_s` is the patience for connecting and for an answer, beside what a request itself lets the service wait.
    `retry=None` tries nothing again. `transport` replaces the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8480",
        *,
        api_key: Optional[str] = None,
        timeout_s: float = 30.0,
        retry: Optional[Retry] = Retry(),
        verify: Union[ssl.SSLContext, bool] = True,
        transport: Optional[httpx.BaseTransport] = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._retry = retry or NEVER
        self._http = httpx.Client(
            base_url=url, headers=_calls.headers(api_key), timeout=timeout_s, verify=verify, transport=transport
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def collection(self, name: str) -> SyncCollection:
        """One collection. Nothing is asked yet."""
        return SyncCollection(self, name)

    def collections(self) -> List[Collection]:
        """All collections, also those that cannot be copied."""
        return self._run(_calls.collections())

    def status(self) -> Mapping[str, Any]:
        """Everything an operator asks first: positions, replication, what is not ready."""
        return self._run(_calls.status())

    def lsn(self, at_least: Optional[AtLeast] = None, *, timeout_ms: Optional[int] = None) -> Position:
        """Where the index is, once it has reached `at_least`."""
        return self._run(_calls.lsn(at_least, timeout_ms))

    def ready(self) -> Readiness:
        """Can searches be answered now?"""
        return self._run(_calls.ready())

    def version(self) -> str:
        """Of the service."""
        return self._run(_calls.version())

    def metrics(self) -> str:
        """In Prometheus' text format."""
        return self._run(_calls.metrics())

    def _run(self, call: _calls.Call[T]) -> T:
        attempt = 1
        while True:
            try:
                return self._once(call)
            except RuvectorError as error:
                pause = self._retry.pause(attempt, error)
                if pause is None:
                    raise
            time.sleep(pause)
            attempt += 1

    def _once(self, call: _calls.Call[T]) -> T:
        timeout = call.timeout(self._timeout_s)
        try:
            response = self._http.request(call.method, call.path, content=call.body, timeout=timeout)
        except httpx.TransportError as error:
            raise _calls.failed(error) from error
        return call.result(response)


class SyncCollection:
    """One collection of a service. `at_least` is a position that an answer must have reached, as `committed` tells it after your own
    COMMIT or an earlier answer's `applied_lsn`; `timeout_ms` is how long the service may wait for that (`StaleRead`).
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def search(
        self, *, at_least: Optional[AtLeast] = None, timeout_ms: Optional[int] = None, **search: Unpack[Search]
    ) -> Answer:
        """Searches; what can be asked for is in `Search`."""
        return self._client._run(_calls.search(self.name, search, at_least, timeout_ms))

    def batch(
        self, searches: Sequence[Search], *, at_least: Optional[AtLeast] = None, timeout_ms: Optional[int] = None
    ) -> List[Answer]:
        """Several searches on one view; the answers are in their order."""
        return self._client._run(_calls.batch(self.name, searches, at_least, timeout_ms))

    def page(
        self,
        filter: Optional[Filter] = None,
        *,
        params: Sequence[Any] = (),
        columns: Sequence[str] = (),
        after: Optional[Id] = None,
        limit: int = 100,
        recheck: Optional[Rechecked] = None,
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> Page:
        """Rows behind the key `after`, in the order of their keys."""
        what = (filter, params, columns, after, limit, recheck, at_least, timeout_ms)
        return self._client._run(_calls.page(self.name, *what))

    def scroll(
        self,
        filter: Optional[Filter] = None,
        *,
        params: Sequence[Any] = (),
        columns: Sequence[str] = (),
        after: Optional[Id] = None,
        page_rows: int = 1000,
        recheck: Optional[Rechecked] = None,
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> Iterator[Row]:
        """All rows in the order of their keys, asked for page by page as they are taken."""
        while True:
            what = (filter, params, columns, after, page_rows, recheck, at_least, timeout_ms)
            page = self._client._run(_calls.page(self.name, *what))
            yield from page.rows
            if page.next is None:
                return
            after = page.next

    def count(
        self,
        filter: Optional[Filter] = None,
        *,
        params: Sequence[Any] = (),
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> Count:
        """The number of rows that pass."""
        return self._client._run(_calls.count(self.name, filter, params, at_least, timeout_ms))

    def facet(
        self,
        column: str,
        filter: Optional[Filter] = None,
        *,
        params: Sequence[Any] = (),
        limit: int = 10,
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> Facets:
        """The most frequent values of a filter column among the rows that pass."""
        what = (column, filter, params, limit, at_least, timeout_ms)
        return self._client._run(_calls.facet(self.name, *what))

    def row(
        self,
        id: Id,
        *,
        columns: Optional[Sequence[str]] = None,
        recheck: Optional[Rechecked] = None,
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> OneRow:
        """The row with this key, with all filter columns where `columns` does not name others."""
        return self._client._run(_calls.row(self.name, id, columns, recheck, at_least, timeout_ms))

    def recall(
        self,
        queries: Sequence[Vector] = (),
        *,
        sample: int = 100,
        limit: int = 10,
        using: Optional[str] = None,
        filter: Optional[Filter] = None,
        params: Sequence[Any] = (),
        ef: Optional[int] = None,
        exactness: Optional[Exactness] = None,
        at_least: Optional[AtLeast] = None,
        timeout_ms: Optional[int] = None,
    ) -> Recall:
        """Measures how much of the nearest rows searches find: by these queries, or by so many rows drawn by chance."""
        tuning = {"ef": ef, "exactness": exactness}
        what = (queries, sample, limit, using, filter, params, tuning, at_least, timeout_ms)
        return self._client._run(_calls.recall(self.name, *what))

    def show(self) -> Collection:
        """State, rows, progress, memory."""
        return self._client._run(_calls.show(self.name))

    def dead_letters(self) -> DeadLetters:
        """Rows that could not be indexed, and why."""
        return self._client._run(_calls.dead_letters(self.name))

    def verify(self) -> Verification:
        """Compares index and table row by row, however long that takes."""
        return self._client._run(_calls.verify(self.name))

    def rebuild(self) -> None:
        """Asks for a new copy; what there is answers until it is whole."""
        self._client._run(_calls.rebuild(self.name))

    def compact(self) -> None:
        """Asks for its segments to be merged."""
        self._client._run(_calls.compact(self.name))

    def promote(self, id: Id) -> bool:
        """Counts a row as used so much that it becomes hot. False: there is no such row, or its use is not followed."""
        return self._client._run(_calls.promote(self.name, id))
