"""Threads of our own that stay: for loops of numpy's, and for work that falls into parts.

Both let go of the interpreter's lock. Starting threads for a call costs more than most calls take;
handing work to those that wait for it costs 10 to 30 µs. On these threads torch's operations start
no others: a part is worked on by one thread from its beginning to its end, and waits for nobody.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Of all threads that work on a call.
MOST_THREADS = 16

_helpers: ThreadPoolExecutor | None = None
_starting = threading.Lock()
_here = threading.local()


class StoppedError(Exception):
    """Another part failed, or nobody waits for this one any more."""


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
        wait(futures)
    except BaseException:
        stop.set()
        wait(futures)
        raise
    failed = [error for error in (future.exception() for future in futures) if error is not None]
    for error in failed:
        if not isinstance(error, StoppedError):
            raise error
    return [found[number] for number in range(len(parts))]


def run_alone(work: Callable[[], Result]) -> Result:
    """Run work on one thread, on which torch's operations start no others; return its result."""
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
