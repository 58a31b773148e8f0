"""Peak memory of one call, in a child of its own."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from cases import Case
from contender import Part
from peers import contenders
from timing import make_inputs, pin


def peak_bytes(case: Case, name: str, folder: Path | None = None) -> int | None:
    """Peak memory of one call beyond inputs and results, in bytes; None where none is known.

    Where a result does not say how large it is, it is what the process holds more afterwards.
    """
    pin(case.threads)
    (contender,) = (c for c in contenders(case) if c.name == name)
    # Loads code and starts threads; with few rows, nothing else is left behind.
    small = contender.prepare(case, *make_inputs(case, folder, most_rows=max(16, case.k)))
    (small.call if isinstance(small, Part) else small)()
    del small
    call = contender.prepare(case, *make_inputs(case, folder))
    gc.collect()
    before = _highest(case.device, reset=True)
    answer = call()
    highest = _highest(case.device)
    if before is None or highest is None:
        return None
    result = result_bytes(answer)
    if result is None:
        gc.collect()
        result = (_highest(case.device, reset=True) or before) - before
    return max(0, highest - before - result)


def result_bytes(answer: Any) -> int | None:
    """How large a result says it is: a tensor, an array, or a tuple of them."""
    parts = answer if isinstance(answer, tuple) else (answer,)
    sizes = [getattr(part, "nbytes", None) for part in parts]
    return None if None in sizes else sum(sizes)


def _highest(device: str, reset: bool = False) -> int | None:
    """The most memory held since it was last reset, in bytes; None where none is known.

    Only Linux and CUDA can forget a peak; elsewhere that of the preparation can hide the call's.
    """
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        if reset:
            # 5: set the peak to what is held now; man 5 proc_pid_clear_refs.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        # Not ru_maxrss, which a child can inherit from its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
