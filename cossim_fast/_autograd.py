"""First derivatives on CPU: the blocked forward with a blocked backward.

The result of forward is not saved, so that its owner may change it in place. A backward of
which a graph is wanted (for second derivatives), or a batched one, takes the composite form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._cpu import gradients as cpu_gradients
from cossim_fast._cpu import matrix_gradients
from cossim_fast._cpu.matrix import cosine_matrix
from cossim_fast._cpu.rows import RowCosines, clamped, row_cosines
from cossim_fast._dispatch import Executor, choose_executor, without_autocast


class CosineRows(torch.autograd.Function):
    """`_cpu.cosine_rows` with its first derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rows = row_cosines(x, y, eps, dtype)
        ctx.save_for_backward(x, y, *rows)
        ctx.eps = eps
        return clamped(rows.cosine, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *rows = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        with without_autocast(grad):
            if graph_is_wanted(grad):
                found = _composite.rows_gradients(x, y, grad, ctx.eps, needed)
            else:
                cosines, grad = RowCosines(*rows), _in_memory(grad)
                found = cpu_gradients.rows_gradients(x, y, cosines, grad, ctx.eps, needed)
        return *found, None, None


class CosineMatrix(torch.autograd.Function):
    """`_cpu.matrix.cosine_matrix` with its first derivatives; y=None stands for x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, eps: float, dtype: torch.dtype, precision: str
    ) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.eps = eps
        columns = (x if y is None else y).shape[1]
        out = torch.empty((*x.shape[:2], columns), dtype=dtype, device=x.device)
        return cosine_matrix(x, y, eps, out, precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        for_x, for_y = ctx.needs_input_grad[:2]
        other = x if y is None else y
        with without_autocast(grad):
            if graph_is_wanted(grad):
                one_side = _composite.matrix_gradient
            else:
                one_side, grad = matrix_gradients.matrix_gradient, _in_memory(grad)
            grad_x = one_side(grad, x, other, ctx.eps) if for_x else None
            if y is None and grad_x is not None:
                grad_x = grad_x + one_side(grad.mT, x, other, ctx.eps)
            grad_y = one_side(grad.mT, other, x, ctx.eps) if for_y else None
        return grad_x, grad_y, None, None, None


def _in_memory(grad: Tensor) -> Tensor:
    """The gradient in memory that holds its numbers, not their negatives or nothing at all."""
    return grad.clone() if grad.is_neg() or grad._is_zerotensor() else grad


def graph_is_wanted(grad: Tensor) -> bool:
    """Whether second derivatives are to come, or the gradient is batched by vmap."""
    return (
        torch.is_grad_enabled()
        or choose_executor(grad, grad)[0] in (Executor.COMPOSITE, Executor.TRACED)
        # is_grads_batched and jacobian(vectorize=True) still come by the vmap before functorch.
        or torch._C._functorch.is_legacy_batchedtensor(grad)
    )
