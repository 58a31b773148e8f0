"""Cosine similarity of large batches of embeddings: fast, range-safe, exact."""

__version__ = "0.1.0"
