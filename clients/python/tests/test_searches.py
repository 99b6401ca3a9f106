"""Every kind of search, against what PostgreSQL itself says."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import pytest
from conftest import Connection, embedding

from ruvector import ApiError, AsRole, Client, Lsn, Mmr, Recommend, SyncCollection

NEAREST = """
  SELECT id FROM docs, LATERAL (SELECT sum(a::float8 * b) / sqrt(sum(a::float8 * a) * sum(b::float8 * b))
                                  FROM unnest(embedding, %s::real[]) both_of_them (a, b)) s (cosine)
   WHERE id < 900 AND id <> %s AND (section = 'libs' OR NOT %s) ORDER BY cosine DESC, id LIMIT %s"""


def nearest(source: Connection, key: int, limit: int, libs: bool = False) -> list[int]:
    return [row[0] for row in source.execute(NEAREST, [embedding(source, key), key, libs, limit])]


class Array:
    """As numpy has it."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values


def test_nearest_rows_to_a_row_and_to_its_vector(docs: SyncCollection, source: Connection) -> None:
    answer = docs.search(id=42, limit=10, exact=True)
    assert [hit.id for hit in answer] == nearest(source, 42, 10)
    assert answer.complete and answer.stats.plan == "exact" and answer.recheck.mode == "exists" and len(answer) == 10
    assert all(isinstance(hit.vector_lsn, Lsn) and hit.columns is None for hit in answer)
    for vector in (embedding(source, 42), Array(embedding(source, 42)), tuple(embedding(source, 42))):
        by_vector = docs.search(vector=vector, limit=11, exact=True)
        assert [hit.id for hit in by_vector] == [42, *nearest(source, 42, 10)]


def test_filters_columns_and_rechecks(docs: SyncCollection, source: Connection) -> None:
    for recheck in ("exists", "exact"):
        answer = docs.search(
            id=42, limit=5, filter="section = $1", params=["libs"], columns=["section", "name"], recheck=recheck, exact=True
        )
        assert [hit.id for hit in answer] == nearest(source, 42, 5, libs=True)
        assert {hit.columns["section"] for hit in answer if hit.columns} == {"libs"}
        assert answer.recheck.checked >= 5 and answer.recheck.mode == recheck
    assert docs.search(id=42, recheck="none", exactness="fast", ef=50, using="embedding").recheck.checked == 0


def test_all_rows_within_a_distance(docs: SyncCollection) -> None:
    far = docs.search(id=42, limit=400, exact=True)
    bound = far.hits[20].distance
    assert bound is not None
    within = docs.search(id=42, max_distance=bound, exact=True)
    assert [hit.id for hit in within] == [hit.id for hit in far if hit.distance is not None and hit.distance <= bound]
    assert within.complete and within.stats.ended == "dry"


def test_groups(docs: SyncCollection) -> None:
    answer = docs.search(id=42, group_by="section", group_size=2, limit=3)
    assert answer.groups is not None and len(answer.groups) == 3 and not answer.hits
    assert all(1 <= len(group.hits) <= 2 for group in answer.groups)
    assert len({group.value for group in answer.groups}) == 3


def test_recommendation_and_diversity(docs: SyncCollection, source: Connection) -> None:
    answer = docs.search(recommend=Recommend(positive=[42, embedding(source, 43)], negative=[7]), limit=5)
    assert len(answer) == 5 and not {42, 7} & {hit.id for hit in answer}
    plain, diverse = docs.search(id=42, limit=20), docs.search(id=42, limit=20, mmr=Mmr(weight=0.1, candidates=200))
    assert {hit.id for hit in plain} != {hit.id for hit in diverse} and len(diverse) == 20
    assert docs.search(id=42, limit=20, mmr=Mmr(1.0)).hits == plain.hits


def test_a_batch_is_of_one_view(docs: SyncCollection, source: Connection) -> None:
    answers = docs.batch([{"id": 42, "limit": 3, "exact": True}, {"vector": embedding(source, 43), "group_by": "section"}])
    assert [hit.id for hit in answers[0]] == nearest(source, 42, 3) and answers[1].groups
    assert answers[0].applied_lsn == answers[1].applied_lsn


def test_an_explanation(docs: SyncCollection) -> None:
    explain = docs.search(id=42, explain=True).explain
    assert explain is not None and explain["visited"] > 0 and explain["timings_us"]["total"] > 0
    assert docs.search(id=42).explain is None


