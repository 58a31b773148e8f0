"""Screens: cheap scores of every row with a proven error, and the choice among them.

A screen gives V, about the cosine less a constant of the query, in units of its own:

    |c - a_q - s_q s_B V| <= rho_q R_B + N_q rho_B + SLACK

for a query q and a row of block B, by the inequality of Cauchy and Schwarz on
<q̄ - q̂, y> + <q̂, y - ŷ>, where y = x̄ - m is a centred unit row (`codes`), q̂ and ŷ what was
multiplied in their place, a_q = <q̄, m>, rho_q >= |q̄ - q̂|, N_q >= |q̂|, R_B >= |y| and
rho_B >= |y - ŷ|, enlarged where the product rounds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cossim_fast import _products
from cossim_fast._cpu_screen import WideRows
from cossim_fast.retrieval import int8
from cossim_fast.retrieval.codes import BLOCK, UNIT_ROW_ERROR, Segment, unit_rows

ScreenName = Literal["int8", "bfloat16", "float32"]
_UNIT, _BFLOAT16 = 2.0**-24, 2.0**-8  # unit roundoffs
# Numbers of the rows that are made for a product of floats at a time: 4 MB.
_NUMBERS = 1 << 20
# Beyond the bound in real numbers: what float64 loses in the terms of a query and in a score, less
# than 2^-45 for any d that fits a memory, and subnormal products that a processor flushes.
SLACK = 2.0**-40
# So few queries are multiplied as bfloat16 with the codes, which is bound by reading these. The
# operator reads whole vectors: rows of another width would be read beyond their end.
FEW_QUERIES, FEW_QUERIES_WIDTH = 2, 64


@dataclass(frozen=True)
class QueryTerms:
    """What a bound needs of each query, in float64, and the operand of the product."""

    scale: Tensor  # (q,) s_q
    residual: Tensor  # (q,) rho_q
    norm: Tensor  # (q,) N_q
    offset: Tensor  # (q,) a_q
    operand: Tensor


@dataclass(frozen=True)
class CodedTerms(QueryTerms):
    """What a product of codes z needs of each query besides, in float64."""

    total: Tensor  # (q,) the sum of z
    size: Tensor  # (q,) the sum of |z|


@dataclass(frozen=True)
class BlockTerms:
    """What a bound needs of each block, in float64."""

    scale: Tensor  # (blocks,) s_B
    residual: Tensor  # (blocks,) rho_B
    radius: Tensor  # (blocks,) R_B


class Screen(Protocol):
    """One way to score every row cheaply."""

    name: ScreenName

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Prepare queries."""

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """Return the terms of some of a segment's blocks."""

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """V (rows padded to whole blocks, q) in float32; anything may stand in the padding."""

    def coded(self, segment: Segment) -> Segment | None:
        """What holds the codes that a `Sieve` can multiply in the place of `product`, if any."""


def unit_queries(queries: WideRows) -> Tensor:
    """Unit queries (q, d) in float64; zeros for one that is not finite."""
    return queries.unit().nan_to_num_(0.0, 0.0, 0.0)


def _terms(unit: Tensor, coded: Tensor, scale: Tensor, centre: Tensor, op: Tensor) -> QueryTerms:
    """Measure queries (q, d) in float64 against what was coded of them."""
    return QueryTerms(
        scale,
        torch.linalg.vector_norm(unit - coded, dim=1) + SLACK,
        torch.linalg.vector_norm(coded, dim=1) + SLACK,
        unit @ centre.double(),
        op,
    )


class Int8Screen:
    """Codes of rows against codes of queries, in whole numbers.

    Queries are the packed operand, so that a corpus is multiplied from where its codes lie.

    Args:
        neighbours: what two neighbouring codes of a query may add up to (`int8.neighbours`).
    """

    name: ScreenName = "int8"

    def __init__(self, neighbours: int) -> None:
        self._neighbours = neighbours

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Code queries by their largest entry, or by their largest two neighbours.

        The two are seldom largest at once: 63 levels for each number would be 1.4 times as coarse.
        """
        unit = unit_queries(queries)
        size = unit.abs()
        if self._neighbours < 254:
            size = torch.nn.functional.pad(size, (0, size.shape[1] % 2))
            size = size[:, ::2] + size[:, 1::2]
        # Rounding may add a half to each of the two.
        scale = size.amax(1) / 127
        scale.masked_fill_(scale == 0, 1.0)
        codes = (unit / scale[:, None]).round_()
        packed = int8.pack(codes.to(torch.int8))
        terms = _terms(unit, codes * scale[:, None], scale, centre, packed)
        return CodedTerms(**vars(terms), total=codes.sum(1), size=codes.abs().sum(1))

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """What the codes miss, and a sum beyond 2^24, which is rounded as it turns float32."""
        return coded_blocks(segment, some)

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Whole numbers, rounded beyond 2^24."""
        return int8.product(_codes(segment, rows), terms.operand, len(terms.scale))

    def coded(self, segment: Segment) -> Segment | None:
        """The segment."""
        return segment


