"""The operators of torch whose arithmetic differs from processor to processor, one function each.

No other function of the screens multiplies codes or bfloat16. Their callers state error bounds that
hold on every processor. Tests replace these functions by models of other processors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast._threads import unforked


def pack(codes: Tensor) -> Tensor:
    """Codes (w, d) int8 in the layout of `linear`; they must be contiguous."""
    packed: Tensor = unforked(torch.ops.onednn.qlinear_prepack, codes, None)
    return packed


def linear(
    rows: Tensor,
    zero: int,
    packed: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(rows - zero) @ z.T * scale + offset, by oneDNN's quantised linear layer.

    Args:
        rows: (n, d) uint8.
        zero: subtracted from each.
        packed: z (w, d) int8, from `pack`.
        scale: (w,) float32.
        offset: (w,) float32.
        dtype: of the result: float32, or uint8, rounded to the nearest number from 0 to 255.

    Returns:
        (n, w).
    """
    zeros = torch.zeros(len(scale), dtype=torch.int64, device="cpu")
    out: Tensor = unforked(
        torch.ops.onednn.qlinear_pointwise,
        rows,
        1.0,
        zero,
        packed,
        scale,
        zeros,
        offset,
        1.0,
        0,
        dtype,
        "none",
        [],
        "",
    )
    return out


def mixed(queries: Tensor, codes: Tensor) -> Tensor:
    """Queries (q, d) bfloat16 times codes (n, d) int8: (q, n) bfloat16, of sums in float32."""
    ones = torch.ones(codes.shape[0], dtype=torch.bfloat16, device="cpu")
    out: Tensor = unforked(torch._weight_int8pack_mm, queries, codes, ones)
    return out


def bfloat16(rows: Tensor, queries: Tensor, out: Tensor) -> None:
    """Rows (n, d) times queries (q, d) into out (n, q), all bfloat16, of sums in float32."""
    unforked(torch.mm, rows, queries.mT, out=out)
