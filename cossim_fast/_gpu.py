"""What CUDA tensors run: kernels, or torch's own operations where those cannot.

Eager calls come here without torch's dispatcher, as those of the CPU do: a registered op costs the
host more than a launch, before its body runs. `_ops` registers the same bodies, for graphs. What a
call costs is counted and timed by benchmarks/gpu_host.py.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._autograd import graph_is_wanted
from cossim_fast._dispatch import has_triton, without_autocast

# The kernels multiply no float64.
_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def _kernels() -> Any:
    """The launchers, kept: an import in each call would cost it a microsecond."""
    from cossim_fast.kernels import (  # noqa: PLC0415  (imports Triton)
        architecture,
        launch,
        pairwise,
        pairwise_backward,
        row_norm,
        rowwise,
    )

    return SimpleNamespace(
        missing=architecture.missing,
        splits_float32=architecture.splits_float32,
        on_device=launch.on_device,
        aligned_rows=launch.aligned_rows,
        rows=rowwise.launch_rowwise_fwd,
        rows_gradients=rowwise.launch_rowwise_bwd,
        matrix=pairwise.launch_pairwise_fwd,
        matrix_gradient=pairwise_backward.launch_pairwise_bwd,
        matrix_self_gradient=pairwise_backward.launch_pairwise_self_bwd,
        norms=row_norm.launch_row_norms,
        RowNorms=row_norm.RowNorms,
    )


def kernels_miss(x: Tensor) -> str:
    """What keeps kernels from running on x's GPU, in words; empty if nothing does."""
    if not has_triton():
        return "Triton is not installed: pip install 'cossim_fast[gpu]'"
    kernels = _kernels()
    with kernels.on_device(x):
        return str(kernels.missing())


def takes_kernels(x: Tensor, dtype: torch.dtype, precision: str = "high") -> bool:
    """Whether the kernels compute rows like x's in this dtype; composite torch ops do the rest.

    ``precision`` concerns products of float32 rows: not every Triton has those of "highest".
    """
    if x.shape[-1] == 0 or dtype not in _KERNEL_DTYPES or kernels_miss(x):
        return False
    split = dtype == torch.float32 and precision == "highest"
    return not split or bool(_kernels().splits_float32())


