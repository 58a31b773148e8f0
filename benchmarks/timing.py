"""How it is measured: checked first, alternating, in a process of its own.

Each case runs in a fresh child of a server process that has imported everything, so that no
case inherits another's memory or threads. The contenders of a case take turns; a figure is the
median of the rounds with an interval, and a ratio is the median of the ratios within rounds.
Peak memory is measured in one more child for each contender.

A case beside a busy process is measured while another process spins on one of its processors, and
ours in each round once more while that one rests.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import answers
import data
from busy import Busy
from cases import FASTEST, OURS, OURS_QUIET, Case, Target
from contender import Call, Inside, Part, plain
from gpu import DeviceClock
from held import extra_bytes, held_bytes
from peers import CONTENDERS, contenders

# Seconds for the rounds of a case, and how many rounds that may give; a slow contender
# whose first call took longer is not called again.
BUDGET = 1.5
FEWEST_ROUNDS, MOST_ROUNDS = 5, 61
# Where a round takes longer than the first, there are three; than the second, one: the first call,
# of which the warming up is little.
LONG_ROUND, LONGEST_ROUND = 5.0, 20.0
# A contender that needs more than so many seconds, and so many times the fastest, is called once.
SLOW, SLOWER = 0.5, 4.0
# A sample of a short call is a loop of at least this many seconds.
SHORTEST_SAMPLE = 2e-3
# Beside a busy process: several of the times that the system gives one process before another, and
# seconds for the rounds.
SHORTEST_BESIDE, BUDGET_BESIDE = 5e-2, 3.0
# Tasks whose last input lies in a file.
MAPPED = ("mapped", "mapped join")
# Rows of a memory map that are made at a time.
MAPPED_BLOCK = 100_000


Timed = Call | Part | Inside


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args), computed in a fresh child; raise where the child fails or dies."""
    context = multiprocessing.get_context("forkserver")
    modules = {
        c.module.partition(":")[0]
        for task in CONTENDERS.values()
        for c in task
        if c.preloaded and "cuda" not in c.devices and c.missing() is None
    }
    context.set_forkserver_preload(["timing", *sorted(modules)])
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


def threads_kept(threads: int) -> None:
    """Raise where torch has other than so many threads, or another library that is loaded more."""
    if torch.get_num_threads() != threads:
        raise RuntimeError(f"torch has {torch.get_num_threads()} threads, expected {threads}")
    for pool in threadpool_info():
        if pool["num_threads"] > threads:
            name = Path(pool["filepath"]).name
            raise RuntimeError(f"{name} has {pool['num_threads']} threads, expected {threads}")


def make_inputs(case: Case, folder: Path | None = None, most_rows: int | None = None) -> list[Any]:
    """The inputs of a case, the same at each call; with fewer rows if asked for.

    A memory map lies in the folder, and is made there at the first call.
    """
    shapes = [(*(min(n, most_rows or n) for n in s[:-1]), s[-1]) for s in case.shapes]
    if case.task not in MAPPED:
        made = data.make(case.data, tuple(shapes), case.dtype)
        return [x.to(case.device) for x in made]
    if folder is None:
        raise ValueError("expected a folder for the memory map of the case")
    rows = mapped_rows(case, folder)[: shapes[-1][0]]
    others = data.make(case.data, tuple(shapes[:-1]), case.dtype) if shapes[:-1] else []
    return [*others, rows]


def mapped_rows(case: Case, folder: Path) -> np.ndarray[Any, Any]:
    """The rows of the case from a file, as a memory map; the file is made where there is none."""
    path = folder / "rows.npy"
    n, d = case.shapes[-1]
    if not path.exists():
        rows = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
        for start in range(0, n, MAPPED_BLOCK):
            size = min(MAPPED_BLOCK, n - start)
            (block,) = data.make(case.data, ((size, d),), case.dtype, seed=1 + start)
            rows[start : start + size] = block.numpy()
        rows.flush()
        del rows
    return np.load(path, mmap_mode="r")


