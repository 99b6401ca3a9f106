"""What the service answers. Fields that a later version adds are in `raw`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional

from ._lsn import Lsn

Json = Dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """One row of an answer."""

    id: Any
    """Its key: a value, or a mapping where the key has several columns."""
    distance: Optional[float]
    """Distance to the query; `None` where there is none, as from a zero vector under cosine."""
    columns: Optional[Mapping[str, Any]]
    """The columns asked for."""
    vector_lsn: Lsn
    """The transaction that wrote the version of the row that was found."""

    @staticmethod
    def of(json: Json) -> Hit:
        return Hit(json["id"], json["distance"], json.get("columns"), Lsn(json["vector_lsn"]))


@dataclass(frozen=True)
class Group:
    """Rows that share a value."""

    value: Any
    hits: List[Hit]


@dataclass(frozen=True)
class Recheck:
    """What the source was asked before the answer was given."""

    mode: str
    checked: int
    """Rows asked about."""
    dropped: int
    """Rows the source does not show."""
    refilled: int
    """Rows found in their place."""

    @staticmethod
    def of(json: Json) -> Recheck:
        return Recheck(json["mode"], json["checked"], json["dropped"], json["refilled"])


@dataclass(frozen=True)
class Stats:
    """What a search did."""

    took_us: int
    visited: int
    """Distances computed."""
    plan: str
    reason: str
    ended: str
    """Why it ended: `limit`, `dry`, `margin` or `budget`."""
    exactness: str

    @staticmethod
    def of(json: Json) -> Stats:
        names = ("took_us", "visited", "plan", "reason", "ended", "exactness")
        return Stats(*(json[name] for name in names))


@dataclass(frozen=True)
class Answer:
    """The answer to a search. Iterating over it gives its hits."""

    hits: List[Hit]
    """Nearest first. Empty where groups were asked for."""
    groups: Optional[List[Group]]
    next: Optional[str]
    """The next page's `after`; `None`: there is none, or this kind of search has no pages."""
    complete: bool
    """False where something that belongs in the answer may be missing."""
    applied_lsn: Lsn
    """The position this answer is exact for; as `at_least` of the next request it keeps time from going back."""
    staleness_ms: Optional[float]
    """Everything the source had that long ago is in the answer; `None`: it has not been heard of yet."""
    stale: Optional[str]
    """Why changes may be missing, if so."""
    recheck: Recheck
    stats: Stats
    explain: Optional[Mapping[str, Any]]
    raw: Mapping[str, Any] = field(repr=False)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __bool__(self) -> bool:
        return True

    @staticmethod
    def of(json: Json) -> Answer:
        groups = json.get("groups")
        return Answer(
            hits=[Hit.of(hit) for hit in json["hits"]],
            groups=None if groups is None else [Group(g["value"], [Hit.of(hit) for hit in g["hits"]]) for g in groups],
            next=json.get("next"),
            complete=json["complete"],
            applied_lsn=Lsn(json["applied_lsn"]),
            staleness_ms=json["staleness_ms"],
            stale=json.get("stale"),
            recheck=Recheck.of(json["recheck"]),
            stats=Stats.of(json["stats"]),
            explain=json.get("explain"),
            raw=json,
        )

    @staticmethod
    def several(json: Json) -> List[Answer]:
        return [Answer.of(answer) for answer in json["answers"]]


@dataclass(frozen=True)
class Row:
    """One row of a page."""

    id: Any
    columns: Optional[Mapping[str, Any]]
    vector_lsn: Lsn


@dataclass(frozen=True)
class Page:
    """Rows in the order of their keys."""

    rows: List[Row]
    next: Any
    """The next page's `after`; `None`: this is the last one."""
    complete: bool
    applied_lsn: Lsn
    staleness_ms: Optional[float]
    stale: Optional[str]
    recheck: Recheck
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(json: Json) -> Page:
        return Page(
            rows=[Row(row["id"], row.get("columns"), Lsn(row["vector_lsn"])) for row in json["rows"]],
            next=json["next"],
            complete=json["complete"],
            applied_lsn=Lsn(json["applied_lsn"]),
            staleness_ms=json["staleness_ms"],
            stale=json.get("stale"),
            recheck=Recheck.of(json["recheck"]),
            raw=json,
        )


@dataclass(frozen=True)
class Count:
    """The number of rows, as indexed."""

    count: int
    complete: bool
    applied_lsn: Lsn
    staleness_ms: Optional[float]
    stale: Optional[str]

    def __int__(self) -> int:
        return self.count

    @staticmethod
    def of(json: Json) -> Count:
        lsn = Lsn(json["applied_lsn"])
        return Count(json["count"], json["complete"], lsn, json["staleness_ms"], json.get("stale"))


@dataclass(frozen=True)
class Facet:
    """A value, and the number of rows that have it."""

    value: Any
    count: int


