"""Arguments of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cossim_fast._checks.functions import PRECISIONS, require_dense
from cossim_fast._checks.tensors import COMPUTED, PLAIN, converted, one_is_fake

REDUCTIONS = ("mean", "sum", "none")


def loss_rows(function: str, names: Sequence[str], *rows: Tensor) -> torch.dtype:
    """Check matrices of rows of one width on one device; return the dtype that they promote to."""
    for name, x in zip(names, rows, strict=True):
        require_dense(function, name, x, TypeError)
        if x.dim() != 2:
            raise ValueError(f"{function}(): expected {name} of shape (n, d), got {tuple(x.shape)}")
        if x.dtype not in COMPUTED:
            fix = converted(x.dtype) or f"{x.dtype}; call .float() first"
            raise TypeError(
                f"{function}(): expected {name} of float16, bfloat16, float32 or float64, got {fix}"
            )
    first, dtype = rows[0], rows[0].dtype
    for name, x in zip(names[1:], rows[1:], strict=True):
        if x.shape[1] != first.shape[1]:
            raise ValueError(
                f"{function}(): expected {name} of shape (n, {first.shape[1]}) to match {names[0]} "
                f"of shape {tuple(first.shape)}, got {tuple(x.shape)}"
            )
        if x.device != first.device:
            raise ValueError(
                f"{function}(): expected {name} on {first.device} like {names[0]}, got {x.device}; "
                "move one with .to()"
            )
        if one_is_fake(first, x):
            raise TypeError(
                f"{function}(): expected {names[0]} and {name} both with values or both a "
                "FakeTensor, got one of each; convert one with fake_mode"
            )
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def loss_options(function: str, reduction: str, eps: float, precision: str = "highest") -> None:
    """Check what all losses take."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{function}(): expected reduction to be one of {REDUCTIONS}, got {reduction!r}"
        )
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"{function}(): expected a finite eps >= 0, got {eps!r}")
    if precision not in PRECISIONS:
        raise ValueError(
            f"{function}(): expected precision to be one of {PRECISIONS}, got {precision!r}"
        )


def loss_number(
    function: str, name: str, value: Any, device: torch.device, *, positive: bool = False
) -> None:
    """Check a number that may be learned: a float, or a tensor of one element.

    Whether a tensor is positive is looked at where its number is at hand.
    """
    what = "a number > 0" if positive else "a number"
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise ValueError(
                f"{function}(): expected {name} to be {what} or a floating tensor of one element, "
                f"got shape {tuple(value.shape)} of {value.dtype}"
            )
        if value.device != device:
            raise ValueError(
                f"{function}(): expected {name} on {device} like the rows, got {value.device}; "
                "move it with .to()"
            )
        # Another device would be waited for, and a trace has no numbers.
        if not (positive and value.is_cpu) or type(value) not in PLAIN:
            return
        if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(value):
            return
        if value.detach() <= 0:
            raise ValueError(f"{function}(): expected {name} to be {what}, got {value.item()}")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{function}(): expected {name} to be {what} or a tensor of one element, "
            f"got {type(value).__name__}"
        )
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{function}(): expected {name} to be a finite {what[2:]}, got {value}")


def loss_ids(function: str, name: str, ids: Any, count: int, device: torch.device) -> None:
    """Check integers, one for each row, on the device of the rows."""
    if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dtype.is_complex:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(
            f"{function}(): expected {name} to be a tensor of integers, one for each row, got {got}"
        )
    if ids.shape != (count,):
        raise ValueError(
            f"{function}(): expected {name} of shape ({count},), one for each row, "
            f"got {tuple(ids.shape)}"
        )
    if ids.device != device:
        raise ValueError(
            f"{function}(): expected {name} on {device} like the rows, got {ids.device}; "
            "move it with .to()"
        )


def positives_of(
    function: str, positives: Any, n: int, m: int, device: torch.device, *, symmetric: bool
) -> None:
    """Check the row numbers of positives: (n,), -1 for none; None is the diagonal."""
    if positives is None:
        if n > m:
            raise ValueError(
                f"{function}(): expected at least as many keys as queries, since key i is query "
                f"i's positive, got {n} queries and {m} keys; give positives="
            )
        return
    loss_ids(function, "positives", positives, n, device)
    if not positives.is_cpu or torch.compiler.is_compiling() or positives.numel() == 0:
        return
    low, high = int(positives.min()), int(positives.max())
    if low < -1 or high >= m:
        raise ValueError(
            f"{function}(): expected positives to be rows of {m} keys, or -1 for none, got "
            f"{low if low < -1 else high}"
        )
    if symmetric:
        given = positives[positives >= 0]
        if len(given.unique()) < len(given):
            raise ValueError(
                f"{function}(): expected each key to be the positive of one query at most, since "
                "symmetric=True; give each query a key of its own, and equal key_ids to keys that "
                "are no negatives"
            )


def same_count(function: str, names: tuple[str, str], x: Tensor, y: Tensor) -> None:
    """Refuse rows of which not each has its partner."""
    if len(x) != len(y):
        raise ValueError(
            f"{function}(): expected {names[1]} of shape {tuple(x.shape)} like {names[0]}, since "
            f"row i of one belongs to row i of the other, got {tuple(y.shape)}"
        )


def loss_margin(function: str, margin: Any) -> None:
    """Check a difference of cosines."""
    if margin is not None and (
        not isinstance(margin, (int, float))
        or isinstance(margin, bool)
        or not math.isfinite(margin)
    ):
        raise ValueError(f"{function}(): expected margin to be a finite number, got {margin!r}")


def pair_ids(
    function: str, names: tuple[str, str], ids: Any, others: Any, n: int, m: int,
    device: torch.device, *, diagonal: bool = True,
) -> None:  # fmt: skip
    """Check ids of both sides; the first side's alone are both's, where row i belongs to row i."""
    for name, given, count in ((names[0], ids, n), (names[1], others, m)):
        if given is not None:
            loss_ids(function, name, given, count, device)
    if ids is not None and others is None and not (diagonal and n == m):
        raise ValueError(
            f"{function}(): expected {names[1]} beside {names[0]}, since not every key i is the "
            "positive of query i"
        )


def triplet_margin(function: str, margin: Any) -> None:
    """Check a difference of cosines that is no less than 0."""
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        got = type(margin).__name__
        raise TypeError(f"{function}(): expected margin to be a number, got {got}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"{function}(): expected a finite margin >= 0, got {margin}")


def rows_with_labels(function: str, names: tuple[str, str], rows: Any, labels: Any) -> None:
    """Refuse rows without labels, and labels without rows."""
    if (rows is None) != (labels is None):
        given, lacking = names[::-1] if rows is None else names
        raise ValueError(f"{function}(): expected {lacking} with {given}, got None; give both")
