"""A few processes that talk by gloo, for tests: started once, ended whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

# [s] For a call, and for what one rank waits for another within it.
PATIENCE, WAIT = 200, 150


class RankError(Exception):
    """What a rank raised, with its type's name and its traceback."""


class Ranks:
    """`size` processes, each a rank of a process group, with one thread.

    As a context manager; processes end when it does, and none outlives one that hangs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.folder = tempfile.TemporaryDirectory()
        spawning = multiprocessing.get_context("spawn")
        place = (Path(self.folder.name) / "meeting").as_uri()
        self.ends, self.processes = [], []
        for rank in range(size):
            here, there = spawning.Pipe()
            process = spawning.Process(target=_rank, args=(there, rank, size, place), daemon=True)
            process.start()
            there.close()
            self.ends.append(here)
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, function: Callable[..., Any], *arguments: Any, size: int | None = None
    ) -> list[Any]:
        """What `function(group, *arguments)` returns on each rank, of all or of the first `size`.

        Both have to be importable by their names; tensors go through pipes as numbers.

        Raises:
            RankError: a rank raised, or did not answer: then all ranks are ended.
        """
        taking_part = self.size if size is None else size
        for end in self.ends:
            end.send((function, arguments, taking_part))
        until, found, failed = time.monotonic() + PATIENCE, [], []
        for rank, end in enumerate(self.ends):
            if not end.poll(max(until - time.monotonic(), 0)):
                self.close(wait=0)
                raise RankError(f"rank {rank} of {self.size} has not answered in {PATIENCE} s")
            answer, error = end.recv()
            found.append(answer)
            failed += [f"rank {rank}: {error}"] if error else []
        if failed:
            raise RankError("\n".join(failed))
        return found[:taking_part]

    def close(self, wait: float = 10) -> None:
        """End the processes: by a word, and after `wait` seconds by a signal."""
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(wait)
            if process.is_alive():
                process.kill()
                process.join()
        self.folder.cleanup()


def _rank(end: Any, rank: int, size: int, place: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=size, timeout=timedelta(seconds=WAIT)
    )
    groups = {size: dist.group.WORLD}
    # Every rank makes every group, in one order.
    groups |= {fewer: dist.new_group(list(range(fewer))) for fewer in range(1, size)}
    try:
        while True:
            function, arguments, taking_part = end.recv()
            answer, error = None, None
            if rank < taking_part:
                try:
                    answer = function(groups[taking_part], *arguments)
                except Exception:
                    error = traceback.format_exc()
            end.send((answer, error))
    except (EOFError, OSError):
        # The test has ended. Groups are not taken down: their ranks would wait for each other.
        os._exit(0)
