"""Runs attacks: every try in a process and a folder of its own, by a seed that repeats it."""

import argparse
import collections
import contextlib
import importlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hostile.tries import Tally, WrongError

MODULES = (
    "kills", "flips", "inputs", "other_corpus", "hostile_files", "places", "two_processes",
    "interrupts", "forks", "settings", "memory", "fuzz",
)  # fmt: skip
# Kinds of failures of an attack that are shown.
SHOWN = 12


@dataclass(frozen=True)
class Attack:
    """One way to attack.

    Args:
        run: makes a try: its random numbers, its folder, where it counts what came of it.
        tries: how many processes make tries, in the whole form and in the short one.
        reaches: what must have come of a try at least once in the whole form. An attack of which
            all is refused, or nothing, has not reached what it attacks.
        limit: seconds, after which a process hangs.
        fresh: needs an interpreter of its own, with as many threads as there are processors. Others
            are forked from one that has run each function once, on one thread.
    """

    name: str
    run: Callable[[np.random.Generator, Path, Tally], None]
    tries: tuple[int, int]
    reaches: tuple[str, ...] = ("answered",)
    limit: float = 60.0
    fresh: bool = False


@dataclass
class Outcome:
    """What came of all tries of an attack."""

    attack: Attack
    held: collections.Counter[str] = field(default_factory=collections.Counter)  # by what happened
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # seed, what it was, why
    seconds: float = 0.0

    def missed(self) -> list[str]:
        """What the attack should have met, and did not."""
        return [what for what in self.attack.reaches if not self.held[what]]


@dataclass
class _Process:
    pid: int
    outcome: Outcome
    seed: int
    place: Path
    began: float


def all_attacks() -> list[Attack]:
    """Those of every file."""
    modules = [importlib.import_module(f"hostile.{name}") for name in MODULES]
    return [attack for module in modules for attack in module.ATTACKS]


def run(
    attacks: Sequence[Attack],
    seed: int,
    *,
    short: bool = False,
    tries: int | None = None,
    at_once: int = 1,
) -> list[Outcome]:
    """Make all tries, so many processes at a time; leave none of them, and no file."""
    outcomes = [Outcome(attack) for attack in attacks]
    waiting = [
        (outcome, seed + number)
        for outcome in outcomes
        for number in range(outcome.attack.tries[short] if tries is None else tries)
    ]
    going: list[_Process] = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        try:
            while waiting or going:
                while waiting and len(going) < at_once:
                    going.append(_start(*waiting.pop(0), Path(scratch)))
                time.sleep(0.002)
                going = [process for process in going if not _ended(process)]
        finally:
            for process in going:
                _end(process.pid)
                os.waitpid(process.pid, 0)
    return outcomes


def _start(outcome: Outcome, seed: int, scratch: Path) -> _Process:
    place = Path(tempfile.mkdtemp(dir=scratch))
    (place / "folder").mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.setsid()  # so that whatever it starts can be ended with it
        if outcome.attack.fresh:
            script = str(Path(__file__).with_name("run.py"))
            inside = ["--inside", str(place), "--only", outcome.attack.name, "--seed", str(seed)]
            env = {x: y for x, y in os.environ.items() if x != "OMP_NUM_THREADS"}
            os.execve(sys.executable, [sys.executable, script, *inside], env)
        _inside(outcome.attack, seed, place)
    return _Process(pid, outcome, seed, place, time.monotonic())


