"""Searches and joins with a checkpoint that the caller manages, to resume after an interruption.

`cossim_fast.topk` and `pairs_above` delete their checkpoint as they return, before the caller
has stored the result. A program that writes results to a file, as the ``cossim`` command does, uses
these instead, and removes the checkpoint once the file is complete:

    with SearchCheckpoint("out.checkpoint") as kept:
        found = topk_with_checkpoint(queries, corpus, 10, kept=kept)
        write(found)
        kept.remove()

A join yields its pairs in blocks (`JoinBlocks`), and its checkpoint records which rows are
finished. A `Digest` of what was written tells whether it has changed. `Lock` locks a path.
"""

from cossim_fast.retrieval.joins.checkpoint import JoinCheckpoint
from cossim_fast.retrieval.joins.pairs import JoinBlocks
from cossim_fast.retrieval.nearest.checkpoint import SearchCheckpoint
from cossim_fast.retrieval.nearest.topk import topk_with_checkpoint
from cossim_fast.retrieval.storage.checkpoint import Checkpoint
from cossim_fast.retrieval.storage.digest import Digest
from cossim_fast.retrieval.storage.own_files import InUseError, Lock, create, is_there, reopen

__all__ = [
    "Checkpoint",
    "Digest",
    "InUseError",
    "JoinBlocks",
    "JoinCheckpoint",
    "Lock",
    "SearchCheckpoint",
    "create",
    "is_there",
    "reopen",
    "topk_with_checkpoint",
]
