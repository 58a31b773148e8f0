"""Peak memory of one call, in a child of its own."""

from __future__ import annotations

import gc
from pathlib import Path

from cases import LOSSES, Case
from contender import plain
from held import extra_bytes, held_bytes
from peers import contenders
from timing import make_inputs, pin

# [rows] Of a loss: with fewer its products are too small for oneDNN, whose code would come later.
FEW_OF_LOSS = 1024


def peak_bytes(case: Case, name: str, folder: Path | None = None) -> int | None:
    """Peak memory of one call beyond inputs and results, in bytes; None where none is known.

    Where a result does not say how large it is, it is what the process holds more afterwards.
    """
    pin(case.threads)
    (contender,) = (c for c in contenders(case) if c.name == name)
    # Loads code and starts threads; with few rows, nothing else is left behind.
    few = FEW_OF_LOSS if case.task in LOSSES else max(16, case.k)
    small = contender.prepare(case, *make_inputs(case, folder, most_rows=few))
    plain(small)()
    del small
    call = plain(contender.prepare(case, *make_inputs(case, folder)))
    gc.collect()
    before = held_bytes(case.device, reset=True)
    return extra_bytes(before, call(), case.device)
