"""Bits flipped, bytes cut, added and moved in our own files: refused, or the right answer."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast import CosineIndex, pairs_above, topk
from hostile import truth
from hostile.harness import Attack
from hostile.tries import REFUSALS, Child, Tally, WrongError, command, small_stretches, start

SPOOL = "out.npz.checkpoint.pairs"


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Data with one fault, at its beginning, at its end or anywhere."""
    size = len(data)
    if not size:
        return b"\x01"
    first, last = ((0, size), (0, size), (0, min(size, 4096)), (max(size - 512, 0), size))[
        rng.integers(4)
    ]
    at = int(rng.integers(first, last))
    held = bytearray(data)
    match rng.integers(8):
        case 0:
            return data[:at]
        case 1:
            return data + rng.bytes(int(rng.integers(1, 64)))
        case 2:
            held[at : at + 512] = bytes(len(held[at : at + 512]))
        case 3:  # a sector that was written elsewhere
            some = held[at : at + 512]
            place = int(rng.integers(size))
            held[place : place + len(some)] = some[: size - place]
        case 4:
            held[at] = int(rng.integers(256))
        case _:
            held[at] ^= 1 << int(rng.integers(8))
    return bytes(held)


def each(
    rng: np.random.Generator, tally: Tally, path: Path, count: int, use: Callable[[], None]
) -> None:
    """Damage a file so many times, and use it each time; it must be right as it was."""
    data = path.read_bytes()
    use()
    for _ in range(count):
        # A new file: the old one may be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(damaged(rng, data))
        with tally.one() as how:
            try:
                use()
            except REFUSALS:
                how.append("refused")
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def index(*, mapped: bool) -> Any:
    """An index file, read as a whole or mapped."""

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        n, d = 700, 24
        x, q = truth.rows(rng, n, d, rng.choice([np.float16, np.float32])), truth.rows(rng, 6, d)
        ids = [None, rng.permutation(n) + 5, [f"row {i}" for i in range(n)]][rng.integers(3)]
        made = CosineIndex(x[:500], None if ids is None else ids[:500])
        made.add(x[500:], None if ids is None else ids[500:])
        named = np.arange(n) if ids is None else np.array(ids, object)
        gone = rng.choice(n, 50, replace=False)
        made.remove(named[gone].tolist() if named.dtype == object else named[gone].astype(int))
        alive = np.ones(n, bool)
        alive[gone] = False
        path = folder / "x.index"
        made.save(path)
        place = {name: row for row, name in enumerate(named.tolist())}

        def use() -> None:
            held = CosineIndex.load(path, mmap=mapped)
            found = held.search(q, 4)
            at = [[place.get(name, -1) for name in line] for line in np.asarray(found.indices)]
            truth.check_topk(found.scores, np.array(at), q, x, 4, alive=alive)
            lims, _, hits = held.range_search(q, 0.8)
            true = truth.cosines(q, x)
            true[:, ~alive] = -1
            for number, line in enumerate(true):
                names = np.asarray(hits[lims[number] : lims[number + 1]]).tolist()
                sure = set(named[line >= 0.8 + 1e-9].tolist())
                if not sure <= set(names) <= set(named[line >= 0.8 - 1e-9].tolist()):
                    raise WrongError("wrong rows above a threshold")

        each(rng, tally, path, 100, use)

    return attack


def unpickled(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """A file of rows under an index that is unpickled."""
    x, q = truth.rows(rng, 800, 24), truth.rows(rng, 6, 24)
    path = folder / "rows.safetensors"
    kept = pickle.dumps(CosineIndex(x, path=path))

    def use() -> None:
        truth.check_topk(*pickle.loads(kept).search(q, 4), q, x, 4)

    each(rng, tally, path, 60, use)


def interrupted(make: Callable[[Path], Child], path: Path) -> None:
    """Kill what `make` starts as soon as its checkpoint is there; try again if it was too fast."""
    for _ in range(20):
        path.unlink(missing_ok=True)
        child = make(path)
        while not path.exists() and not child.ended():
            time.sleep(0.0002)
        child.kill()
        if path.exists():
            return
    raise WrongError("no checkpoint is written that lasts: the rows are too few")


def checkpoint(kind: str) -> Any:
    """The checkpoint of `topk` or `pairs_above`."""

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        small_stretches()
        x, q = truth.rows(rng, 1500, 16), truth.rows(rng, 30, 16)
        path = folder / "checkpoint"

        def call() -> Any:
            if kind == "topk":
                return topk(q, x, 4, checkpoint=path)
            return pairs_above(x, threshold=0.9, checkpoint=path)

        interrupted(lambda _: Child(lambda: call() and None), path)

        def use() -> None:
            if kind == "topk":
                truth.check_topk(*call(), q, x, 4)
            else:
                truth.check_pairs(*call(), x, 0.9)

        each(rng, tally, path, 60, use)

    return attack


def spool(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """The pairs that `cossim pairs` has found so far, beside its checkpoint."""
    small_stretches()
    x = truth.rows(rng, 900, 16)
    np.save("x.npy", x)
    call = ("pairs", "x.npy", "--threshold", "0.85", "-o", "out.npz")
    path = folder / "out.npz.checkpoint"
    interrupted(lambda _: start(*call, said=folder / "said"), path)
    kept = {each: each.read_bytes() for each in folder.iterdir() if "out.npz" in each.name}
    spools = [each for each in kept if each != path and each.suffix != ".part"]
    if not spools:
        raise WrongError("no spool beside the checkpoint: say in flips.py where pairs are kept now")
    times = os.stat(path)
    for _ in range(8):
        for each, data in kept.items():
            each.unlink(missing_ok=True)
            each.write_bytes(data if each not in spools else damaged(rng, data))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with tally.one() as how:
            done = command(*call, said=folder / "said")
            if done.refused():
                how.append("refused")
            else:
                truth.check_pairs_table(truth.table(folder / "out.npz"), x, 0.85)
        with contextlib.suppress(FileNotFoundError):
            (folder / "out.npz").unlink()


BOTH = ("answered", "refused")
ATTACKS = (
    Attack("flip-index-read", index(mapped=False), (20, 1), BOTH),
    Attack("flip-index-mapped", index(mapped=True), (30, 2), BOTH),
    Attack("flip-unpickled", unpickled, (8, 1), BOTH),
    Attack("flip-checkpoint-topk", checkpoint("topk"), (5, 1), BOTH),
    Attack("flip-checkpoint-pairs", checkpoint("pairs"), (5, 1), BOTH),
    Attack("flip-spool", spool, (8, 1), BOTH),
)
