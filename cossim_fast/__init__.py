"""Cosine similarity of large batches of embeddings: fast, range-safe, exact."""

from cossim_fast import _ops as _ops  # registers torch.ops.cossim_fast
from cossim_fast import diagnose
from cossim_fast.functional import Explanation, cosine_similarity, explain, pairwise_cosine
from cossim_fast.modules import CosineSimilarity
from cossim_fast.retrieval import CosineIndex, topk

__version__ = "0.1.0"

__all__ = [
    "CosineIndex",
    "CosineSimilarity",
    "Explanation",
    "__version__",
    "cosine_similarity",
    "diagnose",
    "explain",
    "pairwise_cosine",
    "topk",
]
