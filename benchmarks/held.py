"""How much memory a process holds, held at most, and how much of that a result is."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch


def extra_bytes(before: int | None, answer: Any, device: str) -> int | None:
    """The most held since `before` was read, beyond that and the answer; None where none is known.

    Where an answer does not say how large it is, it is what the process holds more now.
    """
    highest = held_bytes(device)
    if before is None or highest is None:
        return None
    result = result_bytes(answer)
    if result is None:
        gc.collect()
        result = (held_bytes(device, reset=True) or before) - before
    return max(0, highest - before - result)


def result_bytes(answer: Any) -> int | None:
    """How large a result says it is: a tensor, an array, or a tuple of them."""
    parts = answer if isinstance(answer, tuple) else (answer,)
    sizes = [getattr(part, "nbytes", None) for part in parts]
    return None if None in sizes else sum(sizes)


def held_bytes(device: str, reset: bool = False) -> int | None:
    """The most memory held since it was last reset, in bytes; None where none is known.

    Only Linux and CUDA can forget a peak; elsewhere that of the preparation can hide the call's.
    """
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        if reset:
            _give_back()
            # 5: set the peak to what is held now; man 5 proc_pid_clear_refs.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        # Not ru_maxrss, which a child can inherit from its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415 - does not exist on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _give_back() -> None:
    """Give what is free to the system, or a call that takes it would seem to need no memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