@dataclass(frozen=True)
class Facets:
    """The most frequent values of a column, as indexed. Iterating over it gives them."""

    facets: List[Facet]
    """Most rows first."""
    distinct: int
    """Different values there are, NULL included."""
    total: int
    """Rows that pass."""
    complete: bool
    applied_lsn: Lsn
    staleness_ms: Optional[float]
    stale: Optional[str]

    def __iter__(self) -> Iterator[Facet]:
        return iter(self.facets)

    @staticmethod
    def of(json: Json) -> Facets:
        facets = [Facet(facet["value"], facet["count"]) for facet in json["facets"]]
        lsn = Lsn(json["applied_lsn"])
        counts = (json["distinct"], json["total"])
        return Facets(facets, *counts, json["complete"], lsn, json["staleness_ms"], json.get("stale"))


@dataclass(frozen=True)
class OneRow:
    """One row, asked for by its key."""

    id: Any
    columns: Optional[Mapping[str, Any]]
    vector_lsn: Lsn
    """The transaction that wrote the version of the row that was found."""
    complete: bool
    applied_lsn: Lsn
    staleness_ms: Optional[float]
    stale: Optional[str]
    recheck: Recheck

    @staticmethod
    def of(json: Json) -> OneRow:
        return OneRow(
            id=json["id"],
            columns=json.get("columns"),
            vector_lsn=Lsn(json["vector_lsn"]),
            complete=json["complete"],
            applied_lsn=Lsn(json["applied_lsn"]),
            staleness_ms=json["staleness_ms"],
            stale=json.get("stale"),
            recheck=Recheck.of(json["recheck"]),
        )


@dataclass(frozen=True)
class Recall:
    """How much of the nearest rows searches find."""

    recall: float
    """The share of the nearest rows that was found, on the mean of all queries."""
    worst: float
    """The share of the query for which it was least."""
    queries: int
    applied_lsn: Lsn
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(json: Json) -> Recall:
        return Recall(json["recall"], json["worst"], json["queries"], Lsn(json["applied_lsn"]), json)


@dataclass(frozen=True)
class Position:
    """Where the index is."""

    applied_lsn: Lsn
    """What searches answer from now."""
    staleness_ms: Optional[float]
    """Everything the source had that long ago is applied; `None`: it has not been heard of yet."""
    waited_ms: float
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(json: Json) -> Position:
        return Position(Lsn(json["applied_lsn"]), json["staleness_ms"], json["waited_ms"], json)


@dataclass(frozen=True)
class Collection:
    """A collection as the service shows it."""

    name: str
    state: str
    """`live`, `copying`, `paused`, or `refused`: it is configured and cannot be copied."""
    reason: Optional[str]
    """Why it is paused or refused."""
    rows: Optional[int]
    """`None` for a key that is confined to some rows; so is what follows."""
    dead_letters: Optional[int]
    """Rows that could not be indexed."""
    table: Optional[str]
    vectors: List[Mapping[str, Any]] = field(repr=False)
    """Its vector columns with their figures."""
    copy: Optional[Mapping[str, Any]]
    """Progress of the copy that will answer when it is whole."""
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(json: Json) -> Collection:
        return Collection(
            name=json["name"],
            state=json["state"],
            reason=json.get("reason"),
            rows=json.get("rows"),
            dead_letters=json.get("dead_letters"),
            table=json.get("table"),
            vectors=json.get("vectors", []),
            copy=json.get("copy"),
            raw=json,
        )

    @staticmethod
    def several(json: Json) -> List[Collection]:
        return [Collection.of(collection) for collection in json["collections"]]


@dataclass(frozen=True)
class DeadLetter:
    """A row that could not be indexed."""

    key: str
    """Its key, for people."""
    column: str
    reason: str
    lsn: Lsn
    """The transaction that wrote it."""


@dataclass(frozen=True)
class DeadLetters:
    """How many there are, and the first of them."""

    total: int
    letters: List[DeadLetter]

    @staticmethod
    def of(json: Json) -> DeadLetters:
        letters = [DeadLetter(l["key"], l["column"], l["reason"], Lsn(l["lsn"])) for l in json["dead_letters"]]
        return DeadLetters(json["total"], letters)


@dataclass(frozen=True)
class Readiness:
    """Can searches be answered from what follows the source?"""

    ready: bool
    reason: Optional[str]
    not_following: Mapping[str, str]
    """Collections that do not follow their tables, and why."""

    @staticmethod
    def of(json: Json) -> Readiness:
        return Readiness(json["ready"], json.get("reason"), json.get("not_following", {}))


@dataclass(frozen=True)
class Verification:
    """Index against table, row by row."""

    same: bool
    """Nothing differs."""
    source_rows: int
    index_rows: int
    mismatch_count: int
    mismatches: List[Mapping[str, Any]]
    """At most 100 rows that differ: `key` and `kind`, which is `missing`, `phantom` or `different`."""
    at: Lsn
    """Position up to which both were compared."""
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(json: Json) -> Verification:
        same = json["mismatch_count"] == 0 and json["source_checksum"] == json["index_checksum"]
        counts = (json["source_rows"], json["index_rows"], json["mismatch_count"])
        return Verification(same, *counts, json["mismatches"], Lsn(json["at"]), json)
