"""What the cases of known cause are made of."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """One input, built anew at each call, and the cause it was built with."""

    name: str
    expected: str
    build: Callable[[], tuple[Any, ...]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Draw from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Draw from a fixed seed, in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def wordnet() -> Tensor:
    """Return the real sentence embeddings that ship with the repository."""
    return torch.from_numpy(np.load(ROOT / "examples/data/wordnet_minilm_4k_f16.npy"))


def rotation(d: int, seed: int = 3) -> Tensor:
    """Draw a random orthogonal matrix."""
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def with_row(x: Tensor, value: float, row: int = 3) -> Tensor:
    """Fill one row."""
    x = x.clone()
    x[row] = value
    return x
