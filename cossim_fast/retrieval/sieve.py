"""Products that keep only what reaches a threshold: the int8 product, rounded to 8 bits.

The product V of a row's codes and a query's says of their cosine c, as every screen does,

    |c - a_q - s_q s_B V| <= rho_q R_B + N_q rho_B + SLACK =: E.

Where blocks share a scale, V has to reach one number for each query, whatever the block: the least
V whose upper bound reaches the threshold. The processor has to scale V in any case as it turns it
into a result. If that result is an unsigned number of 8 bits, with this least V at 5/8 and the
largest possible one at 251, all that is too low becomes 0 on the way out, in a quarter of the
memory of float32, and the 250 steps above 0 tell the rest apart to (1 - threshold) / 250 or so.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast.retrieval import int8
from cossim_fast.retrieval.codes import BLOCK, Segment
from cossim_fast.retrieval.pool import Pool, places
from cossim_fast.retrieval.screens import SLACK, CodedTerms, coded_blocks

# Where the least V that passes lies, so that it does not round to 0; and how much further up the
# largest one that there can be.
_LEAST, _STEPS = 0.625, 250.0
# Blocks of a tile that say how much of it passes.
_SAMPLED = 4


def sample(blocks: int) -> slice:
    """A few of so many blocks."""
    step = max(blocks // _SAMPLED, 1)
    return slice(step // 2, None, step)


class Sieve:
    """The int8 product of one batch of queries.

    Args:
        terms: of the queries.
    """

    def __init__(self, terms: CodedTerms) -> None:
        self._operand = terms.operand
        self._scale, self._residual = terms.scale.numpy(), terms.residual.numpy()
        self._norm, self._offset = terms.norm.numpy(), terms.offset.numpy()
        self._total, self._size = terms.total.numpy(), np.maximum(terms.size.numpy(), 1.0)
        self._room = torch.empty(0, dtype=torch.uint8)

    def tile(self, segment: Segment, rows: slice, threshold: Tensor) -> SievedTile | None:
        """Multiply rows of a segment; None if their blocks do not share a scale.

        Args:
            segment: one with codes.
            rows: from the first of a block on.
            threshold: (q,) float64; infinite for a query that no row is to reach.
        """
        assert segment.scale is not None
        assert segment.codes is not None
        some = slice(rows.start // BLOCK, -(-rows.stop // BLOCK))
        scales = segment.scale[some].numpy()
        if scales.min() < scales.max():
            return None
        blocks = coded_blocks(segment, some)
        margin = float(blocks.radius.max()) * self._residual
        margin += float(blocks.residual.max()) * self._norm + SLACK
        scale = float(scales[0]) * self._scale
        # Sums of whole numbers cannot be larger, whatever the bound allows.
        largest = 127 * self._size + 1
        least = np.maximum((threshold.numpy() - self._offset - margin) / scale, -largest)
        most = np.minimum((1.0 + SLACK - self._offset + margin) / scale, largest)
        reached = most >= least
        least = np.where(reached, least, 0.0)
        steps = np.where(reached, np.maximum(most - least, 1.0), 1.0)
        per = np.minimum(_STEPS / steps, int8.LARGEST_SCALED / (255 * self._size))
        per = np.where(reached, per, 0.0).astype(np.float32)
        # Codes of rows come with 128 added.
        wide, unsigned = per.astype(np.float64), 128 * self._total * per
        shift = np.where(reached, _LEAST - least * wide - unsigned, 0.0).astype(np.float32)
        codes = segment.codes[some.start * BLOCK : some.stop * BLOCK]
        if self._room.numel() < codes.numel():
            self._room = torch.empty(codes.numel(), dtype=torch.uint8)
        values = int8.sieved(
            int8.unsigned(codes, self._room),
            self._operand,
            torch.from_numpy(per),
            torch.from_numpy(shift),
        )
        step = np.divide(scale, wide, out=np.zeros_like(scale), where=per > 0)
        return SievedTile(
            segment.first + rows.start,
            values,
            step,
            self._offset - (shift + unsigned) * step,
            margin + int8.ROUNDING * step,
        )


class SievedTile:
    """What is left of the products of some rows.

    Args:
        first: the position of the first row.
        values: (rows padded to whole blocks, q) uint8; 0 for what missed the threshold.
        step: (q,) of the cosine for one more in a value.
        zero: (q,) the cosine that a value of 0 would stand for.
        error: (q,) how far a cosine may be from what its value stands for.
    """

    def __init__(
        self,
        first: int,
        values: Tensor,
        step: NDArray[np.float64],
        zero: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        self.first, self.values = first, values
        self.step, self.zero, self.error = step, zero, error

    def passing(self) -> float:
        """The share of values that reached the threshold, from a few blocks."""
        blocks = self.values.view(-1, BLOCK, self.values.shape[1]).numpy()
        some = blocks[sample(len(blocks))]
        return np.count_nonzero(some) / max(some.size, 1)

    def passed(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Query, row and value (p,) of all that reached the threshold; rows in order for a query.

        Args:
            group: rows under one maximum: those of a group are looked at where it passes.
        """
        width = self.values.shape[1]
        if group == 1:
            values = self.values.numpy().reshape(-1)
            at = np.flatnonzero(values)
            row = at // width
            return at - row * width, row, values[at]
        groups = self.values.view(-1, group, width)
        hit = places((groups.amax(1) != 0).view(-1)).numpy()
        number = hit // width
        query = hit - number * width
        found = groups.numpy()[number, :, query]  # (hits, group)
        at = np.flatnonzero(found)
        which = at // group
        return query[which], number[which] * group + (at - which * group), found.reshape(-1)[at]

    def emit(self, pool: Pool, group: int) -> int:
        """Put every row that reached the threshold into the pool."""
        query, row, value = self.passed(group)
        middle, error = value * self.step[query] + self.zero[query], self.error[query]
        pool.add(
            torch.from_numpy(query),
            torch.from_numpy(row + self.first),
            torch.from_numpy(middle + error),
            torch.from_numpy(middle - error),
        )
        return len(query)
