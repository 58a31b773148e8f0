"""Another corpus in the place of the one that a checkpoint was made with: refused, or searched."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast import pairs_above, topk
from hostile import truth
from hostile.flips import interrupted
from hostile.harness import Attack
from hostile.tries import Child, Tally, WrongError, command, small_stretches, start

CHANGES = ("values", "last rows", "unsampled rows", "dtype", "mtime", "moved", "key", "order")


def _changed(rng: np.random.Generator, x: Any, change: str) -> Any:
    """Other rows of the same shape."""
    if change == "values":
        return truth.rows(rng, *x.shape, x.dtype)
    if change == "order":
        return x[::-1].copy()
    y = x.copy()
    if change == "last rows":
        y[-100:] = truth.rows(rng, 100, x.shape[1], x.dtype)
    elif change == "unsampled rows":  # copies of one another from here on: pairs, and near rows
        at = rng.permutation(len(x))[:40]
        y[at] = y[at[0]]
    elif change == "dtype":
        y = y.astype(np.float16 if x.dtype == np.float32 else np.float32)
    return y


def _exchange(rng: np.random.Generator, change: str, name: str, y: Any) -> None:
    """Put other rows in the place of a file; those of another key are there already."""
    before = os.stat(name)
    if change == "moved":
        os.replace("y.npy", name)
    elif change == "mtime":
        os.utime(name)
    elif change != "key":
        np.save(name, y)
        if rng.integers(2):  # as `cp -p` and archives do
            os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_command(kind: str) -> Any:
    """The command is killed, its input is changed, and it is given again."""

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        small_stretches()
        for number in range(4):
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            x, q = truth.rows(rng, 1500, 16), truth.rows(rng, 30, 16)
            y = _changed(rng, x, "values" if change in ("key", "moved") else change)
            name = "x.npz" if change == "key" else "x.npy"
            options: tuple[str, ...] = ("--key", "a") if change == "key" else ()
            if change == "key":
                np.savez(name, a=x, b=y)
            else:
                np.save(name, x)
            if change == "moved":  # written before the checkpoint, as many bytes
                np.save("y.npy", y)
            np.save("q.npy", q)
            out = f"out{number}.npz"
            call = ("topk", "q.npy", name, "-k", "4", "-o", out)
            if kind == "pairs":
                call = ("pairs", name, "--threshold", "0.85", "-o", out)

            def begin(_: Path, call: Any = call, options: Any = options) -> Child:
                return start(*call, *options, said=folder / "said")

            with tally.one(change) as how:
                interrupted(begin, folder / f"{out}.checkpoint")
                _exchange(rng, change, name, y)
                if change == "key":
                    options = ("--key", "b")
                done = command(*call, *options, said=folder / "said")
                if done.refused():
                    how.append("refused")
                elif kind == "pairs":
                    truth.check_pairs_table(truth.table(folder / out), y, 0.85)
                else:
                    truth.check_topk_table(truth.table(folder / out), q, y, 4)
                if change == "mtime" and done.status and "change" not in done.err:
                    raise WrongError(f"refused without a word on what changed: {done.err}")

    return attack


def by_function(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """The functions, with arrays: another corpus, other rows of a join, another partner."""
    small_stretches()
    path = folder / "checkpoint"
    for _ in range(8):
        change = CHANGES[int(rng.integers(4))]
        kind = ("topk", "topk of an iterator", "join", "join of two")[int(rng.integers(4))]
        x, q = truth.rows(rng, 1500, 16), truth.rows(rng, 200, 16)

        def call(x: Any, q: Any = q, kind: str = kind) -> Any:
            if kind == "topk":
                return topk(q[:30], x, 4, checkpoint=path)
            if kind == "topk of an iterator":
                return topk(q[:30], iter(np.array_split(x, 30)), 4, checkpoint=path)
            if kind == "join":
                return pairs_above(x, threshold=0.85, checkpoint=path)
            return pairs_above(q, x, 0.3, checkpoint=path)

        with tally.one(f"{kind}, {change}") as how:
            interrupted(lambda _, call=call, x=x: Child(lambda: call(x) and None), path)
            y = _changed(rng, x, change)
            try:
                found = call(y)
            except ValueError as error:
                if "expected" not in str(error):
                    raise WrongError(f"refused with {error}") from error
                how.append("refused")
                # And what it was made of is still gone on with.
                found, y = call(x), x
            if kind == "join":
                truth.check_pairs(*found, y, 0.85)
            elif kind == "join of two":
                truth.check_pairs(*found, q, 0.3, y)
            else:
                truth.check_topk(*found, q[:30], y, 4)
        path.unlink(missing_ok=True)


ATTACKS = (
    Attack("other-corpus-topk", by_command("topk"), (10, 1), ("refused",)),
    Attack("other-corpus-pairs", by_command("pairs"), (10, 1), ("refused",)),
    Attack("other-corpus-functions", by_function, (8, 1), ("refused",)),
)
