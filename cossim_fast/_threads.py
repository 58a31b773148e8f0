"""A pool of threads, for loops of numpy operations, and for work in independent parts.

Both release the interpreter's lock. Starting threads in a call costs more than most calls take;
handing work to waiting threads costs 10 to 30 µs. torch's operations start no further threads on
these: one thread does a part from beginning to end, and waits for no other.

torch's own threads synchronize at the end of every operation, and spin while they wait for the
slowest. Beside a busy process, that is one that the system does not schedule for milliseconds:
(10000, 384) float16 rows, whose blocks were widened in this way, took 1.3 ms on two quiet cores of
Zen 5, 2.6 to 7 beside one busy process and 94 beside two.
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

# [threads] Most that work on a call.
MOST_THREADS = 16

_helpers: ThreadPoolExecutor | None = None
_starting = threading.Lock()
_here = threading.local()
# Identities of the threads of the pool.
_OURS: set[int] = set()
# Identities of the threads that share work with the pool at this moment.
_callers: set[int] = set()


class Forkable(Protocol):
    """An object that is told when its process is a forked child."""

    def forked(self) -> None:
        """Reset for use in a forked child process."""


class StoppedError(Exception):
    """Another part failed, or the caller no longer waits for this one."""


def usable_threads() -> int:
    """How many threads of the pool to use: more would wait for a processor."""
    return min(torch.get_num_threads(), processors())


def processors() -> int:
    """How many processors this thread may run on, and a container's CPU quota pays for."""
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    return max(math.ceil(min(there, processors_of_quota())), 1)


