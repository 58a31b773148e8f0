"""Exact search, joins and deduplication of files of embeddings, on many machines.

The answer is that of `cossim_fast.topk`, `pairs_above` and `deduplicate` of the same rows, to the
bit. Tasks are handed paths and ranges of rows, never embeddings.
"""

from cossim_fast.distributed.datasets import write_dataset
from cossim_fast.distributed.jobs import (
    Finished,
    connected_components,
    deduplicate,
    pairs_above,
    plan,
    topk,
)
from cossim_fast.distributed.plan import Plan, StagePlan

__all__ = [
    "Finished",
    "Plan",
    "StagePlan",
    "connected_components",
    "deduplicate",
    "pairs_above",
    "plan",
    "topk",
    "write_dataset",
]
