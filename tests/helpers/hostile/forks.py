"""Forks while threads are inside calls: every child answers, and ends."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast import CosineIndex, pairs_above, pairwise_cosine, topk
from hostile import truth
from hostile.harness import Attack
from hostile.tries import Child, Tally, WrongError

# Seconds that a child may take: it answers in a tenth of one.
LIMIT = 10.0
# Children that hang say the same as one more would.
ENOUGH = 3


class Calls:
    """Calls whose answers are looked at, by several threads, without a product of numpy's.

    Args:
        rng: random numbers.
        n: rows.
        d: their width.
    """

    def __init__(self, rng: np.random.Generator, n: int = 2000, d: int = 32) -> None:
        self.x, self.q = truth.rows(rng, n, d), truth.rows(rng, 70, d)
        self.tensors = torch.from_numpy(self.q), torch.from_numpy(self.x)
        self.true = truth.cosines(self.q, self.x)
        self.index = CosineIndex(self.x)
        self.of: dict[str, Callable[[], None]] = {
            "search": self.search,
            "search of one": self.search_one,
            "topk": self.topk,
            "topk float32": lambda: self.topk("float32"),
            "topk bfloat16": lambda: self.topk("bfloat16"),
            "pairs_above": self.pairs,
            "pairwise_cosine": self.matrix,
            "pairwise_cosine medium": self.medium,
            "build": self.build,
        }

    def search(self) -> None:
        truth.check_ranked(*self.index.search(self.q, 3), self.true, 3)

    def search_one(self) -> None:
        truth.check_ranked(*self.index.search(self.q[:1], 3), self.true[:1], 3)

    def topk(self, screen: str = "auto") -> None:
        truth.check_ranked(*topk(self.q, self.x, 3, screen=screen), self.true, 3)

    def pairs(self) -> None:
        truth.check_reached(*pairs_above(self.q, self.x, 0.7), self.true, 0.7)

    def matrix(self) -> None:
        truth.check_close(pairwise_cosine(*self.tensors), self.true)

    def medium(self) -> None:
        truth.check_close(pairwise_cosine(*self.tensors, precision="medium"), self.true, 2e-2)

    def build(self) -> None:
        index = CosineIndex(self.q)
        index.add(self.x)
        index.remove(list(range(len(self.q))))
        found = index.search(self.q, 3)
        truth.check_ranked(found.scores, found.indices - len(self.q), self.true, 3)


class Busy:
    """Threads that make calls meanwhile."""

    def __init__(self, calls: Calls, threads: int) -> None:
        self._stop, self.trouble = threading.Event(), list[BaseException]()
        self._calls = calls
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]

    def _run(self, number: int) -> None:
        names = list(self._calls.of)
        while not self._stop.is_set():
            number = (number * 5 + 3) % len(names)
            try:
                self._calls.of[names[number]]()
            except BaseException as error:
                self.trouble.append(error)
                return

    def __enter__(self) -> "Busy":
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT)
        if self.trouble:
            raise WrongError(f"in a thread of the parent: {self.trouble[0]!r}")


def _in_child(calls: Calls, names: list[str], folder: Path) -> Child:
    def work() -> int:
        for name in names:
            try:
                calls.of[name]()
            except RuntimeError as error:
                if "fork" not in str(error):
                    raise
                return 3  # it says that it cannot do so in a forked child
        return 0

    return Child(work, folder / "said")


def forks(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Children are forked one after the other at random moments."""
    calls = Calls(rng)
    for call in calls.of.values():
        call()
    with Busy(calls, 3):
        wrong = 0
        for _ in range(40):
            if wrong == ENOUGH:
                break
            time.sleep(rng.uniform(0, 0.02))
            names = rng.choice(list(calls.of), 2, replace=False).tolist()
            with tally.one(", then ".join(names)) as how:
                wrong += 1
                status = _in_child(calls, names, folder).wait(LIMIT)
                if status not in (0, 3):
                    said = (folder / "said.err").read_text(errors="replace").strip()
                    raise WrongError(said.split("\n")[-1] or f"exit status {status}")
                how.append("refused" if status else "answered")
                wrong -= 1


def _pooled(name: str) -> str:
    try:
        _POOLED[0].of[name]()
    except RuntimeError as error:
        if "fork" not in str(error):
            raise
        return "refused"
    return "answered"


_POOLED: list[Any] = []


def pools(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Pools of the `fork` kind, made while threads are inside calls."""
    calls = Calls(rng)
    _POOLED[:] = [calls]
    for call in calls.of.values():
        call()
    context = multiprocessing.get_context("fork")
    with Busy(calls, 2):
        for _ in range(5):
            names = rng.choice(list(calls.of), 6).tolist()
            with tally.one() as how, context.Pool(2) as pool:
                waiting = pool.map_async(_pooled, names, chunksize=1)
                try:
                    found = waiting.get(LIMIT)
                except multiprocessing.TimeoutError:
                    raise WrongError(f"a pool did not end within {LIMIT:g} s") from None
                how.append("refused" if "refused" in found else "answered")


ATTACKS = (
    Attack("forks", forks, (3, 1), fresh=True, limit=90),
    Attack("fork-pools", pools, (2, 0), fresh=True, limit=90),
)
