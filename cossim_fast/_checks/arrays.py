"""Arguments that are arrays as well as tensors, and numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` as a dense real tensor, without copying tensors and arrays."""
    if not isinstance(value, Tensor):
        try:
            value = _from_array(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"expected {name} to be a tensor or an array of numbers, got {type(value).__name__}"
            ) from error
    if value.layout != torch.strided:
        raise TypeError(
            f"expected {name} to be a dense tensor, got layout {value.layout}; "
            "call .to_dense() first"
        )
    if value.is_complex():
        raise TypeError(f"expected {name} of real numbers, got {value.dtype}")
    if value.is_meta:
        raise TypeError(f"expected {name} to hold values, got a tensor on the meta device")
    tensor: Tensor = value
    return tensor


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in native.strides):  # torch has no negative strides
        native = native.copy()
    with warnings.catch_warnings():
        # torch warns of read-only memory; nothing here writes to its inputs.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(native)


def comparison(a: Tensor, b: Tensor, dim: int) -> tuple[int, ...]:
    """Return the broadcast shape of a comparison along ``dim``."""
    if a.device != b.device:
        raise ValueError(f"expected both tensors on one device, got {a.device} and {b.device}")
    try:
        # numpy's: torch's loads sympy at its first call, half a second of somebody's training.
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


def embeddings(shape: tuple[int, ...], dtype: object) -> None:
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
    if "complex" in str(dtype) or str(dtype).startswith(("object", "<U", "str")):
        raise TypeError(f"expected embeddings of real numbers, got {dtype}")


def class_labels(labels: Any, n: int) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return ``labels`` as n integers counted from 0, and the name of each."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"expected labels of shape ({n},), got {values.shape}")
    names, codes = np.unique(values, return_inverse=True)
    return codes.reshape(n), tuple(str(name) for name in names)


def whole_number(name: str, value: int, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
