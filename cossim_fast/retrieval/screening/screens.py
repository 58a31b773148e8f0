"""Screens: cheap scores of every row with a proven error bound, and the choice among them.

A screen computes a score V in units of its own, with

    |c - a_q - s_q s_B V| <= rho_q R_B + N_q rho_B + SLACK

for the cosine c of a query q and a row of block B. The bound is the inequality of Cauchy and
Schwarz on <q̄ - q̂, y> + <q̂, y - ŷ>, where y = x̄ - m is a centred unit row (`codes`), q̂ and ŷ are
the vectors that were multiplied in place of q̄ and y, a_q = <q̄, m>, rho_q >= |q̄ - q̂|, N_q >= |q̂|,
R_B >= |y|, and rho_B >= |y - ŷ|, enlarged where the product rounds.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from cossim_fast._score.exact import WideRows
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.memory_map import release_pages
from cossim_fast.retrieval.screening import arithmetic, float_product, int8, operators, rates
from cossim_fast.retrieval.screening.codes import BLOCK, UNIT_ROW_ERROR, Segment, unit_rows

ScreenName = Literal["int8", "bfloat16", "float32"]
NAMES: tuple[ScreenName, ...] = ("int8", "bfloat16", "float32")  # narrowest first
_UNIT = 2.0**-24  # unit roundoff of float32
_BFLOAT16 = 2.0**-8  # unit roundoff of bfloat16
# Added to bounds in real numbers: covers the rounding of float64 in the terms of a query and in a
# score, less than 2^-45 for any d that fits in memory, and subnormal products that a processor
# flushes to zero.
SLACK = 2.0**-40
# Rows of `FewQueriesScreen` have a multiple of so many numbers: its operator reads full vectors,
# and would read past the end of others.
FEW_QUERIES_WIDTH = 64
# Memory that a thread keeps for products.
_kept = threading.local()


@dataclass(frozen=True)
class QueryTerms:
    """The terms of each query in the bound, in float64, and the operand of the product."""

    scale: Tensor  # (q,) s_q
    residual: Tensor  # (q,) rho_q
    norm: Tensor  # (q,) N_q
    offset: Tensor  # (q,) a_q
    operand: Tensor


@dataclass(frozen=True)
class CodedTerms(QueryTerms):
    """The same for queries with codes z, with their sums in float64."""

    total: Tensor  # (q,) the sum of z
    size: Tensor  # (q,) the sum of |z|


@dataclass(frozen=True)
class BlockTerms:
    """The terms of each block in the bound, in float64."""

    scale: Tensor  # (blocks,) s_B
    residual: Tensor  # (blocks,) rho_B
    radius: Tensor  # (blocks,) R_B


class Screen(Protocol):
    """One way to score every row cheaply."""

    name: ScreenName

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Prepare queries for `product`, and measure their terms."""

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """Return the terms of some of a segment's blocks."""

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """V (rows padded to whole blocks, q) in float32; anything may stand in the padding."""

    def coded(self, segment: Segment) -> Segment | None:
        """The segment whose codes a `FilteredProduct` can multiply instead, or None."""


def unit_queries(queries: WideRows) -> Tensor:
    """Unit queries (q, d) in float64; zeros for one that is not finite."""
    return queries.unit().nan_to_num_(0.0, 0.0, 0.0)


def _terms(unit: Tensor, coded: Tensor, scale: Tensor, centre: Tensor, op: Tensor) -> QueryTerms:
    """The terms of unit queries (q, d) that are multiplied as ``coded``, both in float64."""
    return QueryTerms(
        scale,
        torch.linalg.vector_norm(unit - coded, dim=1) + SLACK,
        torch.linalg.vector_norm(coded, dim=1) + SLACK,
        unit @ centre.double(),
        op,
    )


