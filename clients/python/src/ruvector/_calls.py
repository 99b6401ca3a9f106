"""Requests and the reading of their answers, for both clients."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Generic, List, Mapping, Optional, Sequence, TypeVar
from urllib.parse import quote, urlencode

import httpx

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
    Verification,
)
from ._errors import ApiError, BadAnswer, ConnectionFailed, RuvectorError
from ._requests import (
    AtLeast,
    Filter,
    Id,
    Rechecked,
    Search,
    Vector,
    consistency_json,
    encoded,
    recheck_json,
    rows_body,
    search_body,
    vector_json,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request."""

    method: str
    path: str
    read: Callable[[Any], T]
    """From JSON, or from text where `text` is set."""
    body: Optional[bytes] = None
    waits_ms: Optional[int] = 0
    """How long the service may wait before it begins; `None`: as long as it takes."""
    expected: FrozenSet[int] = frozenset({200, 202})
    text: bool = False

    def timeout(self, usual: float) -> httpx.Timeout:
        """Its time-outs, where requests usually have `usual` seconds."""
        read = None if self.waits_ms is None else usual + self.waits_ms / 1000
        return httpx.Timeout(usual, read=read)

    def result(self, response: httpx.Response) -> T:
        """What it says, or the exception."""
        if response.status_code not in self.expected:
            raise problem(response)
        try:
            return self.read(response.text if self.text else json.loads(response.content))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadAnswer(f"{self.method} {self.path}: {type(error).__name__}: {error}") from error


def problem(response: httpx.Response) -> RuvectorError:
    """The exception for an answer that is no success."""
    said: Any = None
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            said = json.loads(response.content)
        except ValueError:
            pass
    waits = response.headers.get("retry-after", "")
    return ApiError.of(response.status_code, said if isinstance(said, dict) else {}, float(waits) if waits.isdecimal() else None)


def failed(error: httpx.TransportError) -> RuvectorError:
    """The exception for an answer that did not come."""
    return ConnectionFailed(f"{type(error).__name__}: {error}")


def headers(api_key: Optional[str]) -> Dict[str, str]:
    """What every request carries."""
    found = {"content-type": "application/json", "user-agent": "ruvector-python"}
    if api_key is not None:
        found["authorization"] = f"Bearer {api_key}"
    return found


def _path(collection: str, what: str = "") -> str:
    return f"/v1/collections/{quote(collection, safe='')}{what}"


def _post(path: str, read: Callable[[Any], T], body: Mapping[str, Any], timeout_ms: Optional[int]) -> Call[T]:
    # What the service waits by itself for a position is well below the usual time-out.
    return Call("POST", path, read, encoded(body), timeout_ms or 0)


def search(collection: str, what: Search, at_least: Optional[AtLeast], timeout_ms: Optional[int]) -> Call[Answer]:
    body = search_body(what)
    consistency = consistency_json(at_least, timeout_ms)
    if consistency:
        body["consistency"] = consistency
    return _post(_path(collection, "/search"), Answer.of, body, timeout_ms)


def batch(
    collection: str, searches: Sequence[Search], at_least: Optional[AtLeast], timeout_ms: Optional[int]
) -> Call[List[Answer]]:
    body: Dict[str, Any] = {"searches": [search_body(one) for one in searches]}
    consistency = consistency_json(at_least, timeout_ms)
    if consistency:
        body["consistency"] = consistency
    return _post(_path(collection, "/search"), Answer.several, body, timeout_ms)


def page(
    collection: str,
    filter: Optional[Filter],
    params: Sequence[Any],
    columns: Sequence[str],
    after: Optional[Id],
    limit: int,
    recheck: Optional[Rechecked],
    at_least: Optional[AtLeast],
    timeout_ms: Optional[int],
) -> Call[Page]:
    asked = None if recheck is None else recheck_json(recheck)
    more = {"columns": list(columns) or None, "after": after, "limit": limit, "recheck": asked}
    body = rows_body(filter, params, consistency_json(at_least, timeout_ms), **more)
    return _post(_path(collection, "/scroll"), Page.of, body, timeout_ms)


def count(
    collection: str,
    filter: Optional[Filter],
    params: Sequence[Any],
    at_least: Optional[AtLeast],
    timeout_ms: Optional[int],
) -> Call[Count]:
    body = rows_body(filter, params, consistency_json(at_least, timeout_ms))
    return _post(_path(collection, "/count"), Count.of, body, timeout_ms)


