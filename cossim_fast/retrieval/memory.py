"""Memory for what is large and is written as a whole."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Where torch's own memory begins: no vector of 64 bytes then lies in two cache lines.
_ALIGNED = 64


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty`; on CPU by numpy, which asks Linux for pages of 2 MB for 4 MB and more.

    To touch (200000, 384) float32 numbers for the first time takes 30 ms in those, and 150 in
    pages of 4 KB.
    """
    if torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    skipped = -raw.ctypes.data % _ALIGNED
    tensor: Tensor = torch.from_numpy(raw[skipped : skipped + size]).view(dtype).view(shape)
    return tensor
