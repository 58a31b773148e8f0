"""Exact search: low precision decides what need not be looked at, float64 decides the answer."""

from cossim_fast.retrieval.results import Certificate, CertifiedTopK, TopK, VerificationError
from cossim_fast.retrieval.search import topk

__all__ = ["Certificate", "CertifiedTopK", "TopK", "VerificationError", "topk"]
