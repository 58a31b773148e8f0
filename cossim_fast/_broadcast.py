"""Recognise a broadcast that is really a pairwise matrix, from shapes and strides.

F.cosine_similarity(x[:, None], y[None]) multiplies n·m·d numbers out in memory; the same
numbers are a matrix product. Seen as the roles of the dimensions other than `dim`:

    both inputs vary along it       batch
    only the first varies           a row of the matrix
    only the second varies          a column of the matrix
    neither varies                  computed once and repeated
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

# With several matrices in the batch, smaller ones are cheaper row by row.
SMALLEST_BATCHED_SIDE = 8


class MatrixPlan(NamedTuple):
    """How to turn a broadcast pair into one batched matrix product and back."""

    first: Tensor  # (b, rows, d)
    second: Tensor  # (b, columns, d)
    sizes: tuple[int, ...]  # the sizes of the batch, row, column and repeated dimensions
    order: tuple[int, ...]  # permutes those dimensions to their places in the result
    repeated: tuple[int, ...]  # the shape of the result, repeated dimensions at full size

    def restore(self, matrix: Tensor) -> Tensor:
        """Bring (b, rows, columns) to the shape of the result, contiguous as torch's is."""
        result = matrix.reshape(self.sizes).permute(self.order)
        return result.expand(self.repeated).contiguous()


def matrix_plan(x: Tensor, y: Tensor, dim: int, *, by_stride: bool) -> MatrixPlan | None:
    """Return the matrix product that a broadcast of x and y is, or None.

    Args:
        x: any shape.
        y: any shape that broadcasts with x's.
        dim: the reduced dimension, counted from the end.
        by_stride: whether a dimension of stride 0 counts as not varying, as one of size 1
            does. Not where derivatives are wanted: the places of an expanded tensor are one in
            memory but have a derivative each.
    """
    ndim = max(x.dim(), y.dim())
    if ndim < 2:
        return None
    x, y = _with_ndim(x, ndim), _with_ndim(y, ndim)
    axes = [axis for axis in range(ndim) if axis != ndim + dim]
    x_varies = [a for a in axes if _varies(x, a, by_stride)]
    y_varies = [a for a in axes if _varies(y, a, by_stride)]
    rows = [a for a in x_varies if a not in y_varies]
    columns = [a for a in y_varies if a not in x_varies]
    if not rows and not columns:
        return None
    batch = [a for a in x_varies if a in y_varies]
    if columns and (not rows or columns[0] < rows[0]):
        # The matrix of the swapped pair lies in memory as the result has to.
        x, y, rows, columns = y, x, columns, rows
    size = [max(x.shape[a], y.shape[a]) if min(x.shape[a], y.shape[a]) else 0 for a in range(ndim)]
    b, n, m = (math.prod([size[a] for a in group]) for group in (batch, rows, columns))
    if b > 1 and min(n, m) < SMALLEST_BATCHED_SIDE:
        return None
    constant = [a for a in axes if a not in batch and a not in rows and a not in columns]
    width = size[ndim + dim]
    x = _matrices(x, batch, rows, [*columns, *constant], ndim + dim, width).reshape(b, n, width)
    y = _matrices(y, batch, columns, [*rows, *constant], ndim + dim, width).reshape(b, m, width)
    placed = [*batch, *rows, *columns, *constant]
    return MatrixPlan(
        first=x,
        second=y,
        sizes=tuple(1 if a in constant else size[a] for a in placed),
        order=tuple(placed.index(a) for a in axes),
        repeated=tuple(size[a] for a in axes),
    )


def _with_ndim(x: Tensor, ndim: int) -> Tensor:
    return x[(None,) * (ndim - x.dim())] if x.dim() < ndim else x


def _varies(x: Tensor, axis: int, by_stride: bool) -> bool:
    return x.shape[axis] != 1 and not (by_stride and x.stride(axis) == 0 and x.shape[axis] > 0)


def _matrices(
    x: Tensor, batch: list[int], kept: list[int], dropped: list[int], dim: int, width: int
) -> Tensor:
    """Lay x out as (*batch, *kept, width), dimensions along which it does not vary dropped."""
    for axis in dropped:
        x = x.narrow(axis, 0, 1) if x.shape[axis] > 1 else x
    x = x.permute(*batch, *kept, dim, *dropped)
    x = x.reshape(x.shape[: x.dim() - len(dropped)])
    return x.expand(*x.shape[:-1], width)
