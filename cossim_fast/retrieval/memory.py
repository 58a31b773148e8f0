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

    To write (200000, 384) float32 numbers to memory for the first time takes 45 ms in those, and
    170 in pages of 4 KB, and to code such rows anew 0.25 s against 0.45. Where the host of a
    virtual machine takes back what its guest does not use (Firecracker), a large page that was
    free for two seconds has to be fetched from it, and the 45 ms are 900; small pages, which seldom
    lie idle for long, then take 170 to 500.
    """
    if torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    skipped = -raw.ctypes.data % _ALIGNED
    tensor: Tensor = torch.from_numpy(raw[skipped : skipped + size]).view(dtype).view(shape)
    return tensor