def facet(
    collection: str,
    column: str,
    filter: Optional[Filter],
    params: Sequence[Any],
    limit: int,
    at_least: Optional[AtLeast],
    timeout_ms: Optional[int],
) -> Call[Facets]:
    body = rows_body(filter, params, consistency_json(at_least, timeout_ms), column=column, limit=limit)
    return _post(_path(collection, "/facet"), Facets.of, body, timeout_ms)


def row(
    collection: str,
    id: Id,
    columns: Optional[Sequence[str]],
    recheck: Optional[Rechecked],
    at_least: Optional[AtLeast],
    timeout_ms: Optional[int],
) -> Call[OneRow]:
    key = encoded(id).decode() if isinstance(id, Mapping) else str(id)
    wanted: Dict[str, Any] = consistency_json(at_least, timeout_ms)
    if columns is not None:
        if any("," in name for name in columns):
            raise ValueError("a column with a comma in its name cannot be asked for by key")
        wanted["columns"] = ",".join(columns)
    if isinstance(recheck, str):
        wanted["recheck"] = recheck
    elif recheck is not None:
        if recheck.mode != "exists" or recheck.settings:
            raise ValueError("a row that is asked for by its key is rechecked as a role alone: no exact mode, no settings")
        wanted["recheck"] = f"role:{recheck.role}"
    return Call("GET", _asked(_path(collection, f"/rows/{quote(key, safe='')}"), wanted), OneRow.of, waits_ms=timeout_ms or 0)


def recall(
    collection: str,
    queries: Sequence[Vector],
    sample: int,
    limit: int,
    using: Optional[str],
    filter: Optional[Filter],
    params: Sequence[Any],
    tuning: Mapping[str, Any],
    at_least: Optional[AtLeast],
    timeout_ms: Optional[int],
) -> Call[Recall]:
    search = {name: value for name, value in tuning.items() if value is not None}
    more = {"queries": [vector_json(one) for one in queries] or None, "using": using, "search": search or None}
    consistency = consistency_json(at_least, timeout_ms)
    body = rows_body(filter, params, consistency, sample=sample, limit=limit, **more)
    return Call("POST", _path(collection, "/recall"), Recall.of, encoded(body), waits_ms=None)


def lsn(at_least: Optional[AtLeast], timeout_ms: Optional[int]) -> Call[Position]:
    path = _asked("/v1/lsn", consistency_json(at_least, timeout_ms))
    return Call("GET", path, Position.of, waits_ms=timeout_ms or 0)


def _asked(path: str, wanted: Mapping[str, Any]) -> str:
    return f"{path}?{urlencode(wanted)}" if wanted else path


def collections() -> Call[List[Collection]]:
    return Call("GET", "/v1/collections", Collection.several)


def show(collection: str) -> Call[Collection]:
    return Call("GET", _path(collection), Collection.of)


def dead_letters(collection: str) -> Call[DeadLetters]:
    return Call("GET", _path(collection, "/dead_letters"), DeadLetters.of)


def _admin(collection: str, what: str) -> str:
    return f"/v1/admin/collections/{quote(collection, safe='')}/{what}"


def verify(collection: str) -> Call[Verification]:
    return Call("POST", _admin(collection, "verify"), Verification.of, waits_ms=None)


def rebuild(collection: str) -> Call[None]:
    return Call("POST", _admin(collection, "rebuild"), lambda json: None)


def compact(collection: str) -> Call[None]:
    return Call("POST", _admin(collection, "compact"), lambda json: None)


def promote(collection: str, id: Id) -> Call[bool]:
    return Call("POST", _admin(collection, "promote"), lambda json: bool(json["promoted"]), encoded({"id": id}))


def status() -> Call[Mapping[str, Any]]:
    return Call("GET", "/v1/status", _mapping)


def _mapping(json: Any) -> Mapping[str, Any]:
    if not isinstance(json, dict):
        raise ValueError("no object")
    return json


def ready() -> Call[Readiness]:
    return Call("GET", "/readyz", Readiness.of, expected=frozenset({200, 503}))


def version() -> Call[str]:
    return Call("GET", "/version", lambda json: str(json["version"]))


def metrics() -> Call[str]:
    return Call("GET", "/metrics", str, text=True)
