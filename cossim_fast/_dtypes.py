"""Which dtype a sum is kept in, and how precise a float32 product is, whatever the process says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cossim_fast import _fp32_setting

# torch's names for what a float32 product may do to its factors, most precise first, by our
# (and torch.set_float32_matmul_precision's) words for them.
SETTING = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
_ORDER = list(SETTING.values())
_FULL = ("none", "ieee")

_lock = threading.Lock()
_wanted: list[str] = []
_found = "none"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for anything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, differentiable and traceable, at no less than float32 precision.

    ``torch.set_float32_matmul_precision("high")`` and its kin let torch round the factors
    first. Where they are set, the product is formed in float64: slower, never coarser.
    """
    if a.dtype == torch.float32 and not _products_are_full("cuda" if a.is_cuda else "mkldnn"):
        return (a.double() @ b.double()).float()
    return a @ b


def _products_are_full(backend: str) -> bool:
    return _fp32_setting.get(backend) in _FULL


# What torch.compiler.assume_constant_result sets, which would load dynamo at import: seconds.
# Dynamo compiles anew when torch.set_float32_matmul_precision is called.
_products_are_full._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def cpu_products(precision: str) -> Iterator[None]:
    """Run eager float32 products on CPU at `precision`, whatever the process has set.

    torch keeps one setting for the process. While several threads are in here, it is that of
    the most demanding of them, and the last to leave restores what the first found; so nobody
    gets less than was asked for, and a stranger's products meanwhile get at most more.
    """
    _want(SETTING[precision])
    try:
        yield
    finally:
        _release(SETTING[precision])


def _want(setting: str) -> None:
    global _found  # noqa: PLW0603 - the process has one setting
    with _lock:
        if not _wanted:
            _found = _get()
        _wanted.append(setting)
        _apply(min(_wanted, key=_ORDER.index))


def _release(setting: str) -> None:
    with _lock:
        _wanted.remove(setting)
        if _wanted:
            _apply(min(_wanted, key=_ORDER.index))
        elif _get() != _found:
            # What was found may have been inherited from torch.backends.fp32_precision.
            _set("none")
            if _get() != _found:
                _set(_found)


def _apply(setting: str) -> None:
    if _get() != setting and not (_get() in _FULL and setting in _FULL):
        _set(setting)


def _get() -> str:
    return _fp32_setting.get("mkldnn")


def _set(setting: str) -> None:
    _fp32_setting.set("mkldnn", setting)
