"""An engine without a cluster: blocks in this process, several begun before the first ends."""

from __future__ import annotations

import pickle
import random
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from cossim_fast.distributed.grid import Block


class StoppedError(Exception):
    """As many blocks were computed as were asked for."""


class ShuffledEngine:
    """Computes blocks in a random order, of those that are in flight.

    Args:
        seed: of the order.
        flying: how many are in flight.
        most: raise `StoppedError` after so many.

    Attributes:
        computed: the names of the blocks, in the order in which they ended.
        cancelled: how many were in flight when nobody wanted more.
    """

    def __init__(self, seed: int = 0, flying: int = 4, most: int | None = None) -> None:
        self._random, self._flying, self._most = random.Random(seed), flying, most
        self.computed: list[str] = []
        self.cancelled = 0

    def run(self, tasks: Iterable[Block]) -> Generator[tuple[Block, Any], None, None]:
        """Yield each block with its result."""
        flying: list[tuple[Block, bytes]] = []
        try:
            yield from self._run(iter(tasks), flying)
        finally:
            self.cancelled += len(flying)

    def _run(
        self, waiting: Iterator[Block], flying: list[tuple[Block, bytes]]
    ) -> Iterator[tuple[Block, Any]]:
        while True:
            while len(flying) < self._flying and (task := next(waiting, None)) is not None:
                flying.append((task, pickle.dumps((task.function, task.arguments))))
            if not flying:
                return
            task, sent = flying.pop(self._random.randrange(len(flying)))
            if self._most is not None and len(self.computed) >= self._most:
                raise StoppedError
            function, arguments = pickle.loads(sent)
            result = pickle.loads(pickle.dumps(function(*arguments)))
            self.computed.append(task.name)
            yield task, result
