"""Other threads change torch's settings all the time, or rely on them: all answers are right."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hostile.forks import Calls
from hostile.harness import Attack
from hostile.tries import Tally, WrongError

SECONDS = 2.0


class Meanwhile:
    """Repeats something on a thread until the block ends."""

    def __init__(self, *work: Callable[[], Any]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in work]

    def _run(self, work: Callable[[], Any]) -> None:
        while not self._stop.is_set():
            work()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _repeat(rng: np.random.Generator, tally: Tally, calls: Calls, names: list[str]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        name = str(rng.choice(names))
        with tally.one(name):
            calls.of[name]()


def precision(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """A thread that sets the precision of float32 products in turns, for moments or for longer."""
    calls = Calls(rng, 3000, 192)
    lowered, whole = rng.choice([0, 1e-5, 1e-4, 1e-3], 2)

    def turn() -> None:
        for word in ("medium", "highest", "high", "highest"):
            torch.set_float32_matmul_precision(word)
            time.sleep(whole if word == "highest" else lowered)

    with Meanwhile(turn):
        _repeat(rng, tally, calls, list(calls.of))


def dtype(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """A thread that sets torch's default dtype and numpy's errors, and another the threads."""
    calls = Calls(rng)
    np.seterr(all="raise")

    def turn() -> None:
        for each in (torch.float64, torch.float32, torch.bfloat16):
            torch.set_default_dtype(each)
            time.sleep(1e-4)

    def threads() -> None:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            time.sleep(1e-3)

    with Meanwhile(turn, threads):
        _repeat(rng, tally, calls, list(calls.of))
    torch.set_default_dtype(torch.float32)


def stranger(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """A float32 product of somebody else's, while ours are rounded: it is not."""
    calls = Calls(rng)
    a, b = torch.randn(200, 600), torch.randn(600, 200)
    exact = a.double() @ b.double()
    ours = [calls.medium, lambda: calls.topk("bfloat16"), calls.search, calls.matrix]
    until = time.monotonic() + SECONDS
    with Meanwhile(*ours):
        while time.monotonic() < until:
            with tally.one():
                off = float((torch.mm(a, b).double() - exact).abs().max() / exact.abs().max())
                if off > 1e-5:
                    raise WrongError(f"a product of another thread is off by {off:.1g}")


def users(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """What the user sets during a call stays as he set it."""
    calls = Calls(rng)
    names = list(calls.of)
    for name in names:
        calls.of[name]()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        first, second = rng.permutation(["highest", "high", "medium"])[:2].tolist()
        torch.set_float32_matmul_precision(first)
        name = str(rng.choice(names))
        with tally.one(name):
            thread = threading.Thread(target=calls.of[name])
            thread.start()
            time.sleep(rng.uniform(0, 0.01))
            torch.set_float32_matmul_precision(second)
            thread.join()
            if torch.get_float32_matmul_precision() != second:
                raise WrongError("a setting that was made during a call is lost")


ATTACKS = (
    Attack("settings-precision", precision, (4, 1), fresh=True),
    Attack("settings-dtype", dtype, (2, 1), fresh=True),
    Attack("settings-stranger", stranger, (2, 1), fresh=True),
    Attack("settings-users", users, (2, 1), fresh=True),
)
