"""Less and less memory: an answer that is right, or an error that says what is missing."""

import contextlib
import ctypes
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast import CosineIndex, deduplicate, pairs_above, pairwise_cosine, topk
from hostile import truth
from hostile.harness import Attack
from hostile.tries import Child, Tally, WrongError, command

# Exit statuses: memory ran out, and with it oneDNN's for machine code, which it does not say.
MEMORY, CODE = 5, 6


@contextlib.contextmanager
def limit(megabytes: float) -> Iterator[None]:
    """Let this process, and those it forks, map so much more than it has mapped."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(AttributeError):  # what was freed would be given out again: glibc
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has no class of its own for it.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def functions(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """A function a child, with steps of memory from nearly none to enough."""
    x, q = truth.rows(rng, 80000, 128), truth.rows(rng, 100, 128)
    true = truth.cosines(q, x)
    index = CosineIndex(x[:40000])
    tq, tx = torch.from_numpy(q), torch.from_numpy(x)

    def join(found: Any) -> None:
        truth.check_reached(*found, true, 0.7)

    def whole(found: Any) -> None:
        best(index.search(q, 3))

    def untouched() -> None:
        _, rows = index.search(q[:5], 3)
        if len(index) != 40000 or rows.max() >= 40000:
            raise WrongError("an index is changed by an add that failed")

    def saved() -> Any:
        path = folder / "x.index"
        index.save(path)
        return CosineIndex.load(path).search(q, 3)

    def best(found: Any) -> None:
        truth.check_ranked(*found, true, 3)

    def first(found: Any) -> None:
        truth.check_ranked(*found, true[:, :40000], 3)

    calls: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "topk": (lambda: topk(q, x, 3), best),
        "topk bfloat16": (lambda: topk(q, x, 3, screen="bfloat16"), best),
        "topk float32": (lambda: topk(q, x, 3, screen="float32"), best),
        "search": (lambda: index.search(q, 3), first),
        "build": (lambda: CosineIndex(x).search(q, 3), best),
        "add": (lambda: index.add(x[40000:]), whole),
        "save": (saved, first),
        "pairs_above": (lambda: pairs_above(q, x, 0.7), join),
        "matrix": (lambda: pairwise_cosine(tq, tx), lambda found: truth.check_close(found, true)),
        "deduplicate": (lambda: deduplicate(q, 0.99), lambda found: None),
    }
    for _ in range(16):
        name = str(rng.choice(list(calls)))
        megabytes = 2 ** rng.uniform(0, 7.5)

        def work(name: str = name, megabytes: float = megabytes) -> int:
            call, check = calls[name]
            try:
                with limit(megabytes):
                    found = call()
            except (MemoryError, OSError, RuntimeError) as error:
                if "could not create a primitive" in str(error):
                    return CODE  # of every product of this process from now on
                if not _no_memory(error):
                    raise
                if name == "add":
                    untouched()
                return MEMORY
            check(found)
            return 0

        with tally.one(name) as how:
            status = Child(work, folder / "said").wait(30)
            if status not in (0, MEMORY, CODE):
                said = (folder / "said.err").read_text(errors="replace").strip()
                raise WrongError(said.split("\n")[-1] or f"exit status {status}")
            how.append({MEMORY: "MemoryError", CODE: "oneDNN's error", 0: "answered"}[status])


def commands(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """The command, which says so in one line, and leaves an output whole or not at all."""
    x = truth.rows(rng, 40000, 128)
    np.save("x.npy", x)
    np.savez_compressed("x.npz", x=x)
    q = x[:50]
    np.save("q.npy", q)
    for _ in range(6):
        name = str(rng.choice(["x.npy", "x.npz"]))
        call = ("topk", "q.npy", name, "-k", "3", "-o", "out.npz")
        with tally.one(name) as how:
            with limit(2 ** rng.uniform(2, 8)):
                done = command(*call, said=folder / "said")
            if done.refused():
                if "memory" not in done.err:
                    raise WrongError(f"does not say that memory ran out: {done.err}")
                how.append("MemoryError")
                if (folder / "out.npz").exists():
                    raise WrongError("an output although it failed")
            else:
                truth.check_topk_table(truth.table(folder / "out.npz"), q, x, 3)
                (folder / "out.npz").unlink()


ATTACKS = (
    Attack("memory-functions", functions, (5, 1), ("answered", "MemoryError")),
    Attack("memory-commands", commands, (4, 1), ("answered", "MemoryError")),
)
