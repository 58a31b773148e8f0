"""Codes and bounds of rows in float64, plainly: what a screen is handed in the tests."""

import torch
from torch import Tensor

BLOCK = 64


def unit_rows(x: Tensor) -> Tensor:
    """Rows over their norms in float64; zeros where a row is zero or not finite."""
    x = x.double()
    x = x / x.abs().amax(1, keepdim=True).clamp_min(1e-300)
    unit = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-300)
    return unit.masked_fill(~x.isfinite().all(1, keepdim=True), 0.0)


def rounded_up(x: Tensor) -> Tensor:
    """The least float32 above x."""
    return torch.nextafter(x.float(), torch.tensor(torch.inf))


def code_corpus(
    corpus: Tensor, eligible: Tensor, dtype: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (n, d), block terms (3, blocks) and the mean (d,) that was taken off the unit rows.

    Rows that are not eligible get codes that would beat every other, and no say in the terms.
    """
    n, d = corpus.shape
    unit = unit_rows(corpus)
    mean = unit[eligible].mean(0) if eligible.any() else unit.new_zeros(d)
    mean = mean.float().double()
    centred = (unit - mean).masked_fill(~eligible[:, None], 0.0)
    blocks = torch.nn.functional.pad(centred, (0, 0, 0, -n % BLOCK)).view(-1, BLOCK, d)
    codes, scale = _coded(blocks, blocks.abs().amax((1, 2)), dtype)
    residual = torch.linalg.vector_norm(blocks - codes * scale[:, None, None], dim=2).amax(1)
    radius = torch.linalg.vector_norm(blocks, dim=2).amax(1)
    codes = codes.reshape(-1, d)[:n].masked_fill(~eligible[:, None], 127)
    residual = _with_product_error(residual, radius, d, dtype)
    terms = torch.stack([scale.float(), rounded_up(residual), rounded_up(radius)])
    return codes.to(dtype), terms, mean


def code_queries(
    queries: Tensor, mean: Tensor, dtype: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor]:
    """Codes (q, d) and query terms (4, q); NaN terms for a query that is not finite."""
    unit = unit_rows(queries)
    codes, scale = _coded(unit, unit.abs().amax(1), dtype)
    coded = codes * scale[:, None]
    residual = torch.linalg.vector_norm(unit - coded, dim=1)
    norm = torch.linalg.vector_norm(coded, dim=1)
    residual = _with_product_error(residual, norm, queries.shape[1], dtype)
    terms = torch.stack(
        [scale.float(), rounded_up(residual), rounded_up(norm), (unit @ mean).float()]
    )
    terms[:, ~queries.isfinite().all(1)] = torch.nan
    return codes.to(dtype), terms


def _coded(x: Tensor, largest: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes in float64 and the scale a leading index, which float32 holds."""
    tail = (...,) + (None,) * (x.dim() - 1)
    if dtype != torch.int8:
        return x.to(dtype).double(), torch.ones_like(largest)
    scale = (largest / 127).float().double()
    scale = scale.masked_fill(scale == 0, 1.0)
    return (x / scale[tail]).round().clamp(-127, 127), scale


def _with_product_error(residual: Tensor, size: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """Enlarge a residual by the float32 rounding of a bfloat16 product, both sides' shares."""
    if dtype == torch.int8:
        return residual
    return residual + 2 * d * 2.0**-24 * (size + residual)
