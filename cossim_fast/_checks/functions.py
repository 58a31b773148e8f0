"""Arguments of `cosine_similarity` and `pairwise_cosine`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._checks.tensors import COMPUTED, converted, one_is_fake, unlike_dense

PRECISIONS = ("highest", "high", "medium")
_BOTH_FAKE = "both with values or both a FakeTensor, got one of each; convert one with fake_mode"
_OF = "of float16, bfloat16, float32 or float64"


def require_tensor(function: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}(): expected {name} to be a Tensor, got {type(value).__name__}"
            + ("; convert it with torch.from_numpy" if isinstance(value, np.ndarray) else "")
        )


def require_dense(function: str, name: str, value: Any, error: type[Exception]) -> None:
    """Raise unless `value` is a dense tensor, or a subclass that computes by rules of its own."""
    require_tensor(function, name, value)
    what = unlike_dense(value)
    if what is not None:
        raise error(f"{function}(): expected {name} to be a dense tensor, got {what}")


def drop_in_arguments(x1: Tensor, x2: Tensor, dim: int, eps: float) -> tuple[torch.dtype, int]:
    """Check the arguments of `cosine_similarity`; return its dtype and dim counted from the end."""
    if not (isinstance(x1, Tensor) and isinstance(x2, Tensor)) or x1.is_nested or x2.is_nested:
        drop_in_dense(x1, x2)
    dtype = drop_in_dtype(x1, x2)
    drop_in_eps(eps)
    if x1.device != x2.device:
        same_device(x1, x2)
    return dtype, drop_in_dim(dim, max(x1.dim(), x2.dim()))


def drop_in_dense(x1: Tensor, x2: Tensor) -> None:
    """Refuse tensors that are not dense, with the NotImplementedError that torch mostly raises.

    Called only for tensors without plain memory (`_dispatch`): in every call it would take 0.2 µs.
    """
    require_dense("cosine_similarity", "x1", x1, NotImplementedError)
    require_dense("cosine_similarity", "x2", x2, NotImplementedError)
    if one_is_fake(x1, x2):
        raise NotImplementedError(f"cosine_similarity(): expected x1 and x2 {_BOTH_FAKE}")


def drop_in_dtype(x1: Tensor, x2: Tensor) -> torch.dtype:
    """Return the promoted dtype of a pair, refusing what torch's function refuses.

    torch broadcasts before it promotes, so a 0-d tensor weighs as much as any other.
    """
    dtype = x1.dtype if x1.dtype is x2.dtype else _promoted(x1, x2)
    if dtype not in COMPUTED:
        for name, x in (("x1", x1), ("x2", x2)):
            if what := converted(x.dtype):
                raise NotImplementedError(f"cosine_similarity(): expected {name} {_OF}, got {what}")
        raise RuntimeError(
            "expected common dtype to be floating point "
            f"(float16, bfloat16, float32 or float64), yet common dtype is {dtype}"
        )
    return dtype


def _promoted(x: Tensor, y: Tensor) -> torch.dtype:
    """The promoted dtype of two tensors; or the dtype of one that torch does not promote."""
    for dtype in (x.dtype, y.dtype):
        if converted(dtype):
            return dtype
    # torch promotes these only with floating dtypes; two integer dtypes give no floating one.
    integers = not (x.dtype.is_floating_point or y.dtype.is_floating_point)
    for dtype in (x.dtype, y.dtype):
        if integers and dtype in (torch.uint16, torch.uint32, torch.uint64):
            return dtype
    return torch.promote_types(x.dtype, y.dtype)


def drop_in_eps(eps: float) -> None:
    """Refuse an eps that is negative, NaN or not a number, with torch's error types."""
    # isinstance first: dynamo cannot ask a symbolic number for its attributes.
    if not isinstance(eps, (int, float)) and (
        not hasattr(eps, "__float__") or getattr(eps, "ndim", 0) > 0
    ):
        raise TypeError(
            f"cosine_similarity(): argument 'eps' must be float, not {type(eps).__name__}"
        )
    if not eps >= 0:
        raise RuntimeError(f"eps must be non-negative, got: {eps}")


