"""How the int8 product of this processor sums, found by multiplying extreme codes.

Three kinds are known (oneDNN 3.12; `docs/exact-search.md` lists the processors):

- exact: sums in 32 bits; the zero point's share is subtracted before conversion to float32;
- rounding: the sum of unsigned codes is converted to float32 before the zero point's share is
  subtracted, so beyond 2^24 it is rounded (`int8.SUM_ERROR` bounds that);
- saturating: products of two adjacent codes are added in 16 bits, which saturate silently. These
  hold 255 times 128, so two adjacent codes of a query may add up to 128.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cossim_fast import _threads
from cossim_fast.retrieval.screening import int8
from cossim_fast.retrieval.screening.rates import FASTER

# Largest sum of two adjacent codes of a query, by magnitude, where any codes will do.
ANY_CODES = 254
# The same where sums of two products must fit 16 bits.
PAIRS_OF_16_BITS = 128
# Rows (of whole blocks), queries and width of the products that are checked.
_SHAPES = ((64, 1, 1), (64, 5, 385), (192, 64, 1031), (128, 33, 66))
# [ratio] So many times as fast as float32 means AMX (10 to 14 on Emerald Rapids; VNNI of Zen 5 4 to
# 7.3).
_TILES = 8.0


@dataclass(frozen=True)
class Arithmetic:
    """How the int8 product sums.

    Attributes:
        adjacent_code_limit: largest sum of two adjacent codes of a query, by magnitude; 0 where
            products are wrong or missing.
        error: the largest error that was observed, as a share of the bound.
    """

    adjacent_code_limit: int
    error: float = 0.0

    @property
    def kind(self) -> Literal["exact", "rounding", "saturating", "unusable"]:
        """In a word."""
        if not self.adjacent_code_limit:
            return "unusable"
        if self.adjacent_code_limit < ANY_CODES:
            return "saturating"
        return "rounding" if self.error else "exact"

    def words(self, rate: float) -> str:
        """A description for users.

        It goes by what the product does: the instructions that a processor reports prove nothing,
        since oneDNN may have been told not to use them.

        Args:
            rate: how many times as fast as float32 it is.
        """
        if self.kind == "unusable":
            return "int8 products that are wrong here, or that torch does not have"
        rounded = "sums rounded to float32" if self.error else ""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            name = f"int8 of {platform.machine()}"
        elif self.kind == "saturating":
            name = "AVX2 int8"
        elif _tiles() and (self.error or rate >= _TILES):
            name = "AMX int8"
        elif rate >= FASTER:
            name = "VNNI int8"
        else:
            name = "int8"
        if self.kind == "saturating":
            pairs = f"pairs of codes limited to {self.adjacent_code_limit}"
            return ", ".join(part for part in (name, pairs, rounded) if part)
        return f"{name} ({rounded})" if rounded else name


def _tiles() -> bool:
    """Whether the processor reports AMX."""
    return bool(torch.cpu._is_amx_tile_supported())


@functools.cache
def found() -> Arithmetic:
    """How the int8 product sums here.

    Found from results, not from times or names of processors: extreme codes are multiplied in
    several shapes, in every way in which a sum of two products could overflow. On one thread:
    beside other busy processes, threads that wait for each other took seconds where one took 50 ms.
    """
    return _threads.on_one(_check)


def _check() -> Arithmetic:
    for limit in (ANY_CODES, PAIRS_OF_16_BITS):
        try:
            error = max(_worst(limit, *shape) for shape in _SHAPES)
        except (AttributeError, RuntimeError, NotImplementedError):
            break  # a build of torch without the operator
        if error <= 1.0:
            return Arithmetic(limit, error)
    return Arithmetic(0)


def _worst(limit: int, rows: int, queries: int, d: int) -> float:
    """The largest error of products of extreme codes, as a share of what is allowed; or inf."""
    place = torch.arange(rows * d, device="cpu").view(rows, d)
    corpora = (
        torch.full((rows, d), 127, device="cpu"),
        torch.full((rows, d), -127, device="cpu"),
        (place % 3 > 0) * 254 - 127,
        (place * 7919) % 255 - 127,
    )
    codes = torch.cat(corpora)
    narrow, wide = codes.to(torch.int8), codes.double()
    worst = 0.0
    for query in _extremes(limit, queries, d):
        packed, exact = int8.pack(query.to(torch.int8)), wide @ query.double().mT
        error = (int8.product(narrow, packed, queries) - exact).abs_()
        allowed = int8.SUM_ERROR * query.abs().sum(1).double() + 2.0**-24 * exact.abs()
        worst = max(worst, float((error / allowed).amax()))
        if worst > 1.0 or not _filter_keeps_bound(narrow, packed, query, exact):
            return float("inf")
    return worst


def _extremes(limit: int, queries: int, d: int) -> Iterator[Tensor]:
    """Codes (q, d) of which any two adjacent ones add up to the limit: of one sign, and mixed."""
    parity = torch.arange(d, device="cpu") % 2
    mixed = (torch.arange(queries * d, device="cpu").view(queries, d) * 104729) % 7 < 3
    for first in {127, limit - 127, limit // 2}:
        magnitude = (first + (limit - 2 * first) * parity).expand(queries, d)
        yield from (magnitude, -magnitude, torch.where(mixed, -magnitude, magnitude))


def _filter_keeps_bound(codes: Tensor, packed: Tensor, query: Tensor, exact: Tensor) -> bool:
    """Whether filtered products are within ROUNDING, inside the range of uint8 and beyond it."""
    wide = exact + 128 * query.sum(1)
    spread = (wide.amax(0) - wide.amin(0)).clamp_min(1.0)
    most = int8.LARGEST_SCALED / (255 * query.abs().sum(1)).double()
    scale = torch.minimum(400 / spread, most).float()
    offset = (128 - wide.mean(0) * scale).float()
    n, count = exact.shape
    padding = 0, int8.width(count) - count
    padded = (torch.nn.functional.pad(each, padding) for each in (scale, offset))
    seen = int8.filtered(int8.unsigned(codes), packed, *padded)[:n, :count]
    wanted = (wide * scale + offset).clamp_(0.0, 255.0)
    return bool(((seen - wanted).abs() <= int8.ROUNDING).all())
