"""Do two tensors share memory? Asked of addresses, never of values."""

import math
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


def same_elements(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> int:
    """Count the indices of a common broadcast shape at which both tensors read one element.

    ``x[:-1]`` and ``x[1:]`` overlap and have no such index; a matrix and its transpose have
    their diagonal.
    """
    return _meetings(a, b, shape, range(len(shape)))


def same_rows(a: Tensor, b: Tensor, shape: tuple[int, ...], dim: int) -> int:
    """Count the rows along ``dim`` that are one piece of memory, element by element."""
    if not shape:
        return same_elements(a, b, shape)
    dim %= len(shape)
    x, y = a.expand(shape), b.expand(shape)
    if shape[dim] > 1 and x.stride(dim) != y.stride(dim):
        return 0
    return _meetings(a, b, shape, [axis for axis in range(len(shape)) if axis != dim])


def _meetings(a: Tensor, b: Tensor, shape: tuple[int, ...], axes: Any) -> int:
    """Count the indices over some axes at which both addresses are the same.

    Addresses are linear in the index, so that axes with equal strides multiply the count, and
    the others solve one equation: all but the longest of them are gone through.
    """
    if a.device != b.device or a.dtype != b.dtype or 0 in shape:
        return 0
    x, y = a.expand(shape), b.expand(shape)
    apart, within = divmod(y.data_ptr() - x.data_ptr(), a.element_size())
    if within:
        return 0
    steps = [(shape[axis], x.stride(axis) - y.stride(axis)) for axis in axes if shape[axis] > 1]
    times = math.prod(size for size, step in steps if step == 0)
    *others, (size, step) = [(1, 1), *sorted(each for each in steps if each[1] != 0)]
    missing: Any = np.array([apart])
    for count, each in others:
        missing = (missing[:, None] - each * np.arange(count)).ravel()
    index, rest = np.divmod(missing, step)
    met: int = times * int(np.count_nonzero((rest == 0) & (index >= 0) & (index < size)))
    return met


def _extent(x: Tensor) -> tuple[int, int]:
    """Return the address of the first byte, and that after the last."""
    start, size = x.data_ptr(), x.element_size()
    if x.is_contiguous():
        return start, start + size * x.numel()
    steps = zip(x.stride(), x.shape, strict=True)
    return start, start + size * (1 + sum(stride * (count - 1) for stride, count in steps))
