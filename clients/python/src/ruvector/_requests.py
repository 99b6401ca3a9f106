"""What a search can ask for. Every field of docs/search.md is here, under its own name."""

from __future__ import annotations

import datetime
import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Protocol, Sequence, Union

from typing_extensions import Literal, TypedDict

from ._lsn import Lsn


class _Array(Protocol):
    """An array of numpy, or of another library that has `tolist`."""

    def tolist(self) -> Any: ...


@dataclass(frozen=True)
class SparseVector:
    """A query for a column of type `sparsevec`. Indices start at 0."""

    indices: Sequence[int]
    values: Sequence[float]
    dim: int


Vector = Union[Sequence[float], str, SparseVector, _Array]
"""Numbers; or text in the form of the column's type, such as `0110` for bits; or a sparse vector."""

Id = Union[int, str, uuid.UUID, Mapping[str, Any]]
"""A key: the value of its column, or for several columns a mapping of all."""

AtLeast = Union[Lsn, str, int]
"""A position that an answer must have reached."""

RecheckMode = Literal["none", "exists", "exact"]


@dataclass(frozen=True)
class AsRole:
    """A recheck with the eyes of a role of the source: its row security and grants decide. `settings` hold meanwhile."""

    role: str
    mode: Literal["exists", "exact"] = "exists"
    settings: Mapping[str, str] = field(default_factory=dict)


Rechecked = Union[RecheckMode, AsRole]
"""How sure rows are to be visible in the source, and with whose eyes."""

Filter = Union[str, Mapping[str, Any]]
"""SQL on the collection's filter columns, with `$1`, `$2` for parameters; or a mapping such as `{"views": {"$lt": 50}}`."""

Exactness = Literal["fast", "balanced", "exact"]


@dataclass(frozen=True)
class Recommend:
    """Rows like the positive examples and unlike the negative ones. Each is a row's key or a vector."""

    positive: Sequence[Any]
    negative: Sequence[Any] = ()


@dataclass(frozen=True)
class Mmr:
    """Diversity: of the nearest `candidates`, those that differ among themselves. `weight` 1 is nearness alone."""

    weight: Optional[float] = None
    candidates: Optional[int] = None


class Search(TypedDict, total=False):
    """One search: `vector`, `id` or `recommend`, and what else is wanted."""

    vector: Vector
    """The nearest rows to this vector."""
    id: Id
    """The nearest rows to the row with this key, without it."""
    recommend: Recommend
    """Rows like some examples and unlike others."""
    using: str
    """The vector column; the collection's first one when left out."""
    filter: Filter
    """Only rows that pass."""
    params: Sequence[Any]
    """Values for the `$n` of a filter in SQL. Never write values into the filter yourself."""
    limit: int
    """Rows, or groups, wanted: 10 when left out."""
    columns: Sequence[str]
    """Columns of the table to show."""
    recheck: Rechecked
    """How sure rows are to be visible in the source: `exists` when left out."""
    after: str
    """`next` of an answer to the same search, but for `limit` and `columns`: the rows behind that page."""
    max_distance: float
    """All rows at this distance or nearer, of which `limit` is only a cap."""
    group_by: str
    """The nearest groups of rows that share the value of this filter column."""
    group_size: int
    """Rows of each group."""
    mmr: Mmr
    """Rows that differ among themselves."""
    explain: bool
    """Tell how the answer came about."""
    ef: int
    """Search width: more finds more, and takes longer."""
    exact: bool
    """Compare with every row."""
    exactness: Exactness
    """How much is compared by full vectors."""


_PLAIN = ("filter", "limit", "max_distance", "group_by", "group_size", "explain", "after")
_QUERY = ("vector", "id", "recommend")
_TUNING = ("ef", "exact", "exactness")


def search_body(search: Search) -> Dict[str, Any]:
    """As the service takes it."""
    unknown = set(search) - set(Search.__annotations__)
    if unknown:
        raise TypeError(f"a search has no {', '.join(sorted(unknown))}")
    asked: Dict[str, Any] = dict(search)
    if len([name for name in _QUERY if asked.get(name) is not None]) != 1:
        raise TypeError("a search needs exactly one of vector, id and recommend")
    query: Dict[str, Any] = {}
    if asked.get("vector") is not None:
        query["vector"] = vector_json(asked["vector"])
    elif asked.get("id") is not None:
        query["id"] = asked["id"]
    else:
        examples: Recommend = asked["recommend"]
        query["recommend"] = {
            "positive": [_example(one) for one in examples.positive],
            "negative": [_example(one) for one in examples.negative],
        }
    if asked.get("using") is not None:
        query["using"] = asked["using"]
    body: Dict[str, Any] = {"query": query}
    body.update({name: asked[name] for name in _PLAIN if asked.get(name) is not None})
    body.update({name: list(asked[name]) for name in ("params", "columns") if asked.get(name) is not None})
    tuning = {name: asked[name] for name in _TUNING if asked.get(name) is not None}
    if tuning:
        body["search"] = tuning
    if asked.get("recheck") is not None:
        body["recheck"] = recheck_json(asked["recheck"])
    if asked.get("mmr") is not None:
        mmr: Mmr = asked["mmr"]
        weights = {"lambda": mmr.weight, "candidates": mmr.candidates}
        body["mmr"] = {name: value for name, value in weights.items() if value is not None}
    return body


def rows_body(
    filter: Optional[Filter],
    params: Sequence[Any],
    consistency: Mapping[str, Any],
    **more: Any,
) -> Dict[str, Any]:
    """A request for rows, or for their number."""
    body: Dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    if filter is not None:
        body["filter"] = filter
    if params:
        body["params"] = list(params)
    if consistency:
        body["consistency"] = consistency
    return body


def consistency_json(at_least: Optional[AtLeast], timeout_ms: Optional[int]) -> Dict[str, Any]:
    """How new, and how long to wait for that."""
    found: Dict[str, Any] = {}
    if at_least is not None:
        found["at_least"] = str(Lsn(at_least))
    if timeout_ms is not None:
        found["timeout_ms"] = timeout_ms
    return found


def recheck_json(recheck: Rechecked) -> Any:
    """As the service takes it."""
    if isinstance(recheck, AsRole):
        return {"mode": recheck.mode, "as_role": recheck.role, "settings": dict(recheck.settings)}
    return recheck


def vector_json(vector: Vector) -> Any:
    """As the service takes it."""
    if isinstance(vector, str):
        return vector
    if isinstance(vector, SparseVector):
        return {"indices": list(vector.indices), "values": list(vector.values), "dim": vector.dim}
    if hasattr(vector, "tolist"):
        return vector.tolist()
    return list(vector)


def _example(example: Any) -> Any:
    plain = isinstance(example, (str, int, uuid.UUID, Mapping))
    return example if plain else vector_json(example)


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON. A number that is not finite is a ValueError: JSON has none."""
    return json.dumps(body, allow_nan=False, separators=(",", ":"), default=_value).encode()


def _value(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be sent: {value!r}")
