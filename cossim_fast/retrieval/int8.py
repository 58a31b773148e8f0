"""The int8 product of this processor: what it multiplies without loss, and how.

oneDNN's quantised linear layer, through torch: 400 G operations a second on a core whose float32
product runs at 87 (Zen 4, AVX-512 with VNNI), 160 on one that does 90 (Zen 3, AVX2; torch._int_mm
does 392 and 3). Rows are the activations, and queries the weights, which are packed.

Rows are multiplied as unsigned numbers, their codes plus 128: signed ones are 9 % slower with AVX2,
which adds 128 again and again, and with VNNI there is no kernel for them but oneDNN's reference,
which takes 4000 times as long.

Without 8-bit dot-product instructions (VNNI) a processor adds the products of two neighbouring
numbers in 16 bits, which saturate silently. They hold 255 times 128: so much may two neighbouring
codes of a query add up to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Sums of d products of unsigned codes fit int32.
LONGEST_ROW = (2**31 - 1) // (255 * 127)
# What two neighbouring codes of a query may add up to, by magnitude: all that they can, or what
# leaves sums of two products in 16 bits whole.
_BUDGETS = (254, 128)
# How far a sieved code may be from what it stands for: its own rounding, and an eighth of that for
# those of the scale and the sum in float32 (`sieved`).
ROUNDING = 0.5625
# Products times a scale, and offsets, up to which float32 is that exact: 2^16 at 2^-24, and four
# roundings.
LARGEST_SCALED = 2.0**16
# Queries are padded to a multiple of so many, of which fewer where there are no more, and rows to
# one of so many at least.
_COLUMNS, _FEWEST_COLUMNS, _FEWEST_ROWS = 64, 16, 64
# What is added to codes of rows, and eight of it.
_ZERO = 128
_SIGNS = np.uint64(0x8080808080808080)


def width(queries: int) -> int:
    """The columns of a product: queries are padded, so that few shapes occur.

    oneDNN makes machine code for every shape, up to a megabyte, and keeps that of the last 1024;
    once it finds no memory for it, it makes none any more in this process.
    """
    step = _COLUMNS if queries > _COLUMNS else _FEWEST_COLUMNS
    return -(-queries // step) * step


def even_rows(rows: int) -> int:
    """The rows of a product of so many: padded likewise, by an eighth at most."""
    step = max(1 << max((rows - 1).bit_length() - 4, 0), _FEWEST_ROWS)
    return -(-rows // step) * step


def pack(queries: Tensor) -> Tensor:
    """Queries (q, d) int8 as `product` and `sieved` take them, with zeros up to their `width`."""
    # It packs what lies in memory, whatever the strides say.
    padded = torch.nn.functional.pad(queries, (0, 0, 0, width(len(queries)) - len(queries)))
    packed: Tensor = torch.ops.onednn.qlinear_prepack(padded.contiguous(), None)
    return packed


def product(rows: Tensor, packed: Tensor, queries: int) -> Tensor:
    """The products (n, q) in float32, rounded beyond 2^24, of rows (n, d) int8 and queries."""
    n, d = rows.shape
    codes = unsigned(rows, torch.empty(even_rows(n) * d, dtype=torch.uint8))
    found = _linear(codes, _ZERO, packed, torch.ones(width(queries)), None, torch.float32)
    return found[:n, :queries].contiguous()


def sieved(rows: Tensor, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Products as 8-bit codes: what is too low becomes 0 on the way out of the processor.

    Args:
        rows: (n, d) uint8, codes plus 128 (`unsigned`).
        packed: queries z (q, d).
        scale: (w,) float32 up to their `width`, at least 0; times a product, LARGEST_SCALED at
            most.
        offset: (w,) float32, of at most twice that.

    Returns:
        (n, w) uint8: within ROUNDING of u @ z * scale + offset, where that is from 0 to 255.
    """
    return _linear(rows, 0, packed, scale, offset, torch.uint8)


def _linear(
    rows: Tensor,
    zero: int,
    packed: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(rows - zero) @ z * scale + offset."""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero, packed, scale, zeros, offset, 1.0, 0, dtype, "none", [], ""
    )
    return out


def unsigned(rows: Tensor, out: Tensor) -> Tensor:
    """Codes (n, d) int8 of whole blocks plus 128, and `even_rows` (n): the others hold anything.

    In the memory of ``out``: so many rows of d uint8 or more.
    """
    n, d = rows.shape
    there = out.numpy()[: rows.numel()]
    np.bitwise_xor(rows.numpy().reshape(-1).view(np.uint64), _SIGNS, out=there.view(np.uint64))
    return out[: even_rows(n) * d].view(-1, d)


@functools.cache
def neighbours() -> int:
    """What two neighbouring codes of a query may add up to here, by magnitude; 0 if none are exact.

    It looks at answers, not at clocks or names of processors: extreme codes are multiplied in
    several shapes, in every way that a sum of two products could overflow.
    """
    for budget in _BUDGETS:
        try:
            if all(_exact(budget, *shape) for shape in _SHAPES):
                return budget
        except (AttributeError, RuntimeError, NotImplementedError):
            return 0  # a build of torch without the operator
    return 0


# Rows in whole blocks, as they are multiplied, queries, and a width.
_SHAPES = ((64, 1, 1), (64, 5, 385), (192, 64, 1031), (128, 33, 66))


def _exact(budget: int, rows: int, queries: int, d: int) -> bool:
    """Whether extreme codes give what they should, as numbers and sieved."""
    place = torch.arange(rows * d).view(rows, d)
    for corpus in (
        torch.full((rows, d), 127),
        torch.full((rows, d), -127),
        (place % 3 > 0) * 254 - 127,
        (place * 7919) % 255 - 127,
    ):
        codes = corpus.to(torch.int8)
        for query in _extremes(budget, queries, d):
            packed, exact = pack(query.to(torch.int8)), corpus.double() @ query.double().mT
            if not torch.equal(product(codes, packed, queries), exact.float()):
                return False
            if not _sieves(codes, packed, query, exact):
                return False
    return True


def _extremes(budget: int, queries: int, d: int) -> Iterator[Tensor]:
    """Codes (q, d) of which every two neighbours add up to the budget: of one sign, and mixed."""
    odd = torch.arange(d) % 2
    mixed = (torch.arange(queries * d).view(queries, d) * 104729) % 7 < 3
    for first in {127, budget - 127, budget // 2}:
        magnitude = (first + (budget - 2 * first) * odd).expand(queries, d)
        yield from (magnitude, -magnitude, torch.where(mixed, -magnitude, magnitude))


def _sieves(codes: Tensor, packed: Tensor, query: Tensor, exact: Tensor) -> bool:
    """Whether products are within ROUNDING of what they are sieved to, above, below and between."""
    wide = exact + 128 * query.sum(1)
    spread = (wide.amax(0) - wide.amin(0)).clamp_min(1.0)
    most = LARGEST_SCALED / (255 * query.abs().sum(1))
    scale = torch.minimum(400 / spread, most).float()
    offset = (128 - wide.mean(0) * scale).float()
    n, count = exact.shape
    room = torch.empty(even_rows(n) * codes.shape[1], dtype=torch.uint8)
    padded = (torch.nn.functional.pad(each, (0, width(count) - count)) for each in (scale, offset))
    found = sieved(unsigned(codes, room), packed, *padded)[:n, :count]
    wanted = (wide * scale + offset).clamp_(0.0, 255.0)
    return bool(((found - wanted).abs() <= ROUNDING).all())
