"""The adapter for LangGraph beside LangGraph's own store."""

import asyncio
import copy
import doctest
import pickle
import threading

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langgraph.store.base import PutOp, SearchOp
from langgraph.store.memory import InMemoryStore as Theirs

import cossim_fast.integrations.langgraph as adapter
from cossim_fast.integrations.langgraph import InMemoryStore

EMBEDDING = DeterministicFakeEmbedding(size=16)


def filled(kind, fields=("text", "notes[*]")):
    store = kind(index={"dims": 16, "embed": EMBEDDING, "fields": list(fields)})
    for at in range(60):
        notes = [f"note {at} {number}" for number in range(at % 4)]
        value = {"text": f"text {at}", "notes": notes, "n": at}
        index = {0: None, 1: False, 2: ["text"]}.get(at % 10)
        store.put(("docs", f"user {at % 3}"), f"key {at}", value, index=index)
    return store


@pytest.fixture
def both():
    return filled(InMemoryStore), filled(Theirs)


def assert_same(mine, theirs):
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert type(a) is type(b)
        assert (a.namespace, a.key, a.value) == (b.namespace, b.key, b.value)
        assert (a.score is None) == (b.score is None)
        if b.score is not None:
            assert type(a.score) is float
            assert a.score == pytest.approx(b.score, abs=1e-12)


SEARCHES = {
    "all": ((), {"query": "text 3", "limit": 5}),
    "namespace": (("docs", "user 1"), {"query": "note 7 1", "limit": 4}),
    "none in it": (("docs", "user 1"), {"query": "text 3", "limit": 1}),
    "later": ((), {"query": "text 9", "limit": 7, "offset": 5}),
    "beyond": ((), {"query": "text 9", "limit": 100, "offset": 3}),
    "far": ((), {"query": "note 3 2", "limit": 100, "offset": 55}),
    "filter": ((), {"query": "x", "filter": {"n": {"$gte": 30}}, "limit": 6}),
    "one": ((), {"query": "x", "filter": {"n": 31}, "limit": 6}),
    "without a vector": ((), {"query": "x", "filter": {"n": 11}, "limit": 6}),
    "no query": ((), {"limit": 12, "offset": 2}),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_answers_are_theirs(both, name):
    prefix, options = SEARCHES[name]
    mine, theirs = both
    assert_same(mine.search(prefix, **options), theirs.search(prefix, **options))
    assert_same(
        asyncio.run(mine.asearch(prefix, **options)), asyncio.run(theirs.asearch(prefix, **options))
    )


def test_answers_are_theirs_after_changes(both):
    for store in both:
        store.search((), query="text 1")
        store.delete(("docs", "user 0"), "key 3")
        store.put(("docs", "user 0"), "key 6", {"text": "another", "notes": [], "n": 6})
        store.put(("other",), "new", {"text": "text 3", "notes": ["note"], "n": 1})
    mine, theirs = both
    for prefix, options in SEARCHES.values():
        assert_same(mine.search(prefix, **options), theirs.search(prefix, **options))
    assert "key 3" not in [item.key for item in mine.search((), query="text 3", limit=100)]


def test_nothing_is_found(both):
    for store in both:
        assert store.search(("nobody",), query="x") == []
        assert store.search((), query="x", filter={"n": 1000}) == []
        assert store.search((), query="x", limit=0) == []


def test_batches_of_searches_and_changes(both):
    ops = [
        SearchOp((), None, 3, 0, "text 5"),
        PutOp(("docs", "user 2"), "key 5", {"text": "moved", "notes": [], "n": 5}),
        SearchOp((), None, 3, 0, None),
        SearchOp(("docs",), {"n": {"$lt": 9}}, 3, 0, "text 5"),
    ]
    mine, theirs = (store.batch(ops) for store in both)
    for place in (0, 2, 3):
        assert_same(mine[place], theirs[place])


def test_a_store_without_an_index_is_theirs():
    mine, theirs = InMemoryStore(), Theirs()
    for store in (mine, theirs):
        store.put(("a",), "k", {"text": "t"})
    assert_same(mine.search(("a",), query="t"), theirs.search(("a",), query="t"))


def test_an_item_counts_with_its_best_vector_however_many_it_has():
    store = InMemoryStore(index={"dims": 16, "embed": EMBEDDING, "fields": ["notes[*]"]})
    store.put(("a",), "many", {"notes": ["same"] * 1 + [f"n{at}" for at in range(30)]})
    store.put(("a",), "one", {"notes": ["other"]})
    found = store.search(("a",), query="same", limit=2)
    assert [item.key for item in found] == ["many", "one"]
    assert found[0].score == 1.0


def test_vectors_are_not_read_again_at_every_search(both, monkeypatch):
    mine = both[0]
    mine.search((), query="text 1")
    monkeypatch.setattr(mine._followed._index, "add", None)
    rows = []
    array = np.array

    def counted(value, *arguments, **options):
        rows.append(len(value) if hasattr(value, "__len__") else 0)
        return array(value, *arguments, **options)

    monkeypatch.setattr("cossim_fast.integrations._followed.np.array", counted)
    mine.search((), query="text 2", limit=3)
    assert all(length <= 200 for length in rows)
    assert mine._followed._index is not None


def test_copies_and_threads(both):
    mine = both[0]
    wanted = mine.search((), query="text 3", limit=5)
    followed = mine._followed
    for twin in (copy.deepcopy(followed), pickle.loads(pickle.dumps(followed))):
        assert type(twin) is type(followed)
        assert twin._index is None
    failed = []

    def work():
        try:
            for _ in range(20):
                assert_same(mine.search((), query="text 3", limit=5), wanted)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_zero_vectors_and_queries():
    def embed(texts):
        return [[0.0, 0.0] if text == "zero" else [1.0, float(len(text))] for text in texts]

    store = InMemoryStore(index={"dims": 2, "embed": embed, "fields": ["text"]})
    for text in ("zero", "a", "bb"):
        store.put(("a",), text, {"text": text})
    assert [item.score for item in store.search(("a",), query="zero")] == [0.0] * 3
    assert store.search(("a",), query="a")[0].key == "a"


def test_the_example():
    assert doctest.testmod(adapter).failed == 0
