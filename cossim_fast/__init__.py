"""Cosine similarity of large batches of embeddings: fast, range-safe, exact."""

from cossim_fast import _ops as _ops  # registers torch.ops.cossim_fast
from cossim_fast import diagnose
from cossim_fast.functional import Explanation, cosine_similarity, explain, pairwise_cosine
from cossim_fast.modules import CosineSimilarity
from cossim_fast.retrieval import (
    CosineIndex,
    communities,
    deduplicate,
    iter_pairs_above,
    pairs_above,
    topk,
)

__version__ = "0.1.0"

__all__ = [
    "CosineIndex",
    "CosineSimilarity",
    "Explanation",
    "__version__",
    "communities",
    "cosine_similarity",
    "deduplicate",
    "diagnose",
    "explain",
    "iter_pairs_above",
    "pairs_above",
    "pairwise_cosine",
    "topk",
]
