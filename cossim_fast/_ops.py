"""Registered ops: the one place where CPU and GPU meet.

Each op is one contract with a CPU body; a kernel launcher is registered beside it for CUDA.
The ops check shape, dtype and device again, since anyone can call them. Eager calls of the public
functions do not come through here: an op takes 7 µs before its body runs, and more where it has
derivatives (Zen 5, torch 2.13). Searches of a GPU do, and the graphs of torch.compile. Registered
by torch.library.Library, with derivatives, an op takes 5.5 µs, without any 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks, _composite, _gpu
from cossim_fast._cpu import gradients as cpu_gradients
from cossim_fast._cpu import matrix_gradients, topk_ops
from cossim_fast._cpu.matrix import cosine_matrix
from cossim_fast._cpu.rows import cosine_rows, row_cosines
from cossim_fast._dispatch import without_autocast

# Searches ask before they start.
kernels_miss = _gpu.kernels_miss


@torch.library.custom_op("cossim_fast::rowwise_fwd", mutates_args=())
def rowwise_fwd(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Cosine of the paired rows of x (n, d) and y (n, d): (n,), in their promoted dtype."""
    return cosine_rows(x, y, eps, _checks.paired_rows(x, y)).clone()


@rowwise_fwd.register_fake
def _(x: Tensor, y: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=_checks.paired_rows(x, y))


