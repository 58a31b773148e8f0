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


@torch.library.custom_op("cossim_fast::pairwise_self_bwd", mutates_args=())
def pairwise_self_bwd(grad: Tensor, x: Tensor, eps: float, precision: str) -> Tensor:
    """The derivative of <grad, pairwise_fwd(x, x)> by x, which stands on both sides."""
    _checks.batched_rows(x, x, eps, precision)
    by_row = matrix_gradients.matrix_gradient(grad, x, x, eps)
    return by_row + matrix_gradients.matrix_gradient(grad.mT, x, x, eps)


@pairwise_self_bwd.register_fake
def _(grad: Tensor, x: Tensor, eps: float, precision: str) -> Tensor:
    _checks.batched_rows(x, x, eps, precision)
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
    ctx.with_itself = x is y
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
        if ctx.with_itself and not torch.is_grad_enabled():
            # Autograd adds what it gets for the two: the sum, and nothing.
            return pairwise_self_bwd(grad, x, ctx.eps, ctx.precision), None, None, None
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


@pairwise_self_bwd.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, eps: float, precision: str) -> Tensor:
    _checks.batched_rows(x, x, eps, precision)
    return _gpu.matrix_self_gradient(grad, x, eps, precision)


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


scan_error = topk_ops.scan_error


@torch.library.custom_op("cossim_fast::scan_rows", mutates_args=())
def scan_rows(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Block maxima (q, blocks) float32 and eligibility (n,) bool of rows (n, d) as they are.

    The largest estimate of <z, x> / |x| (0 for a row of zeros) over each 64 rows, for each z of the
    queries (q, d): float32 of at most 11 significant bits, finite, |z| <= 2. An estimate is off by
    `scan_error` |z| at most. Rows that are not finite are not eligible and take no
    part; a block without any other gives -inf.
    """
    _checks.scanned_rows(queries, rows)
    return topk_ops.scan_rows(queries, rows)


@scan_rows.register_fake
def _(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    _checks.scanned_rows(queries, rows)
    maxima = queries.new_empty((queries.shape[0], (rows.shape[0] + 63) // 64))
    return maxima, rows.new_empty(rows.shape[:1], dtype=torch.bool)


@scan_rows.register_kernel("cuda")
def _(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    _checks.scanned_rows(queries, rows)
    if not _gpu.takes_kernels(rows, rows.dtype):
        return topk_ops.scan_rows(queries, rows)
    from cossim_fast.kernels.scan_rows import launch_scan_rows  # noqa: PLC0415

    found: tuple[Tensor, Tensor] = launch_scan_rows(queries, rows)
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
) -> tuple[Tensor, Tensor]:
    """A lower bound (n,) float32 on the k-th best cosine of each query, and k blocks (n, k) int64.

    maxima (n, blocks) is what block_max gives; query_terms (4, n) float32 are the scale, residual,
    norm and offset of the queries, block_terms (3, blocks) the scale, residual and radius of the
    blocks, as in `_cpu.topk_ops.cosine_bounds`. The bound is the k-th largest of the best lower
    bounds of ``groups`` >= k groups, block b in group b % groups: k groups hold k different rows.
    The blocks are different ones whose lower bounds reach it. -inf and -1 where there are fewer.
    """
    _checks.block_thresholds(maxima, query_terms, block_terms, k, groups)
    return topk_ops.block_thresholds(maxima, query_terms, block_terms, k, groups)


@block_thresholds.register_fake
def _(maxima: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _checks.block_thresholds(maxima, *rest)
    n, k = maxima.shape[0], rest[2]
    bound = maxima.new_empty((n,), dtype=torch.float32)
    return bound, maxima.new_empty((n, k), dtype=torch.int64)


@block_thresholds.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from cossim_fast.kernels.thresholds import launch_block_thresholds  # noqa: PLC0415

    _checks.block_thresholds(*arguments)
    found: tuple[Tensor, Tensor] = launch_block_thresholds(*arguments)
    return found


@torch.library.custom_op("cossim_fast::block_candidates", mutates_args=())
def block_candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """The number (1,) int32 of pairs whose upper bound reaches the query's threshold, and a list.

    A pair of a query and a block is block * n + query, so that sorted pairs of one block are
    neighbours. The list (capacity,) int32 is in any order, 2^31 - 1 where unused. The number counts
    on past ``capacity``: what overflows is asked for again, with room for its number.
    """
    _checks.block_candidates(maxima, query_terms, block_terms, thresholds, capacity)
    return topk_ops.block_candidates(maxima, query_terms, block_terms, thresholds, capacity)


@block_candidates.register_fake
def _(maxima: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _checks.block_candidates(maxima, *rest)
    count = maxima.new_empty((1,), dtype=torch.int32)
    return count, maxima.new_empty((rest[-1],), dtype=torch.int32)


@block_candidates.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from cossim_fast.kernels.candidates import launch_block_candidates  # noqa: PLC0415

    _checks.block_candidates(*arguments)
    found: tuple[Tensor, Tensor] = launch_block_candidates(*arguments)
    return found


@torch.library.custom_op("cossim_fast::recheck", mutates_args=())
def recheck(
    queries: Tensor, corpus: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor,
    pairs: Tensor, block: int, eligible: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The number (n,) int32 of rows of its pairs' blocks that reach each query's threshold, lists.

    queries and corpus are the codes that block_max took, pairs (p,) int32 different ones as
    block_candidates lists them; a row counts if it is eligible and its own upper bound reaches its
    query's threshold. The lists (n, capacity) int64 are in any order, -1 where unused; the number
    counts on past ``capacity``.
    """
    arguments = (
        queries, corpus, query_terms, block_terms, thresholds, pairs, block, eligible, capacity
    )  # fmt: skip
    _checks.recheck(*arguments)
    return topk_ops.recheck(*arguments)


@recheck.register_fake
def _(queries: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _checks.recheck(queries, *rest)
    n, capacity = queries.shape[0], rest[-1]
    counts = queries.new_empty((n,), dtype=torch.int32)
    return counts, queries.new_empty((n, capacity), dtype=torch.int64)


@recheck.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from cossim_fast.kernels.recheck import launch_recheck  # noqa: PLC0415

    _checks.recheck(*arguments)
    found: tuple[Tensor, Tensor] = launch_recheck(*arguments)
    return found


@torch.library.custom_op("cossim_fast::best_rows", mutates_args=())
def best_rows(
    queries: Tensor, corpus: Tensor, pairs: Tensor, block: int, eligible: Tensor | None
) -> Tensor:
    """The eligible row of each pair's block with the largest product of codes: (p,) int64.

    queries, corpus and pairs are those of recheck. Of equal products the first row's counts; -1
    where there is no pair or no such row.
    """
    _checks.best_rows(queries, corpus, pairs, block, eligible)
    return topk_ops.best_rows(queries, corpus, pairs, block, eligible)


@best_rows.register_fake
def _(queries: Tensor, corpus: Tensor, pairs: Tensor, *rest: Any) -> Tensor:
    _checks.best_rows(queries, corpus, pairs, *rest)
    return pairs.new_empty(pairs.shape, dtype=torch.int64)


@best_rows.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from cossim_fast.kernels.recheck import launch_best_rows  # noqa: PLC0415

    _checks.best_rows(*arguments)
    out: Tensor = launch_best_rows(*arguments)
    return out


@torch.library.custom_op("cossim_fast::rescore", mutates_args=())
def rescore(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    """Fixed-order float64 cosines (p,) of queries[query_index] and corpus[corpus_index].

    The two may have two floating dtypes. A row of zeros gives 0 and a negative index NaN; the bits
    depend on the two rows alone.
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
