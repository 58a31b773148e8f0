"""What a screen says of a tile of rows, and how rows are cut into tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening.codes import BLOCK
from cossim_fast.retrieval.screening.screens import (
    SLACK,
    BlockTerms,
    QueryTerms,
)


class Tile:
    """What a screen says of some rows, and how far it may err.

    Args:
        first: the position of the first row.
        values: (rows padded to whole blocks, q) float32, -inf where a row may not be returned.
        queries: their terms.
        blocks: those of the rows.

    Attributes:
        scale: (blocks, q); times a value, plus the offset of the query, it is about the cosine.
        margin: (blocks, q), how far that may be from the cosine.
    """

    def __init__(self, first: int, values: Tensor, queries: QueryTerms, blocks: BlockTerms) -> None:
        self.first, self.values, self.offset = first, values, queries.offset
        self.scale = torch.outer(blocks.scale, queries.scale)
        self.margin = torch.outer(blocks.radius, queries.residual)
        self.margin.addcmul_(blocks.residual[:, None], queries.norm).add_(SLACK)

    def maxima(self, group: int) -> Tensor:
        """The largest value of each group of rows (groups, q)."""
        if group == 1:
            return self.values
        return self.values.view(-1, group, self.values.shape[1]).amax(1)

    def needed(self, threshold: Tensor) -> Tensor:
        """The value (blocks, q) whose upper bound reaches the threshold (q,), rounded down.

        Everything is compared in the screen's own units, which are whole numbers for codes.
        """
        value = ((threshold - self.offset) - self.margin).div_(self.scale)
        return value.sub_(value.abs(), alpha=2.0**-23).float()

    def cosines(self, values: Tensor, *, lower: bool) -> Tensor:
        """Cosines behind values (blocks * some, q), in float32, or their lower bounds."""
        shift = self.offset.expand_as(self.margin)
        if lower:
            shift = shift - self.margin - 2.0**-20  # two roundings of numbers of at most 3 or so
        by_block = values.view(self.scale.shape[0], -1, values.shape[1])
        found = by_block * self.scale.float()[:, None]
        return found.add_(shift.float()[:, None]).view_as(values)


def tile_rows(queries: int, k: int, width: int = 0) -> int:
    """Rows of a tile: what its scores leave room for, and enough that k of them say something.

    Args:
        queries: how many are multiplied together.
        k: how many rows of each are wanted.
        width: of codes that are copied on the way to a product, 0 where none are.
    """
    fitting = tuning.TILE_SCORES // max(queries, 1)
    if width:
        fitting = min(fitting, tuning.TILE_CODES // width)
    fitting = min(max(fitting, k), tuning.LONGEST_TILE)
    # Of a size that `int8.even_rows` leaves as it is.
    step = max(1 << max(fitting.bit_length() - 4, 0), BLOCK)
    return max(fitting // step, 1) * step


def tiles(count: int, size: int) -> list[slice]:
    """Cut ``count`` rows into tiles of ``size``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def passing(tile: Tile, needed: Tensor) -> float:
    """The share of a tile's values that reach what is needed (blocks, q), from a few blocks."""
    blocks = tile.values.view(-1, BLOCK, tile.values.shape[1])
    step = max(len(blocks) // tuning.SAMPLED, 1)
    some = slice(step // 2, None, step)
    reached = blocks[some] >= needed[some, None]
    return np.count_nonzero(reached.numpy()) / max(reached.numel(), 1)
