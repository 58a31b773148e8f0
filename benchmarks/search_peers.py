"""Contenders of top-k: with an index, with none, from a file, and the build of an index.

Cosine is not a metric of every library. Where one has the inner product only, it gets unit rows,
made beforehand; where its user has to make them at each search, in the task 'one shot', that is
part of the time. `read` returns scores (q, k), best first, and rows (q, k); a build returns the
function that searches what was built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import cossim_fast
import floors
from cases import FLAT, KNN, OURS, OURS_FLOAT32, SENTENCE, TORCH_TOPK, Case, Task
from contender import Call, Contender

BOTH = floors.BOTH
SBERT = "sentence_transformers.util"
# Rows of a memory map that are widened at a time by those who do so by hand.
BLOCK = 65536
Answer = tuple[Tensor, Tensor]
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def unit(*rows: Tensor) -> tuple[Tensor, ...]:
    """Float32 rows of length 1."""
    return tuple(F.normalize(x.float()) for x in rows)


def unit_numpy(*rows: Tensor) -> list[Any]:
    """The same as arrays."""
    return [x.numpy() for x in unit(*rows)]


def _numpy(x: Any) -> Any:
    return x.numpy() if isinstance(x, Tensor) else x


def _float32(case: Case) -> bool:
    return case.dtype == torch.float32


def as_tensors(answer: Any, case: Case) -> Answer:
    """(scores, rows) of whatever kind of array."""
    return torch.as_tensor(answer[0]), torch.as_tensor(answer[1])


def _of_distances(answer: Any, case: Case) -> Answer:
    """(cosine distances, rows)."""
    scores, rows = as_tensors(answer, case)
    return 1 - scores.double(), rows


# Ours.


def _index(case: Case, queries: Tensor, corpus: Any) -> Call:
    index = cossim_fast.CosineIndex(corpus)
    return lambda: index.search(queries, case.k)


def _index_float32(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    index = cossim_fast.CosineIndex(corpus, screen="float32")
    return lambda: index.search(queries, case.k)


def _topk(case: Case, queries: Tensor, corpus: Any) -> Call:
    return lambda: cossim_fast.topk(queries, corpus, case.k)


def _build(case: Case, corpus: Tensor) -> Call:
    return lambda: cossim_fast.CosineIndex(corpus).search


# torch.


def _torch_topk(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    q, x = unit(queries, corpus)
    return lambda: torch.topk(q @ x.T, case.k)


def _torch_one_shot(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    return lambda: torch.topk(F.normalize(queries) @ F.normalize(corpus).T, case.k)


def _torch_mapped(case: Case, queries: Tensor, corpus: np.ndarray[Any, Any]) -> Call:
    def search() -> Answer:
        (q,) = unit(queries)
        scores, rows = torch.empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64)
        for start, block in _blocks(corpus):
            found = torch.topk(q @ F.normalize(block).T, min(case.k, len(block)))
            scores = torch.cat([scores, found.values], 1)
            rows = torch.cat([rows, found.indices + start], 1)
            scores, best = torch.topk(scores, case.k)
            rows = rows.gather(1, best)
        return scores, rows

    return search


def _blocks(corpus: np.ndarray[Any, Any]) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(corpus), BLOCK):
        yield start, torch.from_numpy(corpus[start : start + BLOCK].astype(np.float32))


# sentence-transformers: https://sbert.net/docs/package_reference/util.html


def _semantic_search(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    # Unit rows and the dot product, as "Speed Optimization" says on
    # https://sbert.net/examples/sentence_transformer/applications/semantic-search/README.html
    # and all queries in one chunk.
    from sentence_transformers.util import dot_score, semantic_search  # noqa: PLC0415

    q, x = unit(queries, corpus)
    size = {"query_chunk_size": len(q), "top_k": case.k, "score_function": dot_score}
    return lambda: semantic_search(q, x, **size)


def _of_hits(answer: Any, case: Case) -> Answer:
    rows = [[hit["corpus_id"] for hit in hits] for hits in answer]
    scores = [[hit["score"] for hit in hits] for hits in answer]
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(rows)


# scikit-learn: https://scikit-learn.org/stable/modules/generated/sklearn.neighbors.NearestNeighbors.html


def _nearest_neighbors(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    q, x = queries.float().numpy(), corpus.float().numpy()
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(x)
    return lambda: found.kneighbors(q, case.k)


# FAISS: https://github.com/facebookresearch/faiss/wiki/Faiss-indexes


def load_faiss(case: Case) -> Any:
    """FAISS, set for the number of threads of the case."""
    import faiss  # noqa: PLC0415

    # "Implementation notes" in its wiki: a product is used above this threshold. The default of
    # 128000 for queries times dimensions is for dozens of threads; 800 a thread is the measured
    # crossover in https://github.com/facebookresearch/faiss/pull/5109, and up to five times as
    # fast on two threads.
    faiss.cvar.distance_compute_blas_threshold = 800 * case.threads
    return faiss


def _faiss_index(factory: str, l2: bool = False) -> Callable[..., Call]:
    """Search an index that the factory makes: .../wiki/The-index-factory."""

    def prepare(case: Case, queries: Tensor, corpus: Tensor) -> Call:
        faiss = load_faiss(case)
        q, x = unit_numpy(queries, corpus)
        metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(x.shape[1], factory, metric)
        index.train(x)
        index.add(x)
        return lambda: index.search(q, case.k)

    return prepare


def _panorama(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    # A transform that gathers the energy in the first dimensions comes before, as in
    # https://github.com/facebookresearch/faiss/blob/main/benchs/bench_flat_l2_panorama.py; unit
    # rows have the same order by distance as by cosine. PCA cannot learn d axes of fewer rows.
    n, d = corpus.shape
    pca = f"PCA{d}," if n > d else ""
    return _faiss_index(f"{pca}FlatL2Panorama8", l2=True)(case, queries, corpus)


def _of_squared(answer: Any, case: Case) -> Answer:
    """(squared distances of unit rows, rows)."""
    scores, rows = as_tensors(answer, case)
    return 1 - scores.double() / 2, rows


def _faiss_knn(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    # .../wiki/Brute-force-search-without-an-index
    faiss = load_faiss(case)
    q, x = unit_numpy(queries, corpus)
    return lambda: faiss.knn(q, x, case.k, metric=faiss.METRIC_INNER_PRODUCT)


def _faiss_one_shot(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    faiss = load_faiss(case)
    q, x = queries.float(), corpus.float()

    def search() -> Any:
        unit = [F.normalize(rows).numpy() for rows in (q, x)]
        return faiss.knn(*unit, case.k, metric=faiss.METRIC_INNER_PRODUCT)

    return search


def _faiss_mapped(case: Case, queries: Tensor, corpus: np.ndarray[Any, Any]) -> Call:
    # faiss.contrib.exhaustive_search: the exact search of a corpus that comes in blocks.
    faiss = load_faiss(case)
    from faiss.contrib.exhaustive_search import knn_ground_truth  # noqa: PLC0415

    (q,) = unit_numpy(queries)
    metric = {"metric_type": faiss.METRIC_INNER_PRODUCT, "ngpu": 0}

    def search() -> Any:
        blocks = (F.normalize(block).numpy() for _, block in _blocks(corpus))
        return knn_ground_truth(q, blocks, case.k, **metric)

    return search


def _faiss_build(factory: str) -> Callable[..., Call]:
    def prepare(case: Case, corpus: Tensor) -> Call:
        faiss = load_faiss(case)

        def build() -> Any:
            (x,) = unit_numpy(corpus)
            index = faiss.index_factory(x.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(x)
            index.add(x)
            return lambda queries, k: index.search(*unit_numpy(queries), k)

        return build

    return prepare


# usearch: https://unum-cloud.github.io/USearch/python/index.html, "Exact, Brute-Force Search"


def _usearch(case: Case, queries: Tensor, corpus: Any) -> Call:
    from usearch.index import MetricKind, search  # noqa: PLC0415

    q, x = _numpy(queries), _numpy(corpus)
    how = {"exact": True, "threads": case.threads}
    return lambda: search(x, q, case.k, MetricKind.Cos, **how)


def _of_matches(answer: Any, case: Case) -> Answer:
    rows = torch.from_numpy(answer.keys.astype(np.int64)).reshape(-1, case.k)
    return 1 - torch.from_numpy(answer.distances).double().reshape(-1, case.k), rows


# NumKong has no selection: its README packs the corpus once, torch selects.


def _numkong(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    import numkong  # noqa: PLC0415

    q = queries.numpy()
    packed = numkong.dots_pack(corpus.numpy(), dtype="float32")

    def search() -> Any:
        distances = numkong.angulars_packed(q, packed, threads=case.threads)
        return torch.topk(torch.from_numpy(np.asarray(distances)), case.k, largest=False)

    return search


# ChunkDot: https://github.com/rragundez/chunkdot#similarity-calculation-versus-other-embeddings


def _chunkdot(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    import numba  # noqa: PLC0415
    from chunkdot import cosine_similarity_top_k  # noqa: PLC0415

    numba.set_num_threads(case.threads)
    q, x = queries.numpy(), corpus.numpy()
    return lambda: cosine_similarity_top_k(q, embeddings_right=x, top_k=case.k)


def _of_sparse(answer: Any, case: Case) -> Answer:
    scores = torch.from_numpy(answer.data).reshape(-1, case.k)
    rows = torch.from_numpy(answer.indices.astype(np.int64)).reshape(-1, case.k)
    best = scores.argsort(1, descending=True)
    return scores.gather(1, best), rows.gather(1, best)


# On a GPU.


def _faiss_gpu(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    # .../wiki/Faiss-on-the-GPU, with torch tensors by faiss.contrib.torch_utils
    import faiss  # noqa: PLC0415
    import faiss.contrib.torch_utils  # noqa: PLC0415

    resources = faiss.StandardGpuResources()
    q, x = unit(queries, corpus)
    return lambda: faiss.knn_gpu(resources, q, x, case.k, metric=faiss.METRIC_INNER_PRODUCT)


def _cuvs(case: Case, queries: Tensor, corpus: Tensor) -> Call:
    # https://docs.rapids.ai/api/cuvs/stable/python_api/neighbors_brute_force/
    from cuvs.neighbors import brute_force  # noqa: PLC0415

    q, x = unit(queries, corpus)
    index = brute_force.build(x, metric="inner_product")
    return lambda: brute_force.search(index, q, case.k)


def _of_cuda_arrays(answer: Any, case: Case) -> Answer:
    scores, rows = (torch.as_tensor(part, device="cuda") for part in answer)
    return scores, rows.long()


_INDEX = "cossim_fast:CosineIndex"
_TOPK = "cossim_fast:topk"
_FAISS = "faiss:IndexFlatIP"

_SEARCH = (
    Contender(OURS, _index, _INDEX, read=as_tensors, devices=BOTH),
    Contender(OURS_FLOAT32, _index_float32, _INDEX, read=as_tensors, takes=_float32),
    Contender(TORCH_TOPK, _torch_topk, read=as_tensors, devices=BOTH),
    Contender(SENTENCE, _semantic_search, SBERT, read=_of_hits),
    Contender("scikit-learn", _nearest_neighbors, "sklearn.neighbors", read=_of_distances),
    Contender(FLAT, _faiss_index("Flat"), _FAISS, read=as_tensors),
    Contender(KNN, _faiss_knn, _FAISS, read=as_tensors, takes=_float32),
    Contender("FAISS Panorama", _panorama, "faiss:Panorama", read=_of_squared),
    Contender("FAISS SQ8", _faiss_index("SQ8"), _FAISS, approximate=True, read=as_tensors),
    Contender(
        "FAISS SQfp16",
        _faiss_index("SQfp16"),
        _FAISS,
        approximate=True,
        read=as_tensors,
        takes=lambda case: case.dtype == torch.float16,
    ),
    Contender(
        "usearch",
        _usearch,
        "usearch.index",
        read=_of_matches,
        takes=lambda case: case.dtype != torch.bfloat16,
    ),
    Contender("NumKong", _numkong, "numkong", read=_of_distances, takes=_float32),
    Contender(
        "FAISS GPU",
        _faiss_gpu,
        "faiss:StandardGpuResources",
        read=as_tensors,
        devices=("cuda",),
    ),
    Contender("cuVS", _cuvs, "cuvs", read=_of_cuda_arrays, devices=("cuda",)),
    *(floors.PRODUCTS[i] for i in (2, 0, 1)),
    *floors.READS,
)

CONTENDERS: dict[Task, tuple[Contender, ...]] = {
    "top-k": _SEARCH,
    "one shot": (
        Contender(OURS, _topk, _TOPK, read=as_tensors, devices=BOTH),
        Contender(TORCH_TOPK, _torch_one_shot, read=as_tensors, devices=BOTH),
        Contender(KNN, _faiss_one_shot, _FAISS, read=as_tensors),
        *(c for c in _SEARCH if c.name == "usearch"),
        # It builds nothing, and is compiled anew in each process: here alone, with time for it.
        Contender(
            "ChunkDot", _chunkdot, "chunkdot", read=_of_sparse, takes=lambda case: not case.quick
        ),
        *(floors.PRODUCTS[i] for i in (2, 0)),
    ),
    "build": (
        Contender(OURS, _build, _INDEX),
        Contender(FLAT, _faiss_build("Flat"), _FAISS),
        Contender("FAISS SQ8", _faiss_build("SQ8"), _FAISS, approximate=True),
        *floors.READS_ONE,
    ),
    "mapped": (
        Contender(OURS, _topk, _TOPK, read=as_tensors),
        Contender(f"{OURS}, index built before", _index, _INDEX, read=as_tensors),
        Contender("torch, block by block", _torch_mapped, read=as_tensors),
        Contender("FAISS, block by block", _faiss_mapped, _FAISS, read=as_tensors),
        Contender("usearch", _usearch, "usearch.index", read=_of_matches),
        *floors.READS_MAPPED,
    ),
}
