"""A set of embeddings read block by block: a tensor, an array, or a memory map."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks

_BLOCK = 2**19


class Rows:
    """n rows of d numbers; blocks of them arrive as CPU tensors of the stored dtype."""

    def __init__(self, x: Any) -> None:
        source = _checks.readable("x", x)
        _checks.embeddings(tuple(source.shape))
        self._source = source.detach() if isinstance(source, Tensor) else source
        self.n, self.d = (int(size) for size in source.shape)
        self.dtype = _checks.as_tensor("x", source[:1]).dtype
        _checks.diagnosed(self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        """Return the rows of a slice or of a sorted array of indices."""
        return _checks.as_tensor("x", self._source[rows]).detach().cpu()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield consecutive blocks of half a million numbers with their place."""
        step = max(_BLOCK // self.d, 1)
        for start in range(0, self.n, step):
            place = slice(start, min(start + step, self.n))
            yield place, self[place]

    @property
    def steps(self) -> int:
        """How many blocks there are."""
        return -(-self.n // max(_BLOCK // self.d, 1))

    def choose(self, count: int) -> Tensor:
        """Return ``count`` row numbers, sorted: all of them, or a fixed random choice."""
        if count >= self.n:
            return torch.arange(self.n, device="cpu")
        generator = np.random.default_rng(0)
        return torch.from_numpy(np.sort(generator.choice(self.n, count, replace=False)))


def unit(block: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit rows and norms in float64; a row that is zero or not finite gives zeros."""
    wide = block.to("cpu", torch.float64, copy=True)
    plain = torch.linalg.vector_norm(wide, dim=1)
    if bool(((plain > 2.0**-500) & (plain < 2.0**500)).all()):
        return wide.div_(plain[:, None]), plain
    finite = wide.isfinite().all(1, keepdim=True)
    wide = torch.where(finite, wide, 0.0)
    scale = power_of_two(wide)
    wide = wide / scale
    length = wide.norm(dim=1, keepdim=True)
    norms = torch.where(finite, length * scale, float("nan"))[:, 0]
    return wide / length.clamp_min(1e-300), norms


def power_of_two(x: Tensor) -> Tensor:
    """Return the power of two to divide each row by so that no square overflows or vanishes.

    A power of two, so that the quotient does not round; 1 for a zero row. Shape (n, 1).
    """
    largest = x.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, torch.exp2(largest.log2().floor()), 1.0)
