"""Long runs in small: rows by 64, a checkpoint after each of them, and an end after a few."""

import contextlib
from unittest import mock

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins import checkpoint as join_checkpoint
from cossim_fast.retrieval.nearest import checkpoint
from cossim_fast.retrieval.storage import corpus as corpus_module

ROWS = 64  # of 8 numbers that are searched at a time, and of a round of a join


class EndedError(Exception):
    """In place of whatever may end a process."""


@contextlib.contextmanager
def small_stretches():
    """Search and join 64 rows of 8 numbers at a time, and write a checkpoint after each."""
    with (
        mock.patch.object(corpus_module, "NUMBERS", ROWS * 8),
        mock.patch.object(tuning, "FIRST_ROUND", ROWS),
        mock.patch.object(tuning, "LONGEST_ROUND", ROWS),
        mock.patch.object(join_checkpoint, "_WAIT", 0),
    ):
        yield


@contextlib.contextmanager
def ending_after(saves, error=EndedError):
    """Raise an error once so many checkpoints were written."""
    left = [saves]

    def ending(save):
        def save_and_end(self, *arguments, **options):
            save(self, *arguments, **options)
            left[0] -= self.path is not None
            if left[0] == 0:
                raise error

        return save_and_end

    with contextlib.ExitStack() as stack:
        stack.enter_context(small_stretches())
        for kind in (checkpoint.SearchCheckpoint, join_checkpoint.JoinCheckpoint):
            stack.enter_context(mock.patch.object(kind, "save", ending(kind.save)))
        yield
