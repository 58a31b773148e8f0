"""Rows divided by their norms, in blocks that stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._cpu.blocks import (
    BLOCK,
    Scratch,
    all_in_bounds,
    norms_along_last,
    out_of_range_rows,
    row_blocks,
)

# [elements] Of a normalized panel: 16 MiB of float32.
PANEL = 1 << 22


def panel_rows(width: int) -> int:
    """How many rows of this width make a panel."""
    return max(PANEL // max(width, 1), 1)


def normalize(x: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x / max(|x|, eps) along the last dimension to `out`; return |x| (..., 1).

    `out` is float32 or float64.
    """
    norms = torch.empty((*x.shape[:-1], 1), dtype=out.dtype, device=x.device)
    width = x.shape[-1]
    wide, squares = Scratch(out.dtype), Scratch(out.dtype)
    for block, norm, unit in row_blocks(BLOCK // max(width, 1), x.shape[:-1], x, norms, out):
        source = wide.widen(block)
        norms_along_last(source, squares, norm.squeeze(-1))
        torch.div(source, norm.clamp_min(eps), out=unit)
    if not all_in_bounds(norms):
        for index in out_of_range_rows(norms.squeeze(-1)[None], width):
            rows = x[index].to(out.dtype)
            out[index] = _composite.unit_rows(rows, -1, eps)
            norms[index] = _composite.row_norms(rows, -1)
    return norms


def normalized(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return x / max(|x|, eps) along the last dimension, float32 or float64."""
    unit = torch.empty(x.shape, dtype=dtype, device=x.device)
    normalize(x, eps, unit)
    return unit
