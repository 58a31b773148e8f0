"""Another process that keeps one of a case's processors busy while the case is measured.

It stands for a data loader, another container or another user of the machine. It spins while it is
told to, and ends when nobody can tell it any more, however the one who started it ended.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Numbers counted between two looks at what it is told: less than a millisecond.
COUNT = 10_000
SPIN, REST = b"s", b"r"


def can_be_kept() -> bool:
    """Whether this system can keep a process to one processor, and so has this state at all."""
    return hasattr(os, "sched_setaffinity")


class Busy:
    """A process of one thread that spins on one processor, or rests; it begins by resting."""

    def __init__(self, processor: int) -> None:
        # Isolated: it needs nothing but the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.spent = 0.0  # processor time up to its last rest
        try:
            os.sched_setaffinity(self._process.pid, {processor})
            self._tell(REST)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def spin(self) -> None:
        """Keep the processor busy from now on."""
        self._tell(SPIN)

    def rest(self) -> None:
        """Leave the processor to others."""
        self._tell(REST)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Rest meanwhile, and spin again."""
        self.rest()
        try:
            yield
        finally:
            self.spin()

    def _tell(self, what: bytes) -> None:
        """Say what to do, and wait until it does."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the busy process has no pipes")
        stdin.write(what)
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the busy process died with exit code {self._process.wait()}")
        self.spent = float(answer)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def _serve() -> None:
    """Do what standard input says until it ends; answer with the processor time spent so far."""
    spins = False
    while True:
        if not spins or select.select([0], [], [], 0)[0]:
            told = os.read(0, 1)
            if not told:
                return
            spins = told == SPIN
            os.write(1, f"{time.process_time()}\n".encode())
        for _ in range(COUNT):
            pass


if __name__ == "__main__":
    _serve()
