"""Filtered products: int8 products in 8 bits, in which 0 means that the threshold is missed.

The product V of the codes of a row and of a query bounds their cosine c, as with every screen:

    |c - a_q - s_q s_B V| <= rho_q R_B + N_q rho_B + SLACK =: E.

Where blocks share a scale, each query has one least V whose upper bound reaches the threshold,
whatever the block. oneDNN scales V anyway as it writes the result. Let that result be unsigned, of
8 bits, with the least V at 5/8 and the largest possible V at 251. Then every V that is too low is
written as 0, the result takes a quarter of the memory of float32, and its 250 levels above 0
resolve cosines to about (1 - threshold) / 250.

E is computed from the largest residual and radius of all blocks that share the segment's usual
scale, so the meaning of a value changes only with the thresholds.
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

# The result of the least V that passes, so that it does not round to 0.
_LEAST = 0.625
# How much larger the result of the largest possible V is.
_STEPS = 250.0

# Flat positions of the values that are not 0, and these values.
Passed = tuple[NDArray[np.int64], NDArray[np.uint8]]


class FilteredProduct:
    """The int8 product of one batch of queries with the rows of one segment.

    Args:
        terms: of the queries.
        segment: one with codes.

    Attributes:
        first: the position of the segment's first row.
        width: columns of a tile: the queries, padded.
        step: (q,) difference in cosine between adjacent values.
        zero: (q,) cosine that the value 0 would have by extrapolation.
        error: (q,) how far a cosine may be from ``zero + step * value`` for a value above 0.
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
        """Whether all blocks of these rows have the usual scale, as a filtered product requires."""
        return bool(self._shares[rows.start // BLOCK : -(-rows.stop // BLOCK)].all())

    def parts(self, rows: slice) -> list[slice]:
        """Cut a tile into parts that suit and parts that do not, unless that gives many parts.

        Few blocks have a scale of their own: two of 609 of sentence embeddings. Multiplying these
        separately takes less time than giving up the filtered product for a tile.
        """
        first = rows.start // BLOCK
        shares = self._shares[first : -(-rows.stop // BLOCK)]
        edges = (np.flatnonzero(shares[1:] != shares[:-1]) + 1 + first) * BLOCK
        if len(edges) >= tuning.FILTER_PARTS:
            return [rows]
        return [slice(*ends) for ends in itertools.pairwise([rows.start, *edges, rows.stop])]

    def tile(self, rows: slice) -> Tensor:
        """Multiply rows of the segment.

        Args:
            rows: from the first row of a block on; they suit.

        Returns:
            (rows padded to whole blocks, `int8.width` of queries) uint8; 0 for rows that miss the
            thresholds of `aim`, and in the columns beyond the queries.
        """
        codes = self._codes[rows.start : -(-rows.stop // BLOCK) * BLOCK]
        unsigned = int8.unsigned(codes)
        return int8.filtered(unsigned, self._operand, self._per, self._shift)[: len(codes)]

    def aim(self, thresholds: Tensor) -> bool:
        """Set the thresholds (q,) float64 of the next tiles; return whether they changed.

        An infinite threshold lets no row pass. A change also changes `step`, `zero` and `error`.
        """
        threshold = thresholds.numpy()
        if self._threshold is not None and np.array_equal(threshold, self._threshold):
            return False
        self._threshold = threshold.copy()
        margin, scale = self._margin, self._scale
        # No sum of codes exceeds this, whatever the bound allows.
        largest = 127 * self._size + 1
        least = np.maximum((threshold - self._offset - margin) / scale, -largest)
        most = np.minimum((1.0 + SLACK - self._offset + margin) / scale, largest)
        reached = most >= least
        least = np.where(reached, least, 0.0)
        steps = np.where(reached, np.maximum(most - least, 1.0), 1.0)
        per = np.minimum(_STEPS / steps, int8.LARGEST_SCALED / (255 * self._size))
        per = np.where(reached, per, 0.0).astype(np.float32)
        # 128 is added to the codes of rows.
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
    """Flat positions of the values (whole blocks, w) uint8 that are not 0, and these values."""
    flat = values.numpy().reshape(-1)
    # Eight at a time, since most are 0; whole blocks hold a multiple of eight.
    words = np.flatnonzero(flat.view(np.uint64) != 0)
    some = flat.view(np.uint64).take(words).view(np.uint8)
    at = np.flatnonzero(some != 0)
    return words.take(at >> 3) * 8 + (at & 7), some.take(at)
