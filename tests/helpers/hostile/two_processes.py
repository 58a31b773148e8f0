"""Two processes with one output, or one file of rows: each is right, or one says what is wrong."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast import CosineIndex, files
from hostile import truth
from hostile.harness import Attack
from hostile.tries import (
    Child,
    Tally,
    WrongError,
    finish,
    leftovers,
    small_stretches,
    start,
)

SUFFIXES = (".npz", ".jsonl", ".parquet")


def commands(kind: str) -> Any:
    """Two runs of one command with one output, the second a moment later."""

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        small_stretches()
        for number in range(4):
            x, q = truth.rows(rng, 1200, 16), truth.rows(rng, 30, 16)
            np.save("x.npy", x)
            np.save("q.npy", q)
            out = folder / f"out{number}{rng.choice(SUFFIXES)}"
            call: tuple[str, ...] = ("topk", "q.npy", "x.npy", "-k", "3", "-o", out.name)
            if kind == "pairs":
                call = ("pairs", "x.npy", "--threshold", "0.85", "-o", out.name)
            said = [folder / f"said{which}" for which in range(2)]
            with tally.one() as how:
                first = start(*call, said=said[0])
                time.sleep(rng.uniform(0, 0.3))
                second = start(*call, said=said[1])
                done = [finish(first, said[0]), finish(second, said[1])]
                refused = [each.refused() for each in done]
                if all(refused):
                    raise WrongError("each refused because of the other")
                if kind == "pairs":
                    truth.check_pairs_table(truth.table(out), x, 0.85)
                else:
                    truth.check_topk_table(truth.table(out), q, x, 3)
                how.append("one refused" if any(refused) else "both done")
                leftovers(folder, {"x.npy", "q.npy", out.name})
            out.unlink(missing_ok=True)

    return attack


def _grow(path: Path, batches: Any, go: float) -> int:
    """Make an index at a path as another process does, add to it, and look; 3 if it is refused."""
    while time.monotonic() < go:
        pass
    rows = np.concatenate(batches)
    try:
        index = CosineIndex(batches[0], path=path)
        for batch in batches[1:]:
            time.sleep(0.001)
            index.add(batch)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    truth.check_topk(*index.search(rows[:20], 3), rows[:20], rows, 3)
    held = np.asarray(files.load(path, key="rows"))
    if not np.array_equal(held, rows):
        raise WrongError("the file has other rows")
    return 0


def one_path(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Two processes that make an index with one new path at the same time."""
    for number in range(8):
        path = folder / f"rows{number}.safetensors"
        parts = [[truth.rows(rng, 200, 32) for _ in range(4)] for _ in range(2)]
        with tally.one() as how:
            go = time.monotonic() + 0.05
            both = [
                Child(partial(_grow, path, some, go), folder / f"said{which}")
                for which, some in enumerate(parts)
            ]
            status = [child.wait() for child in both]
            if set(status) - {0, 3}:
                said = "".join((folder / f"said{i}.err").read_text() for i in range(2))
                raise WrongError(said.strip().split("\n")[-1])
            if 0 not in status:
                raise WrongError("each was refused because of the other")
            how.append("one refused" if 3 in status else "both done")


def _build(rows: Any, path: Path) -> None:
    CosineIndex(rows, path=path)


def rebuilt(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """The file of an index is deleted and built anew by another process, and then added to."""
    for number in range(8):
        path = folder / f"rows{number}.safetensors"
        mine, theirs, more = (truth.rows(rng, n, 32) for n in (300, 300, 100))
        index = CosineIndex(mine, path=path)
        how_so = ("deleted", "replaced", "cut")[int(rng.integers(3))]
        if how_so == "cut" and rng.integers(2):
            how_so = "written over"
        with tally.one(how_so) as how:
            if how_so == "deleted":
                path.unlink()
                if Child(partial(_build, theirs, path)).wait():
                    raise WrongError("the other cannot build its own")
            elif how_so == "replaced":
                other = folder / "other.safetensors"
                other.unlink(missing_ok=True)
                CosineIndex(theirs, path=other)
                os.replace(other, path)
            elif how_so == "cut":  # nothing that is mapped: that ends a process
                with path.open("ab") as file:
                    file.write(b"\0" * 640)
            else:
                os.utime(path)
            before = path.read_bytes()
            try:
                index.add(more)
            except (ValueError, OSError):
                how.append("refused")
                rows = mine
            else:
                rows = np.concatenate([mine, more])
            changed = path.read_bytes() != before
            if how_so in ("deleted", "replaced") and changed:
                raise WrongError("wrote into the file of another")
            truth.check_topk(*index.search(rows[:10], 3), rows[:10], rows, 3)
        path.unlink()


ATTACKS = (
    Attack("two-topk", commands("topk"), (6, 1), ()),
    Attack("two-pairs", commands("pairs"), (6, 1), ()),
    Attack("two-one-path", one_path, (4, 1), ("one refused",)),
    Attack("two-rebuilt", rebuilt, (4, 1), ()),
)
