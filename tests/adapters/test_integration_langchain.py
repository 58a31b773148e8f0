"""The adapter for LangChain: the standard suite of langchain-tests, and what it leaves out."""

import asyncio
import doctest
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