def time_case(case: Case, folder: Path | None = None) -> dict[str, Any]:
    """Check and time the contenders of a case that are installed here.

    Returns:
        By contender its times and error or why it was left out, what each target asks about, and
        how many processors other processes kept busy meanwhile.
    """
    pin(case.threads)
    inputs = make_inputs(case, folder)
    calls, found = prepare(case, inputs)
    pin(case.threads)  # a first call may set them: an index does so in a forked child, as this is
    gc.collect()
    gc.disable()  # for good: this process ends after the case
    floors = {name for name, entry in found.items() if entry["floor"]}
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    if case.beside:
        found[OURS_QUIET] = found[OURS] | {"floor": True, "error": None}
        samples, spent = alternate_beside(calls, floors)
        own -= spent
    else:
        samples = alternate(calls, floors, case.device)
    threads_kept(case.threads)
    elapsed, own = time.perf_counter() - start, time.process_time() - own
    others = max(0.0, busy_seconds() - busy - own) / elapsed
    for name, seconds in samples.items():
        found[name] |= {"seconds": median_interval(seconds), "rounds": len(seconds)}
        if OURS in samples:
            found[name]["ours_is_faster"] = median_interval(_ratios(seconds, samples[OURS]))
    measured = [_measured(target, case, samples, found) for target in case.targets]
    return {
        "contenders": found,
        "measured": measured,
        "fastest": fastest_peer(found),
        "others_busy": round(others, 2),
    }


def prepare(case: Case, inputs: list[Any]) -> tuple[dict[str, tuple[Timed, float]], dict[str, Any]]:
    """Check every contender; return the calls of those that are right, and what was found of all.

    With each call comes how many seconds its first one took.
    """
    on_cpu = [x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs]
    exact = answers.expected(case, on_cpu)
    calls: dict[str, tuple[Timed, float]] = {}
    found: dict[str, Any] = {}
    for contender in contenders(case):
        kind = {"floor": contender.floor, "approximate": contender.approximate}
        lacks = contender.missing()
        if lacks is not None:
            found[contender.name] = kind | {"left_out": lacks}
            continue
        if contender.too_slow(case):
            found[contender.name] = kind | {"left_out": "it would take minutes"}
            continue
        try:
            call = contender.prepare(case, *inputs)
            pin(case.threads)  # of libraries that prepare has loaded
            before = held_bytes(case.device, reset=True)
            start = time.perf_counter()
            answer = plain(call)()
            first = time.perf_counter() - start
            if first > LONGEST_ROUND and contender.name == OURS:
                # To call it again in a child would take as long again, and what is held beside
                # inputs by a call that is long is more than code that is loaded by it.
                kind["peak_bytes"] = extra_bytes(before, answer, case.device)
            checked = answers.Checked(None)
            if not contender.floor:
                checked = answers.check(case, contender, answer, on_cpu, exact)
        except Exception as error:
            if contender.name == OURS:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            found[contender.name] = kind | {"left_out": reason}
            continue
        if not answers.acceptable(case, contender, checked):
            found[contender.name] = kind | {"left_out": f"wrong by {checked.error:.1e}"}
            continue
        calls[contender.name] = (call, first)
        found[contender.name] = kind | checked._asdict()
        del answer
    return calls, found


def _by_round(theirs: list[float], ours: list[float]) -> list[tuple[float, float]]:
    """Both times of each round; where one was called once, that time beside each of the other's."""
    rounds = max(len(theirs), len(ours))
    both = [x * rounds if len(x) == 1 else x for x in (theirs, ours)]
    return list(zip(*both, strict=True))


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    return [a / b for a, b in _by_round(theirs, ours)]


def fastest_peer(found: dict[str, Any]) -> str | None:
    """The fastest of those that are neither ours, nor floors, nor approximate."""
    peers = {
        name: entry["seconds"]["median"]
        for name, entry in found.items()
        if "seconds" in entry
        and not (entry["floor"] or entry["approximate"] or name.startswith(OURS))
    }
    return min(peers, key=peers.__getitem__, default=None)


def _measured(
    target: Target, case: Case, samples: dict[str, list[float]], found: dict[str, Any]
) -> dict[str, float] | None:
    """What the target bounds, where it is a time and both contenders ran."""
    against = fastest_peer(found) if target.against == FASTEST else target.against
    if target.kind in ("memory", "growth") or target.ours not in samples:
        return None
    ours = samples[target.ours]
    if target.kind == "rate":
        gigabytes = math.prod(case.shapes[-1]) * case.dtype.itemsize / 1e9
        return median_interval([gigabytes / case.threads / a for a in ours])
    if against not in samples:
        return None
    theirs = samples[against]
    if target.kind == "speed":
        return median_interval(_ratios(theirs, ours))
    if target.kind == "share":
        return median_interval([b / a for a, b in _by_round(theirs, ours)])
    return median_interval([(b - a) * 1e6 for a, b in _by_round(theirs, ours)])


