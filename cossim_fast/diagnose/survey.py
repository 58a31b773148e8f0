"""First pass over a set: are its numbers sound, where does its mean lie, what repeats?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast.diagnose.rows import Rows, unit

EPS = 1e-8


@dataclass(frozen=True)
class Numbers:
    """The state of the numbers as stored: counts over all rows, exact."""

    rows: int
    features: int
    dtype: str
    non_finite_rows: int
    zero_rows: int
    saturated: int
    saturated_rows: int
    subnormal: int
    zeros: int
    norm_min: float
    norm_median: float
    norm_max: float
    dead_features: int
    constant_features: int
    distinct_rows: int
    rows_with_twin: int

    @property
    def entries(self) -> int:
        """How many numbers the set holds."""
        return self.rows * self.features


@dataclass(frozen=True)
class Survey:
    """The first pass: what is reported of it, and what the second pass needs."""

    numbers: Numbers
    valid: Tensor  # (n,) bool: finite rows of at least eps in length
    mean: Tensor  # (d,) float64: mean of the valid unit rows
    class_sums: Tensor | None  # (classes, d) float64 sums of unit rows
    class_sizes: Tensor | None  # (classes,) valid rows in each


def survey(rows: Rows, labels: Tensor | None, blocks: Iterable[tuple[slice, Tensor]]) -> Survey:
    """Read every block once, in O(rows) memory beside it."""
    info = torch.finfo(rows.dtype) if rows.dtype.is_floating_point else None
    norms = torch.empty(rows.n, dtype=torch.float64, device="cpu")
    hashes = np.empty(rows.n, dtype=np.int64)
    total = torch.zeros(rows.d, dtype=torch.float64, device="cpu")
    classes = int(labels.max()) + 1 if labels is not None else 0
    class_sums = torch.zeros(classes, rows.d, dtype=torch.float64, device="cpu")
    low = torch.full((rows.d,), float("inf"), dtype=torch.float64, device="cpu")
    high = -low
    saturated = saturated_rows = subnormal = zeros = 0
    for place, block in blocks:
        directions, norms[place] = unit(block)
        keep = norms[place] >= EPS
        if not keep.all():
            directions = torch.where(keep[:, None], directions, 0.0)
        total += directions.sum(0)
        if labels is not None:
            class_sums.index_add_(0, labels[place], directions)
        is_finite = norms[place].isfinite()
        finite = block if is_finite.all() else block[is_finite]
        if len(finite):
            low = torch.minimum(low, finite.amin(0).double())
            high = torch.maximum(high, finite.amax(0).double())
        block_zeros = block.numel() - int(torch.count_nonzero(block))
        zeros += block_zeros
        if info is not None:
            magnitude = block.abs()
            subnormal += int(torch.count_nonzero(magnitude < info.smallest_normal)) - block_zeros
            if bool((magnitude.amax() >= info.max) | magnitude.amax().isnan()):
                stuck = magnitude == info.max
                saturated += int(stuck.sum())
                saturated_rows += int(stuck.any(1).sum())
        hashes[place] = _hashes(block)
    finite_rows = norms.isfinite()
    valid = finite_rows & (norms >= EPS)
    distinct, twins = _repeats(hashes[finite_rows.numpy()])
    seen = norms[finite_rows]
    numbers = Numbers(
        rows=rows.n,
        features=rows.d,
        dtype=str(rows.dtype).removeprefix("torch."),
        non_finite_rows=rows.n - int(finite_rows.sum()),
        zero_rows=int((seen < EPS).sum()),
        saturated=saturated,
        saturated_rows=saturated_rows,
        subnormal=subnormal,
        zeros=zeros,
        norm_min=float(seen.min()) if len(seen) else float("nan"),
        norm_median=float(seen.median()) if len(seen) else float("nan"),
        norm_max=float(seen.max()) if len(seen) else float("nan"),
        dead_features=int(((low == 0) & (high == 0)).sum()),
        constant_features=int((low == high).sum()),
        distinct_rows=distinct,
        rows_with_twin=twins,
    )
    sizes = None
    if labels is not None:
        sizes = torch.bincount(labels[valid], minlength=classes)
    return Survey(
        numbers,
        valid,
        total / max(int(valid.sum()), 1),
        class_sums if labels is not None else None,
        sizes,
    )


def _hashes(block: Tensor) -> np.ndarray[Any, Any]:
    """Hash the bytes of each row to 64 bits; adding 0 turns -0.0 into 0.0.

    Python's own hash is keyed anew in each process; of a million different rows, two agree
    with a chance of 3e-8.
    """
    plain = (block + 0).contiguous().view(torch.uint8).numpy().reshape(len(block), -1)
    rows = plain.view(f"V{plain.shape[1]}")[:, 0].tolist()
    return np.fromiter(map(hash, rows), dtype=np.int64, count=len(rows))


def _repeats(hashes: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return how many distinct rows there are, and how many rows have an equal."""
    _, counts = np.unique(hashes, return_counts=True)
    return len(counts), int(counts[counts > 1].sum())
