"""SIGKILL at random moments: the same call goes on afterwards, and nothing is half there."""

import contextlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast import CosineIndex, files
from hostile import truth
from hostile.harness import Attack
from hostile.tries import Child, Tally, WrongError, command, leftovers, small_stretches, start

SUFFIXES = (".npz", ".jsonl", ".parquet")


def kill_command(kind: str) -> Any:
    """Kill `cossim topk` or `cossim pairs` up to three times, and run it to its end."""

    def attack(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
        small_stretches()
        x = truth.rows(rng, 700, 16, rng.choice([np.float16, np.float32]))
        q = truth.rows(rng, int(rng.choice([20, 80])), 16)
        np.save("x.npy", x)
        np.save("q.npy", q)
        call = ("topk", "q.npy", "x.npy", "-k", "4")
        if kind == "pairs":
            call = ("pairs", "x.npy", "--threshold", "0.9")
        began = time.monotonic()
        whole = command(*call, "-o", "whole.npz", said=folder / "said")
        seconds = time.monotonic() - began
        if whole.status:
            raise WrongError(f"the command itself fails: {whole.err}")
        os.unlink("whole.npz")

        def check(out: Path) -> None:
            if kind == "pairs":
                truth.check_pairs_table(truth.table(out), x, 0.9)
            else:
                truth.check_topk_table(truth.table(out), q, x, 4)

        for number in range(6):
            out = folder / f"out{number}{rng.choice(SUFFIXES)}"
            before = {path.name for path in folder.iterdir()}
            with tally.one() as how:
                for _ in range(int(rng.integers(1, 4))):
                    killed = start(*call, "-o", out.name, said=folder / "said")
                    time.sleep(rng.uniform(0, 1.05 * seconds))
                    killed.kill()
                    if out.exists():
                        check(out)
                done = command(*call, "-o", out.name, said=folder / "said")
                Path("said.out").unlink(missing_ok=True)
                if done.refused():
                    raise WrongError(f"refuses its own checkpoint: {done.err}")
                check(out)
                how.append("resumed" if "going on from" in done.err else "anew")
                leftovers(folder, {*before, out.name})
            for path in folder.iterdir():
                if path.name not in before:
                    path.unlink()

    return attack


def kill_save(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Kill `CosineIndex.save` over an older index: one of the two is there."""
    old, new = (truth.rows(rng, n, 64) for n in (3000, 6000))
    queries = truth.rows(rng, 5, 64)
    older, newer = CosineIndex(old), CosineIndex(new)
    path = folder / "x.index"
    began = time.monotonic()
    newer.save(path)
    seconds = time.monotonic() - began
    for _ in range(10):
        older.save(path)
        with tally.one() as how:
            for _ in range(int(rng.integers(1, 4))):
                child = Child(lambda: newer.save(path))
                time.sleep(rng.uniform(0.2 * seconds, 1.2 * seconds))
                # Other processes make it slower: the next comes where this one was too early.
                seconds *= 0.8 if child.kill() == 0 else 1.2
            there = CosineIndex.load(path, mmap=bool(rng.integers(2)))
            rows, name = (new, "new") if len(there) == len(new) else (old, "old")
            truth.check_topk(*there.search(queries, 3), queries, rows, 3)
            how.append(name)
            del there
            newer.save(path)
            leftovers(folder, {path.name})


def kill_add(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Kill `add` to an index whose rows are in a file: what was added before is there."""
    for number in range(8):
        batches = [truth.rows(rng, int(rng.integers(1, 2000)), 128) for _ in range(6)]
        rows = np.concatenate(batches)
        ends = np.cumsum([len(batch) for batch in batches])
        path, kept = folder / f"rows{number}.safetensors", folder / f"index{number}.pickle"
        reader, writer = os.pipe()

        def grow(path: Path = path, kept: Path = kept, batches: Any = batches, to: int = writer):
            index = CosineIndex(batches[0], path=path)
            kept.write_bytes(pickle.dumps(index))
            os.write(to, b".")
            for batch in batches[1:]:
                index.add(batch)
                os.write(to, b".")

        child = Child(grow)
        os.close(writer)
        done = 0
        stop = int(rng.integers(1, len(batches)))
        while done < stop and os.read(reader, 1):
            done += 1
        time.sleep(rng.uniform(0, 0.004))
        child.kill()
        while os.read(reader, 1):
            done += 1
        os.close(reader)
        with tally.one() as how:
            first = pickle.loads(kept.read_bytes())
            truth.check_topk(*first.search(rows[:5], 3), rows[:5], batches[0], 3)
            again = CosineIndex.reopen(path)
            possible = set(ends[done - 1 : done + 1].tolist())
            if len(again) not in possible:
                raise WrongError(f"{len(again)} rows in the file, expected {sorted(possible)}")
            held = np.concatenate([rows[: len(again)], batches[0]])
            again.add(batches[0])
            truth.check_topk(*again.search(rows[:5], 3), rows[:5], held, 3)
            del again
            if not np.array_equal(np.asarray(files.load(path, key="rows")), held):
                raise WrongError("other rows in the file")
            how.append("whole" if done == len(batches) else "killed")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


ATTACKS = (
    Attack("kill-topk", kill_command("topk"), (8, 1), ("resumed",)),
    Attack("kill-pairs", kill_command("pairs"), (8, 1), ("resumed",)),
    Attack("kill-save", kill_save, (8, 1), ("old", "new")),
    Attack("kill-add", kill_add, (8, 1), ("killed",)),
)
