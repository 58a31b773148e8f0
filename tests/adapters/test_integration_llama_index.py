"""The adapter for llama-index beside llama-index's own store."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore as Theirs
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from cossim_fast.integrations.llama_index import SimpleVectorStore

X = np.random.default_rng(0).standard_normal((80, 12))
Q = np.random.default_rng(1).standard_normal((3, 12))


def node(at, vector):
    return TextNode(
        id_=f"node {at}",
        text=f"text {at}",
        embedding=vector,
        metadata={"n": at, "even": at % 2 == 0, "tags": ["a", "b"][: at % 3]},
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc {at // 4}")},
    )


def filled(kind):
    store = kind()
    store.add([node(at, row.tolist()) for at, row in enumerate(X)])
    return store


@pytest.fixture
def both():
    return filled(SimpleVectorStore), filled(Theirs)


def assert_same(mine, theirs):
    assert type(mine) is type(theirs)
    assert mine.ids == theirs.ids
    assert mine.similarities == pytest.approx(theirs.similarities, abs=1e-12)
    assert all(isinstance(score, float) for score in mine.similarities)


def filters(*some, condition=FilterCondition.AND):
    return MetadataFilters(filters=list(some), condition=condition)


OPTIONS = {
    "plain": {"similarity_top_k": 5},
    "one": {},
    "all": {"similarity_top_k": 1000},
    "nodes": {"similarity_top_k": 4, "node_ids": ["node 3", "node 9", "nobody"]},
    "no nodes": {"similarity_top_k": 4, "node_ids": ["nobody"]},
    "filter": {
        "similarity_top_k": 6,
        "filters": filters(MetadataFilter(key="n", value=40, operator=FilterOperator.GTE)),
    },
    "filters": {
        "similarity_top_k": 6,
        "filters": filters(
            MetadataFilter(key="n", value=7),
            MetadataFilter(key="tags", value="b", operator=FilterOperator.CONTAINS),
            condition=FilterCondition.OR,
        ),
        "node_ids": [f"node {at}" for at in range(0, 80, 2)],
    },
    "nothing": {"filters": filters(MetadataFilter(key="n", value=1000))},
    "diverse": {"mode": VectorStoreQueryMode.MMR, "similarity_top_k": 5},
    "svm": {"mode": VectorStoreQueryMode.SVM, "similarity_top_k": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_answers_are_theirs(both, name):
    for row in Q:
        query = VectorStoreQuery(query_embedding=row.tolist(), **OPTIONS[name])
        mine, theirs = both
        assert_same(mine.query(query), theirs.query(query))
        assert_same(asyncio.run(mine.aquery(query)), asyncio.run(theirs.aquery(query)))


def test_answers_are_theirs_after_changes(both):
    query = VectorStoreQuery(query_embedding=Q[0].tolist(), similarity_top_k=90)
    for store in both:
        store.query(query)
        store.delete("doc 3")
        store.delete_nodes(["node 1", "node 2"])
        store.delete_nodes(filters=filters(MetadataFilter(key="n", value=20)))
        store.add([node(5, (-X[5]).tolist()), node(100, X[14].tolist())])
        store.data.embedding_dict["node 6"] = Q[0].tolist()  # by anybody
        del store.data.embedding_dict["node 7"]
    assert_same(*(store.query(query) for store in both))
    assert both[0].query(query).ids[0] == "node 6"
    for store in both:
        store.clear()
    assert_same(*(store.query(query) for store in both))


def test_saved_and_loaded(both, tmp_path):
    query = VectorStoreQuery(query_embedding=Q[0].tolist(), similarity_top_k=5)
    mine, theirs = both
    wanted = theirs.query(query)
    mine.query(query)
    mine.persist(str(tmp_path / "mine.json"))
    theirs.persist(str(tmp_path / "theirs.json"))
    assert (tmp_path / "mine.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    for kind in (
        SimpleVectorStore.from_persist_path(str(tmp_path / "theirs.json")),
        SimpleVectorStore.from_dict(theirs.to_dict()),
        SimpleVectorStore(theirs.data),
        copy.deepcopy(mine),
        pickle.loads(pickle.dumps(mine)),
    ):
        assert type(kind) is SimpleVectorStore
        assert_same(kind.query(query), wanted)


def test_a_filter_of_a_store_without_metadata_is_refused_as_there(both):
    query = VectorStoreQuery(query_embedding=Q[0].tolist(), **OPTIONS["filter"])
    for store in both:
        store.data.metadata_dict = {}
        with pytest.raises(ValueError, match="persisted without metadata"):
            store.query(query)


def test_it_serves_an_index_of_llama_index():
    nodes = [node(at, row.tolist()) for at, row in enumerate(X)]
    found = []
    for kind in (SimpleVectorStore, Theirs):
        context = StorageContext.from_defaults(vector_store=kind())
        index = VectorStoreIndex(
            nodes, storage_context=context, embed_model=MockEmbedding(12), show_progress=False
        )
        hits = index.as_retriever(similarity_top_k=4).retrieve("a question")
        found.append([(hit.node_id, pytest.approx(hit.score)) for hit in hits])
    assert {name for name, _ in found[0]} == {name for name, _ in found[1]}
    assert [score for _, score in found[0]] == [score.expected for _, score in found[1]]


def test_zero_vectors_and_nan():
    store = SimpleVectorStore()
    store.add([node(0, [0.0, 0.0]), node(1, [1.0, 1.0]), node(2, [float("nan"), 1.0])])
    found = store.query(VectorStoreQuery(query_embedding=[2.0, 2.0], similarity_top_k=3))
    assert (found.ids, found.similarities) == (["node 1", "node 0"], [1.0, 0.0])
