"""Arguments that are arrays as well as tensors, and numbers."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._checks.tensors import (
    COMPUTED,
    PLAIN,
    converted,
    mode_without_values,
    unlike_dense,
    unreadable,
)

# Dtypes that diagnosis reads besides the floating ones.
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` as a dense real tensor, without copying tensors and arrays."""
    value = readable(name, value)
    return value if isinstance(value, Tensor) else _from_array(value)


def readable(name: str, value: Any) -> Tensor | np.ndarray[Any, Any]:
    """Return ``value`` as a dense real tensor or an array, both as they are, or refuse it.

    All of it is checked, for masks for instance, even if only a part of it will be read.
    """
    if what := mode_without_values():
        raise TypeError(f"expected {name} to hold values, got {what}")
    if not isinstance(value, Tensor):
        return _readable_array(name, value)
    if type(value) not in PLAIN:
        # numpy does not need the subclass, whose own functions may refuse what follows.
        with torch._C.DisableTorchFunctionSubclass():
            _real_tensor(name, value)
            value = value.as_subclass(Tensor)
    else:
        _real_tensor(name, value)
    if value.is_neg() or value._is_zerotensor():  # its memory holds negated numbers, or none
        value = value.clone()
    dense: Tensor = value
    return dense


def _real_tensor(name: str, value: Tensor) -> None:
    dense_tensor(name, value)
    if value.is_complex():
        raise TypeError(f"expected {name} of real numbers, got {value.dtype}")
    with_values(name, value)


def _readable_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the class of the value raises
        raise TypeError(
            f"expected {name} to be a tensor or an array of numbers, got {type(value).__name__}, "
            f"which cannot be converted: {error}"
        ) from error
    unmasked(name, value)
    kind, dtype = array.dtype.kind, array.dtype
    if kind == "c":
        raise TypeError(f"expected {name} of real numbers, got {dtype}")
    if kind in "biuf" and dtype.itemsize <= 8:
        return array
    if not array.ndim and kind == "O":
        raise TypeError(
            f"expected {name} to be a tensor or an array of numbers, got {type(value).__name__}"
        )
    fix = "convert it with numpy.asarray(..., dtype=numpy.float64)"
    if dtype.names is not None:
        fix = "make one of it with numpy.lib.recfunctions.structured_to_unstructured"
    raise TypeError(
        f"expected {name} to be a tensor or an array of numbers, got {type(value).__name__} of "
        f"dtype {dtype}, which is no real dtype of torch; {fix}"
    )


def unmasked(name: str, value: Any) -> None:
    """Refuse masked values, since nothing here would take the mask into account."""
    if masked := _masked(value):
        raise TypeError(
            f"expected {name} without a mask, got {masked} masked values; fill them with "
            "numpy.ma.filled, or drop their rows with numpy.ma.compress_rows"
        )


def _masked(value: Any) -> int:
    """How many numbers of a numpy array are masked, or of the arrays in a list."""
    if isinstance(value, np.ma.MaskedArray):
        return int(np.count_nonzero(np.ma.getmaskarray(value)))
    if isinstance(value, (list, tuple)):
        return sum(_masked(item) for item in value if isinstance(item, np.ma.MaskedArray))
    return 0


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # C has two types of 64 bits, of which torch knows one.
    native = native.view(f"{native.dtype.kind}{native.dtype.itemsize}")
    # torch has no negative strides, and none that end within a number.
    if any(stride < 0 or stride % native.itemsize for stride in native.strides):
        native = native.copy()
    with warnings.catch_warnings():
        # torch warns of read-only memory; nothing here writes to its inputs.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(native)


def dense_tensor(name: str, value: Tensor) -> None:
    """Refuse a tensor that is not a dense array of numbers."""
    what = unlike_dense(value)
    if what is not None:
        raise TypeError(f"expected {name} to be a dense tensor, got {what}")


def with_values(name: str, value: Tensor) -> None:
    """Refuse a tensor whose numbers cannot be read."""
    what = unreadable(value)
    if what is not None:
        raise TypeError(f"expected {name} to hold values, got {what}")


