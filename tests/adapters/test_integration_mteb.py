"""The adapter for MTEB: its protocol of a search backend, run on a task of the shipped texts."""

import inspect
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SearchEncoderWrapper
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.search_encoder_index import IndexEncoderSearchProtocol
from mteb.models.search_encoder_index.search_indexes.faiss_search_index import FaissSearchIndex

from cossim_fast.integrations.mteb import CosineSearchIndex

TEXTS = Path(__file__).parent.parent.parent / "examples" / "data" / "wordnet_glosses_4k.txt"
GLOSSES = TEXTS.read_text(encoding="utf-8").splitlines()[:600]
# What MTEB says of pages that it reads in vain, and of its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def vector(text):
    """Counts of letter trigrams."""
    found = np.zeros(256, np.float32)
    for i in range(len(text) - 2):
        found[zlib.crc32(text[i : i + 3].encode()) % 256] += 1
    return found


class Trigrams:
    """The least that MTEB takes for an encoder."""

    def __init__(self, similarity=ScoringFunction.COSINE):
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": "cossim/trigrams", "revision": "1", "similarity_fn_name": similarity}
        )

    def encode(self, inputs, **_):
        return np.stack([vector(text) for batch in inputs for text in batch["text"]])

    def similarity(self, a, b):
        a, b = (torch.nn.functional.normalize(torch.as_tensor(x).double()) for x in (a, b))
        return a @ b.T

    similarity_pairwise = None


class Glosses(AbsTaskRetrieval):
    """Which gloss belongs to the second half of its own words, and of a neighbour's?"""

    metadata = TaskMetadata(
        name="Glosses",
        description="The gloss that a piece of it comes from",
        type="Retrieval",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        dataset={"path": "none", "revision": "none"},
    )
    reranking = False

    def load_data(self, **_):
        queries = [str(i) for i in range(0, 600, 4)]
        corpus = {"id": [f"d{i}" for i in range(600)], "text": GLOSSES, "title": [""] * 600}
        halves = [GLOSSES[int(i)][len(GLOSSES[int(i)]) // 2 :] for i in queries]
        some = {q: [f"d{(int(q) + 7 * j) % 600}" for j in range(50)] for q in queries}
        data = {
            "corpus": Dataset.from_dict(corpus),
            "queries": Dataset.from_dict({"id": queries, "text": halves}),
            "relevant_docs": {q: {f"d{q}": 1, f"d{int(q) + 1}": 1} for q in queries},
            "top_ranked": some if self.reranking else None,
        }
        self.dataset, self.data_loaded = {"default": {"test": data}}, True


class Reranked(Glosses):
    reranking = True


def scores(task, backend):
    model = Trigrams()
    wrapped = SearchEncoderWrapper(model, index_backend=backend(model) if backend else None)
    task = task()
    task.load_data()
    return task.evaluate(wrapped, encode_kwargs={"batch_size": 64})["default"]


def test_it_has_the_protocol():
    for name in ("add_documents", "search", "clear"):
        wanted = inspect.signature(getattr(IndexEncoderSearchProtocol, name)).parameters
        mine = inspect.signature(getattr(CosineSearchIndex, name)).parameters
        assert list(mine) == list(wanted)
        assert [p.default for p in mine.values()] == [p.default for p in wanted.values()]


@pytest.mark.parametrize("task", [Glosses, Reranked])
def test_a_task_has_the_scores_of_mteb_s_own_search(task):
    mine, theirs = scores(task, CosineSearchIndex), scores(task, None)
    assert 0.1 < mine["ndcg_at_10"] < 1
    assert mine.keys() == theirs.keys()
    for name, score in mine.items():
        if isinstance(score, float) and not np.isnan(theirs[name]):
            assert score == pytest.approx(theirs[name], abs=1e-5), name


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_answers_are_those_of_the_faiss_backend(ranked, kind):
    rows = np.random.default_rng(0).standard_normal((80, 16)).astype("f")
    answers = []
    for backend in (CosineSearchIndex, FaissSearchIndex):
        index = backend(Trigrams())
        index.add_documents(kind(rows[10:50]), [f"d{i}" for i in range(10, 50)])
        index.add_documents(kind(rows[50:]), [f"d{i}" for i in range(50, 80)])
        some = {f"q{i}": [f"d{j}" for j in range(10 + i, 80, 3)] for i in range(10)}
        names = {i: f"q{i}" for i in range(10)}
        options = {"top_ranked": some, "query_idx_to_id": names} if ranked else {}
        answers.append(index.search(kind(rows[:10]), 6, None, **options))
    np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-6)
    assert answers[0][1] == answers[1][1]


def test_mistakes():
    with pytest.raises(ValueError, match="similarity is the cosine, got"):
        CosineSearchIndex(Trigrams(ScoringFunction.EUCLIDEAN))
    index = CosineSearchIndex()
    with pytest.raises(ValueError, match="call add_documents first"):
        index.search(np.eye(3), 1, None)
    with pytest.raises(ValueError, match="3 and 2 ids"):
        index.add_documents(np.eye(3), ["a", "b"])
    index.add_documents(np.eye(3), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"\(n, 3\), as in the index, got \(n, 2\)"):
        index.add_documents(np.eye(2), ["d", "e"])
    with pytest.raises(ValueError, match=r"\(q, 3\)"):
        index.search(np.eye(2), 1, None)
    with pytest.raises(ValueError, match="query_idx_to_id beside top_ranked"):
        index.search(np.eye(3), 1, None, top_ranked={})
    index.clear()
    with pytest.raises(ValueError, match="call add_documents first"):
        index.search(np.eye(3), 1, None)
