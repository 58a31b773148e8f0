"""Long runs that a program keeps on the disk, so that they go on where they were interrupted.

`cossim_fast.topk` and `pairs_above` delete their checkpoint as they return, before the caller has
put the result anywhere. A program that writes results to a file, as the ``cossim`` command does,
takes these instead, and removes the checkpoint once the file is there:

    with SearchCheckpoint("out.checkpoint") as kept:
        found = topk_with_checkpoint(queries, corpus, 10, kept=kept)
        write(found)
        kept.remove()

A join gives its pairs in blocks (`JoinBlocks`), whose checkpoint says which rows are finished; a
`Digest` of what was written says whether it is still there. `Lock` keeps a path to one run.
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
