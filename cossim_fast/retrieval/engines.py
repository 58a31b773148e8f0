"""Which engine an index gets."""

from __future__ import annotations

from typing import Any

import torch

from cossim_fast import _checks, _ops
from cossim_fast.retrieval.device_engine import DeviceEngine
from cossim_fast.retrieval.engine import Engine
from cossim_fast.retrieval.host_engine import HostEngine


def engine_on(device: Any, screen: str, d: int, path: Any = None) -> Engine:
    """The engine of an index of rows of width d.

    Args:
        device: as `CosineIndex` takes it.
        screen: a screen's name, or ``"auto"``.
        d: of the rows.
        path: of a file for the vectors, if one is wanted.

    Raises:
        ValueError: no such device is there, or it cannot do what is wanted.
        NotImplementedError: the GPU runs no kernels; the message says what it lacks.
    """
    there = _checks.index_device(device)
    if there.type == "cpu":
        return HostEngine(screen)
    missing = _ops.kernels_miss(torch.empty(0, dtype=torch.float32, device=there))
    _checks.index_on_device(screen, path, d, missing)
    return DeviceEngine(there)
