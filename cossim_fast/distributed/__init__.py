"""Exact search, joins and deduplication of files of embeddings, on many machines.

The answer is that of `cossim_fast.topk`, `pairs_above` and `deduplicate` of the same rows, to the
bit. Tasks are handed paths and ranges of rows, never embeddings.
"""
