"""A screen on few directions: the projection of a row onto a subspace, and the length of the rest.

With a matrix P (d, k) of nearly orthonormal columns and M = I - P P', for any two vectors

    <q, y> <= <P'q, P'y> + |Mq| |My| + e |P'q| |P'y|,    e = |P'P - I|

since M^2 = M + P (P'P - I) P'. The first two terms are one product of vectors of k + 1 numbers,
T(v) = (P'v, |Mv|), which is coded in int8 like any row. Where most of the length of embeddings
lies in the directions in which they vary most, a third of the numbers rules out nearly every pair
that is far below a threshold. The bound is an upper bound only, which is all that a join needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _products, _threads
from cossim_fast._score.exact import WideRows, widen
from cossim_fast._threads import unforked
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import costs, float_product
from cossim_fast.retrieval.screening.codes import (
    BLOCK,
    UNIT_ROW_ERROR,
    Segment,
    code,
    unit_rows,
    usual_scale,
)
from cossim_fast.retrieval.screening.screens import (
    BlockTerms,
    FewQueriesScreen,
    Int8Screen,
    QueryTerms,
    ScreenName,
    unit_queries,
)

# The length of the rest is stored as four equal numbers, which are about as large as the others, so
# that all share one scale.
PARTS = 4
# Widths to choose from, as shares of d.
SHARES = (1 / 4, 1 / 3, 5 / 12, 1 / 2, 2 / 3)
# Rows from which the directions are computed.
_SAMPLE = 4096
# Queries on which widths are tried.
_TRIED = 256
# Rows from which the usual scale of projected rows is found.
_USUAL = 1024
_UNIT = 2.0**-24


@dataclass
class ProjectedSegment(Segment):
    """A segment with the codes of T(y) beside those of its rows."""

    projected: Segment | None = None


class ProjectionScreen:
    """Codes of T(y) against codes of T(q).

    Args:
        basis: P (d, k) in float32.
        screen: how codes of T(y) are multiplied.
    """

    name: ScreenName = "int8"

    def __init__(self, basis: Tensor, screen: Int8Screen | FewQueriesScreen) -> None:
        self._basis, self._screen = basis, screen
        wide = basis.double()
        self._wide = wide
        k = basis.shape[1]
        one = torch.eye(k, dtype=torch.float64, device="cpu")
        self._skew = float(torch.linalg.matrix_norm(wide.mT @ wide - one))

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Code T(q), or round it."""
        unit = unit_queries(queries)
        split = _split(unit, self._wide)
        zero = torch.zeros(split.shape[1], dtype=torch.float32, device="cpu")
        norms = torch.ones(len(unit), dtype=torch.float64, device="cpu")
        terms = self._screen.queries(WideRows(split, norms), zero)
        # |P'q| <= 1 + e. What float64 loses is less than 2^-36.
        residual = terms.residual + 2 * self._skew + 2.0**-36
        return replace(terms, residual=residual, offset=unit @ centre.double())

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """The error of the codes, and of their product."""
        return self._screen.blocks(_projected(segment), some)

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Sums of codes times codes."""
        return self._screen.product(_projected(segment), rows, centre, terms)

    def coded(self, segment: Segment) -> Segment | None:
        """The codes of T(y). Only the upper bounds of their filtered product hold."""
        return _projected(segment)

    def split(self, segment: Segment, centre: Tensor) -> ProjectedSegment:
        """Code T(y) of every row of a segment, as `encode` does y."""
        n, d = segment.rows.shape
        k = self._basis.shape[1]
        blocks = -(-n // BLOCK)
        codes = torch.empty((blocks * BLOCK, k + PARTS), dtype=torch.int8, device="cpu")
        scale = torch.empty(blocks, dtype=torch.float32, device="cpu")
        residual = torch.empty_like(scale)
        step = max(tuning.PROJECTION_NUMBERS // d // BLOCK, 1) * BLOCK
        usual = usual_scale(self._split_rows(segment, slice(0, n, max(n // _USUAL, 1)), centre))

        def fill(starts: Iterable[int]) -> None:
            for start in starts:
                _threads.go_on()
                split = self._split_rows(segment, slice(start, start + step), centre)
                split = torch.nn.functional.pad(split, (0, 0, 0, -len(split) % BLOCK))
                at = slice(start // BLOCK, (start + len(split)) // BLOCK)
                scale[at], residual[at] = code(split, codes[start : start + len(split)], usual)

        threads, starts = _threads.usable_threads(), range(0, n, step)
        parts = tuning.PROJECTION_SHARE * threads if threads > 1 else 1
        _threads.run_independent(
            threads, [partial(fill, starts[number::parts]) for number in range(parts)]
        )
        # T enlarges a difference by 1 + e at most. For y of length 1, the products with P' and P
        # are off by (d + k) u |P| each, and |P| <= sqrt(k) (1 + e) in the Frobenius norm; the norm
        # of the rest is off by d u.
        lost = 1.1 * _UNIT * (3 * d + k + 16) * k**0.5
        grown = 1 + (k + PARTS + 8) * _UNIT
        radius = segment.radius * (1 + 2 * self._skew)
        residual = residual * grown + lost * radius + UNIT_ROW_ERROR * (1 + self._skew)
        residual = residual + 2 * _UNIT * (radius + residual)
        projected = replace(segment, codes=codes, scale=scale, residual=residual, radius=radius)
        return ProjectedSegment(
            **{f.name: getattr(segment, f.name) for f in fields(Segment)}, projected=projected
        )

    def _split_rows(self, segment: Segment, some: slice, centre: Tensor) -> Tensor:
        y = unit_rows(segment.rows[some], segment.norms[some], centre)
        return _split(y, self._basis)


def _projected(segment: Segment) -> Segment:
    assert isinstance(segment, ProjectedSegment)
    assert segment.projected is not None
    return segment.projected


def _split(y: Tensor, basis: Tensor) -> Tensor:
    """T(y) (n, k + PARTS) of rows (n, d)."""
    n, k = len(y), basis.shape[1]
    found = torch.empty((n, k + PARTS), dtype=y.dtype, device="cpu")
    if y.dtype == torch.float32:
        inside = float_product.product(y, basis.mT)
        rest = float_product.product(inside, basis)
    else:
        inside = _products.mm(y, basis)
        rest = _products.mm(inside, basis.mT)
    rest = rest - y
    found[:, :k] = inside
    found[:, k:] = torch.linalg.vector_norm(rest, dim=1, keepdim=True) * PARTS**-0.5
    return found


def choose_projection(
    queries: Tensor, rows: Tensor, centre: Tensor, threshold: float, adjacent_code_limit: int
) -> ProjectionScreen | None:
    """The projection that is predicted to give the fastest join, or None if none pays.

    Args:
        queries: (n, d), as stored.
        rows: (m, d) likewise.
        centre: (d,) of the rows.
        threshold: of the join.
        adjacent_code_limit: largest sum of two adjacent codes of a query, by magnitude.
    """
    (n, d), m = queries.shape, rows.shape[0]
    # The sampled queries must not be among the sampled rows, so at most every second row is drawn.
    if min(n, m) < 2 * _SAMPLE or n * m < tuning.PROJECTION_PAIRS * d * d or d < 64:
        return None
    step, price = m // _SAMPLE, costs.pair_cost(d, "int8")
    tried = queries[1 :: step * max(n // step // _TRIED, 1)]
    levels = min(0.7 * adjacent_code_limit, 127.0)  # two adjacent codes are seldom both largest
    threads = _threads.usable_threads()
    # After each of torch's operations its threads spin, waiting for the next one, on processors
    # that our own threads could use.
    basis = _threads.single_threaded(
        _best_basis, rows[::step], tried, centre, threshold, levels, price, threads
    )
    return None if basis is None else ProjectionScreen(basis, Int8Screen(adjacent_code_limit))


def _best_basis(
    rows: Tensor,
    queries: Tensor,
    centre: Tensor,
    threshold: float,
    levels: float,
    price: float,
    threads: int,
) -> Tensor | None:
    """P (d, k) in float32 for the k with the lowest predicted cost, judged by a sample.

    Args:
        rows: (m, d), as stored.
        queries: (n, d) likewise.
        centre: (d,) of the rows.
        threshold: of the join.
        levels: code levels that a query typically uses.
        price: of scoring a pair, in scores of the int8 screen.
        threads: how many to use.
    """
    d = centre.numel()
    unit, asked = finite(rows), finite(queries)
    if not len(asked) or not len(unit):
        return None
    # Where so many pairs reach the threshold, no bound rules out enough.
    reached = _product(asked, unit.mT, threads) >= threshold
    if price * _share(reached) >= tuning.PROJECTION_WORTH:
        return None
    y = unit.sub_(centre.double())
    # Largest first, and contiguous, which halves the time of products.
    along = unforked(torch.linalg.eigh, _product(y.mT, y, threads)).eigenvectors
    along = along.flip(1).contiguous()
    y_along, q_along = _product(y, along, threads).float(), (asked @ along).float()
    offset = (asked @ centre.double()).float()[:, None]
    q_long, y_long = (torch.linalg.vector_norm(v, dim=1).amax() for v in (q_along, y_along))

    def cost(width: int) -> float:
        k = _directions(width)
        y_rest, q_rest = (torch.linalg.vector_norm(v[:, k:], dim=1) for v in (y_along, q_along))
        upper = torch.outer(q_rest, y_rest).add_(offset)
        unforked(upper.addmm_, q_along[:, :k], y_along[:, :k].mT)
        # The error of codes: up to half a step, uniformly, in numbers of which the largest is about
        # four times a typical one.
        error = 4 / 12**0.5 * q_long * y_long * (1 / levels + 1 / 127)
        return width / d + price * _share(upper >= float(threshold - error))

    widths = [round(share * d / 32) * 32 for share in SHARES]
    tried = [partial(cost, width) for width in widths]
    least, best = min(zip(_threads.run_independent(threads, tried), widths, strict=True))
    if least >= tuning.PROJECTION_WORTH:
        return None
    return spread(along[:, : _directions(best)]).float()


def _directions(width: int) -> int:
    """How many numbers of a projected row are coordinates; the others hold the rest's length."""
    return max(width - PARTS, 1)