@torch.library.custom_op("cossim_fast::rowwise_bwd", mutates_args=())
def rowwise_bwd(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The derivatives of <grad, rowwise_fwd(x, y)> by x and by y."""
    rows = row_cosines(x, y, eps, _checks.paired_rows(x, y))
    by_x, by_y = cpu_gradients.rows_gradients(x, y, rows, grad, eps, (True, True))
    return by_x.contiguous(), by_y.contiguous()  # type: ignore[union-attr]


@rowwise_bwd.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _checks.paired_rows(x, y)
    return x.new_empty(x.shape), y.new_empty(y.shape)


@torch.library.custom_op("cossim_fast::pairwise_fwd", mutates_args=())
def pairwise_fwd(x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    """The matrix of cosines of x (b, n, d) and y (b, m, d): (b, n, m), in their promoted dtype."""
    dtype = _checks.batched_rows(x, y, eps, precision)
    out = x.new_empty((*x.shape[:2], y.shape[1]), dtype=dtype)
    return cosine_matrix(x, y, eps, out, precision)


@pairwise_fwd.register_fake
def _(x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    dtype = _checks.batched_rows(x, y, eps, precision)
    return x.new_empty((*x.shape[:2], y.shape[1]), dtype=dtype)


@torch.library.custom_op("cossim_fast::pairwise_bwd", mutates_args=())
def pairwise_bwd(grad: Tensor, x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    """The derivative of <grad, pairwise_fwd(x, y)> by x; by y it is that of the swapped pair."""
    _checks.batched_rows(x, y, eps, precision)
    return matrix_gradients.matrix_gradient(grad, x, y, eps)


@pairwise_bwd.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    _checks.batched_rows(x, y, eps, precision)
    return x.new_empty(x.shape)


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.eps = inputs
    ctx.save_for_backward(x, y)


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    with without_autocast(grad):
        if torch.is_grad_enabled():
            found = _composite.rows_gradients(x, y, grad, ctx.eps, ctx.needs_input_grad[:2])
        else:
            found = list(rowwise_bwd(grad, x, y, ctx.eps))
    return *found, None


def _save_matrix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, ctx.eps, ctx.precision = inputs
    ctx.save_for_backward(x, y)


def _matrix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    for_x, for_y = ctx.needs_input_grad[:2]

    def one_side(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _composite.matrix_gradient(grad, x, y, ctx.eps)
        gradient: Tensor = pairwise_bwd(grad, x, y, ctx.eps, ctx.precision)
        return gradient

    with without_autocast(grad):
        by_x = one_side(grad, x, y) if for_x else None
        by_y = one_side(grad.mT, y, x) if for_y else None
    return by_x, by_y, None, None


rowwise_fwd.register_autograd(_rows_backward, setup_context=_save_rows)
pairwise_fwd.register_autograd(_matrix_backward, setup_context=_save_matrix)


@rowwise_fwd.register_kernel("cuda")
def _(x: Tensor, y: Tensor, eps: float) -> Tensor:
    return _gpu.rows(x, y, eps, _checks.paired_rows(x, y))


@rowwise_bwd.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _checks.paired_rows(x, y)
    return _gpu.rows_gradients(grad, x, y, eps)


@pairwise_fwd.register_kernel("cuda")
def _(x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    return _gpu.matrix(x, y, eps, _checks.batched_rows(x, y, eps, precision), precision)


@pairwise_bwd.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    _checks.batched_rows(x, y, eps, precision)
    return _gpu.matrix_gradient(grad, x, y, eps, precision)


@torch.library.custom_op("cossim_fast::code_rows", mutates_args=())
def code_rows(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (64 blocks, d') int8, terms (3, blocks) and eligibility (n,) bool of rows (n, d).

    For a row x of block B with code z, x̄ = x / |x| (0 for a row of zeros) and the float32 centre
    (d,) m: |x̄ - m - scale_B z| <= residual_B and |x̄ - m| <= radius_B, where the terms are scale,
    residual and radius in float32. Rows that are not finite are not eligible: their codes are 0,
    and they have no say. d' is the next multiple of 16; there and beyond n codes are 0.
    """
    _checks.coded_rows(rows, centre)
    return topk_ops.code_rows(rows, centre)


@code_rows.register_fake
def _(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _checks.coded_rows(rows, centre)
    n, d = rows.shape
    blocks, width = (n + 63) // 64, (d + 15) // 16 * 16
    return (
        rows.new_empty((64 * blocks, width), dtype=torch.int8),
        rows.new_empty((3, blocks), dtype=torch.float32),
        rows.new_empty((n,), dtype=torch.bool),
    )


@code_rows.register_kernel("cuda")
def _(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _checks.coded_rows(rows, centre)
    if not _gpu.takes_kernels(rows, rows.dtype):
        return topk_ops.code_rows(rows, centre)
    from cossim_fast.kernels.code_rows import launch_code_rows  # noqa: PLC0415

    found: tuple[Tensor, Tensor, Tensor] = launch_code_rows(rows, centre)
    return found


@torch.library.custom_op("cossim_fast::block_max", mutates_args=())
def block_max(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> Tensor:
    """The largest <query, row> over each block of corpus rows: (n, ceil(m / block)).

    queries (n, d) and corpus (m, d) are int8 codes, whose sums are exact int32, or bfloat16 rows,
    summed in float32. Rows where eligible (m,) is False take no part.
    """
    _checks.screen(queries, corpus, block, eligible)
    return topk_ops.block_max(queries, corpus, block, eligible)


@block_max.register_fake
def _(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> Tensor:
    dtype = _checks.screen(queries, corpus, block, eligible)
    blocks = (corpus.shape[0] + block - 1) // block
    return queries.new_empty((queries.shape[0], blocks), dtype=dtype)


@block_max.register_kernel("cuda")
def _(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> Tensor:
    from cossim_fast.kernels.topk import launch_block_max  # noqa: PLC0415

    _checks.screen(queries, corpus, block, eligible)
    out: Tensor = launch_block_max(queries, corpus, block, eligible)
    return out


@torch.library.custom_op("cossim_fast::block_thresholds", mutates_args=())
def block_thresholds(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, k: int, groups: int
) -> Tensor:
    """A lower bound (n,) float32 on the k-th best cosine of each query, -inf if none is known.

    maxima (n, blocks) is what block_max gives; query_terms (4, n) float32 are the scale, residual,
    norm and offset of the queries, block_terms (3, blocks) the scale, residual and radius of the
    blocks, as in `_cpu.topk_ops.cosine_bounds`. The k-th largest of the best lower bounds of
    ``groups`` >= k groups, block b in group b % groups: k groups hold k different rows.
    """
    _checks.block_thresholds(maxima, query_terms, block_terms, k, groups)
    return topk_ops.block_thresholds(maxima, query_terms, block_terms, k, groups)


@block_thresholds.register_fake
def _(maxima: Tensor, *rest: Any) -> Tensor:
    _checks.block_thresholds(maxima, *rest)
    return maxima.new_empty(maxima.shape[:1], dtype=torch.float32)


@block_thresholds.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from cossim_fast.kernels.thresholds import launch_block_thresholds  # noqa: PLC0415

    _checks.block_thresholds(*arguments)
    out: Tensor = launch_block_thresholds(*arguments)
    return out


@torch.library.custom_op("cossim_fast::block_candidates", mutates_args=())
def block_candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """The number (n,) int32 of blocks whose upper bound reaches the query's threshold, and a list.

    The lists (n, capacity) hold block numbers in any order, -1 where unused. The number counts on
    past ``capacity``: a query that overflows is asked for again, with room for its number.
    """
    _checks.block_candidates(maxima, query_terms, block_terms, thresholds, capacity)
    return topk_ops.block_candidates(maxima, query_terms, block_terms, thresholds, capacity)


@block_candidates.register_fake
def _(maxima: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _checks.block_candidates(maxima, *rest)
    n, capacity = maxima.shape[0], rest[-1]
    counts = maxima.new_empty((n,), dtype=torch.int32)
    return counts, maxima.new_empty((n, capacity), dtype=torch.int32)


@block_candidates.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from cossim_fast.kernels.candidates import launch_block_candidates  # noqa: PLC0415

    _checks.block_candidates(*arguments)
    found: tuple[Tensor, Tensor] = launch_block_candidates(*arguments)
    return found


@torch.library.custom_op("cossim_fast::recheck", mutates_args=())
def recheck(
    queries: Tensor, corpus: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor,
    query_index: Tensor, block_index: Tensor, block: int, eligible: Tensor | None,
) -> Tensor:  # fmt: skip
    """Which rows (p, block) bool of the pairs' blocks may be among the best of the pairs' queries.

    queries and corpus are the codes that block_max took; a row stays if it is eligible and its own
    upper bound reaches thresholds[query_index].
    """
    arguments = (
        queries, corpus, query_terms, block_terms, thresholds, query_index, block_index, block,
        eligible,
    )  # fmt: skip
    _checks.recheck(*arguments)
    return topk_ops.recheck(*arguments)


@recheck.register_fake
def _(queries: Tensor, *rest: Any) -> Tensor:
    _checks.recheck(queries, *rest)
    query_index, block = rest[4], rest[6]
    return queries.new_empty((query_index.shape[0], block), dtype=torch.bool)


@recheck.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from cossim_fast.kernels.recheck import launch_recheck  # noqa: PLC0415

    _checks.recheck(*arguments)
    out: Tensor = launch_recheck(*arguments)
    return out


@torch.library.custom_op("cossim_fast::rescore", mutates_args=())
def rescore(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    """Fixed-order float64 cosines (p,) of queries[query_index] and corpus[corpus_index].

    A row of zeros gives 0 and a negative index NaN; the bits depend on the two rows alone.
    """
    _checks.candidates(queries, corpus, query_index, corpus_index)
    return topk_ops.rescore(queries, corpus, query_index, corpus_index)


@rescore.register_fake
def _(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    _checks.candidates(queries, corpus, query_index, corpus_index)
    return queries.new_empty(query_index.shape, dtype=torch.float64)


@rescore.register_kernel("cuda")
def _(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    from cossim_fast.kernels.rescore import launch_rescore  # noqa: PLC0415

    _checks.candidates(queries, corpus, query_index, corpus_index)
    out: Tensor = launch_rescore(queries, corpus, query_index, corpus_index)
    return out