class Int8Screen:
    """Codes of rows against codes of queries.

    Queries are the packed operand, so that the codes of a corpus need not be packed.

    Args:
        adjacent_code_limit: largest sum of two adjacent codes of a query (`arithmetic`).
    """

    name: ScreenName = "int8"

    def __init__(self, adjacent_code_limit: int) -> None:
        self._limit = adjacent_code_limit

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Code queries, scaled by their largest entry or by their largest sum of two adjacent ones.

        Two adjacent entries are seldom both largest: limiting each to 63 levels instead would be
        1.4 times as coarse.
        """
        unit = unit_queries(queries)
        size = unit.abs()
        if self._limit < arithmetic.ANY_CODES:
            size = torch.nn.functional.pad(size, (0, size.shape[1] % 2))
            size = size[:, ::2] + size[:, 1::2]
        # 127, not 128: rounding may add a half to each of the two.
        scale = size.amax(1) / 127
        scale.masked_fill_(scale == 0, 1.0)
        codes = (unit / scale[:, None]).round_()
        packed = int8.pack(codes.to(torch.int8))
        terms = _terms(unit, codes * scale[:, None], scale, centre, packed)
        return CodedTerms(**vars(terms), total=codes.sum(1), size=codes.abs().sum(1))

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """The error of the codes and of the product (`int8`).

        The latter is SUM_ERROR s_q s_B sum |z|, where s_q sum |z| <= sqrt(d) s_q |z| <= sqrt(d)
        N_q, and the rounding of s_q s_B D = <q̂, ŷ>.
        """
        assert segment.codes is not None
        terms = coded_blocks(segment, some)
        of_sums = int8.SUM_ERROR * segment.codes.shape[1] ** 0.5
        return replace(terms, residual=terms.residual + of_sums * terms.scale)

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Sums of codes times codes."""
        return int8.product(_codes(segment, rows), terms.operand, len(terms.scale))

    def coded(self, segment: Segment) -> Segment | None:
        """The segment."""
        return segment


class FewQueriesScreen:
    """Codes of rows against one or two queries in bfloat16; the product is in bfloat16.

    The int8 product takes as long for one query as for eight. torch's product of int8 weights and
    bfloat16 activations, made for the token-by-token decoding of language models, reads codes at
    the speed of memory: 8.9 ms for 200 000 rows of 384 on a core of Zen 3, which takes 18 for the
    int8 product and 15.5 for float32 rows in FAISS. It is used where it is faster than the int8
    product (`_few_queries_work`).
    """

    name: ScreenName = "int8"

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Round unit queries to bfloat16."""
        unit = unit_queries(queries)
        rounded = unit.bfloat16()
        scale = torch.ones(len(unit), dtype=torch.float64, device="cpu")
        return _terms(unit, rounded.double(), scale, centre, rounded)

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """The error of the codes, of the sums, and of the rounding of the result."""
        return coded_blocks(segment, some, _to_bfloat16(segment.rows.shape[1]))

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Sums of codes times entries of unit queries, rounded to bfloat16."""
        codes = _codes(segment, rows)
        return operators.mixed(terms.operand.contiguous(), codes).mT.float().contiguous()

    def coded(self, segment: Segment) -> Segment | None:
        """Nothing that could be filtered."""
        return None