def stacked(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape, dense or sparse COO, as the rows of one."""
    for tensor in tensors:
        if not tensor.is_sparse:
            dense_tensor(name, tensor)
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"expected {name} of one shape, got {shapes[0]} and {shapes[1]}")
    return torch.stack(tuple(tensors))


def listed(name: str, value: Any) -> Tensor:
    """Return a list of numbers as torch reads it: in float32, unless it says otherwise."""
    if not isinstance(value, (list, tuple)):
        return as_tensor(name, value)
    try:
        found = torch.tensor(value, device="cpu")
        # Python's floats are read in the default dtype, which is not ours to rely on.
        if found.is_floating_point() and found.dtype == torch.get_default_dtype():
            found = torch.tensor(value, dtype=torch.float32, device="cpu")
        return found
    except Exception as error:  # torch has many
        raise TypeError(
            f"expected {name} to be a tensor, an array or a list of numbers, rows of one length, "
            f"got {type(value).__name__}, which cannot be converted: {error}"
        ) from error


def comparison(a: Tensor, b: Tensor, dim: int) -> tuple[int, ...]:
    """Return the broadcast shape of a comparison along ``dim``."""
    for name, given in (("a", a), ("b", b)):
        if what := converted(given.dtype):
            raise TypeError(f"expected {name} of numbers that torch computes with, got {what}")
    if a.device != b.device:
        raise ValueError(f"expected both tensors on one device, got {a.device} and {b.device}")
    try:
        # numpy's function: torch's imports sympy at its first call, which takes half a second.
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    except ValueError as error:
        raise ValueError(
            f"expected b to broadcast with a of shape {tuple(a.shape)}, got {tuple(b.shape)}"
        ) from error
    axis(dim, len(shape))
    if 0 in shape:
        raise ValueError(f"expected at least one element to compare, got shape {tuple(shape)}")
    return tuple(shape)


def axis(dim: int, ndim: int) -> None:
    """Check that ``dim`` names an axis, as torch counts them (0-d tensors have one)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"expected dim in [{-bound}, {bound - 1}], got {dim}")


def embeddings(shape: tuple[int, ...]) -> None:
    """Check that a set of embeddings is a matrix of at least two rows."""
    if len(shape) != 2:
        raise ValueError(
            f"expected embeddings of shape (n, d), got {tuple(shape)}; "
            "flatten the leading axes with x.flatten(0, -2)"
        )
    if shape[0] < 2 or shape[1] < 1:
        raise ValueError(
            f"expected embeddings of shape (n, d) with n >= 2 and d >= 1, got {tuple(shape)}"
        )


def diagnosed(dtype: torch.dtype) -> None:
    """Check that a set of embeddings is of a dtype that diagnosis can read."""
    if dtype not in COMPUTED and dtype not in _WHOLE:
        raise TypeError(
            "expected embeddings of float16, bfloat16, float32, float64, bool, uint8 or a signed "
            f"integer, got {dtype}; convert them with .float() or .astype(numpy.float32)"
        )


def class_labels(labels: Any, n: int) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return ``labels`` as n integers counted from 0, and the name of each."""
    if isinstance(labels, Tensor):
        given = as_tensor("labels", labels).detach().cpu()
        # numpy has neither bfloat16 nor float8.
        labels = (given.double() if given.is_floating_point() else given).numpy()
    unmasked("labels", labels)
    values = _labels(labels)
    if values.shape != (n,):
        raise ValueError(f"expected labels of shape ({n},), got {values.shape}")
    try:
        names, codes = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise TypeError(f"expected labels that are all numbers or all strings: {error}") from error
    return codes.reshape(n), tuple(str(name) for name in names)


def _labels(labels: Any) -> np.ndarray[Any, Any]:
    try:
        values = np.asarray(labels)
    except Exception as error:  # whatever the class of the labels raises
        raise TypeError(f"expected labels (n,), got {type(labels).__name__}: {error}") from error
    if values.dtype.kind in "Vc":
        raise TypeError(f"expected labels that are numbers or strings, got dtype {values.dtype}")
    return values


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least ``least``, of Python's, numpy's or torch's, as an int."""
    flag = isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) in (
        torch.bool,
        np.bool_,
    )
    try:
        number = operator.index(value)
    except Exception as error:  # tensors have errors of their own
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}") from error
    if flag:
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if number < least:
        raise ValueError(f"expected {name} >= {least}, got {number}")
    return number