def drop_in_dim(dim: int, ndim: int) -> int:
    """Return `dim` counted from the end (-ndim to -1); a 0-d pair counts as 1-d, as in torch."""
    if type(dim) is not int and (isinstance(dim, bool) or not hasattr(dim, "__index__")):
        raise TypeError(
            f"cosine_similarity(): argument 'dim' must be int, not {type(dim).__name__}"
        )
    ndim = ndim or 1
    if not -ndim <= dim < ndim:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], "
            f"but got {dim})"
        )
    return dim - ndim if dim >= 0 else dim


def one_of_dim_and_axis(dim: int, axis: int) -> None:
    """Refuse `dim` together with `axis`, torch's other name of it."""
    raise TypeError(
        f"cosine_similarity(): expected dim or its other name axis, got dim={dim} and axis={axis}; "
        "leave one away"
    )


def same_device(x: Tensor, y: Tensor) -> None:
    """Refuse a pair on two devices; broadcasting leaves no 0-d tensor that torch would let mix."""
    if x.device != y.device:
        raise RuntimeError(
            f"expected both tensors on one device, got {x.device} and {y.device}; "
            "move one with .to()"
        )


def pairwise_arguments(x: Tensor, y: Tensor | None, eps: float, precision: str) -> torch.dtype:
    """Check the arguments of `pairwise_cosine`; return the dtype of its result."""
    require_dense("pairwise_cosine", "x", x, TypeError)
    if x.dim() not in (2, 3):
        raise ValueError(f"expected x of shape (n, d) or (b, n, d), got {tuple(x.shape)}")
    if y is not None:
        require_dense("pairwise_cosine", "y", y, TypeError)
        if one_is_fake(x, y):
            raise TypeError(f"pairwise_cosine(): expected x and y {_BOTH_FAKE}")
        batch, width = tuple(x.shape[:-2]), x.shape[-1]
        if y.dim() != x.dim() or tuple(y.shape[:-2]) != batch or y.shape[-1] != width:
            wanted = ", ".join([*map(str, batch), "m", str(width)])
            raise ValueError(
                f"expected y of shape ({wanted}) to match x of shape {tuple(x.shape)}, "
                f"got {tuple(y.shape)}"
            )
        if x.device != y.device:
            raise ValueError(
                f"expected x and y on one device, got {x.device} and {y.device}; "
                "move one with .to()"
            )
    dtype = x.dtype if y is None or x.dtype is y.dtype else _promoted(x, y)
    if dtype not in COMPUTED:
        for name, given in (("x", x), ("y", x if y is None else y)):
            if what := converted(given.dtype):
                raise TypeError(f"pairwise_cosine(): expected {name} {_OF}, got {what}")
        raise TypeError(
            "expected x and y to promote to float16, bfloat16, float32 or float64, got "
            + (f"{x.dtype}" if y is None else f"{x.dtype} and {y.dtype}, which give {dtype}")
        )
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"expected a finite eps >= 0, got {eps!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision to be one of {PRECISIONS}, got {precision!r}")
    return dtype


def pairwise_out(
    out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, inputs: tuple[Tensor, ...]
) -> None:
    """Refuse an `out` that cannot hold the result without conversion."""
    require_dense("pairwise_cosine", "out", out, TypeError)
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise ValueError(
            f"expected out of shape {shape} and dtype {dtype}, "
            f"got shape {tuple(out.shape)} and dtype {out.dtype}"
        )
    if out.device != inputs[0].device:
        raise ValueError(f"expected out on {inputs[0].device}, got {out.device}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *inputs)):
        raise ValueError(
            "out= cannot be recorded by autograd, and an argument requires a gradient; "
            "omit out=, or call under torch.no_grad()"
        )
    if _overlaps_itself(out):
        raise ValueError("expected out to have one place in memory for each element; pass a copy")
    if any(_share_memory(out, t) for t in inputs):
        raise ValueError("expected out not to overlap an input in memory; pass a fresh tensor")


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of a strided tensor can lie at one address (never wrongly False)."""
    needed = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride < needed:
                return True
            needed = stride * (size - 1) + needed
    return False


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet."""
    if a.numel() == 0 or b.numel() == 0 or a.device.type == "meta":
        return False
    (a_start, a_stop), (b_start, b_stop) = _extent(a), _extent(b)
    return a_start < b_stop and b_start < a_stop


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
