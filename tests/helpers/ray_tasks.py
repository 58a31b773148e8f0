"""What the tests of the engine have workers do. Workers import it by its name."""

import os
import time
from pathlib import Path

import torch


def squared(number: int, seconds: float = 0.0) -> int:
    """The square of a number, after a while."""
    time.sleep(seconds)
    return number * number


def threads() -> int:
    """How many threads torch has."""
    return torch.get_num_threads()


def logged(log: str, number: int, seconds: float) -> int:
    """Write a line as it starts and one as it ends; return the number."""
    for word in ("start", "end"):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{word} {number} {os.getpid()} {time.time()}\n")
        if word == "start":
            time.sleep(seconds)
    return number


def unreadable(path: str, row: int) -> None:
    """Refuse a row."""
    raise ValueError(f"row {row} of {path} is null")


def dies(log: str, times: int) -> str:
    """End the worker, the first so many times."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write("x")
    if Path(log).stat().st_size <= times:
        os._exit(1)
    return "done"
