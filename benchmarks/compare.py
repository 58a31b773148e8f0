"""Measure a commit and the working tree in turn, and say what got faster or slower.

Usage:
    python benchmarks/compare.py BASE [--full] [--only TEXT]

Each side is a process of its own that imports its own copy of the package, laid out in a
temporary folder from `git archive`; the cases, the inputs and this code are the working tree's
for both. They take turns within a round while the other waits, so that a machine that slows down
slows both. A difference is called one where an interval of 99 % for the median of the ratios
leaves out 1, and by more than a percent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tables import QUIET, seconds, times

ROOT = Path(__file__).parent.parent
ROUNDS = 15
# Half of what an interval of 99 % leaves out.
MISS = 0.005
SMALLEST = 0.01
# Seconds of a sample: long enough that a turn is more than the switch between processes.
SAMPLE = 0.05


class Outcome(NamedTuple):
    """What a comparison of one case says."""

    base: float  # seconds
    tree: float
    speed: dict[str, float]  # the base's time over the tree's: above 1, the tree is faster
    others_busy: float = 0.0  # processors that other processes kept busy meanwhile

    @property
    def verdict(self) -> str:
        """Faster, slower, or no difference that shows."""
        if self.speed["low"] > 1 + SMALLEST:
            return "faster"
        if self.speed["high"] < 1 / (1 + SMALLEST):
            return "slower"
        return "no difference"


def compare(base: list[float], tree: list[float]) -> Outcome:
    """Compare the seconds of both sides, round by round."""
    from timing import median_interval  # noqa: PLC0415 - the sides set their threads first

    ratios = [a / b for a, b in zip(base, tree, strict=True)]
    middle = [median_interval(side)["median"] for side in (base, tree)]
    return Outcome(*middle, median_interval(ratios, MISS))


def lay_out(revision: str | None, folder: Path) -> Path:
    """Put the package of a commit, or of the working tree for None, into a folder; return it."""
    names = ("cossim_fast", "kernels")
    if revision is None:
        for name in names:
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    else:
        archive = folder / "base.tar"
        git = ["git", "-C", str(ROOT), "archive", "--output", str(archive), revision, *names]
        subprocess.run(git, check=True)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        archive.unlink()
    # As setup.py installs it.
    (folder / "kernels").rename(folder / "cossim_fast" / "kernels")
    return folder


class Side:
    """A process that measures our contender of a case with the package of one folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            package = self.ask("where")
            if package is None or folder not in Path(package).parents:
                raise RuntimeError(f"expected the package of {folder}, got that of {package}")
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, *rest: Any) -> Any:
        """Put a question and wait for the answer; raise where it is an error."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        stdin.write(json.dumps([question, *rest]) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process died with exit code {self.process.wait()}")
        kind, answer = json.loads(line)
        if kind == "error":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


class Server:
    """The other end: answers questions about one case at a time."""

    def __init__(self) -> None:
        self.call: Any = None
        self.busy: Any = None  # spins while a case beside a busy process is called

    def where(self) -> str | None:
        """The package that this process has imported."""
        import cossim_fast  # noqa: PLC0415

        return cossim_fast.__file__

    def prepare(self, name: str) -> float:
        """Make the inputs of a case, check our answer; return the seconds of a call."""
        import answers  # noqa: PLC0415
        import busy  # noqa: PLC0415
        import timing  # noqa: PLC0415
        from cases import CASES, OURS  # noqa: PLC0415
        from peers import contenders  # noqa: PLC0415

        self.call = None
        if self.busy is not None:
            self.busy.close()
            self.busy = None
        (case,) = (case for case in CASES if case.name == name)
        (contender,) = (c for c in contenders(case) if c.name == OURS)
        lacks = contender.missing()
        if lacks is not None:
            raise RuntimeError(lacks)
        timing.pin(case.threads)
        inputs = timing.make_inputs(case)
        call = contender.prepare(case, *inputs)
        exact = answers.expected(case, inputs)
        checked = answers.check(case, contender, call(), inputs, exact)
        if not answers.acceptable(case, contender, checked):
            raise RuntimeError(f"wrong by {checked.error:.1e}")
        self.call = call
        if case.beside:
            self.busy = busy.Busy(max(os.sched_getaffinity(0)))
        return min(self.sample(1) for _ in range(3))

    def spent(self) -> float:
        """Processor time of this process so far, and of the busy one."""
        return time.process_time() + (self.busy.spent if self.busy is not None else 0.0)

    def sample(self, repeats: int) -> float:
        """Seconds a call, of so many in a row."""
        from timing import sampler  # noqa: PLC0415

        if self.busy is not None:
            self.busy.spin()
        try:
            return sampler("cpu")(self.call, repeats)
        finally:
            if self.busy is not None:
                self.busy.rest()


def serve() -> int:
    """Answer questions until there are no more."""
    server = Server()
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        question, *rest = json.loads(line)
        try:
            reply = ["answer", getattr(server, question)(*rest)]
        except Exception as error:  # the other end raises it
            reply = ["error", f"{type(error).__name__}: {error}"]
        answers.write(json.dumps(reply) + "\n")
    return 0


def race(name: str, base: Side, tree: Side) -> Outcome:
    """Measure one case on both sides, in turn; the one that begins changes each round."""
    once = max(side.ask("prepare", name) for side in (base, tree))
    repeats = max(1, math.ceil(SAMPLE / once))
    taken: dict[Side, list[float]] = {base: [], tree: []}
    start, before = time.perf_counter(), _others(base, tree)
    for i in range(ROUNDS):
        for side in (base, tree) if i % 2 else (tree, base):
            taken[side].append(side.ask("sample", repeats))
    others = (_others(base, tree) - before) / (time.perf_counter() - start)
    return compare(taken[base], taken[tree])._replace(others_busy=max(0.0, others))


def _others(*sides: Side) -> float:
    """Processor time that neither side nor this process has spent."""
    from timing import busy_seconds  # noqa: PLC0415

    return busy_seconds() - sum(side.ask("spent") for side in sides) - time.process_time()


def run(revision: str, names: list[str]) -> int:
    """Compare the cases of these names; return the exit status."""
    verdicts: dict[str, int] = {}
    with ExitStack() as stack:
        sides = []
        for side in (revision, None):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sides.append(Side(lay_out(side, folder)))
            stack.callback(sides[-1].close)
        print(f"{revision} and the working tree, {ROUNDS} rounds, intervals of 99 %")
        print(f"{'':68}{'base':>9}{'tree':>9}  tree is faster")
        for name in names:
            try:
                outcome = race(name, *sides)
            except RuntimeError as error:
                print(f"{name:68} not compared: {error}", flush=True)
                continue
            verdicts[outcome.verdict] = verdicts.get(outcome.verdict, 0) + 1
            loud = f" NOT QUIET: others kept {outcome.others_busy:.1f} processors busy"
            print(
                f"{name:68}{seconds(outcome.base):>9}{seconds(outcome.tree):>9}  "
                f"{times(outcome.speed)}: {outcome.verdict}"
                f"{loud if outcome.others_busy > QUIET else ''}",
                flush=True,
            )
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none")
    return 0


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", help="the commit to compare the working tree with")
    parser.add_argument("--full", action="store_true", help="every case, not only the quick ones")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.base is None:
        parser.error("expected a commit to compare with")
    from cases import CASES  # noqa: PLC0415
    from timing import MAPPED  # noqa: PLC0415

    # A memory map would have to lie in both sides' folders.
    chosen = [c for c in CASES if args.only in c.name and c.task not in MAPPED]
    return run(args.base, [c.name for c in chosen if args.full or args.only or c.quick])


if __name__ == "__main__":
    sys.exit(main())