class FewQueriesScreen:
    """Codes of rows against one or two queries in bfloat16, in bfloat16.

    The int8 product has work for eight queries or more even where there is one. That of weights in
    int8 with activations in bfloat16, made for language models that write word by word, reads
    the codes at the speed of the memory: 8.9 ms for 200 000 rows of 384, on a core that takes 18
    for the int8 product and 15.5 for float32 rows in FAISS (Zen 3).
    """

    name: ScreenName = "int8"

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Round unit queries to bfloat16."""
        unit = unit_queries(queries)
        rounded = unit.bfloat16()
        return _terms(unit, rounded.double(), torch.ones(len(unit)).double(), centre, rounded)

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """What the codes miss, and what the sums and the rounding of the result may lose."""
        return coded_blocks(segment, some, _to_bfloat16(segment.rows.shape[1]))

    def product(self, segment: Segment, rows: slice, centre: Tensor, terms: QueryTerms) -> Tensor:
        """Sums of codes times entries of unit queries, rounded to bfloat16."""
        codes = _codes(segment, rows)
        ones = torch.ones(codes.shape[0], dtype=torch.bfloat16)
        out: Tensor = torch._weight_int8pack_mm(terms.operand.contiguous(), codes, ones)
        return out.mT.float().contiguous()

    def coded(self, segment: Segment) -> Segment | None:
        """Nothing that could be sieved."""
        return None


def _codes(segment: Segment, rows: slice) -> Tensor:
    assert segment.codes is not None
    return segment.codes[rows.start : -(-rows.stop // BLOCK) * BLOCK]


def coded_blocks(segment: Segment, some: slice | Tensor, product: float = _UNIT) -> BlockTerms:
    """The terms of some coded blocks, for a product that is off by a share of |q̂| |ŷ|."""
    assert segment.scale is not None
    assert segment.residual is not None
    radius, residual = segment.radius[some].double(), segment.residual[some].double()
    return BlockTerms(
        segment.scale[some].double(), residual + product * (radius + residual), radius
    )


def _to_bfloat16(d: int) -> float:
    """What a sum of d products may lose, as a share of the norms' product.

    The sum is in float32, and may be truncated at every addition; the result is rounded once.
    """
    summed = 2 * d * _UNIT / (1 - 2 * d * _UNIT)
    return summed + _BFLOAT16 * (1 + summed)


class FloatScreen:
    """The product itself, in float32 or bfloat16, of unit rows made as they are needed."""

    def __init__(self, name: ScreenName) -> None:
        self.name = name
        self._dtype = torch.float32 if name == "float32" else torch.bfloat16

    def queries(self, queries: WideRows, centre: Tensor) -> QueryTerms:
        """Round unit queries."""
        unit = unit_queries(queries)
        rounded = unit.to(self._dtype)
        return _terms(unit, rounded.double(), torch.ones(len(unit)).double(), centre, rounded)

    def blocks(self, segment: Segment, some: slice) -> BlockTerms:
        """What rounding misses."""
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
        """Cosines less the constant of the query."""
        count = rows.stop - rows.start
        out = torch.empty((-(-count // BLOCK) * BLOCK, len(terms.scale)), dtype=self._dtype)
        step = max(_NUMBERS // centre.numel(), 1)
        for start in range(0, count, step):
            some = slice(rows.start + start, min(rows.start + start + step, rows.stop))
            y = unit_rows(segment.rows[some], segment.norms[some], centre).to(self._dtype)
            _products.mm(y, terms.operand.mT, out=out[start : start + len(y)])
        return out.float()

    def coded(self, segment: Segment) -> Segment | None:
        """Nothing that could be sieved."""
        return None


@functools.cache
def _few_queries_work() -> bool:
    """Whether the product of `FewQueriesScreen` is there, and keeps its bound."""
    d = 6 * FEW_QUERIES_WIDTH
    codes = ((torch.arange(BLOCK * d) * 7919) % 255 - 127).view(BLOCK, d)
    query = torch.linspace(-1, 1, d).bfloat16()[None]
    ones = torch.ones(BLOCK, dtype=torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(query, codes.to(torch.int8), ones)[0].double()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False  # a build of torch without the operator
    exact = codes.double() @ query[0].double()
    allowed = codes.double().norm(dim=1) * query[0].double().norm()
    return bool(((found - exact).abs() <= _to_bfloat16(d) * allowed).all())


def _bfloat16_is_fast() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def available() -> dict[ScreenName, str]:
    """The screens of this processor, each with a word on how it runs, fastest first."""
    found: dict[ScreenName, str] = {}
    if most := int8.neighbours():
        found["int8"] = f"exact where query neighbours add up to {most} at most"
    if _bfloat16_is_fast():
        found["bfloat16"] = "bfloat16 instructions"
    found["float32"] = "always there"
    return found


def choose(d: int, wanted: str = "auto", *, queries: int | None = None) -> list[Screen]:
    """The screens to try, each wider than the one before; a named one alone.

    Args:
        d: the width of the rows.
        wanted: ``"auto"``, or a name. A bfloat16 product without instructions for it is slow but
            right, so it can be asked for.
        queries: how many there are, if no more will come: one or two have a screen of their own.
    """
    names = list(available()) if wanted == "auto" else [wanted]
    if wanted == "auto" and d > int8.LONGEST_ROW and "int8" in names:
        names.remove("int8")
    if wanted == "auto" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        names = ["float32"]  # no vector instructions that a screen could use
    if names == ["int8"] and (d > int8.LONGEST_ROW or not int8.neighbours()):
        raise ValueError(
            f"expected rows of at most {int8.LONGEST_ROW} numbers for screen='int8', and a "
            f"processor and a torch that multiply int8, got d = {d} and {list(available())}; "
            "pass 'auto'"
        )
    made: list[Screen] = []
    for name in names:
        if name == "int8":
            few = queries is not None and queries <= FEW_QUERIES and d % FEW_QUERIES_WIDTH == 0
            made.append(
                FewQueriesScreen() if few and _few_queries_work() else Int8Screen(int8.neighbours())
            )
        else:
            made.append(FloatScreen("bfloat16" if name == "bfloat16" else "float32"))
    return made