def _inside(attack: Attack, seed: int, place: Path) -> None:
    """Make a try in this process, and end it."""
    said = os.open(place / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    tally = Tally(place / "tally")
    try:
        os.chdir(place / "folder")
        rng = np.random.default_rng([seed, zlib.crc32(attack.name.encode())])
        attack.run(rng, place / "folder", tally)
    except WrongError as error:
        tally.failed(str(error))
    except BaseException as error:
        traceback.print_exc()
        tally.failed(f"{type(error).__name__}: {error} ({_where(error)})")
    finally:
        # Threads that hang, and whatever else an interpreter waits for, are not waited for.
        os._exit(0)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"


def _ended(process: _Process) -> bool:
    """Whether a process is over, or was ended; what it counted is added up."""
    pid, status = os.waitpid(process.pid, os.WNOHANG)
    seconds = time.monotonic() - process.began
    late = not pid and seconds > process.outcome.attack.limit
    if not pid and not late:
        return False
    _end(process.pid)
    if late:
        os.waitpid(process.pid, 0)
    outcome = process.outcome
    counted = Tally(process.place / "tally").read()
    for kind, what, text in counted:
        if kind == "held":
            outcome.held[text] += 1
        else:
            outcome.failed.append((process.seed, what, text))
    if late:
        outcome.failed.append((process.seed, "", f"no end within {outcome.attack.limit:g} s"))
    elif status:
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        said = (process.place / "said").read_text(errors="replace").split("\n")
        outcome.failed.append((process.seed, "", " ".join([f"ended by {how}", *said[-3:]])))
    outcome.seconds += seconds
    shutil.rmtree(process.place)
    return True


def _end(pid: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def table(outcomes: Sequence[Outcome], *, whole: bool) -> str:
    """A line an attack, and beneath it what failed, each with what repeats it."""
    rows = [("attack", "tried", "held", "failed", "seconds", "of those that held")]
    for found in outcomes:
        held, failed = found.held.total(), len(found.failed)
        how = ", ".join(f"{times} {what}" for what, times in found.held.most_common())
        rows.append((found.attack.name, str(held + failed), str(held), str(failed),
                     f"{found.seconds:.0f}", how))  # fmt: skip
    total = [sum(int(row[column]) for row in rows[1:]) for column in range(1, 5)]
    rows.append(("all", *map(str, total), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0], cells[-1] = row[0].ljust(widths[0]), row[-1]
        lines.append("  ".join(cells).rstrip())
    for found in outcomes:
        if found.failed:
            lines.append(f"\nFAILED: {found.attack.name}")
            alike: dict[str, list[tuple[int, str, str]]] = {}
            for each in found.failed:
                alike.setdefault(re.sub(r"[0-9.e+-]*[0-9]", "#", each[2]), []).append(each)
            for some in sorted(alike.values(), key=len, reverse=True)[:SHOWN]:
                seed, what, why = some[0]
                lines.append(f"  {len(some)} times: {what + ': ' if what else ''}{why}")
                lines.append(f"    {_repeat(found.attack, seed)}")
            if len(alike) > SHOWN:
                lines.append(f"  ... and {len(alike) - SHOWN} more kinds")
        if whole and found.missed():
            lines.append(f"\nFAILED: {found.attack.name}: never {', '.join(found.missed())}")
    return "\n".join(lines)


def _repeat(attack: Attack, seed: int) -> str:
    return f"python tests/helpers/hostile/run.py --only {attack.name} --seed {seed} --tries 1"


def right(outcomes: Sequence[Outcome], *, whole: bool) -> bool:
    """Whether all held, and every attack of a whole run reached what it attacks."""
    return bool(outcomes) and not any(
        found.failed or (whole and found.missed()) for found in outcomes
    )


def main(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the attacks, print the table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="fewer tries, of all attacks")
    parser.add_argument("--seed", type=int, default=0, help="of the first try of each attack")
    parser.add_argument("--only", default="", metavar="TEXT", help="attacks named like this")
    parser.add_argument("--tries", type=int, help="of each attack, in place of its own number")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        print("hostile: attacks need fork, which this system has not", file=sys.stderr)
        return 2
    attacks = [attack for attack in all_attacks() if asked.only in attack.name]
    if asked.inside is not None:
        _inside(next(x for x in attacks if x.name == asked.only), asked.seed, asked.inside)
    exact = [attack for attack in attacks if attack.name == asked.only]
    attacks = exact or attacks
    at_once = cores()
    print(f"{platform.machine()}; seed {asked.seed}; processes at a time: {at_once}\n", flush=True)
    warm_up()
    began = time.monotonic()
    outcomes = run(attacks, asked.seed, short=asked.short, tries=asked.tries, at_once=at_once)
    whole = asked.tries is None and not asked.short
    print(table(outcomes, whole=whole))
    print(f"\n{time.monotonic() - began:.0f} seconds")
    return int(not right(outcomes, whole=whole))


def warm_up() -> None:
    """Call each function once, on one thread, so that forks need not."""
    import torch

    import cossim_fast

    for name in ("pyarrow.parquet", "safetensors.torch", "cossim_fast.cli.app", "pydantic"):
        with contextlib.suppress(ModuleNotFoundError):  # the last, which typer takes if it is there
            importlib.import_module(name)

    torch.set_num_threads(1)
    rows = np.random.default_rng(0).standard_normal((400, 16), dtype=np.float32)
    for queries in (rows[:2], rows[:100]):
        cossim_fast.topk(queries, rows, 3)
        cossim_fast.CosineIndex(rows).search(queries, 3)
    cossim_fast.pairs_above(rows, threshold=0.5)
    cossim_fast.pairwise_cosine(torch.from_numpy(rows))


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
