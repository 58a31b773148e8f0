"""Do two tensors share memory? Asked of addresses, never of values."""

from typing import Any

import numpy as np
from torch import Tensor

# Bounds the search where strides are entangled; a few steps are the rule.
_WORK: Any = 100_000


class _Addresses:
    """The array interface of a tensor's memory; NumPy computes with it, nothing reads it."""

    def __init__(self, x: Tensor) -> None:
        size = x.element_size()
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (x.data_ptr(), False),
            "shape": tuple(x.shape),
            "strides": tuple(stride * size for stride in x.stride()),
            "typestr": f"|V{size}",
        }


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Return whether both tensors are views of one storage, be it of different parts."""
    ours, theirs = a.untyped_storage(), b.untyped_storage()
    return a.device == b.device and ours.data_ptr() == theirs.data_ptr() != 0


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Return whether some element of ``a`` lies at the address of an element of ``b``.

    Exact for slices, transposes and ``expand``: ``x[::2]`` and ``x[1::2]`` do not overlap,
    ``x[:5]`` and ``x[4:]`` do. Works on any device, since only addresses are compared.
    """
    if a.device != b.device or a.numel() == 0 or b.numel() == 0:
        return False
    (start, stop), (first, last) = _extent(a), _extent(b)
    if stop <= first or last <= start:
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    ours, theirs = np.asarray(_Addresses(a)), np.asarray(_Addresses(b))
    try:
        return bool(np.shares_memory(ours, theirs, max_work=_WORK))
    except np.exceptions.TooHardError:
        # Entangled strides of many dimensions; the answer by bounds errs towards "shared".
        return bool(np.may_share_memory(ours, theirs))


def _extent(x: Tensor) -> tuple[int, int]:
    """Return the address of the first byte, and that after the last."""
    start, size = x.data_ptr(), x.element_size()
    if x.is_contiguous():
        return start, start + size * x.numel()
    steps = zip(x.stride(), x.shape, strict=True)
    return start, start + size * (1 + sum(stride * (count - 1) for stride, count in steps))
