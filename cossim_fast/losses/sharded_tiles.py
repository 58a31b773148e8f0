"""This rank's rows beside the keys of all ranks, tile by tile: what losses of shared rows share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cossim_fast._dispatch import without_autocast
from cossim_fast._products import full_precision_product, mm
from cossim_fast.losses.group import Piece, Shares

# Keys of a piece, and numbers in a tile of logits: 4 MiB of float32.
PIECE, TILE = 1024, 1 << 20


class Job(NamedTuple):
    """What a loss compares, beside the rows: numbers of this rank's own rows and of all keys."""

    keys: Shares
    # (own rows,) int64: the row's positive among all keys, negative for none; or the row itself.
    positives: Tensor
    # (own rows,) and (all keys,): rows of equal ids are never each other's negatives.
    row_ids: Tensor | None = None
    key_ids: Tensor | None = None
    # Negatives whose cosine exceeds the positive's by more are left out.
    margin: float | None = None
    # Whether the positives have a loss too, among the rows.
    symmetric: bool = False


class Tile(NamedTuple):
    """Some own rows beside a piece of the keys."""

    rows: slice
    piece: Piece
    # (rows, keys of the piece): cosines; whether the key is one of the row's negatives.
    cosines: Tensor
    negative: Tensor
    # The rows and the keys themselves.
    left: Tensor
    right: Tensor
    # Whether it is the piece's last.
    last: bool

    @property
    def columns(self) -> slice:
        """Where the piece stands among all keys."""
        return slice(self.piece.first, self.piece.first + len(self.right))


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cpu:
        return mm(a, b)
    # The backward pass may run under autocast.
    with without_autocast(a):
        return full_precision_product(a, b)


def tiles(u: Tensor, v: Tensor, job: Job) -> Iterator[Tile]:
    """Go through all keys, and through this rank's rows for each piece of them."""
    for piece, right in job.keys.pieces(v, PIECE):
        columns = torch.arange(piece.first, piece.first + len(right), device=u.device)
        step = max(TILE // len(right), 1)
        # A rank without rows waits for each piece like the others.
        for start in range(0, max(len(u), 1), step):
            rows = slice(start, min(start + step, len(u)))
            left = u[rows]
            cosines = _mm(left, right.T)
            negative = columns != job.positives[rows, None]
            if job.row_ids is not None and job.key_ids is not None:
                ids = job.key_ids[piece.first : piece.first + len(right)]
                negative &= job.row_ids[rows, None] != ids
            yield Tile(rows, piece, cosines, negative, left, right, rows.stop >= len(u))


class LogSums:
    """The logarithm of a growing sum of exponentials, (n,), in float64."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.largest = torch.full((count,), -math.inf, dtype=torch.float64, device=like.device)
        self.sums = torch.zeros_like(self.largest)

    def add(self, place: slice, logits: Tensor, dim: int) -> None:
        """Add exp(logits) along `dim` to the sums of `place`."""
        if not logits.shape[dim]:
            return
        before = self.largest[place]
        largest = torch.maximum(before, logits.amax(dim).double())
        # Where nothing was added yet, it is exp(-inf) of a finite difference, and not NaN.
        finite = largest.masked_fill(largest == -math.inf, 0.0)
        terms = (logits - finite.to(logits.dtype).unsqueeze(dim)).exp_()
        self.sums[place] = self.sums[place] * torch.exp(before - finite)
        self.sums[place] += terms.sum(dim, dtype=torch.float64)
        self.largest[place] = largest

    def over_ranks(self, keys: Shares) -> None:
        """Add up what the ranks have."""
        before = self.largest.clone()
        keys.ranks.largest(self.largest)
        finite = self.largest.masked_fill(self.largest == -math.inf, 0.0)
        self.sums = keys.ranks.sum(self.sums * torch.exp(before - finite))

    def log(self) -> Tensor:
        """The logarithms; -inf where nothing was added."""
        finite = self.largest.masked_fill(self.largest == -math.inf, 0.0)
        return torch.where(self.sums == 0, -math.inf, finite + self.sums.log())


class Pairs(NamedTuple):
    """Own rows and their positives, which are own keys."""

    # The numbers of those rows that have one, and of the keys.
    rows: Tensor
    keys: Tensor
    # (own rows,) float64: whether a row has a positive; the cosine, 0 where it has none.
    known: Tensor
    cosines: Tensor

    def to_keys(self, by_row: Tensor, count: int, otherwise: float) -> Tensor:
        """What belongs to rows, (own rows,), of their positives, (own keys,)."""
        found = by_row.new_full((count,), otherwise)
        found[self.keys] = by_row[self.rows]
        return found

    def to_rows(self, by_key: Tensor) -> Tensor:
        """What belongs to keys, (own keys,), of the rows whose positives they are, (own rows,)."""
        found = by_key.new_zeros(self.known.shape)
        found[self.rows] = by_key[self.keys]
        return found


def own_pairs(u: Tensor, v: Tensor, job: Job) -> Pairs:
    """The rows with a positive, and how near they are."""
    known = job.positives >= 0
    rows = known.nonzero().squeeze(1)
    keys = job.positives[rows] - job.keys.first
    cosines = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    cosines[rows] = (u[rows].double() * v[keys].double()).sum(1)
    return Pairs(rows, keys, known, cosines)


class Derivatives:
    """Derivatives by unit rows, as a tile after the other says which pairs are pushed apart.

    Args:
        u: own rows.
        v: own keys.
        job: what is compared.
        of_keys: whether those by the keys are wanted, on every rank or on none.
    """

    def __init__(self, u: Tensor, v: Tensor, job: Job, of_keys: bool) -> None:
        self.u, self.v, self.job = u, v, job
        self.by_u = torch.zeros_like(u)
        self.by_v = torch.zeros_like(v) if of_keys else None
        self.part: Tensor | None = None

    def push(self, tile: Tile, by_logits: Tensor) -> None:
        """Add a tile's derivatives by S; of the keys' after a piece's last tile, over the ranks."""
        self.by_u[tile.rows] += _mm(by_logits, tile.right)
        if self.by_v is None:
            return
        part = _mm(by_logits.T, tile.left)
        self.part = part if self.part is None else self.part.add_(part)
        if tile.last:
            self.job.keys.give_back(tile.piece, self.part, self.by_v)
            self.part = None

    def pull(self, pairs: Pairs, pulls: Tensor) -> None:
        """Add those by S of the positives, -pulls (own rows,)."""
        by_positive = -pulls[pairs.rows].to(self.u.dtype)[:, None]
        self.by_u.index_add_(0, pairs.rows, by_positive * self.v[pairs.keys])
        if self.by_v is not None:
            self.by_v.index_add_(0, pairs.keys, by_positive * self.u[pairs.rows])

    def through(self, s: float, scale: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The derivatives by u, v and the scale s, since S is s times the cosine."""
        by_scale = (self.u.double() * self.by_u).sum().to(scale.dtype)
        return self.by_u.mul_(s), None if self.by_v is None else self.by_v.mul_(s), by_scale


def masked(logits: Tensor, kept: Tensor) -> Tensor:
    """Logits, and -inf where they are not kept."""
    return logits.masked_fill(~kept, -math.inf)
