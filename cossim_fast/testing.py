"""Compare results and make inputs: for our tests and benchmarks, and for yours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """How far a result of a dtype may be from the exact one."""

    atol: float  # of each element, absolute
    rtol: float  # of each element, relative to what was expected; the two are added
    rms: float  # of the root mean square of the errors, for expected values of about 1


# The error that plain torch makes. F.cosine_similarity was compared with float64 (float64 with
# 80-bit floats) on 2000 pairs of rows for each width of 3, 8, 64, 128, 384, 1024 and 4096, on CPU:
#             largest    root mean square
#   float16   1.2e-03    3.0e-04
#   bfloat16  1.1e-02    2.5e-03
#   float32   1.9e-07    4.9e-08
#   float64   5.6e-16    1.5e-16
# atol and rms leave a factor of two for other draws, and for the error of the float64 that a
# float64 result is compared with; rtol is four roundings of the dtype, for values that are not
# bounded by 1 (gradients).
TOLERANCES = {
    torch.float16: Tolerance(atol=2.4e-3, rtol=2.0**-9, rms=6.0e-4),
    torch.bfloat16: Tolerance(atol=2.3e-2, rtol=2.0**-6, rms=5.0e-3),
    torch.float32: Tolerance(atol=3.8e-7, rtol=2.0**-22, rms=1.0e-7),
    torch.float64: Tolerance(atol=1.2e-15, rtol=2.0**-51, rms=3.0e-16),
}

_SHOWN = 5


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    tolerance: Tolerance | None = None,
    scale: float = 1.0,
    name: str = "result",
) -> None:
    """Raise AssertionError unless `actual` is as near to `expected` as plain torch would be.

    The largest error and the root mean square are both checked: one bad tile moves the first,
    a bias that no single element shows moves the second.

    Args:
        actual: any shape; its dtype chooses the row of `TOLERANCES`.
        expected: of the same shape, in any dtype, at best float64.
        tolerance: other bounds.
        scale: the size of the values, where it is not about 1; atol and rms are multiplied by it.
        name: what to call `actual` in the message.

    NaN equals NaN, and an infinity equals itself. Empty tensors of one shape are close.

    Raises:
        AssertionError: with both errors, both bounds and the coordinates of the worst elements.

    >>> assert_close(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.5]))
    Traceback (most recent call last):
        ...
    AssertionError: result is off, float32 of shape (2,)
      largest error 0.5 of 7.38e-07 allowed, root mean square 0.354 of 5.22e-07 allowed
      1 of 2 elements off; at (1,): got 1, expected 1.5
    """
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
        )
    bounds = tolerance or TOLERANCES[actual.dtype]
    got, wanted = actual.detach().double().cpu(), expected.detach().double().cpu()
    if got.numel() == 0:
        return
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    error = torch.where(same, 0.0, (got - wanted).abs()).nan_to_num(nan=math.inf)
    size = torch.where(wanted.isfinite(), wanted, 0.0).abs()
    allowed = bounds.atol * scale + bounds.rtol * size
    rms = error.square().mean().sqrt().item()
    rms_allowed = bounds.rms * max(scale, size.square().mean().sqrt().item())
    # One element may be as far off as an element may be, which few others cannot average away.
    rms_allowed = max(rms_allowed, allowed.max().item() / math.sqrt(got.numel()))
    off = error > allowed
    if not off.any() and rms <= rms_allowed:
        return
    worst = (error - allowed).flatten().topk(min(_SHOWN, got.numel())).indices
    places = [tuple(int(i) for i in torch.unravel_index(w, got.shape)) for w in worst]
    shown = [p for p in places if off[p]] or places[:1]
    most = tuple(int(i) for i in torch.unravel_index(error.argmax(), got.shape))
    lines = "; ".join(
        f"at {p}: got {got[p].item():.9g}, expected {wanted[p].item():.9g}" for p in shown
    )
    raise AssertionError(
        f"{name} is off, {str(actual.dtype).removeprefix('torch.')} of shape "
        f"{tuple(actual.shape)}\n"
        f"  largest error {error[most].item():.3g} of {allowed[most].item():.3g} allowed, "
        f"root mean square {rms:.3g} of {rms_allowed:.3g} allowed\n"
        f"  {int(off.sum())} of {got.numel()} elements off; {lines}"
    )


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


def _strided(x: Tensor) -> Tensor:
    room = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), math.nan)
    return room[..., ::2].copy_(x)


def _offset(x: Tensor) -> Tensor:
    room = x.new_full((*x.shape[:-1], x.shape[-1] + 3), math.nan)
    return room[..., 2:-1].copy_(x)


# Layouts of equal values. What lies between them is NaN, so that reading there shows.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _as_it_is,
    "transposed": _transposed,
    "strided": _strided,
    "offset": _offset,
}


def make_inputs(
    *shapes: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 1.0,
    layout: str = "contiguous",
    requires_grad: bool = False,
    device: str | torch.device = "cpu",
) -> list[Tensor]:
    """Return a tensor of each shape, the same for the same arguments, whatever the device.

    Entries are Gaussian, and rows are pulled towards one direction or away from it, so that their
    cosines fill [-1, 1] in any width; those of Gaussian rows alone crowd around 0.

    Args:
        *shapes: one for each tensor.
        dtype: the values are drawn in float64 and rounded to it.
        seed: of the values.
        scale: the size of an entry.
        layout: one of `LAYOUTS`: ``"contiguous"``, ``"transposed"``, ``"strided"``, ``"offset"``.
        requires_grad: whether the tensors are leaves that want a gradient.
        device: where the tensors are to be.

    >>> x, y = make_inputs((2, 3), (4, 3), dtype=torch.float16, layout="strided")
    >>> x.shape, y.dtype, y.stride()
    (torch.Size([2, 3]), torch.float16, (6, 2))
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        if shape:
            pull = torch.randn(
                (*shape[:-1], 1), generator=generator, dtype=torch.float64, device="cpu"
            )
            values = values + pull
        x = LAYOUTS[layout]((values * scale).to(device=device, dtype=dtype))
        made.append(x.requires_grad_(requires_grad))
    return made
