"""Rows that are read by number, as blocks of work need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

# [bytes] Most of a piece that is read at a time.
PIECE = 1 << 26
ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


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


def pieces(rows: Rows, start: int, stop: int) -> Iterator[Tensor]:
    """Yield the rows from ``start`` to ``stop`` in pieces, none of which stays in memory."""
    for _, piece in rows.between(start, stop):
        yield piece
        del piece


def panel(rows: Rows, start: int, stop: int) -> Tensor:
    """Read the rows from ``start`` to ``stop`` into one tensor: beside it, a piece in memory."""
    found: Tensor | None = None
    for first, piece in rows.between(start, stop):
        if found is None:
            shape = stop - start, piece.shape[1]
            found = torch.empty(shape, dtype=piece.dtype, device="cpu")
        found[first - start : first - start + len(piece)] = piece
        del piece
    if found is None:
        dtype: torch.dtype = getattr(torch, rows.dtype)
        found = torch.empty((0, rows.width), dtype=dtype, device="cpu")
    return found


def row_bytes(rows: Rows) -> int:
    """Bytes of a row as it is stored."""
    return rows.width * ITEM_BYTES[rows.dtype]
