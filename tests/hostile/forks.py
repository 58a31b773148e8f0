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
from hostile.tries import Child, Tally, Wrong

LIMIT = 20.0


class Calls:
    """Calls whose answers are looked at, by several threads until they are stopped."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.x, self.q = truth.rows(rng, 2000, 32), truth.rows(rng, 70, 32)
        self.index = CosineIndex(self.x)
        self.of: dict[str, Callable[[], None]] = {
            "search": self.search,
            "search of one": self.search_one,
            "topk": self.topk,
            "topk bfloat16": lambda: self.topk("bfloat16"),
            "pairs_above": self.pairs,
            "pairwise_cosine": self.matrix,
            "pairwise_cosine medium": self.medium,
            "build": self.build,
        }

    def search(self) -> None:
        truth.check_topk(*self.index.search(self.q, 3), self.q, self.x, 3)

    def search_one(self) -> None:
        truth.check_topk(*self.index.search(self.q[:1], 3), self.q[:1], self.x, 3)

    def topk(self, screen: str = "auto") -> None:
        truth.check_topk(*topk(self.q, self.x, 3, screen=screen), self.q, self.x, 3)

    def pairs(self) -> None:
        truth.check_pairs(*pairs_above(self.q, self.x, 0.7), self.q, 0.7, self.x)

    def matrix(self) -> None:
        q, x = map(torch.from_numpy, (self.q, self.x))
        truth.check_matrix(pairwise_cosine(q, x), self.q, self.x)

    def medium(self) -> None:
        q, x = map(torch.from_numpy, (self.q, self.x))
        truth.check_matrix(pairwise_cosine(q, x, precision="medium"), self.q, self.x, 2e-2)

    def build(self) -> None:
        index = CosineIndex(self.q)
        index.add(self.x)
        index.remove(list(range(len(self.q))))
        found = index.search(self.q, 3)
        truth.check_topk(found.scores, found.indices - len(self.q), self.q, self.x, 3)


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
            raise Wrong(f"in a thread of the parent: {self.trouble[0]!r}")


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
        for _ in range(30):
            time.sleep(rng.uniform(0, 0.02))
            names = rng.choice(list(calls.of), 2, replace=False).tolist()
            with tally.one(", then ".join(names)) as how:
                status = _in_child(calls, names, folder).wait(LIMIT)
                if status not in (0, 3):
                    said = (folder / "said.err").read_text(errors="replace").strip()
                    raise Wrong(said.split("\n")[-1] or f"exit status {status}")
                how.append("refused" if status else "answered")


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
                    raise Wrong(f"a pool did not end within {LIMIT:g} s") from None
                how.append("refused" if "refused" in found else "answered")


ATTACKS = (
    Attack("forks", forks, (3, 1), fresh=True, limit=150),
    Attack("fork-pools", pools, (2, 0), fresh=True, limit=150),
)
