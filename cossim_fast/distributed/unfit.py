"""Rows that hold NaN or an infinity: counted, file by file, as they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor

from cossim_fast.distributed.shards import ShardSet


class Watched:
    """Rows as they are, of which those are counted that no search returns.

    Args:
        rows: read through this.

    Attributes:
        unfit: how many rows that were read hold NaN or an infinity, by file.
    """

    def __init__(self, rows: ShardSet) -> None:
        self._rows = rows
        self.rows, self.width, self.dtype = rows.rows, rows.width, rows.dtype
        self.unfit: Counter[str] = Counter()

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """As of what is watched."""
        for first, piece in self._rows.between(start, stop):
            # The largest and the smallest number are finite where all are.
            if piece.numel() and not all(bool(end.isfinite()) for end in piece.aminmax()):
                bad = int((~piece.isfinite()).any(1).sum())
                self.unfit[self._rows.shard_of(first).path] += bad
            yield first, piece
            del piece
