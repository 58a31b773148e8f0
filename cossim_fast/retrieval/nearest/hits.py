"""Rows that passed filtered products, collected until they are moved to a pool."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast.retrieval.nearest.candidates import step_of_rank
from cossim_fast.retrieval.nearest.pool import Pool
from cossim_fast.retrieval.screening.filtered_product import FilteredProduct, Passed, passed


class Hits:
    """Rows that passed the filtered product of one batch of queries with one segment.

    Args:
        product: whose tiles they come from.

    Attributes:
        count: how many there are.
    """

    def __init__(self, product: FilteredProduct) -> None:
        self.product = product
        self.count = 0
        self._found: list[Passed] = []

    def aim(self, thresholds: Tensor) -> None:
        """Set the thresholds (q,) of the next tiles; they may change only while this is empty."""
        changed = self.product.aim(thresholds)
        assert not (changed and self.count)

    def add(self, first: int, values: Tensor) -> int:
        """Add what passed in a tile; return how many rows that are.

        Args:
            first: the tile's first row in the segment.
            values: of the tile.
        """
        place, value = passed(values)
        self._found.append((place + (self.product.first + first) * self.product.width, value))
        self.count += len(place)
        return len(place)

    def move_to(self, pool: Pool, rank: int | None = None) -> None:
        """Move all rows to the pool.

        Args:
            pool: for the queries.
            rank: first raise its thresholds to what so many of these rows reach.
        """
        if not self.count:
            return
        product = self.product
        place, value = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        row = place // product.width
        query = place - row * product.width
        if rank is not None:
            self._raise_thresholds(pool, query, value, rank)
            kept = np.flatnonzero(value >= self._least(pool).take(query))
            query, row, value = query.take(kept), row.take(kept), value.take(kept)
        error = product.error.take(query)
        middle = value * product.step.take(query)
        middle += product.zero.take(query)
        pool.add(query, row, middle + error, middle - error)
        self._found, self.count = [], 0

    def _raise_thresholds(
        self, pool: Pool, query: NDArray[np.int64], value: NDArray[np.uint8], rank: int
    ) -> None:
        """Raise the thresholds of a pool to the rank-th largest value of each query.

        By a histogram, since there are only 256 values.
        """
        product = self.product
        down = step_of_rank(query, 255 - value, rank, (len(product.step), 256))
        threshold = (255 - down) * product.step + product.zero
        if rank >= pool.k:
            threshold -= product.error
        pool.raise_to(torch.from_numpy(np.where(down < 256, threshold, -np.inf)), rank)

    def _least(self, pool: Pool) -> NDArray[np.uint8]:
        """The least values (q,) whose upper bounds reach the thresholds of a pool."""
        step = self.product.step
        needed = pool.threshold.numpy() - self.product.error - self.product.zero
        steps = np.divide(needed, step, out=np.zeros_like(needed), where=step > 0)
        least: NDArray[np.uint8] = np.floor(steps).clip(0, 255).astype(np.uint8)
        return least
