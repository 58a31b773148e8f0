"""One autograd function around every loss: gradients are made as the loss is.

A loss is a scalar, so that its gradients are known but for a factor when it is computed; the
backward pass multiplies them by the incoming number. A loss for each row has its gradients in the
backward pass. A graph of the gradient takes the composite form.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from cossim_fast._autograd import graph_is_wanted
from cossim_fast._dispatch import Executor, choose_executor, without_autocast
from cossim_fast._threads import one_thread_after_fork

Number = Tensor | float
# Derivatives by x, y, the scale and the bias, where they are wanted.
Found = tuple[Tensor | None, Tensor | None, float, float]


class Loss(Protocol):
    """How a loss of rows x and y, a scale and a bias is computed."""

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number, else one for each row."""

    def value(self, x: Tensor, y: Tensor, scale: float, bias: float) -> Tensor:
        """The loss, float32 or float64, on CPU."""

    def gradients(
        self, x: Tensor, y: Tensor, scale: float, bias: float, incoming: Tensor | None,
        by_x: bool, by_y: bool,
    ) -> tuple[Tensor, Found]:  # fmt: skip
        """The loss, and the derivatives of it or, unless it is scalar, of <incoming, loss>."""

    def composite(self, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        """The loss by differentiable torch operations, on any device."""


def compute(loss: Loss, x: Tensor, y: Tensor, scale: Number, bias: Number = 0.0) -> Tensor:
    """The loss by the executor that torch's state and the inputs choose."""
    one_thread_after_fork()
    numbers = [t for t in (scale, bias) if isinstance(t, Tensor)]
    chosen = [choose_executor(x, y)[0], *(choose_executor(t, t)[0] for t in numbers)]
    blocked = (Executor.BLOCKED, Executor.BLOCKED_AUTOGRAD)
    with without_autocast(x):
        if any(each not in blocked for each in chosen):
            return loss.composite(x, y, scale, bias)
        if Executor.BLOCKED_AUTOGRAD in chosen:
            found: Tensor = _Function.apply(loss, x, y, scale, bias)  # type: ignore[no-untyped-call]
            return found
        return loss.value(x, y, _float(scale), _float(bias))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        ctx.loss = loss
        ctx.numbers = tuple(None if isinstance(t, Tensor) else t for t in (scale, bias))
        kept = (x, y, *(t if isinstance(t, Tensor) else None for t in (scale, bias)))
        _, by_x, by_y, *_ = ctx.needs_input_grad
        if not loss.is_scalar:
            ctx.save_for_backward(*kept)
            return loss.value(x.detach(), y.detach(), _float(scale), _float(bias))
        value, (dx, dy, ds, db) = loss.gradients(
            x.detach(), y.detach(), _float(scale), _float(bias), None, by_x, by_y
        )
        ctx.save_for_backward(*kept)
        # For `seen.pass_of`: to look at saved tensors may have them recomputed or loaded.
        ctx.inputs = weakref.ref(x), weakref.ref(y), (x._version, y._version), _float(scale)
        ctx.by_rows = dx, dy
        ctx.by_numbers = ds, db
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias = ctx.saved_tensors
        scale, bias = (
            t if number is None else number
            for t, number in zip((scale, bias), ctx.numbers, strict=True)
        )
        needed = ctx.needs_input_grad[1:]
        inputs = x, y, scale, bias
        with without_autocast(x):
            if graph_is_wanted(grad):
                return None, *_composite_gradients(ctx.loss, inputs, needed, grad)
            if ctx.loss.is_scalar:
                # Handed out, so that they need no second memory, and made again if asked for again.
                made, ctx.by_rows = ctx.by_rows, None
                if made is None:
                    made = _made(ctx.loss, inputs, None, needed)[:2]
                # Mostly it is 1.
                by = float(grad)
                dx, dy = (t if t is None or by == 1 else t.mul_(by) for t in made)
                ds, db = (number * grad for number in ctx.by_numbers)
            else:
                dx, dy, *by_numbers = _made(ctx.loss, inputs, grad, needed)
                ds, db = (grad.new_tensor(number) for number in by_numbers)
        derivatives = zip((dx, dy, ds, db), needed, inputs, strict=True)
        return None, *(t.to(like.dtype).view(like.shape) if need else None
                       for t, need, like in derivatives)  # fmt: skip


def _made(
    loss: Loss, inputs: tuple[Any, ...], incoming: Tensor | None, needed: tuple[bool, ...]
) -> Found:
    x, y, scale, bias = inputs
    rows = x.detach(), y.detach()
    return loss.gradients(*rows, _float(scale), _float(bias), incoming, *needed[:2])[1]


def _composite_gradients(
    loss: Loss, inputs: tuple[Any, ...], needed: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Derivatives of <grad, loss>, with a graph where grad mode is on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the derivative by one input does not run through another made of it.
        seen = [
            (t.view_as(t) if t.requires_grad else t.detach().requires_grad_()) if need else t
            for t, need in zip(inputs, needed, strict=True)
        ]
        value = loss.composite(*seen)
        wanted = [t for t, need in zip(seen, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                value, wanted, grad, create_graph=graph, allow_unused=True, materialize_grads=True
            )
        )
    return [next(found) if need else None for need in needed]


def _float(number: Number) -> float:
    return float(number.detach()) if isinstance(number, Tensor) else number
