"""Tiles: the scores that a screen gives to some rows, with their error bounds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening.codes import BLOCK
from cossim_fast.retrieval.screening.screens import SLACK, BlockTerms, QueryTerms


class Tile:
    """The scores that a screen gives to some rows, with their error bounds.

    A cosine is within ``margin`` of ``values * scale + offset``.

    Args:
        first: the position of the first row.
        values: (rows padded to whole blocks, q) float32, -inf where a row may not be returned.
        queries: terms of the queries.
        blocks: terms of the rows' blocks.

    Attributes:
        scale: (blocks, q) float64.
        offset: (q,) float64.
        margin: (blocks, q) float64.
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
        """The least value (blocks, q) whose upper bound reaches the threshold (q,), rounded down.

        Values are compared in the units of the screen: whole numbers where it multiplies codes.
        """
        value = ((threshold - self.offset) - self.margin).div_(self.scale)
        return value.sub_(value.abs(), alpha=2.0**-23).float()

    def cosines(self, values: Tensor, *, lower: bool) -> Tensor:
        """Cosines (blocks * some, q) that values stand for, in float32; or their lower bounds."""
        shift = self.offset.expand_as(self.margin)
        if lower:
            shift = shift - self.margin - 2.0**-20  # two roundings of numbers of at most 3 or so
        by_block = values.view(self.scale.shape[0], -1, values.shape[1])
        found = by_block * self.scale.float()[:, None]
        return found.add_(shift.float()[:, None]).view_as(values)


def tile_rows(queries: int, k: int, width: int = 0) -> int:
    """Rows of a tile: as many as `tuning` allows, and at least k where that is possible.

    Args:
        queries: of the batch.
        k: how many rows each is to get.
        width: of codes that a product copies, 0 if it copies none.
    """
    fitting = tuning.TILE_SCORES // max(queries, 1)
    if width:
        fitting = min(fitting, tuning.TILE_CODES // width)
    fitting = min(max(fitting, k), tuning.LONGEST_TILE)
    # A size that `int8.even_rows` does not pad.
    step = max(1 << max(fitting.bit_length() - 4, 0), BLOCK)
    return max(fitting // step, 1) * step


def tiles(count: int, size: int) -> list[slice]:
    """Cut ``count`` rows into tiles of ``size``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def passing(tile: Tile, needed: Tensor) -> float:
    """The share of a tile's values that reach ``needed`` (blocks, q), estimated from few blocks."""
    blocks = tile.values.view(-1, BLOCK, tile.values.shape[1])
    step = max(len(blocks) // tuning.SAMPLED, 1)
    some = slice(step // 2, None, step)
    reached = blocks[some] >= needed[some, None]
    return np.count_nonzero(reached.numpy()) / max(reached.numel(), 1)
