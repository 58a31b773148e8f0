"""Rows that are read by number, as blocks of work need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# [bytes] Most of a piece that is read at a time.
PIECE = 1 << 26
# [numbers] About how many are compared together.
_TOGETHER = 1 << 24
ITEM_BYTES = {"int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Rows(Protocol):
    """Rows (rows, width) of one dtype, such as a `ShardSet`; a small object that pickles."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def width(self) -> int:
        """Numbers of a row."""

    @property
    def dtype(self) -> str:
        """Of `ITEM_BYTES`."""

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first row and the rows (n, width) of consecutive pieces."""


def pieces(
    rows: Rows, start: int, stop: int, without: NDArray[np.int64] | None = None
) -> Iterator[Tensor]:
    """Yield the rows from ``start`` to ``stop`` in pieces, none of which stays in memory.

    Args:
        rows: all rows.
        start: number of the first.
        stop: number after the last.
        without: (r,) numbers of rows to leave out, ascending.
    """
    for first, piece in rows.between(start, stop):
        kept = numbers(first, first + len(piece), without)
        yield piece if len(kept) == len(piece) else piece[torch.from_numpy(kept - first)]
        del piece


def panel(rows: Rows, start: int, stop: int, without: NDArray[np.int64] | None = None) -> Tensor:
    """Read the rows from ``start`` to ``stop`` into one tensor: beside it, a piece in memory.

    Arguments as for `pieces`.
    """
    count = len(numbers(start, stop, without))
    dtype: torch.dtype = getattr(torch, rows.dtype)
    found = torch.empty((count, rows.width), dtype=dtype, device="cpu")
    at = 0
    for piece in pieces(rows, start, stop, without):
        found[at : at + len(piece)] = piece
        at += len(piece)
        del piece
    return found


def numbers(start: int, stop: int, without: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The numbers from ``start`` to ``stop`` except those of ``without``, which are ascending."""
    every = np.arange(start, stop, dtype=np.int64)
    if without is None:
        return every
    first, last = np.searchsorted(without, [start, stop])
    return np.delete(every, without[first:last] - start)


def row_bytes(rows: Rows) -> int:
    """Bytes of a row as it is stored."""
    return rows.width * ITEM_BYTES[rows.dtype]


def held_bytes(row_bytes: int, width: int) -> int:
    """Bytes of a row that stays in memory: whole numbers of 8 bits are kept in float16 beside.

    Args:
        row_bytes: of a row as it is stored.
        width: numbers of a row.
    """
    return row_bytes + (2 * width if row_bytes == width else 0)


def streamed(item_bytes: int) -> int:
    """Bytes that it takes to stream rows past others, however many there are.

    Three pieces, since a file may hold them in another form, or twice a piece that was made float16
    of 8 bits; half of the rows that are compared together, twice as they are put together with a
    piece; and the codes of two such sets.

    Args:
        item_bytes: of a number as it is stored.
    """
    made = max(item_bytes, 2)
    return max(3 * PIECE, 2 * PIECE * made // item_bytes) + _TOGETHER * made + 2 * _TOGETHER
