"""Client for ruvector: vector search beside an unmodified PostgreSQL.

`Client` and `AsyncClient` have the same methods; both build their requests in `_calls` and read answers into the
dataclasses of `_answers`.
"""

from ._answers import (
    Answer,
    Collection,
    Count,
    DeadLetter,
    DeadLetters,
    Facet,
    Facets,
    Group,
    Hit,
    OneRow,
    Page,
    Position,
    Readiness,
    Recall,
    Recheck,
    Row,
    Stats,
    Verification,
)
from ._async import AsyncClient, AsyncCollection
from ._client import Client, SyncCollection
from ._errors import ApiError, BadAnswer, ConnectionFailed, Overloaded, RuvectorError, StaleRead
from ._lsn import Lsn, committed
from ._requests import AsRole, Filter, Mmr, Recommend, Search, SparseVector, Vector
from ._retry import Retry

__all__ = [
    "Answer",
    "ApiError",
    "AsRole",
    "AsyncClient",
    "AsyncCollection",
    "BadAnswer",
    "Client",
    "Collection",
    "ConnectionFailed",
    "Count",
    "DeadLetter",
    "DeadLetters",
    "Facet",
    "Facets",
    "Filter",
    "Group",
    "Hit",
    "Lsn",
    "Mmr",
    "OneRow",
    "Overloaded",
    "Page",
    "Position",
    "Readiness",
    "Recall",
    "Recheck",
    "Recommend",
    "Retry",
    "Row",
    "RuvectorError",
    "Search",
    "SparseVector",
    "StaleRead",
    "Stats",
    "SyncCollection",
    "Vector",
    "Verification",
    "committed",
]
