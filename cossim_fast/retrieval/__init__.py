"""Exact search: low precision decides which rows to drop, float64 decides the answer."""

from cossim_fast.retrieval.explanation import SearchExplanation
from cossim_fast.retrieval.index import CosineIndex
from cossim_fast.retrieval.joins.clusters import Deduplicated, communities, deduplicate
from cossim_fast.retrieval.joins.pairs import (
    Pairs,
    TooManyPairsError,
    iter_pairs_above,
    pairs_above,
)
from cossim_fast.retrieval.nearest.topk import topk
from cossim_fast.retrieval.results import (
    Certificate,
    CertifiedTopK,
    RangeHits,
    TopK,
    VerificationError,
)
from cossim_fast.retrieval.storage.own_files import InUseError
from cossim_fast.retrieval.storage.tensor_file import FileError

__all__ = [
    "Certificate",
    "CertifiedTopK",
    "CosineIndex",
    "Deduplicated",
    "FileError",
    "InUseError",
    "Pairs",
    "RangeHits",
    "SearchExplanation",
    "TooManyPairsError",
    "TopK",
    "VerificationError",
    "communities",
    "deduplicate",
    "iter_pairs_above",
    "pairs_above",
    "topk",
]
