"""The int8 product: codes of rows times codes of queries, as numbers or sieved to 8 bits.

oneDNN's quantised linear layer, through torch: 400 G operations a second on a core whose float32
product runs at 87 (Zen 4, AVX-512 with VNNI), 160 on one that does 90 (Zen 3, AVX2; torch._int_mm
does 392 and 3). Rows are the activations, and queries the weights, which are packed.

Rows are multiplied as unsigned numbers, their codes plus 128: signed ones are 9 % slower with AVX2,
which adds 128 again and again, and with VNNI there is no kernel for them but oneDNN's reference,
which takes 4000 times as long.

What a processor does with sums is found out in `arithmetic`. What `product` promises holds for
every kind of it, so that there is one bound. With S = sum u z, the sum of products of unsigned
codes, D = S - 128 sum z, which is wanted, and r = 2^-24: where S is turned into float32 first, that
is off by r |S|; the part of the zero point is a multiple of 128 below 2^31, so exact in float32;
and their difference, off by r |S| already, is rounded once, by r (|D| + r |S|). Together

    |product - D| <= r (1 + r) |S| + r |D| <= SUM_ERROR sum |z| + r |D|

since |S| <= 255 sum |z|. Where sums are subtracted in whole numbers, r |D| is all.

In `sieved` a sum is turned into float32 at no more than 2^16 after the scale, which loses 2^-8,
and so do the product with the scale and the offset, each: ROUNDING holds them.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from cossim_fast._shapes import even
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import operators

# Sums of d products of unsigned codes fit int32.
LONGEST_ROW = (2**31 - 1) // (255 * 127)
# What a product may be off by for each unit of a query's codes, see above: 255 roundings and the
# second order.
SUM_ERROR = 256 * 2.0**-24
# How far a sieved code may be from what it stands for: its own rounding, and 16 of 2^-8. Those of
# S, of S times the scale, of an offset of at most 2^17 that is divided by the scale and added
# before (2 for each of two roundings), and of a sum of up to 3 * 2^16 are 9.
ROUNDING = 0.5625
# Products of unsigned codes times a scale, up to which float32 is exact to 2^-8.
LARGEST_SCALED = 2.0**16
# Queries are padded to a multiple of so many, of which fewer where there are no more, and rows to
# one of so many at least.
_COLUMNS, _FEWEST_COLUMNS, _FEWEST_ROWS = 64, 16, 64
# What is added to codes of rows, and eight of it.
_ZERO = 128
_SIGNS = np.uint64(0x8080808080808080)
# What a thread keeps to write codes to: to find memory anew took longer than the product.
_kept = threading.local()


def width(queries: int) -> int:
    """The columns of a product: queries are padded, so that few shapes occur (`_shapes`).

    Once oneDNN finds no memory for machine code, it makes none any more in this process.
    """
    step = _COLUMNS if queries > _COLUMNS else _FEWEST_COLUMNS
    return -(-queries // step) * step


def even_rows(rows: int) -> int:
    """The rows of a product of so many: padded likewise, by an eighth at most."""
    return even(rows, _FEWEST_ROWS)


def pack(queries: Tensor) -> Tensor:
    """Queries (q, d) int8 as `product` and `sieved` take them, with zeros up to their `width`."""
    padded = torch.nn.functional.pad(queries, (0, 0, 0, width(len(queries)) - len(queries)))
    return operators.pack(padded.contiguous())


def product(rows: Tensor, packed: Tensor, queries: int) -> Tensor:
    """The products (n, q) in float32 of rows (n, d) int8 and queries z.

    Off by SUM_ERROR sum |z| and a rounding at most.
    """
    codes, ones = unsigned(rows), torch.ones(width(queries), dtype=torch.float32, device="cpu")
    found = operators.linear(codes, _ZERO, packed, ones, None, torch.float32)
    return found[: len(rows), :queries].contiguous()


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
    return operators.linear(rows, 0, packed, scale, offset, torch.uint8)


def unsigned(rows: Tensor) -> Tensor:
    """Codes (n, d) int8 of whole blocks plus 128, and `even_rows` (n): the others hold anything.

    In memory of this thread's, which the next call on it writes over.
    """
    n, d = rows.shape
    size = even_rows(n) * d
    memory: Tensor | None = getattr(_kept, "memory", None)
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= tuning.KEPT_CODES:
            _kept.memory = memory
    there = memory.numpy()[: rows.numel()]
    np.bitwise_xor(rows.numpy().reshape(-1).view(np.uint64), _SIGNS, out=there.view(np.uint64))
    return memory[:size].view(-1, d)