def single_threaded(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` with torch's elementwise operations kept on this thread, where OpenMP allows.

    torch.set_num_threads would also set the number for later threads. OpenMP's own function sets it
    only for the thread that calls it, in a quarter of a microsecond.

    This is no context manager, since Python handles signals when a function begins and after calls,
    so that Ctrl-C could interrupt `__exit__`. It cannot interrupt before the one call of `finally`.
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
    """Whether torch takes its number of threads from the OpenMP library that this process loads."""
    found = []

    def ask() -> None:
        torch.get_num_threads()  # the first call on a thread initializes the number
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
    # torch loads its libraries with global symbols. PyDLL keeps the interpreter's lock: releasing
    # it would take four times as long.
    function = ctypes.PyDLL(None).omp_set_num_threads
    function.argtypes, function.restype = [ctypes.c_int], None
    found: Callable[[int], None] = function
    return found


def run_shared(threads: int, work: Callable[[], None]) -> None:
    """Run `work` on this thread and, at the same time, on up to `threads` - 1 others.

    Every run takes pieces from one shared iterator until none is left. So a helper that starts
    late, on busy processors, finds nothing to do, and one that has not started by the end is
    cancelled.
    """
    if threads == 1:
        work()
        return
    futures = []
    _callers.add(get_ident())
    try:
        # At the interpreter's exit the pool takes no more work: this thread does all of it.
        with contextlib.suppress(RuntimeError):
            futures = [_pool().submit(work) for _ in range(min(threads, MOST_THREADS) - 1)]
        work()
    finally:
        _callers.discard(get_ident())
        begun = [future for future in futures if not future.cancel()]
        for future in begun:
            future.exception()  # waits, so that nothing writes to the caller's memory after this
    for future in begun:
        future.result()


def run_independent(threads: int, parts: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run parts on so many threads, each part on one thread; return the results in order.

    Parts run in inference mode if the caller does. If a part fails, or the caller is interrupted,
    the others stop at their next `go_on`, and are waited for.
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
    _callers.add(get_ident())
    try:
        try:
            for _ in range(threads):
                futures.append(_pool().submit(work))
        except RuntimeError:  # at the interpreter's exit the pool takes no more work
            work()
        # When one has ended, no part is left for those that have not started.
        wait(futures, return_when=FIRST_COMPLETED)
        futures = [future for future in futures if not future.cancel()]
        wait(futures)
    except BaseException:
        stop.set()
        wait([future for future in futures if not future.cancel()])
        raise
    finally:
        _callers.discard(get_ident())
    failed = [error for error in (future.exception() for future in futures) if error is not None]
    for error in failed:
        if not isinstance(error, StoppedError):
            raise error
    return [found[number] for number in range(len(parts))]


def on_one(work: Callable[[], Result]) -> Result:
    """Run `work` on a thread of the pool, where torch starts no others; else on this thread."""
    if torch.get_num_threads() == 1:
        return work()
    try:
        future = _pool().submit(work)
    except RuntimeError:  # at the interpreter's exit the pool takes no more work
        return work()
    return future.result()


def others_run() -> bool:
    """Whether threads other than this one, those of the pool and who waits for them may run Python.

    A thread that shares work with the pool does nothing else until that is done.
    """
    threading.current_thread()  # so that it is counted, even if not started by Python
    return threading.active_count() > 1 + len((_OURS | _callers) - {get_ident()})


def go_on() -> None:
    """Raise StoppedError in a part that is to stop (`run_independent`)."""
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError


def _pool() -> ThreadPoolExecutor:
    global _helpers  # noqa: PLW0603 - the process has one
    if _helpers is None:
        _helpers = ThreadPoolExecutor(
            MOST_THREADS, thread_name_prefix="cossim_fast", initializer=_keep_operations_here
        )
    return _helpers


def _keep_operations_here() -> None:
    """Have torch run operations that this thread calls on no other thread.

    torch keeps a number of threads for each thread that has called it, and one for threads that
    have not yet; setting it sets both. A short-lived thread restores the latter.
    """
    _OURS.add(get_ident())
    with _starting:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        back = threading.Thread(target=torch.set_num_threads, args=(others,))
        back.start()
        back.join()


# Forks. A child has only the thread that forked, and all locks in the state they were in.

# Called in every forked child.
_in_child: list[Callable[[], None]] = []
_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
# Whether this is a forked child in which torch has not been set to one thread yet.
_forked = False
# By thread: a lock that it holds while `unforked` calls something; and the lock of this table.
_inside: dict[int, threading.RLock] = {}
_making = threading.RLock()
# Locks that a fork in progress has acquired.
_held: list[threading.RLock] = []
_Lock = type(_making)


class _Released:
    """Releases the locks that a fork holds as it is iterated over."""

    __iter__ = staticmethod(partial(map, _Lock.release, _held))


def after_fork(do: Callable[[], None]) -> None:
    """Call `do` in every child that is forked."""
    _in_child.append(do)


def watch(something: Forkable) -> None:
    """Call ``something.forked`` in every child that is forked from now on."""
    _watched.add(something)


def one_thread_after_fork() -> None:
    """Set torch to one thread in a forked child, where OpenMP would wait for threads forever.

    These threads exist only in the parent. torch's DataLoader does the same in its workers. It is
    done once in a child: if its parent had started no threads, it may set their number again.
    """
    global _forked  # noqa: PLW0603 - the process is one
    if _forked:
        torch.set_num_threads(1)
        _forked = False


def unforked(call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Call a product of torch; a fork in another thread waits until it has ended.

    oneDNN and MKL hold locks during a product, which nobody would release in a child. Takes 0.3 µs.
    """
    here = get_ident()
    with _inside.get(here) or _new_lock(here):
        return call(*arguments, **named)


def _new_lock(here: int) -> threading.RLock:
    with _making:
        return _inside.setdefault(here, threading.RLock())


def _before_fork() -> None:
    # If Ctrl-C interrupts this, `_held` names the locks that were acquired first.
    _held[:] = [_making]
    _making.acquire()
    _held.extend(_inside.values())
    deque(map(_Lock.acquire, _held[1:]), 0)


def _discard_helpers() -> None:
    """Discard the parent's pool in a forked child, which lacks its threads."""
    global _helpers, _starting
    _helpers, _starting = None, threading.Lock()
    _OURS.clear()
    _callers.clear()


def _after_in_child() -> None:
    global _making, _forked
    _making, _forked = threading.RLock(), True
    _inside.clear()
    _held.clear()
    _discard_helpers()
    for do in _in_child:
        do()
    for watched in list(_watched):
        watched.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        # It runs no Python, so that Ctrl-C cannot interrupt it.
        after_in_parent=partial(deque, _Released(), 0),
        after_in_child=_after_in_child,
    )
