"""Rows that are equal byte by byte, which are joined once: c copies would make c^2 pairs.

Rows are told apart by BLAKE2b of 128 bits, and not compared again: that two of 10^10 different rows
have one digest has a probability of 10^-19.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cossim_fast.distributed.rows import Rows

# [rows] Whose digests are sorted at a time, with up to 80 bytes each.
_SORTED = 1 << 23


class Copies(NamedTuple):
    """Rows that have a copy before them, in the order in which rows are visited."""

    rows: NDArray[np.int64]  # (c,) ascending
    firsts: NDArray[np.int64]  # (c,) the first of the rows that are equal to each


def digests(rows: Rows, start: int, stop: int) -> NDArray[np.uint64]:
    """The digests (n, 2) of rows; 0 for rows that have no copies: of zeros, or not finite.

    A row of zeros scores 0 with its copy, a row that holds NaN or an infinity has no score.
    """
    found = np.zeros((stop - start, 2), np.uint64)
    for first, piece in rows.between(start, stop):
        usual = (piece.isfinite().all(1) & (piece != 0).any(1)).numpy()
        stored = piece.contiguous().view(torch.uint8).numpy()
        for at in np.flatnonzero(usual).tolist():
            digest = hashlib.blake2b(stored[at], digest_size=16).digest()
            found[first - start + at] = np.frombuffer(digest, np.uint64)
        del piece, stored
    return found


def find_copies(
    blocks: Callable[[], Iterable[tuple[int, NDArray[np.uint64]]]],
    n: int,
    order: NDArray[np.int64] | None = None,
) -> Copies:
    """Find the rows whose digest another row has that is visited before.

    Args:
        blocks: yields the number of the first row of a block, and its `digests`; called again for
            each 2^23 rows.
        n: how many rows there are in all.
        order: (n,) in which rows are visited; None for the order of their numbers.

    Memory: 80 bytes for each of 2^23 rows, 40 a copy, and 8 a row if there is an order.
    """
    parts = max(-(-n // _SORTED), 1)
    place = None if order is None else places_in(order)
    found = [_copies_among(blocks(), part, parts, place) for part in range(parts)]
    rows, firsts = [each.rows for each in found], [each.firsts for each in found]
    del found
    row = _concatenated(rows)
    by_row = np.argsort(row)
    row = row[by_row]
    return Copies(row, _concatenated(firsts)[by_row])


def _copies_among(
    blocks: Iterable[tuple[int, NDArray[np.uint64]]],
    part: int,
    parts: int,
    place: NDArray[np.int64] | None,
) -> Copies:
    """The copies among the rows of which the digest leaves this rest, divided by ``parts``."""
    held: tuple[list[NDArray[Any]], ...] = [np.empty(0, np.int64)], [], []
    for first, digest in blocks:
        low, high = digest.T
        here = np.flatnonzero(((low != 0) | (high != 0)) & (low % np.uint64(parts) == part))
        for column, values in zip(held, (here + first, low[here], high[here]), strict=True):
            column.append(values)
    if not held[1]:
        return Copies(np.empty(0, np.int64), np.empty(0, np.int64))
    row, low, high = map(_concatenated, held)
    # Few rows have another with the same half of a digest.
    order = np.argsort(low)
    ordered = low[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(order), bool)
    shared[1:] |= same
    shared[:-1] |= same
    some = order[shared]
    del order, ordered
    row, low, high = row[some], low[some], high[some]
    order = np.lexsort((row if place is None else place[row], high, low))
    row, low, high = row[order], low[order], high[order]
    again = np.zeros(len(row), bool)
    again[1:] = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    first_of = np.maximum.accumulate(np.where(again, 0, np.arange(len(row))))
    return Copies(row[again], row[first_of[again]])


def _concatenated(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The parts as one; they are let go."""
    found = np.concatenate(parts)
    parts.clear()
    return found


def places_in(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place (n,) of each row in an order (n,)."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
