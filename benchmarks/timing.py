"""How it is measured: checked first, alternating, in a process of its own.

Each case runs in a fresh child of a server process that has imported everything, so that no
case inherits another's memory or threads. The contenders of a case take turns; a figure is the
median of the rounds with an interval, and a ratio is the median of the ratios within rounds.
Peak memory is measured in one more child for each contender.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from cases import OURS, Case, Target
from cossim_fast import _reference
from peers import CONTENDERS, Call, contenders, installed

# Seconds for the rounds of a case, and how many rounds that may give.
BUDGET = 3.0
FEWEST_ROUNDS, MOST_ROUNDS = 5, 61
# A sample of a short call is a loop of at least this many seconds.
SHORTEST_SAMPLE = 2e-3
# Rows whose answers are compared with float64.
CHECKED = 64
# Beyond these differences from float64 an answer is wrong, and is not timed.
WRONG = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args), computed in a fresh child; raise where the child fails or dies."""
    context = multiprocessing.get_context("forkserver")
    modules = {c.module for task in CONTENDERS.values() for c in task}
    context.set_forkserver_preload(["timing", *filter(installed, sorted(modules))])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, function, args))
    child.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the child died with exit code {child.exitcode}") from None
    child.join()
    if isinstance(result, Exception):
        raise result
    return result


def _answer(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        result = function(*args)
    except Exception as error:  # the parent raises it
        result = RuntimeError(f"{type(error).__name__}: {error}")
    connection.send(result)


def pin(threads: int) -> None:
    """Keep this process, and each library's threads, to so many processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def make_inputs(case: Case, most_rows: int | None = None) -> list[Tensor]:
    """Gaussian inputs of the case, the same at each call; with fewer rows if asked for."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*(min(n, most_rows or n) for n in s[:-1]), s[-1]) for s in case.shapes]
    return [torch.empty(s, dtype=case.dtype).normal_(generator=generator) for s in shapes]


def time_case(case: Case) -> dict[str, Any]:
    """Check and time the contenders of a case that are installed here.

    Returns:
        By contender its times and error or why it was left out, what each target asks about, and
        how many processors other processes kept busy meanwhile.
    """
    pin(case.threads)
    inputs = make_inputs(case)
    rows = torch.linspace(0, case.shapes[0][0] - 1, CHECKED).long().unique()
    exact = expected(case, inputs, rows)
    calls: dict[str, tuple[Call, float]] = {}
    found: dict[str, Any] = {}
    for contender in contenders(case.task, case.dtype):
        if not installed(contender.module):
            found[contender.name] = {
                "left_out": f"{contender.module.partition('.')[0]} not installed"
            }
            continue
        call = contender.prepare(*inputs)
        start = time.perf_counter()
        answer = call()
        first = time.perf_counter() - start
        error = None if contender.floor else largest_error(answer, exact, rows)
        if error is not None and not error <= WRONG[case.dtype]:
            found[contender.name] = {"left_out": f"wrong by {error:.1e}"}
            continue
        calls[contender.name] = (call, first)
        found[contender.name] = {"error": error}
        del answer
    gc.collect()
    gc.disable()  # for good: this process ends after the case
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    samples = alternate(calls)
    elapsed, own = time.perf_counter() - start, time.process_time() - own
    others = max(0.0, busy_seconds() - busy - own) / elapsed
    for name, seconds in samples.items():
        found[name] |= {"seconds": median_interval(seconds), "rounds": len(seconds)}
        found[name]["ours_is_faster"] = median_interval(_ratios(seconds, samples[OURS]))
    measured = [_measured(target, samples) for target in case.targets]
    return {"contenders": found, "measured": measured, "others_busy": round(others, 2)}


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def _measured(target: Target, samples: dict[str, list[float]]) -> dict[str, float] | None:
    """What the target bounds, where it is a time and both contenders ran."""
    if target.kind == "memory" or not {target.ours, target.against} <= samples.keys():
        return None
    ours, theirs = samples[target.ours], samples[target.against]
    if target.kind == "speed":
        return median_interval(_ratios(theirs, ours))
    return median_interval([(a - b) * 1e6 for a, b in zip(ours, theirs, strict=True)])


def alternate(calls: dict[str, tuple[Call, float]]) -> dict[str, list[float]]:
    """Time the calls in turns, in a new order each round: seconds a call, by name.

    With each call comes how long its first one took.
    """
    repeats = {}
    total = 0.0
    for name, (call, first) in calls.items():
        once = first
        if first < BUDGET / 20:  # the first of short calls is mostly warming up
            once = min(_sample(call, 1) for _ in range(3))
        repeats[name] = max(1, math.ceil(SHORTEST_SAMPLE / once))
        total += once * repeats[name]
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(BUDGET / total)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            samples[name].append(_sample(calls[name][0], repeats[name]))
    return samples


def _sample(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def median_interval(values: list[float]) -> dict[str, float]:
    """The median, and two of the values between which the true one lies with 90 % or more.

    The number of values below the true median is binomial, whatever their distribution.
    """
    ordered, n = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    rank = max(sum(tail <= 0.05 for tail in tails) - 1, 0)
    return {"median": statistics.median(ordered), "low": ordered[rank], "high": ordered[~rank]}


def expected(case: Case, inputs: list[Tensor], rows: Tensor) -> Tensor:
    """The answer for these rows in float64; for a gradient, those of both inputs."""
    x = inputs[0][rows].double()
    y = inputs[-1].double() if not case.task.startswith("rows") else inputs[-1][rows].double()
    if case.task == "rows":
        return _reference.cosine_similarity(x, y)
    if case.task == "broadcast":
        return _reference.cosine_similarity(x, y, dim=-1)
    if case.task == "rows gradient":
        x.requires_grad_()
        y.requires_grad_()
        return torch.stack(torch.autograd.grad(_reference.cosine_similarity(x, y).sum(), (x, y)))
    return _reference.pairwise_cosine(x, y)


def largest_error(answer: Any, exact: Tensor, rows: Tensor) -> float:
    """The largest difference of these rows of an answer from the exact ones."""
    parts = answer if isinstance(answer, tuple) else (answer,)
    picked = torch.stack([torch.as_tensor(part)[rows].double() for part in parts])
    return (picked - exact.reshape(picked.shape)).abs().max().item()


def peak_bytes(case: Case, name: str) -> int | None:
    """Peak memory of one call beyond inputs and results, in bytes; for a child of its own."""
    pin(case.threads)
    (contender,) = (c for c in contenders(case.task, case.dtype) if c.name == name)
    # Loads code and starts threads; at a row, nothing else is left behind.
    contender.prepare(*make_inputs(case, most_rows=16))()
    call = contender.prepare(*make_inputs(case))
    before = _peak_memory()
    answer = call()
    if before is None:
        return None
    parts = answer if isinstance(answer, tuple) else (answer,)
    return max(0, _peak_memory() - before - sum(part.nbytes for part in parts))


def _peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where none is known."""
    if sys.platform == "linux":
        # Not ru_maxrss, which a child can inherit from its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def busy_seconds() -> float:
    """Processor time that the whole machine has spent so far; 0 where it does not tell."""
    if sys.platform != "linux":
        return 0.0
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else os.cpu_count() or 1