def rows(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine of the paired rows of x (n, d) and y (n, d): (n,) in ``dtype``."""
    if not takes_kernels(x, dtype):
        return _composite.cosine_rows(x, y, -1, eps, dtype).clone()
    found: Tensor = _kernels().rows(x, y, eps, dtype)
    return found


def rows_gradients(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The derivatives of <grad, rows> by x (n, d) and by y (n, d), contiguous."""
    if not takes_kernels(x, _promoted(x, y)):
        by_x = _composite.rows_gradient_without_graph(x, y, grad, eps)
        by_y = _composite.rows_gradient_without_graph(y, x, grad, eps)
        return by_x.contiguous(), by_y.contiguous()
    found: tuple[Tensor, Tensor] = _kernels().rows_gradients(grad, x, y, eps)
    return found


def matrix(
    x: Tensor, y: Tensor, eps: float, dtype: torch.dtype, precision: str, norms: Any = None
) -> Tensor:
    """The matrix of cosines of x (b, n, d) and y (b, m, d): (b, n, m) in ``dtype``.

    ``norms`` is what `launch_row_norms` gives of x and y, where it is known.
    """
    own = _promoted(x, y)
    if not takes_kernels(x, own, precision):
        return _composite.cosine_matrix(x, y, eps, dtype).clone()
    launch = _kernels().matrix
    found: Tensor = launch(_in(x, own), _in(y, own), eps, precision, dtype, norms=norms)
    return found


def matrix_gradient(
    grad: Tensor, x: Tensor, y: Tensor, eps: float, precision: str, norms: Any = None
) -> Tensor:
    """The derivative of <grad, matrix> by x (b, n, d), contiguous; ``norms`` as for `matrix`."""
    own = _promoted(x, y)
    if not takes_kernels(x, own, precision):
        return _composite.matrix_gradient_without_graph(x, y, grad, eps).contiguous()
    launch = _kernels().matrix_gradient
    return _in(launch(grad, _in(x, own), _in(y, own), eps, precision, norms=norms), x.dtype)


def matrix_self_gradient(
    grad: Tensor, x: Tensor, eps: float, precision: str, norms: Any = None
) -> Tensor:
    """The derivative of <grad, matrix> by x (b, n, d), which stands on both sides, contiguous."""
    if not takes_kernels(x, x.dtype, precision):
        by_row = _composite.matrix_gradient_without_graph(x, x, grad, eps)
        return by_row + _composite.matrix_gradient_without_graph(x, x, grad.mT, eps)
    found: Tensor = _kernels().matrix_self_gradient(grad, x, eps, precision, norms=norms)
    return found


def _promoted(x: Tensor, y: Tensor) -> torch.dtype:
    return x.dtype if x.dtype is y.dtype else torch.promote_types(x.dtype, y.dtype)


def _in(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def cosine_rows(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine of paired rows (..., d) of one shape: (...), with its derivatives."""
    if x.dim() != 2:
        shape = x.shape[:-1].numel(), x.shape[-1]
        return cosine_rows(x.reshape(shape), y.reshape(shape), eps, dtype).view(x.shape[:-1])
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        found: Tensor = _Rows.apply(x, y, eps, dtype)  # type: ignore[no-untyped-call]
        return found
    return rows(x, y, eps, dtype)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.eps = eps
        return rows(x, y, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        with without_autocast(grad):
            if graph_is_wanted(grad):
                found = _composite.rows_gradients(x, y, grad, ctx.eps, ctx.needs_input_grad[:2])
            else:
                found = list(rows_gradients(grad, x, y, ctx.eps))
        return *found, None, None


def cosine_matrix(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype, precision: str) -> Tensor:
    """The matrix of cosines of (n, d) or (b, n, d) and (m, d) or (b, m, d), with its derivatives.

    Returns (n, m) or (b, n, m).
    """
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        found: Tensor = _Matrix.apply(x, y, eps, dtype, precision)  # type: ignore[no-untyped-call]
        return found
    if x.dim() == 3:
        return matrix(x, y, eps, dtype, precision)
    first = x.unsqueeze(0)
    second = first if y is x else y.unsqueeze(0)
    return matrix(first, second, eps, dtype, precision).squeeze(0)


def write_matrix(out: Tensor, x: Tensor, y: Tensor, eps: float, precision: str) -> Tensor:
    """Write the matrix of cosines to an ``out`` of its shape, of any strides, and return it."""
    if x.dim() == 2:
        first = x.unsqueeze(0)
        write_matrix(out.unsqueeze(0), first, first if y is x else y.unsqueeze(0), eps, precision)
        return out
    own = _promoted(x, y)
    if not takes_kernels(x, own, precision):
        return out.copy_(_composite.cosine_matrix(x, y, eps, out.dtype))
    _kernels().matrix(_in(x, own), _in(y, own), eps, precision, out=out)
    torch.autograd.graph.increment_version(out)
    return out


class _Matrix(torch.autograd.Function):
    """Norms are kept for the backward pass, 8 bytes a row, and nothing of size n m."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype, precision: str
    ) -> Tensor:
        ctx.eps, ctx.precision, ctx.with_itself = eps, precision, y is x
        flat = x.dim() == 2
        first = x.unsqueeze(0) if flat else x
        second = first if y is x else y.unsqueeze(0) if flat else y
        norms = None
        # Below "highest", the forward has norms of its own, of rows that it rounded.
        keeps = x.dtype != torch.float32 or precision == "highest"
        if keeps and _has_norms(x, y, precision):
            kernels, itself = _kernels(), y is x
            first = kernels.aligned_rows(first)
            second = first if itself else kernels.aligned_rows(second)
            norms = kernels.norms(first, None if itself else second, eps)
        ctx.save_for_backward(x, y, *(norms or ())[:2])
        ctx.parts = (norms or ())[3:]
        result = matrix(first, second, eps, dtype, precision, norms)
        # In place, since torch lets nobody write to a view that a function made.
        return result.squeeze_(0) if flat else result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *kept = ctx.saved_tensors
        for_x, for_y = ctx.needs_input_grad[:2]
        with without_autocast(grad):
            if graph_is_wanted(grad):
                one = _composite.matrix_gradient
                by_x = one(grad, x, y, ctx.eps) if for_x else None
                by_y = one(grad.mT, y, x, ctx.eps) if for_y else None
                return by_x, by_y, None, None, None
            flat = x.dim() == 2
            if flat:
                grad, x, y = (t.unsqueeze(0) for t in (grad, x, y))
            norms = None
            if kept:
                norms = _kernels().RowNorms(*kept, None, *ctx.parts)
            elif _has_norms(x, y, ctx.precision):
                norms = _kernels().norms(x, None if ctx.with_itself else y, ctx.eps)
            rest = ctx.eps, ctx.precision
            if ctx.with_itself:  # autograd adds what it gets for the two: the sum, and nothing
                by_x, by_y = matrix_self_gradient(grad, x, *rest, norms), None
            else:
                swapped = norms and norms.swapped()
                by_x = matrix_gradient(grad, x, y, *rest, norms) if for_x else None
                by_y = matrix_gradient(grad.mT, y, x, *rest, swapped) if for_y else None
        if flat:
            by_x, by_y = (None if t is None else t.squeeze(0) for t in (by_x, by_y))
        return by_x, by_y, None, None, None


def _has_norms(x: Tensor, y: Tensor, precision: str) -> bool:
    """Whether kernels multiply these rows as they are, and there are some."""
    same = x.dtype is y.dtype and x.numel() > 0 and y.numel() > 0
    return same and takes_kernels(x, x.dtype, precision)
