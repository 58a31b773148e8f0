"""Argument validation: every error message of the package is worded here."""

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
                f"expected {name} to be a tensor or an array of numbers, "
                f"got {type(value).__name__}"
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
    return value


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in native.strides):  # torch has no negative strides
        native = native.copy()
    with warnings.catch_warnings():
        # torch warns of read-only memory; nothing here writes to its inputs.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(native)


def check_pair(a: Tensor, b: Tensor, dim: int) -> tuple[int, ...]:
    """Return the broadcast shape of a comparison along ``dim``."""
    if a.device != b.device:
        raise ValueError(f"expected both tensors on one device, got {a.device} and {b.device}")
    try:
        shape = torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError as error:
        raise ValueError(
            f"expected b to broadcast with a of shape {tuple(a.shape)}, got {tuple(b.shape)}"
        ) from error
    check_dim(dim, len(shape))
    if 0 in shape:
        raise ValueError(f"expected at least one element to compare, got shape {tuple(shape)}")
    return tuple(shape)


def check_dim(dim: int, ndim: int) -> None:
    """Check that ``dim`` names an axis, as torch counts them (0-d tensors have one)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"expected dim in [{-bound}, {bound - 1}], got {dim}")


def check_embeddings(shape: tuple[int, ...], dtype: object) -> None:
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


def check_labels(labels: Any, n: int) -> np.ndarray[Any, Any]:
    """Return ``labels`` as n integers counted from 0."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"expected labels of shape ({n},), got {values.shape}")
    codes: np.ndarray[Any, Any] = np.unique(values, return_inverse=True)[1]
    return codes.reshape(n)


def check_positive(name: str, value: int, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
