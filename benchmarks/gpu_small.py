"""Small matrices, whose calls cost the host more than the device, and compiled ones."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cossim_fast import pairwise_cosine
from gpu_machine import Found, Machine, Trial

ROWS = (64, 128, 256, 512, 1024, 2048)
WIDTH = 768
Run = Callable[[], object]


def compiled_and_small(machine: Machine) -> Iterator[Trial]:
    """Small calls of the host and in a graph, then ours within torch.compile."""
    yield from small_calls(machine)
    for dtype in (torch.float16, torch.float32):
        x, y = machine.rows(16384, WIDTH, dtype), machine.rows(16384, WIDTH, dtype)
        run = torch.compile(pairwise_cosine, fullgraph=True, backend=machine.backend)
        yield Trial(
            f"matrix {dtype}, compiled",
            lambda x=x, y=y, run=run: machine.milliseconds(lambda: run(x, y)),
        )


def normalized_product(x: Tensor, y: Tensor) -> Tensor:
    """What one would write with torch alone."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


CONTENDERS = {"cossim_fast": pairwise_cosine, "normalize and matmul": normalized_product}


def small_calls(machine: Machine) -> Iterator[Trial]:
    """What calls cost host and device; once all are known, what they cost as a graph."""
    calls: dict[str, tuple[Found, Run]] = {}
    for rows in ROWS:
        for dtype in (torch.float16, torch.float32):
            for gradients in (False, True):
                for name, function in CONTENDERS.items():
                    label = str(dtype).removeprefix("torch.")
                    call = _call(machine, rows, dtype, function, gradients)
                    facts = {"rows": rows, "dtype": label, "gradients": gradients}
                    words = f"{rows} rows, {label}{', with gradients' if gradients else ''}, {name}"
                    calls[words] = facts | {"contender": name}, call
    for words, (facts, call) in calls.items():
        kernels = call if facts["rows"] == ROWS[0] and "cossim_fast" in words else None
        yield Trial(words, partial(_eager, machine, facts, call), kernels)
    # A capture that fails can take the process with it.
    for words, (facts, call) in calls.items():
        yield Trial(f"{words}, graph", partial(_replayed, machine, facts, call))


def _call(
    machine: Machine, rows: int, dtype: torch.dtype, function: Callable[[Tensor, Tensor], Tensor],
    gradients: bool,
) -> Run:  # fmt: skip
    x, y = machine.rows(rows, WIDTH, dtype), machine.rows(rows, WIDTH, dtype)
    if not gradients:
        return lambda: function(x, y)
    x, y = x.requires_grad_(), y.requires_grad_()
    grad = torch.ones(len(x), len(y), device=x.device, dtype=dtype)
    return lambda: torch.autograd.grad(function(x, y), (x, y), grad)


def _eager(machine: Machine, facts: Found, call: Run) -> Found:
    device = 1e3 * machine.milliseconds(call)["ms"]
    return facts | {"host_us": machine.host_microseconds(call), "device_us": device}


def _replayed(machine: Machine, facts: Found, call: Run) -> Found:
    return facts | {"graph_us": 1e3 * machine.milliseconds(machine.captured(call))["ms"]}
