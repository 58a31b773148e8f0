"""Outputs, checkpoints and indexes in places that are no plain files, or somebody else's."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hostile import truth
from hostile.flips import interrupted
from hostile.harness import Attack
from hostile.tries import Tally, WrongError, command, leftovers, small_stretches, start

X = truth.rows(np.random.default_rng(2), 600, 16)
OUTPUTS = ("out.npz", "out.jsonl", "out.parquet")
PAIRS = ("pairs", "x.npy", "--threshold", "0.85", "-o")
COMMANDS = (
    ("topk", "x.npy", "x.npy", "-k", "2", "-o"), PAIRS,
    ("dedup", "x.npy", "--threshold", "0.85", "-o"), ("index", "build", "x.npy", "-o"),
)  # fmt: skip


def _no_file(make: Callable[[Path], None], is_still: Callable[[int], bool]) -> Callable[..., str]:
    """Something that is no file in the place of an output: refused, and there is still."""

    def one(rng: np.random.Generator, folder: Path) -> str:
        call, out = COMMANDS[rng.integers(len(COMMANDS))], OUTPUTS[rng.integers(len(OUTPUTS))]
        place = folder / out
        if rng.integers(2):  # behind a link
            make(folder / "behind")
            place.symlink_to("behind")
        else:
            make(place)
        kept = place.is_symlink()
        done = command(*call, out, said=folder / "said", limit=15)
        if place.is_symlink() != kept or not is_still(place.stat().st_mode):
            raise WrongError("replaced what is no file")
        if not done.refused():
            raise WrongError("says that it wrote to what is no file")
        return "refused"

    return one


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # that of /dev/null
    except PermissionError:
        os.mkfifo(path)  # devices are root's to make


def _linked_output(rng: np.random.Generator, folder: Path) -> str:
    """A link in the place of an output is followed: the file behind it is replaced."""
    out = OUTPUTS[rng.integers(len(OUTPUTS))]
    (folder / "there").mkdir()
    target = folder / "there" / out
    target.write_bytes(b"older")
    (folder / out).symlink_to(f"there/{out}")
    done = command(*PAIRS, out, said=folder / "said")
    if done.refused():
        return "refused"
    if not (folder / out).is_symlink():
        raise WrongError("the link was replaced")
    truth.check_pairs_table(truth.table(target), X, 0.85)
    leftovers(folder / "there", {out})
    return "answered"


def _planted(rng: np.random.Generator, folder: Path) -> str:
    """Links of somebody else under the names that we are going to write are not followed."""
    victim = folder / "victim"
    victim.write_bytes(b"precious")
    call, out = COMMANDS[rng.integers(2)], "out.npz"
    ends = (".checkpoint", ".checkpoint.pairs", ".checkpoint.lock", ".lock", ".part")
    chosen = [end for end in ends if rng.integers(2)]
    for end in chosen:
        (folder / f"{out}{end}").symlink_to("victim")
    done = command(*call, out, said=folder / "said")
    if victim.read_bytes() != b"precious":
        raise WrongError("wrote through a planted link")
    if done.refused():
        return "refused"
    columns = truth.table(folder / out)
    if call == PAIRS:
        truth.check_pairs_table(columns, X, 0.85)
    else:
        truth.check_topk_table(columns, X, X, 2)
    return "answered"


def _modes(rng: np.random.Generator, folder: Path) -> str:
    """What only its owner may read stays so."""
    out = OUTPUTS[rng.integers(len(OUTPUTS))]
    before = os.umask(0o077 if rng.integers(2) else 0o022)
    try:
        if os.umask(0o077) == 0o022:  # an older output of that mode
            os.umask(0o022)
            (folder / out).write_bytes(b"")
            (folder / out).chmod(0o600)
        call, said = ((*PAIRS, out), folder / "said")
        if rng.integers(3) == 0 and not (folder / out).exists():
            out = "report.html"
            call = ("diagnose", "x.npy", "--html", out)
        interrupted_mode = 0
        if call[0] == "pairs":
            path = folder / f"{out}.checkpoint"
            interrupted(lambda _: start(*call, said=said), path)
            for each in folder.iterdir():
                if ".checkpoint" in each.name and not (folder / out).exists():
                    interrupted_mode |= each.stat().st_mode & 0o077
        done = command(*call, said=said)
        if done.status not in (0, 1):
            raise WrongError(f"refused: {done.err}")
        if (folder / out).stat().st_mode & 0o077 or interrupted_mode:
            raise WrongError(f"others may read {Path(out).suffix}, or what is kept beside it")
    finally:
        os.umask(before)
    return "answered"


TRIES: dict[str, Callable[[np.random.Generator, Path], str]] = {
    "FIFO": _no_file(os.mkfifo, stat.S_ISFIFO),
    "device": _no_file(_device, lambda mode: stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)),
    "linked output": _linked_output,
    "planted links": _planted,
    "modes": _modes,
}


def places(rng: np.random.Generator, folder: Path, tally: Tally) -> None:
    """Each place a few times."""
    small_stretches()
    for number in range(10):
        name = list(TRIES)[number % len(TRIES)]
        inside = folder / str(number)
        inside.mkdir()
        os.chdir(inside)
        np.save("x.npy", X)
        with tally.one(name) as how:
            how.append(TRIES[name](rng, inside))


ATTACKS = (Attack("places", places, (4, 1), ("answered", "refused")),)
