"""The adapter for LangChain: the standard suite of langchain-tests, and what it leaves out."""

import asyncio
import doctest
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore as Theirs
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

import cossim_fast.integrations.langchain as adapter
from cossim_fast.integrations.langchain import InMemoryVectorStore

EMBEDDING = DeterministicFakeEmbedding(size=16)
TEXTS = [f"text {i}" for i in range(200)]


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return InMemoryVectorStore(self.get_embeddings())


@pytest.fixture
def both():
    stores = []
    for kind in (InMemoryVectorStore, Theirs):
        names, about = [str(i) for i in range(200)], [{"n": i} for i in range(200)]
        stores.append(kind.from_texts(TEXTS, EMBEDDING, about, ids=names))
    return stores


def assert_same(mine, theirs):
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, Document):
            assert a == b
        else:
            assert a[0] == b[0]
            assert a[1] == pytest.approx(b[1], abs=1e-12)
            assert type(a[1]) is type(b[1])


CALLS = {
    "search": lambda s: s.similarity_search("text 3", k=5),
    "scores": lambda s: s.similarity_search_with_score("text 3", k=500),
    "vector": lambda s: s.similarity_search_by_vector(EMBEDDING.embed_query("no"), k=5),
    "filter": lambda s: s.similarity_search("no", filter=lambda d: d.metadata["n"] % 7 == 0),
    "diverse": lambda s: s.max_marginal_relevance_search("no", k=4, fetch_k=30),
    "retriever": lambda s: s.as_retriever(search_kwargs={"k": 3}).invoke("text 9"),
    "ids": lambda s: s.get_by_ids(["3", "x", "1"]),
    "async search": lambda s: asyncio.run(s.asimilarity_search_with_score("no", k=5)),
    "async diverse": lambda s: asyncio.run(s.amax_marginal_relevance_search("no", k=5)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_answers_are_theirs(both, call):
    assert_same(*map(call, both))


def test_answers_are_theirs_after_changes(both):
    for store in both:
        store.similarity_search("text 1")
        store.delete(["3", "4", "nobody"])
        store.add_texts(["new five", "new"], ids=["5", "new"], metadatas=[{"n": 5}, {"n": 0}])
    for call in CALLS.values():
        assert_same(*map(call, both))
    mine = both[0]
    assert mine.similarity_search("new five", k=1)[0].id == "5"
    assert "3" not in [hit.id for hit in mine.similarity_search("text 3", k=500)]
    mine.delete(list(mine.store))
    assert mine.similarity_search("text 1") == []


def test_a_store_is_kept_and_read_again(both, tmp_path):
    path = str(tmp_path / "store.json")
    both[0].similarity_search("text 1")
    both[0].dump(path)
    for again in (InMemoryVectorStore.load(path, EMBEDDING), pickle.loads(pickle.dumps(both[0]))):
        assert isinstance(again, InMemoryVectorStore)
        assert_same(CALLS["scores"](again), CALLS["scores"](both[1]))
    assert_same(CALLS["scores"](Theirs.load(path, EMBEDDING)), CALLS["scores"](both[1]))


def test_threads_that_add_and_search(both):
    def work(i):
        both[0].add_texts([f"more {i}"], ids=[f"more {i}"])
        return both[0].similarity_search(f"more {i}", k=1)[0].id

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(40))) == [f"more {i}" for i in range(40)]


def test_nothing_is_found_where_nothing_may_be(both):
    assert both[0].similarity_search("no", filter=lambda d: False) == []
    assert both[0].similarity_search("no", k=0) == []


def test_mistakes(both):
    with pytest.raises(ValueError, match=r"expected queries of shape \(q, 16\).*got \(q, 3\)"):
        both[0].similarity_search_by_vector([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="ids must be the same length"):
        both[0].add_documents([Document("a"), Document("b")], ids=["1"])


def test_vectors_of_nan_are_never_found():
    class Holes(DeterministicFakeEmbedding):
        def embed_documents(self, texts):
            hole = [np.nan] * self.size
            return [hole if text == "hole" else self.embed_query(text) for text in texts]

    store = InMemoryVectorStore.from_texts(["hole", "text"], Holes(size=4))
    assert [hit.page_content for hit in store.similarity_search("hole")] == ["text"]


def test_its_example():
    assert doctest.testmod(adapter).failed == 0


# Programs that change the dictionary, filters that search, and what theirs does at the edges.


def test_a_dictionary_that_somebody_else_changes(both):
    def change(store):
        store.similarity_search("text 1")
        del store.store["3"]
        entry = {**store.store["4"], "vector": EMBEDDING.embed_query("text 3"), "text": "moved"}
        store.store["4"] = entry
        store.store["5"]["vector"] = EMBEDDING.embed_query("five anew")
        store.store["mine"] = {**entry, "id": "mine", "vector": EMBEDDING.embed_query("mine")}

    for store in both:
        change(store)
    for text in ("text 3", "five anew", "mine", "text 5"):
        assert_same(*[s.similarity_search_with_score(text, k=7) for s in both])
    assert both[0].similarity_search("text 3", k=1)[0].page_content == "moved"
    for store in both:
        store.store = {key: store.store[key] for key in ("7", "8")}
    assert_same(*[s.similarity_search_with_score("text 1") for s in both])
    for store in both:
        store.store.clear()
        assert store.similarity_search("text 1") == []
        store.embedding = DeterministicFakeEmbedding(size=8)  # and another width
        store.add_texts(["narrow"], ids=["n"])
        assert store.similarity_search("narrow", k=1)[0].id == "n"


def test_changes_of_every_kind_in_any_order():
    draw = np.random.default_rng(0)
    stores = [InMemoryVectorStore(EMBEDDING), Theirs(EMBEDDING)]
    for step in range(150):
        key, what = str(draw.integers(12)), draw.integers(5)
        for store in stores:
            if what == 0:
                store.store.pop(key, None)
            elif what == 1:
                store.delete([key])
            elif what == 2 and key in store.store:
                store.store[key]["vector"] = EMBEDDING.embed_query(f"step {step}")
            else:
                store.add_texts([f"text {step}"], ids=[key])
        if stores[1].store:
            assert_same(*[s.similarity_search_with_score("no", k=20) for s in stores])


def test_deleting_and_adding_beside_filters(both):
    store, failed = both[0], []

    def churn(i):
        for _ in range(15):
            store.add_texts([f"more {i}"], ids=[f"more {i}"])
            store.delete([f"more {i}"])

    def look(_):
        try:
            for _ in range(15):
                hits = store.similarity_search("text 9", k=3, filter=lambda d: "9" in d.id)
                assert hits[0].id == "9"
                assert store.similarity_search("text 9", k=1)[0].id == "9"
        except BaseException as error:
            failed.append(error)

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(work, i) for i in range(3) for work in (churn, look)]
        for job in jobs:
            job.result()
    assert not failed


