"""Float32 products that leave their factors whole, whatever the process and its environment say.

`torch.set_float32_matmul_precision` and its kin let torch round the factors of a float32 product,
for every thread of the process and at any moment; oneDNN does so by an environment variable
(ONEDNN_DEFAULT_FPMATH_MODE) that no setting of torch overrides. Nothing is changed here. What torch
does under the settings that are found is tried once (`_leaves_factors_whole`), and where it rounds,
a product is formed in float64, which nothing rounds: at 60 G operations a second where torch.mm in
float32 makes 112 (Zen 5, one thread, 1024 x 768 x 1024). Six float32 products of factors split into
three parts of 8 bits, which no setting rounds either, made 35 by oneDNN, where one makes 253.

Another thread may change the settings at any moment. They are read before and after each product;
where they changed meanwhile, it is formed again in float64, and so is every other for the next
`_REST` seconds. A change that is undone in between is not seen so. Where other threads run Python,
entries of `mm` and `linear` are therefore compared with what whole factors give (`_is_whole`): one
call multiplies by one routine, which rounds all factors or none. Products of few numbers are
numpy's, which no setting reaches. What is left is `full_precision_product`, whose tensors may be
traced or transformed and have no numbers to look at.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _fp32_setting, _threads
from cossim_fast._quiet import quiet
from cossim_fast._threads import unforked

# torch's words for settings under which a GPU leaves factors whole.
_FULL = ("none", "ieee")
# A product in float64 is formed in tiles, of and from so many numbers, 8 MB, or of this side.
_TILE, _SIDE = 1 << 20, 64
# Multiplications of a product that numpy forms. Its BLAS shares them among no threads, and takes as
# long as torch.mm: 4.4 µs both for 2^17, 11 and 12 for 2^19 (Zen 5, OpenBLAS, one thread).
_FEW = 1 << 18
# Rows and columns of a product that are compared with what whole factors give.
_LOOKED_AT = 4
# The bits of a float32 that are lost to the finest rounding of factors, TF32's, and half of them.
_LOST, _HALF = (1 << 13) - 1, 1 << 12
# Rows, width and columns of the products that are tried. Libraries choose their code by shape.
_TRIED = ((64, 64, 64), (96, 384, 130), (33, 70, 19), (1, 384, 128), (128, 384, 1))
_BATCH = 2
# The same of the products that are timed, and how many times as fast oneDNN has to be.
_COMPARED, _FASTER = (1024, 384, 256), 4 / 3
# Far from what a rounding to 16 bits or fewer does, and above those of sums with one large term.
_ROUNDING = 2.0**-20

Array = np.ndarray[Any, Any]
Multiply = Callable[[Tensor, Tensor], list[Tensor]]
Trial = Callable[[], "bool | None"]

# Calls that do not run Python: whatever else runs Python has no turn between them.
_call: Callable[[Any], Any] = partial.__call__
_READ = (
    partial(torch._C._get_fp32_precision_getter, "mkldnn", "matmul")
    if _fp32_setting.PER_BACKEND
    else partial(torch._C._get_float32_matmul_precision),
    partial(torch._C._get_mkldnn_enabled),
)
# What was tried, by what multiplies and the two settings that are read: when to try it again, since
# it rounds factors, or _WHOLE.
_tried: dict[tuple[Any, ...], float] = {}
_WHOLE = -math.inf
# Seconds for which products are formed in float64 after another thread has changed the settings
# during one, and until when that is (time.monotonic).
_REST = 10.0
_rest_until = -math.inf


def mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return a @ b of (n, d) and (d, m), written to `out` (n, m), on CPU and without a graph.

    A float32 product is as exact as float32 sums of exact products, or more.
    """
    if a.dtype != torch.float32:
        return unforked(torch.mm, a, b, out=out)
    if a.shape[0] * a.shape[1] * b.shape[1] <= _FEW:
        few = torch.from_numpy(_dot(a.numpy(), b.numpy()))
        return few if out is None else out.copy_(few)
    out = a.new_empty((a.shape[0], b.shape[1])) if out is None else out
    if not _left_whole(a, b, out):
        side = max(min(_TILE // max(a.shape[1], 1), math.isqrt(_TILE)), _SIDE)
        for columns, strip in zip(b.split(side, 1), out.split(side, 1), strict=True):
            wide = columns.double()
            for part, place in zip(a.split(side), strip.split(side), strict=True):
                place.copy_(unforked(torch.mm, part.double(), wide))
    return out


def bmm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return a @ b of (p, n, d) and (p, d, m), as `mm` does."""
    out = a.new_empty((*a.shape[:2], b.shape[2])) if out is None else out
    if a.dtype != torch.float32:
        return unforked(torch.bmm, a, b, out=out)
    if a.shape[1] * a.shape[2] * b.shape[2] <= _FEW:
        _matmul(a.numpy(), b.numpy(), out.numpy())
    else:
        # One by one: where torch does so, it reads the settings for each.
        for left, right, place in zip(a, b, out, strict=True):
            mm(left, right, out=place)
    return out


# Rows that are not finite give NaN, of which some BLAS warns.
@quiet
def _dot(a: Array, b: Array) -> Array:
    found: Array = np.dot(a, b)
    return found


@quiet
def _matmul(a: Array, b: Array, out: Array) -> None:
    np.matmul(a, b, out=out)


def linear(a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """Return a @ b.T (+ start) of float32 (n, d), contiguous, and (m, d), by oneDNN, as `mm` does.

    In memory of its own.
    """
    if _settings_leave_whole(_by_onednn, _here):
        product, whole = _watched(_by_onednn, partial(_linear, a, b, start))
        if whole and _is_whole(a, b.T, product, start):
            return product
    product = mm(a, b.T)
    return product if start is None else product.add_(start)


def linear_is_faster() -> bool:
    """Whether `linear` is oneDNN's product, as settings are, and faster than `mm`."""
    return _onednn_is_faster() and _settings_leave_whole(_by_onednn, _here)


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than torch.mm on one thread; asked once a process.

    On x86 torch.mm calls MKL, which has no 512-bit code for processors that are not Intel's:
    54 multiply-adds a nanosecond on a core of Zen 5, and 128 by oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    found: bool = _threads.on_one(_compare)
    return found


def _compare() -> bool:
    n, d, m = _COMPARED
    a, b = _numbers(n, d), _numbers(m, d)
    out, times = torch.empty((n, m), dtype=a.dtype, device="cpu"), []
    try:
        for _ in range(4):
            begun = time.perf_counter()
            unforked(_linear, a, b, None)
            between = time.perf_counter()
            unforked(torch.mm, a, b.T, out=out)
            times.append((between - begun, time.perf_counter() - between))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False  # a build of torch without the operator
    # The first make code and find memory.
    linear, usual = (min(column) for column in zip(*times[1:], strict=True))
    return bool(_FASTER * linear < usual)


def full_precision_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, differentiable and traceable, on any device, as exact as `mm`.

    Its derivatives are products too, formed as this one is: in float64 where settings round. What
    is exported to ONNX is one product in float32: torch's settings are not those of who runs it.
    """
    if a.dtype != torch.float32 or torch.onnx.is_in_onnx_export():
        return a @ b
    if torch._C._get_tracing_state() is not None and a.is_cpu:
        # Neither autocast nor a setting of where the trace runs reaches float64.
        return (a.double() @ b.double()).float()
    if torch.compiler.is_compiling() or not a.is_cpu:
        backend = "cuda" if a.is_cuda else "mkldnn"
        return a @ b if _products_are_full(backend) else (a.double() @ b.double()).float()
    if _settings_leave_whole(_by_torch, _in_thread):
        product, whole = _watched(_by_torch, partial(torch.matmul, a, b))
        if whole:
            return product
    return unforked(torch.matmul, a.double(), b.double()).float()


def described() -> str:
    """How float32 products are formed now."""
    if _settings_leave_whole(_by_torch, _here):
        return "as torch computes them, without rounding factors"
    if time.monotonic() < _rest_until:
        return "in float64, since another thread changed torch's setting during one"
    return "in float64, since torch would round the factors of float32 ones"


def _left_whole(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Write a @ b to `out`; return whether its factors were left whole, else it is open."""
    if not _settings_leave_whole(_by_torch, _here):
        return False
    return _watched(_by_torch, partial(torch.mm, a, b, out=out))[1] and _is_whole(a, b, out, None)


def _watched(by: Multiply, product: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """A product, and whether the settings before and after it leave factors whole."""
    calls: Iterator[Any] = map(_call, (*_READ, product, *_READ))
    word, enabled, found, *after = unforked(list[Any], calls)
    whole = _tried.get((by, word, enabled)) == _tried.get((by, *after)) == _WHOLE
    if not whole:
        _rest()
    return found, whole


def _rest() -> None:
    """Another thread has changed the settings, and may do so again and undo it unseen."""
    global _rest_until  # noqa: PLW0603 - the process has one setting
    _rest_until = time.monotonic() + _REST


@quiet
def _is_whole(a: Tensor, b: Tensor, product: Tensor, start: Tensor | None) -> bool:
    """Whether a @ b (+ start) is as from whole factors, and not as from rounded ones.

    Some entries are compared with what they are and with what they would be if factors were rounded
    to the 11 bits of TF32; bfloat16 has 8. Where the two are the same, it stays open: False. Takes
    25 µs (Zen 5), so it is left out where nobody else runs Python, who could change a setting.
    """
    if not _threads.others_run():
        return True
    rows, columns = (slice(None, None, -(-count // _LOOKED_AT) or 1) for count in product.shape)
    left, right = a[rows].numpy(), b[:, columns].numpy()
    found = product[rows, columns].numpy().astype(np.float64)
    if start is not None:
        found -= start[rows, columns].numpy()
    exact = np.dot(left.astype(np.float64), right.astype(np.float64))
    effect = np.abs(exact - np.dot(_rounded(left), _rounded(right)))
    known = np.isfinite(effect)
    off = np.abs(found - exact).max(where=known, initial=0.0)
    return bool(4 * off < effect.max(where=known, initial=0.0))


def _rounded(factors: Array) -> Array:
    """Float32 factors, rounded to 11 bits, in float64."""
    bits = np.ascontiguousarray(factors).view(np.int32)
    return ((bits + _HALF) & ~_LOST).view(np.float32).astype(np.float64)


def _products_are_full(backend: str) -> bool:
    if backend == "mkldnn":
        return _settings_leave_whole(_by_torch, _in_thread)
    return _fp32_setting.get(backend) in _FULL


# What torch.compiler.assume_constant_result sets, which would load dynamo at import: seconds.
# Dynamo compiles anew when torch.set_float32_matmul_precision is called.
_products_are_full._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _settings_leave_whole(by: Multiply, run: Callable[[Trial], bool | None]) -> bool:
    """Whether products leave their factors whole under the settings of this moment."""
    now = time.monotonic()
    if now < _rest_until:
        return False
    settings = (by, *map(_call, _READ))
    again = _tried.get(settings, now)
    if again <= now and again != _WHOLE:
        found = run(partial(_leaves_factors_whole, by))
        if found is None or settings != (by, *map(_call, _READ)):
            _rest()  # and it is open what was tried
            return False
        # Another thread may have changed the settings and undone it unseen.
        rounds = now + _REST if _threads.others_run() else math.inf
        again = _tried[settings] = _WHOLE if found else rounds
    return again == _WHOLE


def _here(work: Trial) -> bool | None:
    return work()


def _in_thread(work: Trial) -> bool | None:
    """Run work where no transform, mode or trace of this thread is on."""
    found: list[bool | None] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0] if found else False


def _linear(a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
    ops = torch.ops.mkldnn._linear_pointwise
    if start is None:
        return ops(a, b, None, "none", [], "")  # type: ignore[no-any-return]
    return ops.binary(a, start, b, None, "add")  # type: ignore[no-any-return]


def _by_torch(a: Tensor, b: Tensor) -> list[Tensor]:
    """A @ b by each of torch's own operators: (n, m), and (2, n, m)."""
    some = torch.empty((_BATCH, a.shape[0], b.shape[1]), dtype=a.dtype, device="cpu")
    batch = [x.expand(_BATCH, *x.shape) for x in (a, b)]
    return [torch.mm(a, b, out=some[0].clone()), torch.bmm(*batch, out=some)]


def _by_onednn(a: Tensor, b: Tensor) -> list[Tensor]:
    """A @ b by oneDNN."""
    rows = b.mT.contiguous()
    zeros = torch.zeros((a.shape[0], b.shape[1]), dtype=a.dtype, device="cpu")
    return [_linear(a, rows, start) for start in (None, zeros)]


def _leaves_factors_whole(by: Multiply) -> bool | None:
    """Try products of factors of 24 bits with ones and zeros, which are exact unless rounded.

    None where settings change meanwhile.
    """
    settings = [*map(_call, _READ)]
    for n, d, m in _TRIED:
        for a, b in (
            (_numbers(n, d), _choices(m, d).mT),
            (_numbers(n, d), _choices(m, d).mT.contiguous()),
            (_choices(n, d), _numbers(m, d).mT),
        ):
            exact = unforked(torch.mm, a.double(), b.double())
            for found in unforked(by, a, b):
                if settings != [*map(_call, _READ)]:
                    return None
                if float((found.double() - exact).abs().amax()) > _ROUNDING:
                    return False
    return True


def _numbers(n: int, d: int) -> Tensor:
    """(n, d) numbers in [1, 2) that need 24 bits."""
    steps = torch.arange(n * d, dtype=torch.int64, device="cpu") * 3_957_649 + 1
    return (1 + 2.0**-23 * (steps % (1 << 23)).double()).float().view(n, d)


def _choices(n: int, d: int) -> Tensor:
    """(n, d) zeros with a 1 in each row."""
    at = torch.arange(n, device="cpu")
    chosen = torch.zeros((n, d), dtype=torch.float32, device="cpu")
    chosen[at, at * 31 % d] = 1.0
    return chosen


def _start_anew() -> None:
    """A forked child has none of the threads that changed settings."""
    global _rest_until  # noqa: PLW0603 - the process has one setting
    _rest_until = -math.inf


_threads.after_fork(_start_anew)
