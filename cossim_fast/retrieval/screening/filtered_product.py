"""Filtered products, which keep only what reaches a threshold: int8, rounded to 8 bits.

The product V of a row's codes and a query's says of their cosine c, as every screen does,

    |c - a_q - s_q s_B V| <= rho_q R_B + N_q rho_B + SLACK =: E.

Where blocks share a scale, V has to reach one number for each query, whatever the block: the least
V whose upper bound reaches the threshold. The processor has to scale V in any case as it turns it
into a result. If that result is an unsigned number of 8 bits, with this least V at 5/8 and the
largest possible one at 251, all that is too low becomes 0 on the way out, in a quarter of the
memory of float32, and the 250 steps above 0 tell the rest apart to (1 - threshold) / 250 or so.

Residuals and radii are taken to be the largest of all blocks that share the usual scale of a
segment, so what a value stands for changes with the thresholds alone.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import int8
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.screening.screens import SLACK, CodedTerms, coded_blocks

# Where the least V that passes lies, so that it does not round to 0; and how much further up the
# largest one that there can be.
_LEAST, _STEPS = 0.625, 250.0

# Where values are not 0, counted row by row, and what they are.
Passed = tuple[NDArray[np.int64], NDArray[np.uint8]]


class FilteredProduct:
    """The int8 product of one batch of queries with the rows of one segment.

    Args:
        terms: of the queries.
        segment: one with codes.

    Attributes:
        first: the position of the segment's first row.
        width: columns of a tile: the queries, padded.
        step: (q,) of cosine between two values.
        zero: (q,) cosine of the value 0, if it were not all that is too low.
        error: (q,) how far a cosine may be from ``zero + step * value``.
    """

    def __init__(self, terms: CodedTerms, segment: Segment) -> None:
        assert segment.scale is not None
        assert segment.codes is not None
        self._codes, self.first = segment.codes, segment.first
        self._operand = terms.operand
        self._residual, self._norm = terms.residual.numpy(), terms.norm.numpy()
        self._offset, self._total = terms.offset.numpy(), terms.total.numpy()
        self._size = np.maximum(terms.size.numpy(), 1.0)
        self.width = int8.width(len(self._size))
        scales = segment.scale.numpy()
        usual = np.partition(scales, len(scales) // 2)[len(scales) // 2]
        self._shares = scales == usual
        blocks = coded_blocks(segment, torch.from_numpy(self._shares))
        self._margin = float(blocks.radius.max()) * self._residual
        self._margin += float(blocks.residual.max()) * self._norm + SLACK
        self._scale = float(usual) * terms.scale.numpy()
        self._threshold: NDArray[np.float64] | None = None

    def suits(self, rows: slice) -> bool:
        """Whether blocks of rows share the usual scale: no others can be sieved."""
        return bool(self._shares[rows.start // BLOCK : -(-rows.stop // BLOCK)].all())

    def parts(self, rows: slice) -> list[slice]:
        """Cut a tile where blocks that suit and blocks that do not meet, unless that is often.

        Few blocks have a scale of their own: two of 609 of sentence embeddings. Alone they take
        less time than tiles that cannot be sieved for their sake.
        """
        first = rows.start // BLOCK
        shares = self._shares[first : -(-rows.stop // BLOCK)]
        edges = (np.flatnonzero(shares[1:] != shares[:-1]) + 1 + first) * BLOCK
        if len(edges) >= tuning.SIEVE_PARTS:
            return [rows]
        return [slice(*ends) for ends in itertools.pairwise([rows.start, *edges, rows.stop])]

    def tile(self, rows: slice) -> Tensor:
        """Multiply rows of the segment.

        Args:
            rows: from the first of a block on, that suit.

        Returns:
            (rows padded to whole blocks, `int8.width` of queries) uint8, 0 for what misses the
            thresholds aimed at, and beyond the queries.
        """
        codes = self._codes[rows.start : -(-rows.stop // BLOCK) * BLOCK]
        unsigned = int8.unsigned(codes)
        return int8.sieved(unsigned, self._operand, self._per, self._shift)[: len(codes)]

    def aim(self, thresholds: Tensor) -> bool:
        """Set the thresholds (q,) float64 of tiles to come; return whether they changed.

        Infinite for a query that no row is to reach. With them changes what values say.
        """
        threshold = thresholds.numpy()
        if self._threshold is not None and np.array_equal(threshold, self._threshold):
            return False
        self._threshold = threshold.copy()
        margin, scale = self._margin, self._scale
        # Sums of whole numbers cannot be larger, whatever the bound allows.
        largest = 127 * self._size + 1
        least = np.maximum((threshold - self._offset - margin) / scale, -largest)
        most = np.minimum((1.0 + SLACK - self._offset + margin) / scale, largest)
        reached = most >= least
        least = np.where(reached, least, 0.0)
        steps = np.where(reached, np.maximum(most - least, 1.0), 1.0)
        per = np.minimum(_STEPS / steps, int8.LARGEST_SCALED / (255 * self._size))
        per = np.where(reached, per, 0.0).astype(np.float32)
        # Codes of rows come with 128 added.
        wide, unsigned = per.astype(np.float64), 128 * self._total * per
        shift = np.where(reached, _LEAST - least * wide - unsigned, 0.0).astype(np.float32)
        padding = 0, self.width - len(per)
        self._per = torch.from_numpy(np.pad(per, padding))
        self._shift = torch.from_numpy(np.pad(shift, padding))
        self.step = np.divide(scale, wide, out=np.zeros_like(scale), where=per > 0)
        self.zero = self._offset - (shift + unsigned) * self.step
        self.error = margin + int8.ROUNDING * self.step
        return True


def passed(values: Tensor) -> Passed:
    """Where values (whole blocks, w) uint8 are not 0, counted row by row, and what they are."""
    flat = values.numpy().reshape(-1)
    # Eight at a time: whole blocks hold a multiple of eight. Most are 0 together.
    words = np.flatnonzero(flat.view(np.uint64) != 0)
    some = flat.view(np.uint64).take(words).view(np.uint8)
    at = np.flatnonzero(some != 0)
    return words.take(at >> 3) * 8 + (at & 7), some.take(at)
