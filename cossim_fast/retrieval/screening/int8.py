"""The int8 product: codes of rows times codes of queries, in float32 or filtered to 8 bits.

It is oneDNN's quantised linear layer, through torch: 400 G operations a second on a core whose
float32 product runs at 87 (Zen 4, AVX-512 with VNNI), 160 on one with 90 (Zen 3, AVX2;
torch._int_mm runs at 392 and 3). Rows are the activations; queries are the weights, which are
packed.

Rows are multiplied as unsigned numbers, their codes plus 128. Signed ones are 9 % slower with AVX2,
which adds 128 in each product; with VNNI, oneDNN has only reference code for them, which takes 4000
times as long.

`arithmetic` finds how this processor sums. The bound of `product` holds for every kind. Let
S = sum u z be the sum of products of unsigned codes, D = S - 128 sum z the wanted result, and
r = 2^-24. Where S is converted to float32 first, it is off by r |S|. The zero point's share is a
multiple of 128 below 2^31, so exact in float32. Their difference is rounded once, by at most
r (|D| + r |S|). In all

    |product - D| <= r (1 + r) |S| + r |D| <= SUM_ERROR sum |z| + r |D|

since |S| <= 255 sum |z|. Where D is formed in whole numbers, the error is at most r |D|.

In `filtered`, the scaled sum is at most 2^16, so converting it to float32 loses at most 2^-8, and
so do the product with the scale and the addition of the offset: ROUNDING covers them.
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
# The error bound of a product for each unit of sum |z|, see above: 255 roundings, and the second
# order.
SUM_ERROR = 256 * 2.0**-24
# Error bound of a filtered value, in its units: a half for its own rounding, and 16 times 2^-8. The
# roundings of S, of S times the scale, of an offset of at most 2^17 that is divided by the scale
# and added before (2 for each of two roundings), and of a sum of up to 3 * 2^16 take 9 of these.
ROUNDING = 0.5625
# Products of unsigned codes times a scale, up to which float32 is exact to 2^-8.
LARGEST_SCALED = 2.0**16
# More queries than this are padded to a multiple of it.
_COLUMNS = 64
# Fewer queries are padded to a multiple of this.
_FEWEST_COLUMNS = 16
# Rows are padded to at least so many.
_FEWEST_ROWS = 64
# Added to the codes of rows.
_ZERO = 128
# The same for eight codes in one word.
_SIGNS = np.uint64(0x8080808080808080)
# Memory that a thread keeps for codes: allocating it each time took longer than the product.
_kept = threading.local()


def width(queries: int) -> int:
    """The columns of a product: queries are padded, so that few shapes occur (`_shapes`).

    oneDNN makes machine code for each shape; once it finds no memory for that, it makes none any
    more in this process.
    """
    step = _COLUMNS if queries > _COLUMNS else _FEWEST_COLUMNS
    return -(-queries // step) * step


def even_rows(rows: int) -> int:
    """The rows of a product, padded likewise, by an eighth at most."""
    return even(rows, _FEWEST_ROWS)


def pack(queries: Tensor) -> Tensor:
    """Queries (q, d) int8 for `product` and `filtered`, padded with zeros to their `width`."""
    padded = torch.nn.functional.pad(queries, (0, 0, 0, width(len(queries)) - len(queries)))
    return operators.pack(padded.contiguous())


def product(rows: Tensor, packed: Tensor, queries: int) -> Tensor:
    """The products (n, q) in float32 of rows (n, d) int8 and queries z.

    Their error is at most SUM_ERROR sum |z| plus one rounding of the result.
    """
    codes, ones = unsigned(rows), torch.ones(width(queries), dtype=torch.float32, device="cpu")
    found = operators.linear(codes, _ZERO, packed, ones, None, torch.float32)
    return found[: len(rows), :queries].contiguous()


def filtered(rows: Tensor, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Products scaled to 8 bits, in which whatever is too low is 0.

    Args:
        rows: (n, d) uint8, codes plus 128 (`unsigned`).
        packed: queries z (q, d).
        scale: (w,) float32 for all columns, at least 0; a product times its scale is at most
            LARGEST_SCALED.
        offset: (w,) float32, at most twice that in magnitude.

    Returns:
        (n, w) uint8: within ROUNDING of u @ z * scale + offset, where that is from 0 to 255.
    """
    return operators.linear(rows, 0, packed, scale, offset, torch.uint8)


def unsigned(rows: Tensor) -> Tensor:
    """Codes (n, d) int8 of whole blocks plus 128, padded to `even_rows` (n) with anything.

    They lie in memory of this thread, which its next call overwrites.
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