def _product(a: Tensor, b: Tensor, threads: int) -> Tensor:
    """The product of (n, d) and (d, m), in parts of its longer side that our threads compute."""
    parts = tuning.PROJECTION_SHARE * threads if threads > 1 else 1
    found = a.new_empty((len(a), b.shape[1]))
    by_rows = len(a) >= b.shape[1]

    def fill(some: Tensor, place: Tensor) -> None:
        unforked(torch.mm, *((some, b) if by_rows else (a, some)), out=place)

    cut = a.chunk(parts) if by_rows else b.chunk(parts, 1)
    places = found.chunk(parts, 0 if by_rows else 1)
    _threads.run_independent(
        threads, [partial(fill, *each) for each in zip(cut, places, strict=True)]
    )
    return found


def _share(mask: Tensor) -> float:
    """The share of a mask that is set."""
    return np.count_nonzero(mask.numpy()) / mask.numel()


def finite(rows: Tensor) -> Tensor:
    """Unit rows in float64 of those that are finite and not zero."""
    wide, norms = widen(rows)
    kept = norms.isfinite() & (norms > 0)
    unit: Tensor = wide[kept] / norms[kept, None]
    return unit


def spread(basis: Tensor) -> Tensor:
    """Rotate a basis in its span, so that all coordinates are about as large: one scale fits."""
    k = basis.shape[1]
    drawn = torch.randn(
        (k, k), generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    turned: Tensor = basis @ torch.linalg.qr(drawn).Q
    return turned