def _codes(segment: Segment, rows: slice) -> Tensor:
    assert segment.codes is not None
    return segment.codes[rows.start : -(-rows.stop // BLOCK) * BLOCK]


def coded_blocks(segment: Segment, some: slice | Tensor, product: float = _UNIT) -> BlockTerms:
    """The terms of some coded blocks, for a product that is off by ``product`` |q̂| |ŷ| at most."""
    assert segment.scale is not None
    assert segment.residual is not None
    radius, residual = segment.radius[some].double(), segment.residual[some].double()
    return BlockTerms(
        segment.scale[some].double(), residual + product * (radius + residual), radius
    )


def _to_bfloat16(d: int) -> float:
    """Error bound of a sum of d products, as a share of the product of the norms.

    The sum is in float32, and may be truncated at each addition; the result is rounded once.
    """
    summed = 2 * d * _UNIT / (1 - 2 * d * _UNIT)
    return summed + _BFLOAT16 * (1 + summed)


class FloatScreen:
    """Unit rows, made as they are needed, times unit queries, in float32 or bfloat16.

    Factors rounded to bfloat16 are multiplied in float32 where bfloat16 products are no faster:
    each product of two is exact there, so the error is smaller.
    """

    def __init__(self, name: ScreenName) -> None:
        self.name = name
        self._dtype = torch.float32 if name == "float32" else torch.bfloat16
        self._wide = name == "float32" or not _bfloat16_pays()

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Round unit queries."""
        unit = unit_queries(queries)
        rounded = unit.to(self._dtype)
        scale = torch.ones(len(unit), dtype=torch.float64, device="cpu")
        return _terms(unit, rounded.double(), scale, centre, rounded)

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """The error of rounding the factors, and of the product."""
        radius = segment.radius[some].double()
        d = segment.rows.shape[1]
        if self._dtype == torch.float32:
            residual = torch.full_like(radius, UNIT_ROW_ERROR)
            # d roundings of a sum of d products (Higham, Accuracy and Stability, 2002, eq. 3.5).
            product = d * _UNIT / (1 - d * _UNIT)
        else:
            residual = UNIT_ROW_ERROR + _BFLOAT16 * (radius + UNIT_ROW_ERROR)
            product = _to_bfloat16(d)
        return BlockTerms(torch.ones_like(radius), residual + product * (radius + residual), radius)

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Cosines minus <q̄, m>."""
        count = rows.stop - rows.start
        operand = terms.operand.float() if self._wide else terms.operand
        out = torch.empty(
            (-(-count // BLOCK) * BLOCK, len(terms.scale)), dtype=torch.float32, device="cpu"
        )
        step = chunk_rows(centre.numel())
        for start in range(0, count, step):
            some = slice(rows.start + start, min(rows.start + start + step, rows.stop))
            segment.touch(some)
            y = unit_rows(segment.rows[some], segment.norms[some], centre).to(self._dtype)
            if self._wide:
                found = float_product.parts(y.float(), operand)
            else:
                found = float_product.in_few_shapes(y, operand, _narrow_product)
            for at, values in found:
                out[start + at.start : start + at.stop] = values
            if segment.mapping is not None:
                # Otherwise a search of an index would keep all of its file in memory: 130 MB for
                # 150 000 float16 rows of 384 numbers, and 29 with this.
                release_pages(segment.mapping, segment.rows[some])
        return out

    def coded(self, segment: Segment) -> Segment | None:
        """Nothing that could be filtered."""
        return None


def chunk_rows(d: int) -> int:
    """Unit rows made at a time for a float product: a power of two, so that few shapes occur."""
    fitting = tuning.FLOAT_NUMBERS // max(d, 1)
    return max(1 << max(fitting.bit_length() - 1, 0), BLOCK)


def _narrow_product(rows: Tensor, queries: Tensor) -> Tensor:
    """The product (r, c) of bfloat16, in memory of this thread, which its next call overwrites."""
    shape = len(rows), len(queries)
    size = shape[0] * shape[1]
    memory: Tensor | None = getattr(_kept, "memory", None)
    if memory is None or memory.numel() < size:
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            memory = torch.empty(size, dtype=torch.bfloat16, device="cpu")
        if size <= tuning.KEPT_SCORES:
            _kept.memory = memory
    out = memory[:size].view(shape)
    operators.bfloat16(rows, queries, out)
    return out


# Width of the rows that check the bound of bfloat16 products.
_CHECKED = 6 * FEW_QUERIES_WIDTH


@functools.cache
def _few_queries_work() -> bool:
    """Whether the product of `FewQueriesScreen` exists, keeps its bound, and beats the int8 one."""
    codes, query = _checked()
    try:
        found = operators.mixed(query[None], codes.to(torch.int8))[0]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False  # a build of torch without the operator
    return _keeps_bound(found, codes, query) and rates.mixed() > 1.0


@functools.cache
def _bfloat16_pays() -> bool:
    """Whether products of bfloat16 are faster than those of float32, and keep their bound."""
    if rates.bfloat16().times < rates.FASTER:
        return False
    codes, query = _checked()
    found = torch.empty((BLOCK, 1), dtype=torch.bfloat16, device="cpu")
    operators.bfloat16(codes.bfloat16(), query[None], found)
    return _keeps_bound(found[:, 0], codes, query)


def _checked() -> tuple[Tensor, Tensor]:
    """Codes (n, d) of all kinds, of which the first lie along a query (d,) in bfloat16."""
    place = torch.arange(BLOCK * _CHECKED, device="cpu").view(BLOCK, _CHECKED)
    codes = (place * 7919) % 255 - 127
    query = torch.linspace(-1, 1, _CHECKED, dtype=torch.float32, device="cpu").bfloat16()
    codes[0] = (127 * query.float()).round()
    codes[1] = -codes[0]
    return codes, query


def _keeps_bound(found: Tensor, codes: Tensor, query: Tensor) -> bool:
    """Whether products (n,) of codes (n, d) and a query (d,) are within `_to_bfloat16`."""
    wide, asked = codes.double(), query.double()
    allowed = _to_bfloat16(len(query)) * wide.norm(dim=1) * asked.norm()
    return bool(((found.double() - wide @ asked).abs() <= allowed).all())


@dataclass(frozen=True)
class Offer:
    """What a screen is on this processor.

    Attributes:
        words: how it runs, and how fast; for users.
        there: whether it can be named as ``screen``.
        fast: whether ``"auto"`` takes it.
    """

    words: str
    there: bool
    fast: bool


def offer(name: ScreenName) -> Offer:
    """Describe a screen on this processor; the first call of a process measures it."""
    if name == "float32":
        return Offer("always available", there=True, fast=True)
    if name == "bfloat16":
        if _bfloat16_pays():
            return Offer(_rated("bfloat16 products", rates.bfloat16().times), there=True, fast=True)
        rate = rates.bfloat16().times
        why = _rated("bfloat16 products", rate) if rate else "no bfloat16 instructions"
        words = f"{why}; rounded to bfloat16, multiplied in float32"
        return Offer(words, there=True, fast=False)
    found = arithmetic.found()
    if not found.adjacent_code_limit:
        return Offer(found.words(0.0), there=False, fast=False)
    rate = rates.int8().times
    return Offer(_rated(found.words(rate), rate), there=True, fast=rate >= rates.FASTER)


def _rated(words: str, rate: float) -> str:
    return f"{words} ({rate:.2g}x float32)"


def available() -> dict[ScreenName, str]:
    """The screens that ``"auto"`` takes on this processor, narrowest first, and how they run."""
    offers = {name: offer(name) for name in NAMES}
    return {name: found.words for name, found in offers.items() if found.fast}


def choose(d: int, wanted: str = "auto", *, queries: int | None = None) -> list[Screen]:
    """The screens to try, each wider than the one before; only one if it is named.

    Args:
        d: the width of the rows.
        wanted: ``"auto"``, or a name. A screen that is slow here can still be named.
        queries: how many there are, if no more will follow: one or two have a screen of their own.
    """
    names: list[ScreenName] = [name for name in NAMES if wanted in (name, "auto")]
    if wanted == "auto":
        names = [n for n in names if (n != "int8" or d <= int8.LONGEST_ROW) and offer(n).fast]
    elif wanted == "int8":
        _check_int8(d)
    return [_made(name, d, queries) for name in names]


def _check_int8(d: int) -> None:
    if d > int8.LONGEST_ROW:
        raise ValueError(
            f"expected rows of at most {int8.LONGEST_ROW} numbers for screen='int8', which sums "
            f"in 32-bit integers, got d = {d}; pass screen='auto'"
        )
    if not arithmetic.found().adjacent_code_limit:
        raise ValueError(
            "expected a processor and a torch that multiply int8 within a known error for "
            f"screen='int8', got {arithmetic.found().words(0.0)}; pass screen='auto'"
        )


def _made(name: ScreenName, d: int, queries: int | None) -> Screen:
    if name != "int8":
        return FloatScreen(name)
    few = queries is not None and queries <= tuning.FEW_QUERIES and d % FEW_QUERIES_WIDTH == 0
    if few and _few_queries_work():
        return FewQueriesScreen()
    return Int8Screen(arithmetic.found().adjacent_code_limit)
