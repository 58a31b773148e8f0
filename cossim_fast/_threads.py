"""Threads of our own that stay: for loops of numpy's, and for work that falls into parts.

Both let go of the interpreter's lock. Starting threads for a call costs more than most calls take;
handing work to those that wait for it costs 10 to 30 µs. On these threads torch's operations start
no others: a part is worked on by one thread from its beginning to its end, and waits for nobody.

torch's own threads meet at the end of every operation, and wait awake for the slowest. Where
another process keeps a processor busy, that is one that the system lets wait, for milliseconds:
(10000, 384) float16 rows, whose blocks were widened so, took 1.3 ms on two quiet cores of Zen 5,
2.6 to 7 beside one busy process and 94 beside two.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from cossim_fast._cgroup import processors_of_quota

Result = TypeVar("Result")

# Of all threads that work on a call.
MOST_THREADS = 16

_helpers: ThreadPoolExecutor | None = None
_starting = threading.Lock()
_here = threading.local()


class StoppedError(Exception):
    """Another part failed, or nobody waits for this one any more."""


def usable_threads() -> int:
    """How many threads of our own to share work among: more would wait for a processor."""
    return min(torch.get_num_threads(), processors())


def processors() -> int:
    """How many processors this thread may run on, and a container's CPU quota pays for."""
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    return max(math.ceil(min(there, processors_of_quota())), 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep torch's elementwise operations on this thread to it, where OpenMP lets us.

    torch.set_num_threads would set the number for threads to come as well. OpenMP's own function
    sets it for the thread that calls it, in a quarter of a microsecond.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not can_be_alone():
        yield
        return
    set_threads = _openmp()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)


@cache
def can_be_alone() -> bool:
    """Whether torch takes its number of threads from the OpenMP that this process finds."""
    found = []

    def ask() -> None:
        torch.get_num_threads()  # the first on a thread sets what it has
        with contextlib.suppress(OSError, AttributeError, TypeError):
            _openmp()(1)
            found.append(torch.get_num_threads() == 1)

    before = torch.get_num_threads()
    with contextlib.suppress(RuntimeError):  # at the interpreter's end no thread can be started
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    return found == [True] and torch.get_num_threads() == before


@cache
def _openmp() -> Callable[[int], None]:
    """OpenMP's function that sets the number of threads for the thread that calls it."""
    # torch loads its libraries so that the process sees their names. Without the interpreter's
    # lock it would take four times as long.
    function = ctypes.PyDLL(None).omp_set_num_threads
    function.argtypes, function.restype = [ctypes.c_int], None
    found: Callable[[int], None] = function
    return found


def together(threads: int, work: Callable[[], None]) -> None:
    """Run `work` on this thread and, at the same time, on up to `threads` - 1 others.

    Every run takes pieces from one iterator until none is left. So a helper that comes late, since
    the processors are busy, has nothing to do, and one that has not come by the end is called off.
    """
    if threads == 1:
        work()
        return
    futures = []
    # At the interpreter's end no work can be handed out any more: this thread does it all.
    with contextlib.suppress(RuntimeError):
        futures = [_pool().submit(work) for _ in range(min(threads, MOST_THREADS) - 1)]
    try:
        work()
    finally:
        begun = [future for future in futures if not future.cancel()]
        for future in begun:
            future.exception()  # waits: nobody writes to the caller's memory after this
    for future in begun:
        future.result()


def apart(threads: int, parts: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run parts on so many threads, each on one from its beginning to its end; return the results.

    In inference mode if the caller is. Where a part fails, or the caller is interrupted, the others
    are stopped as soon as they call `go_on`, and waited for.
    """
    threads = min(threads, MOST_THREADS, len(parts))
    if threads <= 1:
        return [part() for part in parts]
    found: dict[int, Result] = {}
    left = iter(enumerate(parts))
    stop, inference = threading.Event(), torch.is_inference_mode_enabled()

    def work() -> None:
        _here.stop = stop
        try:
            with torch.inference_mode(inference):
                for number, part in left:
                    go_on()
                    found[number] = part()
        except BaseException:
            stop.set()
            raise
        finally:
            _here.stop = None

    futures: list[Future[None]] = []
    try:
        try:
            for _ in range(threads):
                futures.append(_pool().submit(work))
        except RuntimeError:  # at the interpreter's end no work can be handed out any more
            work()
        # When one has ended, there is nothing left for those that have not begun.
        wait(futures, return_when=FIRST_COMPLETED)
        futures = [future for future in futures if not future.cancel()]
        wait(futures)
    except BaseException:
        stop.set()
        wait([future for future in futures if not future.cancel()])
        raise
    failed = [error for error in (future.exception() for future in futures) if error is not None]
    for error in failed:
        if not isinstance(error, StoppedError):
            raise error
    return [found[number] for number in range(len(parts))]


def on_one(work: Callable[[], Result]) -> Result:
    """Run `work` on a helper, where torch's operations start no threads; here if there is none."""
    if torch.get_num_threads() == 1:
        return work()
    try:
        future = _pool().submit(work)
    except RuntimeError:  # at the interpreter's end no work can be handed out any more
        return work()
    return future.result()


def go_on() -> None:
    """Raise StoppedError in a part that is not wanted any more."""
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError


def _pool() -> ThreadPoolExecutor:
    global _helpers  # noqa: PLW0603 - the process has one
    if _helpers is None:
        _helpers = ThreadPoolExecutor(
            MOST_THREADS, thread_name_prefix="cossim_fast", initializer=_alone
        )
    return _helpers


def _alone() -> None:
    """Keep torch's operations on this thread to it.

    torch keeps the number of threads for each thread that calls it, and one more for threads that
    have not called it yet; to set it sets both. A thread that does nothing else sets the latter
    back.
    """
    with _starting:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(others,))
        back.start()
        back.join()


def _forget_helpers() -> None:
    """A forked child has its parent's pool without the threads: it makes its own."""
    global _helpers, _starting
    _helpers, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)
