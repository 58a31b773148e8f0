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
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any, Protocol, TypeVar

import torch

from cossim_fast._cgroup import processors_of_quota

Result = TypeVar("Result")

# Of all threads that work on a call.
MOST_THREADS = 16

_helpers: ThreadPoolExecutor | None = None
_starting = threading.Lock()
_here = threading.local()
# Threads that run our parts of work alone.
_OURS: set[int] = set()


class Forkable(Protocol):
    """Something that is told when it finds itself in a child."""

    def forked(self) -> None:
        """Be fit for use in a child process that was forked."""


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


def single_threaded(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work`, keeping torch's elementwise operations on this thread, where OpenMP lets us.

    torch.set_num_threads would set the number for threads to come as well. OpenMP's own function
    sets it for the thread that calls it, in a quarter of a microsecond.

    No context manager: Python sees to signals at the beginning of a function and after calls, so
    that Ctrl-C could fall into `__exit__`. Nothing can fall before the one call of `finally`.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not can_be_single_threaded():
        return work(*arguments)
    set_threads = _openmp()
    try:
        set_threads(1)
        return work(*arguments)
    finally:
        set_threads(threads)


@cache
def can_be_single_threaded() -> bool:
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


def run_shared(threads: int, work: Callable[[], None]) -> None:
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


def run_independent(threads: int, parts: Sequence[Callable[[], Result]]) -> list[Result]:
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


def others_run() -> bool:
    """Whether there are other threads than this one, and ours, that may run Python."""
    threading.current_thread()  # so that it is counted, whoever started it
    return threading.active_count() > 1 + len(_OURS - {get_ident()})


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
    _OURS.add(get_ident())
    with _starting:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(others,))
        back.start()
        back.join()


# Forks. A child has the thread alone that forked, and all locks as they were held.

# What is done in every child that is forked.
_in_child: list[Callable[[], None]] = []
_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
# Whether this is a forked child that has not been seen to yet.
_forked = False
# By thread: held while it is inside what `unforked` calls. And the lock of this table.
_inside: dict[int, threading.RLock] = {}
_making = threading.RLock()
# What a fork waits for and holds.
_held: list[threading.RLock] = []
_Lock = type(_making)


class _Released:
    """To go through it is to release what a fork holds."""

    __iter__ = staticmethod(partial(map, _Lock.release, _held))


def after_fork(do: Callable[[], None]) -> None:
    """Call `do` in every child that is forked."""
    _in_child.append(do)


def watch(something: Forkable) -> None:
    """Call its ``forked`` in every child that is forked from now on."""
    _watched.add(something)


def one_thread_after_fork() -> None:
    """Leave OpenMP's threads alone in a forked child, where a wait for them never ends.

    They stay in the parent. torch's own DataLoader does the same in its workers. It is done once
    in a child: one whose parent had started no threads may set their number again afterwards.
    """
    global _forked  # noqa: PLW0603 - the process is one
    if _forked:
        torch.set_num_threads(1)
        _forked = False


def unforked(call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Call a product of torch's, which no fork falls into: it waits for its end.

    oneDNN and MKL hold locks in a product, which nobody would release in a child. Takes 0.3 µs.
    """
    here = get_ident()
    with _inside.get(here) or _new_lock(here):
        return call(*arguments, **named)


def _new_lock(here: int) -> threading.RLock:
    with _making:
        return _inside.setdefault(here, threading.RLock())


def _before_fork() -> None:
    # Where Ctrl-C ends this, those are held that come first.
    _held[:] = [_making]
    _making.acquire()
    _held.extend(_inside.values())
    deque(map(_Lock.acquire, _held[1:]), 0)


def _forget_helpers() -> None:
    """A forked child has its parent's pool without the threads: it makes its own."""
    global _helpers, _starting
    _helpers, _starting = None, threading.Lock()
    _OURS.clear()


def _after_in_child() -> None:
    global _making, _forked
    _making, _forked = threading.RLock(), True
    _inside.clear()
    _held.clear()
    _forget_helpers()
    for do in _in_child:
        do()
    for watched in list(_watched):
        watched.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        # No Python in it, so that Ctrl-C cannot come before its end.
        after_in_parent=partial(deque, _Released(), 0),
        after_in_child=_after_in_child,
    )
