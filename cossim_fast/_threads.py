"""Threads of our own that stay, for loops of numpy's, which let go of the interpreter's lock.

Starting threads for a call costs more than most calls take; handing work to those that wait for
it costs 10 to 30 µs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Of all threads that work on a call.
MOST_THREADS = 16

_helpers: ThreadPoolExecutor | None = None


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


def _pool() -> ThreadPoolExecutor:
    global _helpers  # noqa: PLW0603 - the process has one
    if _helpers is None:
        _helpers = ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="cossim_fast")
    return _helpers


def _forget_helpers() -> None:
    """A forked child has its parent's pool without the threads: it makes its own."""
    global _helpers  # noqa: PLW0603
    _helpers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)
