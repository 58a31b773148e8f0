"""What a search returns, and the certificate that proves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cossim_fast._score.exact import score_pairs, widen

# Scores that differ by less may be in another order on another processor: their rounding error.
TIE = 2.0**-48
# [rows] Scored at a time when a certificate is verified.
_VERIFIED = 1 << 13


class TopK(NamedTuple):
    """The k best rows of every query, best first."""

    scores: Any  # (q, k) float32, float64 for float64 input; NaN where there are no more rows
    indices: Any  # (q, k) int64 positions or ids; -1 where there are no more rows


class CertifiedTopK(NamedTuple):
    """The k best rows of every query, and the proof."""

    scores: Any
    indices: Any
    certificate: Certificate


class RangeHits(NamedTuple):
    """The rows that reach a threshold: those of query i are at lims[i] to lims[i + 1]."""

    lims: Any  # (q + 1,) int64
    scores: Any  # (p,) float32, float64 for float64 input
    indices: Any  # (p,) int64 positions or ids, of each query in the order of the rows


class VerificationError(AssertionError):
    """A certificate does not hold: some row scores more than its bound allows."""


# Scores (q, rows) in float64 of some queries against positions of the corpus; NaN where a row may
# not be returned to a query.
Oracle = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """Proof, query by query, that no other row belongs among the k best.

    Attributes:
        kth_score: (q,) float64, the k-th best score; NaN where fewer rows were found.
        excluded_bound: (q,) float64, an upper bound on the scores of all rows that were not
            returned; -inf if there is none.
        rescored: (q,) int64, how many rows were scored in float64.
        tie: (q,) bool, whether the k-th and the next score differ by less than `TIE`, so that
            another processor might return the other row.
        skipped: how many rows of the corpus hold NaN or an infinity, and are never returned.
    """

    kth_score: np.ndarray[Any, Any]
    excluded_bound: np.ndarray[Any, Any]
    rescored: np.ndarray[Any, Any]
    tie: np.ndarray[Any, Any]
    skipped: int
    positions: Tensor = field(repr=False)  # (q, k), -1 where there are no more
    scores: Tensor = field(repr=False)  # (q, k) float64
    oracle: Oracle | None = field(repr=False, compare=False)
    rows: int = 0  # of the corpus

    def verify(self, sample: int | None = 10_000, *, seed: int = 0) -> int:
        """Score rows again in float64 and compare; return how many were scored.

        The returned rows are checked one by one, and so are ``sample`` rows drawn from the corpus
        for each query: none that was not returned may score above ``excluded_bound``, or come
        before the last that was.

        Args:
            sample: how many rows; None for all.
            seed: of the draw.

        Raises:
            VerificationError: with the query, the row, its score and the bound that it breaks.
            ValueError: the corpus was an iterator, which cannot be read again.
        """
        if self.oracle is None:
            raise ValueError(
                "expected a corpus that can be read again, got an iterator; "
                "search an array or a memory map to verify"
            )
        if sample is None or sample >= self.rows:
            chosen = torch.arange(self.rows, device="cpu")
        else:
            drawn = np.random.default_rng(seed).choice(self.rows, sample, replace=False)
            chosen = torch.from_numpy(np.sort(drawn))
        checked = 0
        for query in range(len(self.kth_score)):
            checked += self._returned(query, self.oracle)
            for start in range(0, len(chosen), _VERIFIED):
                some = chosen[start : start + _VERIFIED]
                self._others(query, some, self.oracle(_number(query), some)[0])
                checked += len(some)
        return checked

    def _returned(self, query: int, oracle: Oracle) -> int:
        rows = self.positions[query][self.positions[query] >= 0]
        if not len(rows):
            return 0
        scores, stated = oracle(_number(query), rows)[0], self.scores[query][: len(rows)]
        wrong = (scores != stated).nonzero()[:, 0]
        if len(wrong):
            at = int(wrong[0])
            raise VerificationError(
                f"query {query}: row {int(rows[at])} was returned with the score "
                f"{float(stated[at])!r}, and scores {float(scores[at])!r}"
            )
        order = np.lexsort((rows.numpy(), -scores.numpy()))
        if not np.array_equal(order, np.arange(len(rows))):
            raise VerificationError(f"query {query}: the returned rows are out of order")
        return len(rows)

    def _others(self, query: int, rows: Tensor, scores: Tensor) -> None:
        returned = self.positions[query]
        other = ~torch.isin(rows, returned) & ~scores.isnan()
        rows, scores = rows[other], scores[other]
        bound = float(self.excluded_bound[query])
        # Bounds hold for exact cosines, but scores are rounded.
        above = scores > bound + TIE
        last = int(returned[-1])
        if last >= 0:
            kth = self.scores[query, -1]
            above |= (scores > kth) | ((scores == kth) & (rows < last))
        elif len(returned):
            above |= torch.ones_like(above)  # there was room for every row
        if bool(above.any()):
            at = int(above.nonzero()[0])
            raise VerificationError(
                f"query {query}: row {int(rows[at])} scores {float(scores[at])!r} and was not "
                f"returned; the bound on rows that were not is {bound!r}, "
                f"the k-th score {float(self.kth_score[query])!r}"
            )


def _number(query: int) -> Tensor:
    return torch.tensor([query], dtype=torch.int64, device="cpu")


def assemble(
    queries: Any, best: Best, *, double: bool, oracle: Oracle | None
) -> TopK | CertifiedTopK:
    """Convert the result of a search to the dtype and container that the caller gets."""
    scores = best.scores if double else _narrowed(best.scores)
    found = TopK(like(queries, scores), like(queries, best.positions))
    if best.dropped_bound is None:
        return found
    kth, excluded = best.scores[:, -1].cpu(), best.dropped_bound.cpu()
    certificate = Certificate(
        kth_score=kth.numpy(),
        excluded_bound=excluded.numpy(),
        rescored=best.rescored.cpu().numpy(),
        tie=(excluded >= kth - TIE).numpy(),
        skipped=best.skipped,
        positions=best.positions.cpu(),
        scores=best.scores.cpu(),
        oracle=oracle,
        rows=best.rows,
    )
    return CertifiedTopK(*found, certificate)


def _narrowed(scores: Tensor) -> Tensor:
    """Scores in float32; on CPU by numpy, which wakes no threads."""
    if not scores.is_cpu:
        return scores.float()
    return torch.from_numpy(scores.numpy().astype(np.float32))


def like(given: Any, tensor: Tensor) -> Any:
    """A tensor if the caller gave a tensor, else an array."""
    return tensor if isinstance(given, Tensor) else tensor.numpy()


def oracle_of(queries: Tensor, rows: Tensor) -> Oracle:
    """The scores of all pairs of some queries and some rows, from the rows as they are now."""

    def scores(query: Tensor, position: Tensor) -> Tensor:
        pairs = torch.cartesian_prod(torch.arange(len(query), device="cpu"), position).view(-1, 2)
        wide = widen(queries[query])
        found = score_pairs(wide, rows, pairs[:, 0], pairs[:, 1])
        return found.view(len(query), len(position))

    return scores


@dataclass
class Best:
    """The k best rows of every query, with the bound for a certificate."""

    scores: Tensor  # (q, k) float64, best first; NaN where there are no more
    positions: Tensor  # (q, k) int64; -1 where there are no more
    dropped_bound: Tensor | None  # (q,) float64: the largest upper bound of what was dropped
    rescored: Tensor  # (q,) int64
    rows: int  # searched
    skipped: int  # rows that are not finite


def merged(found: Sequence[Best], *, skipped: int) -> Best:
    """The results of several batches of queries as one."""
    if len(found) == 1:
        return replace(found[0], skipped=skipped)
    bounds = [best.dropped_bound for best in found if best.dropped_bound is not None]
    return replace(
        found[0],
        scores=torch.cat([best.scores for best in found]),
        positions=torch.cat([best.positions for best in found]),
        dropped_bound=torch.cat(bounds) if bounds else None,
        rescored=torch.cat([best.rescored for best in found]),
        skipped=skipped,
    )
