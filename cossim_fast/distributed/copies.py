"""Rows that are equal byte by byte, which are joined once: c copies would make c^2 pairs.

Rows are told apart by BLAKE2b of 128 bits, and not compared again: that two of 10^10 different rows
have one digest has a probability of 10^-19.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cossim_fast.distributed.rows import Rows

# [rows] Whose digests are sorted at a time, with 40 bytes each.
_SORTED = 1 << 26


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
            each 2^26 rows, so that memory stays within 3 GB.
        n: how many rows there are in all.
        order: (n,) in which rows are visited; None for the order of their numbers.
    """
    parts = -(-n // _SORTED)
    place = None if order is None else places_in(order)
    found = [_copies_among(blocks(), part, parts, place) for part in range(parts)]
    none = np.empty(0, np.int64)
    rows, firsts = (np.concatenate(columns) for columns in zip((none, none), *found, strict=True))
    by_row = np.argsort(rows)
    return Copies(rows[by_row], firsts[by_row])


def _copies_among(
    blocks: Iterable[tuple[int, NDArray[np.uint64]]],
    part: int,
    parts: int,
    place: NDArray[np.int64] | None,
) -> Copies:
    """The copies among the rows of which the digest leaves this rest, divided by ``parts``."""
    held, rows = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for first, digest in blocks:
        here = np.flatnonzero(digest.any(axis=1) & (digest[:, 0] % np.uint64(parts) == part))
        held.append(digest[here])
        rows.append(here + first)
    digest, row = np.concatenate(held), np.concatenate(rows)
    order = np.lexsort((row if place is None else place[row], digest[:, 1], digest[:, 0]))
    digest, row = digest[order], row[order]
    again = np.zeros(len(row), bool)
    again[1:] = (digest[1:] == digest[:-1]).all(axis=1)
    first_of = np.maximum.accumulate(np.where(again, 0, np.arange(len(row))))
    return Copies(row[again], row[first_of[again]])


def places_in(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place (n,) of each row in an order (n,)."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