@pytest.mark.timeout(60)
def test_a_filter_may_search_and_change_the_store(both):
    def wanted(store):
        def like(document):
            store.add_texts(["seen"], ids=["seen"], metadatas=[{"n": -1}])
            return store.similarity_search(document.page_content, k=1)[0].metadata["n"] % 50 == 0

        return like

    assert_same(*[s.similarity_search("no", filter=wanted(s)) for s in both])


@pytest.mark.parametrize("k", [-1, -195, -500, 0, 1, 500, None])
def test_any_number_of_documents(both, k):
    found = [s.similarity_search_with_score("no", k=k) for s in both]
    assert len(found[0]) == len(found[1])
    assert [hit.id for hit, _ in found[0]] == [hit.id for hit, _ in found[1]]


def test_vectors_without_a_direction(both):
    for store in both:
        with pytest.raises(ValueError, match=r"NaN|zero"):
            store.similarity_search_by_vector([0.0] * 16)
        store.store["3"]["vector"] = [0.0] * 16
        hits = store.similarity_search_with_score("no", k=500)
        assert {hit.id: score for hit, score in hits}["3"] == 0.0
        with pytest.raises(ValueError, match=r"NaN|zero"):
            store.similarity_search("no", filter=lambda d: d.id == "3")


@pytest.mark.parametrize("base", [InMemoryVectorStore, Theirs])
def test_a_subclass_that_ranks_in_its_own_way(base):
    class Mine(base):
        def _similarity_search_with_score_by_vector(self, embedding, k=4, filter=None, **kwargs):
            return super()._similarity_search_with_score_by_vector(embedding, k, filter)[::-1]

    store = Mine.from_texts(TEXTS[:9], EMBEDDING, ids=list("abcdefghi"))
    assert store.similarity_search("text 3", k=9)[-1].id == "d"
    assert store.max_marginal_relevance_search("text 3", k=9, fetch_k=9)


def test_ids_of_any_kind():
    stores = [kind(EMBEDDING) for kind in (InMemoryVectorStore, Theirs)]
    for store in stores:
        assert store.add_texts(["one", "two", "three"], ids=[1, "1", 2]) == [1, "1", 2]
        store.similarity_search("one")
        store.delete([2])
    assert_same(*[s.similarity_search_with_score("one") for s in stores])
    assert list(stores[0].store) == list(stores[1].store) == [1, "1"]
    assert_same(*[s.get_by_ids([1]) for s in stores])


def test_vectors_of_two_lengths_are_refused_and_change_nothing(both):
    store = both[0]
    store.similarity_search("text 1")
    entry = store.store["3"]
    store.store["new"] = {**entry, "id": "new", "vector": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"\(n, 16\)"):
        store.similarity_search("text 3")
    del store.store["new"]
    assert store.similarity_search("text 3", k=1)[0].id == "3"


def test_attributes_of_a_subclass_are_kept():
    store = InMemoryVectorStore.from_texts(["a"], EMBEDDING)
    store.label = "mine"
    assert pickle.loads(pickle.dumps(store)).label == "mine"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_in_the_middle_of_a_search(both):
    context = multiprocessing.get_context("fork")
    receive, answer = context.Pipe(duplex=False)
    both[0].similarity_search("text 1")

    def search():
        answer.send(both[0].similarity_search("text 3", k=1)[0].id)

    child = context.Process(target=search)
    with both[0]._coded._lock:
        child.start()
    there = receive.poll(60)
    child.kill()
    child.join()
    assert there, "the child hangs"
    assert receive.recv() == "3"