def test_keys_of_several_columns_bits_and_names_that_need_escapes(client: Client, source: Connection) -> None:
    pairs = client.collection("pairs of things")
    key = {"a": 5, "b": uuid.UUID(bytes=hashlib.md5(b"5").digest())}
    answer = pairs.search(vector="00000101", limit=1, max_distance=0)
    assert answer.hits[0].id == {"a": 5, "b": str(key["b"])} and answer.hits[0].distance == 0
    assert all(hit.id["a"] != 5 for hit in pairs.search(id=key, limit=3))
    assert [row.id["a"] for row in pairs.scroll("tag = $1", params=["tag 0"], page_rows=7)] == list(range(3, 301, 3))


def test_rows_in_the_order_of_their_keys(docs: SyncCollection, source: Connection) -> None:
    expected = [row[0] for row in source.execute("SELECT id FROM docs WHERE views < 30 ORDER BY id")]
    assert [row.id for row in docs.scroll("views < 30", page_rows=11)] == expected
    page = docs.page("views < 30", limit=10, columns=["views"])
    assert page.next == expected[9] and page.rows[0].columns is not None and page.rows[0].columns["views"] < 30
    assert [row.id for row in docs.scroll("views < 30", after=page.next, recheck="none")] == expected[10:]
    assert int(docs.count("views < $1", params=[30])) == len(expected)
    assert docs.count().count == 502


def test_a_filter_in_json_is_the_one_in_sql(docs: SyncCollection) -> None:
    libs = {"section": "libs", "views": {"$lt": 50}}
    assert docs.count(libs).count == docs.count("section = 'libs' AND views < 50").count > 0
    wanted = docs.search(id=42, limit=20, filter="section = 'libs' AND views < 50", exact=True)
    assert docs.search(id=42, limit=20, filter=libs, exact=True).hits == wanted.hits
    assert [row.id for row in docs.scroll(libs)] == [row.id for row in docs.scroll("section = 'libs' AND views < 50")]


def test_pages_of_an_answer(docs: SyncCollection) -> None:
    found: list[int] = []
    page = docs.search(id=42, limit=10, exact=True)
    while page.next is not None and len(found) < 30:
        found += [hit.id for hit in page]
        page = docs.search(id=42, limit=10, exact=True, after=page.next)
    assert found == [hit.id for hit in docs.search(id=42, limit=30, exact=True)]
    with pytest.raises(ApiError) as raised:
        docs.search(id=43, after=docs.search(id=42, limit=10).next or "")
    assert raised.value.code == "RV1027"


def test_values_one_row_and_recall(client: Client, docs: SyncCollection, source: Connection) -> None:
    facets = docs.facet("section", "views < $1", params=[50], limit=3)
    counted = "SELECT section, count(*) FROM docs WHERE views < 50 GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
    assert [(facet.value, facet.count) for facet in facets] == source.execute(counted).fetchall()
    assert facets.total == docs.count("views < 50").count
    row = docs.row(42)
    assert row.id == 42 and row.columns is not None and set(row.columns) == {"section", "views"}
    named = docs.row(42, columns=["name"], recheck="exact")
    assert named.columns is not None and set(named.columns) == {"name"} and named.recheck.checked == 1
    with pytest.raises(ApiError) as raised:
        docs.row(10**9)
    assert (raised.value.code, raised.value.status) == ("RV1011", 404)
    key = {"a": 5, "b": uuid.UUID(bytes=hashlib.md5(b"5").digest())}
    assert client.collection("pairs of things").row(key).id == {"a": 5, "b": str(key["b"])}
    recall = docs.recall(sample=20, limit=5, filter={"section": "libs"})
    assert 0.9 <= recall.recall <= 1 and recall.queries == 20


def test_a_role_that_is_not_listed_is_refused(docs: SyncCollection) -> None:
    eyes = AsRole("nobody", mode="exact", settings={"app.tenant": "7"})
    for ask in (lambda: docs.search(id=42, recheck=eyes), lambda: docs.page(recheck=eyes)):
        with pytest.raises(ApiError) as raised:
            ask()
        assert (raised.value.code, raised.value.status) == ("RV1026", 403)
    with pytest.raises(ApiError) as raised:
        docs.row(42, recheck=AsRole("nobody"))
    assert raised.value.code == "RV1026"
    with pytest.raises(ValueError, match="as a role alone"):
        docs.row(42, recheck=eyes)


def test_what_cannot_be_sent_is_told_before(docs: SyncCollection) -> None:
    with pytest.raises(ValueError):
        docs.search(vector=[float("nan")])
    with pytest.raises(TypeError, match="exactly one"):
        docs.search(limit=3)
    with pytest.raises(TypeError, match="exactly one"):
        docs.search(id=1, vector=[1.0])
    with pytest.raises(TypeError, match="a search has no limt"):
        docs.search(id=1, limt=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="is not an LSN"):
        docs.search(id=1, at_least="yesterday")
    with pytest.raises(TypeError, match="cannot be sent"):
        docs.count("views = $1", params=[object()])
