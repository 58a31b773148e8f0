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


# Numbers in a row where nothing is said of it: most embeddings have as many, or fewer.
TERMS = 1024


def derived_tolerance(dtype: torch.dtype, terms: int = TERMS) -> Tolerance:
    """How far plain torch's cosine of rows of ``terms`` numbers may be off, on any processor.

    Args:
        dtype: of the result: float16, bfloat16, float32 or float64.
        terms: d, how many products each element sums, or more.

    A product of rows adds its d terms in an order that the processor and the library choose: one
    after the other, or in lanes and blocks; rounded after each product, or not (FMA). One after
    the other is the worst. With u the unit roundoff of the sum (2^-24 up to float32, 2^-53 for
    float64), no partial sum exceeds the product of the norms (Cauchy and Schwarz), so every
    addition costs a cosine u at most: d u at worst, if all lean one way. They do not: roundings
    spread evenly over their range, with a mean of 0, add up to a spread of u sqrt(d/3) or less,
    and, where they are independent, exceed t times that in 2 exp(-t^2/2) of all elements at most
    (Higham and Mary, A new approach to probabilistic rounding error analysis, 2019). So do the
    sums of squares of the two norms, which the root halves, and a cosine of size 1 takes over. In
    all, the spread is u sqrt(d/3 + d/12 + d/12) = u sqrt(d/2) or less.

    Torch rounds six times more, whatever the order: norms, quotients, a product and the result.
    With v the unit roundoff of the dtype, that is 6 v at most, and sqrt(6/3) v < 1.5 v on average.

    So atol is 6 v + 6 u sqrt(d/2), six times the spread, which one of 30 million elements may miss,
    and rms 1.5 v + u sqrt(d/2); both twice as much in float64, where what it is compared with has
    the same errors. rtol, four roundings, is for values that are not bounded by 1 (gradients).
    Long rows of equal numbers, whose roundings all lean one way, can be off by more.

    For 384 numbers in float32 that is 5.3e-6, and 9.2e-7. Of 30 000 such cosines the largest error
    was 8.4e-7 with terms added one by one, 3.8e-7 by MKL on one AMD Zen 5, and 1.8e-7 in
    F.cosine_similarity; the root mean squares were 1.0e-7, 5.4e-8 and 2.5e-8. To say how far a
    processor's own products are off, measure them: see `measured_tolerance`.

    >>> f"{derived_tolerance(torch.float32, 384).atol:.2g}"
    '5.3e-06'
    """
    v = torch.finfo(dtype).eps / 2
    u = min(v, 2.0**-24)
    times = 2.0 if dtype == torch.float64 else 1.0
    spread = u * math.sqrt(terms / 2)
    return Tolerance(atol=times * (6 * v + 6 * spread), rtol=8 * v, rms=times * (1.5 * v + spread))


def measured_tolerance(plain: Tensor, expected: Tensor, *, factor: float = 2.0) -> Tolerance:
    """``factor`` times the errors of what plain torch gave for the same rows in this process.

    It follows the processor, and allows less than `derived_tolerance`. One rounding of the dtype,
    and half of it on average, count where torch made less.

    Args:
        plain: what plain torch gave, in the dtype in question; any shape.
        expected: the exact values of that shape, in float64.
        factor: how many times as far off a result may be.

    >>> import torch.nn.functional as F
    >>> (x,) = make_inputs((50, 384))
    >>> exact = F.normalize(x.double()) @ F.normalize(x.double()).T
    >>> plain = F.normalize(x) @ F.normalize(x).T
    >>> assert_close(plain, exact, tolerance=measured_tolerance(plain, exact, factor=1.1))
    """
    v = torch.finfo(plain.dtype).eps / 2
    error = plain.detach().double().cpu() - expected.detach().double().cpu()
    most, rms = (
        (error.abs().max().item(), error.square().mean().sqrt().item())
        if error.numel()
        else (0.0, 0.0)
    )
    return Tolerance(atol=factor * max(most, v), rtol=0.0, rms=factor * max(rms, v / 2))


_SHOWN = 5


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    terms: int = TERMS,
    tolerance: Tolerance | None = None,
    scale: float = 1.0,
    name: str = "result",
) -> None:
    """Raise AssertionError unless `actual` is as near to `expected` as plain torch may be.

    The largest error and the root mean square are both checked: one bad tile moves the first,
    a bias that no single element shows moves the second.

    Args:
        actual: any shape; its dtype chooses the bounds.
        expected: of the same shape, in any dtype, at best float64.
        terms: how many numbers each element sums at most, for cosines the width of the rows. What
            is allowed on every processor grows with its root: see `derived_tolerance`.
        tolerance: other bounds, such as those of `measured_tolerance`.
        scale: the size of the values, where it is not about 1; atol and rms are multiplied by it.
        name: what to call `actual` in the message.

    NaN equals NaN, and an infinity equals itself. Empty tensors of one shape are close.

    Raises:
        AssertionError: with both errors, both bounds and the coordinates of the worst elements.

    >>> assert_close(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.5]))
    Traceback (most recent call last):
        ...
    AssertionError: result is off, float32 of shape (2,)
      largest error 0.5 of 9.17e-06 allowed, root mean square 0.354 of 6.48e-06 allowed
      1 of 2 elements off; at (1,): got 1, expected 1.5
    """
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
        )
    bounds = tolerance or derived_tolerance(actual.dtype, terms)
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
