"""Losses beside their float64 oracles: values, first derivatives, and what they may be off by."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cossim_fast.testing import derived_tolerance, make_inputs

Loss = Callable[..., Tensor]


def relative_bound(dtype: torch.dtype, width: int, scale: float, bias: float = 0.0) -> float:
    """How far a loss of logits scale * cosine + bias may be off, relative to it.

    Cosines are off by what plain torch's are in float32 (`derived_tolerance`), or float64. A logit
    is off by scale times that and two roundings. By x a loss log(1 + sum exp x) changes by less
    than itself times the change: so it is off by twice that, of a logit and of the positive's.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    u = torch.finfo(wide).eps / 2
    return 2 * (scale * derived_tolerance(wide, width).atol + 2 * u * (scale + abs(bias))) + 16 * u


def leaves(rows: Mapping[str, Tensor], numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """Leaves that want gradients: the rows as they are, the numbers at least in float32."""
    found = {name: x.detach().clone().requires_grad_() for name, x in rows.items()}
    wide = torch.float64 if next(iter(rows.values())).dtype == torch.float64 else torch.float32
    for name, value in numbers.items():
        found[name] = torch.tensor(value, dtype=wide, device="cpu", requires_grad=True)
    return found


def differentiated(loss: Loss, of: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Any:
    """The loss, and the derivatives of it (of a fixed weighted sum for reduction="none")."""
    value = loss(**of, **settings)
    (weights,) = make_inputs(tuple(value.shape), dtype=torch.float64, seed=3)
    found = torch.autograd.grad((value * weights.to(value)).sum(), list(of.values()),
                                materialize_grads=True)  # fmt: skip
    return value.detach(), dict(zip(of, found, strict=True))


def check(
    loss: Loss,
    oracle: Loss,
    rows: Mapping[str, Tensor],
    numbers: Mapping[str, float],
    settings: Mapping[str, Any] | None = None,
    *,
    scale: float,
    bias: float = 0.0,
) -> None:
    """Compare a loss and its derivatives with the oracle's.

    Args:
        loss: takes rows, numbers and settings by name.
        oracle: takes the same.
        rows: tensors (.., d) with derivatives.
        numbers: scalars with derivatives.
        settings: the other arguments.
        scale: of the logits.
        bias: of the logits.
    """
    settings = settings or {}
    mine = leaves(rows, numbers)
    wide = {name: x.detach().double().requires_grad_() for name, x in mine.items()}
    got, gradients = differentiated(loss, mine, settings)
    wanted, exact = differentiated(oracle, wide, settings)
    first = next(iter(rows.values()))
    bound = relative_bound(first.dtype, first.shape[-1], scale, bias)
    assert got.dtype == (torch.float64 if first.dtype == torch.float64 else torch.float32)
    assert got.shape == wanted.shape
    nothing = torch.finfo(got.dtype).tiny
    error = (got.double() - wanted).abs()
    assert torch.equal(got.isnan(), wanted.isnan())
    allowed = bound * wanted.abs() + nothing
    assert (error[~wanted.isnan()] <= allowed[~wanted.isnan()]).all(), (got, wanted, bound)
    # Weights of `differentiated` are below 3.
    total = 3 * wanted.abs().sum().nan_to_num().item()
    for name, gradient in gradients.items():
        expected = exact[name]
        assert gradient.dtype == mine[name].dtype
        assert gradient.shape == expected.shape
        assert torch.equal(gradient.isnan(), expected.isnan()), name
        # Of each row's: weights of its logits, which add up to less than twice the loss, and may
        # cancel, divided by the row's norm.
        size: Any = 2 * total
        if name == "temperature":
            size = size * scale * scale
        elif name in rows:
            x = wide[name].detach()
            norm = x.norm(dim=1, keepdim=True).clamp(min=settings.get("eps", 1e-8))
            size = size * scale * (1 / norm if settings.get("normalize", True) else x.norm())
        _assert_near(gradient, expected, 8 * bound * (size + expected.abs()) + nothing, name)


def _assert_near(gradient: Tensor, expected: Tensor, allowed: Tensor, name: str) -> None:
    rounding = torch.finfo(gradient.dtype).eps * expected.abs()
    smallest = torch.finfo(gradient.dtype).smallest_normal
    error = (gradient.double() - expected).abs()
    off = error > allowed + rounding + smallest
    assert not off.any(), f"{name}: {error[off]} of {allowed.expand_as(error)[off]} allowed"