def alternate_beside(
    calls: dict[str, tuple[Timed, float]], floors: set[str]
) -> tuple[dict[str, list[float]], float]:
    """Time the calls in turns beside a busy process, and ours while that one rests, too.

    Returns:
        What `alternate` does, and the processor time of the busy process.
    """
    sample = sampler("cpu")
    ours, first = calls[OURS]
    once = min(first, *(sample(ours, 1) for _ in range(3)))
    repeats = math.ceil(SHORTEST_BESIDE / once)
    with Busy(max(os.sched_getaffinity(0))) as busy:

        def quiet() -> float:
            with busy.resting():
                return sample(ours, repeats)

        busy.spin()
        samples = alternate(
            calls | {OURS_QUIET: (Inside(quiet), once * repeats)},
            floors | {OURS_QUIET},
            shortest=SHORTEST_BESIDE,
            budget=BUDGET_BESIDE,
        )
        busy.rest()
    return samples, busy.spent


def alternate(
    calls: dict[str, tuple[Timed, float]],
    floors: set[str],
    device: str = "cpu",
    *,
    shortest: float = SHORTEST_SAMPLE,
    budget: float | None = None,
) -> dict[str, list[float]]:
    """Time the calls in turns, in a new order each round: seconds a call, by name.

    With each call comes how long its first one took. One that is slow beside the fastest that is
    no floor is called once.

    Args:
        calls: by name, and the seconds of the first call of each.
        floors: names that are no measure of who is slow.
        device: where they run.
        shortest: seconds of a sample at least.
        budget: seconds for the rounds, or BUDGET.
    """
    budget = BUDGET if budget is None else budget
    times = {
        name: call.times if isinstance(call, Part) else 1.0 for name, (call, _) in calls.items()
    }
    sample = sampler(device)
    # The first call of these was timed as a whole.
    whole = {name for name, (call, _) in calls.items() if not isinstance(call, Inside)}
    once = {}
    for name, (_, first) in calls.items():
        once[name] = first
        if first < budget / 10 and name in whole:  # the first of short calls is mostly warming up
            once[name] = min(sample(calls[name][0], 1) for _ in range(3))
    fastest = min((t for name, t in once.items() if name not in floors), default=0.0)
    slow = {name for name, t in once.items() if t > max(SLOW, SLOWER * fastest)} - {OURS}
    repeats = {name: max(1, math.ceil(shortest / once[name])) for name in calls}
    turns = [name for name in calls if name not in slow]
    total = sum(once[name] * repeats[name] for name in turns)
    if total > LONGEST_ROUND:
        slow, turns = set(calls), []
    fewest = FEWEST_ROUNDS if total < LONG_ROUND else 3
    rounds = max(fewest, min(MOST_ROUNDS, int(budget / max(total, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for name in slow:
        # The warming up of the first call is little of a long one.
        first = calls[name][1]
        counts = first if first >= budget and name in whole else sample(calls[name][0], 1)
        samples[name].append(counts * times[name])
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(turns, len(turns)):
            samples[name].append(sample(calls[name][0], repeats[name]) * times[name])
    return samples


def sampler(device: str) -> Callable[[Timed, int], float]:
    """What times so many calls: seconds a call."""

    def loop(call: Call, repeats: int) -> None:
        for _ in range(repeats):
            call()

    def on_cpu(call: Timed, repeats: int) -> float:
        if isinstance(call, Inside):
            return sum(call.call() for _ in range(repeats)) / repeats
        start = time.perf_counter()
        loop(plain(call), repeats)
        return (time.perf_counter() - start) / repeats

    def on_device(call: Timed, repeats: int) -> float:
        return DeviceClock().milliseconds(lambda: loop(plain(call), repeats)) / 1e3 / repeats

    return on_cpu if device == "cpu" else on_device


def median_interval(values: list[float], miss: float = 0.05) -> dict[str, float]:
    """The median, and two of the values between which the true one lies but for 2 × miss.

    The number of values below the true median is binomial, whatever their distribution. Of too few
    values the interval is all of them.
    """
    ordered, n = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    rank = max(sum(tail <= miss for tail in tails) - 1, 0)
    return {"median": statistics.median(ordered), "low": ordered[rank], "high": ordered[~rank]}


def busy_seconds() -> float:
    """Processor time that the whole machine has spent so far; 0 where it does not tell."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    line = path.read_text(encoding="ascii").splitlines()[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else os.cpu_count() or 1
