"""What to learn from a GPU that is at hand for minutes, in the order of what it is worth.

    make gpu-session, make gpu-session DRY=1
    python benchmarks/gpu_session.py [--dry-run] [--to FILE] [STEP ...]
    python benchmarks/gpu_session.py --table FILE     what a file holds, as a page
    python benchmarks/gpu_session.py --publish FILE   the same in docs/gpu.md

Each step has a budget of seconds and a list of trials; a trial that would begin after the budget
is left out and named. The JSON file is written anew before and after every trial, so that whatever
ends the session leaves what was found; a page of it lies beside it in the end. Kernels of all
trials are compiled beforehand, in threads. A trial that fails is recorded with its error, and the
next one runs: in another process, if it took this one with it, hung, or left the device unusable.

``--dry-run`` does the same on tiny inputs, with a clock of the host, where kernels are interpreted
(TRITON_INTERPRET=1, and tests/helpers on the path): it shows that no trial holds a typing error.
"""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from cossim_fast.kernels.architecture import current_arch

import cossim_fast
import gpu_page
from cossim_fast._replacing import replacing
from gpu_machine import Found, Machine, Step, Trial
from gpu_trials import STEPS
from gpu_watch import AGAIN, watched

ENDED = {"failed": "the process ended, or hung"}


def describe(machine: Machine) -> Found:
    """The card and the versions that figures belong to."""
    versions = {"torch": torch.__version__, "cossim_fast": cossim_fast.__version__}
    if not machine.real:
        return {"device": "none: a dry run", **versions}
    return {"device": torch.cuda.get_device_name(), "arch": current_arch(), **versions}


def warm(trials: list[Trial]) -> None:
    """Compile what trials launch, in threads: the compiler runs outside of Python's lock."""

    def compiled(kernels: Callable[[], object]) -> None:
        with suppress(Exception):  # the trial itself records it
            kernels()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, [trial.kernels for trial in trials if trial.kernels is not None]))


def run(
    machine: Machine,
    steps: Sequence[Step],
    path: Path,
    clock: Callable[[], float] = time.monotonic,
    found: Found | None = None,
) -> Found:
    """Run steps; write what was found to a file around every trial, and return it.

    ``found`` is what the process before this one wrote: what it tried is not tried again.

    Raises:
        DeviceLostError: a trial left the device unusable for this process.
    """
    report: Found = found or {"machine": describe(machine), "steps": {}, "finished": []}
    for step in steps:
        if step.name not in report["finished"]:
            of_step = report["steps"].setdefault(step.name, {})
            run_step(step, machine, of_step, clock, lambda: write(report, path))
            report["finished"].append(step.name)
            write(report, path)
    return report


def run_step(
    step: Step, machine: Machine, found: dict[str, Found], clock: Callable[[], float],
    save: Callable[[], None],
) -> None:  # fmt: skip
    """Run the trials of a step that are not among what was found."""
    if "preparation" in found:
        return
    start = clock()
    found["preparation"] = ENDED
    save()
    prepared = attempt(lambda: {"trials": list(step.trials(machine))})
    if "failed" in prepared:
        found["preparation"] = prepared
        return
    trials = [trial for trial in prepared["trials"] if trial.name not in found]
    if machine.real:
        warm(trials)
    del found["preparation"]
    save()
    for trial in trials:
        late = machine.real and clock() - start > step.seconds
        left_out: Found = {"left out": f"after {step.seconds} seconds"}
        found[trial.name] = ENDED
        save()
        found[trial.name] = left_out if late else attempt(trial.run)
        print(f"{step.name}: {trial.name}: {found[trial.name]}", flush=True)
        save()
        if "failed" in found[trial.name] and machine.is_broken:
            raise DeviceLostError(trial.name)


class DeviceLostError(RuntimeError):
    """A trial left the device unusable for this process."""


def attempt(trial: Callable[[], Found]) -> Found:
    """What a trial found, or how it failed."""
    try:
        return trial()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def wrong(report: Found) -> list[str]:
    """Names of trials that failed, or found a wrong result."""
    return [
        f"{step}: {name}"
        for step, found in report["steps"].items()
        for name, row in found.items()
        if "failed" in row or row.get("right") is False
    ]


def write(report: Found, path: Path) -> None:
    """Replace the file by what was found so far."""
    with replacing(path) as target:
        target.write(json.dumps(report, indent=1).encode() + b"\n")


def main() -> int:
    """Run the steps that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="*", help="steps to run, by the words that they begin with")
    parser.add_argument("--dry-run", action="store_true", help="tiny inputs, no GPU needed")
    parser.add_argument("--to", type=Path, default=Path("out/gpu-session.json"))
    parser.add_argument("--table", type=Path, help="show what this file holds, and run nothing")
    parser.add_argument("--publish", type=Path, help="show this file in docs/gpu.md")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if kept := arguments.table or arguments.publish:
        report = json.loads(kept.read_text(encoding="utf-8"))
        if arguments.table:
            print(*gpu_page.session(report), sep="\n")
        else:
            print(gpu_page.keep_session(report))
            gpu_page.publish()
        return 0
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run needs none")
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.resume:
        arguments.to.unlink(missing_ok=True)
        return watched([sys.executable, *sys.argv, "--resume"], arguments.to)
    if arguments.dry_run:
        importlib.import_module("ladder.runtime")  # an interpreter that checks, and a stub driver
    machine = Machine("cpu", scale=256, repeats=2) if arguments.dry_run else Machine("cuda")
    words = tuple(arguments.step)
    steps = tuple(step for step in STEPS if not words or step.name.startswith(words))
    before = arguments.to.exists() and json.loads(arguments.to.read_text(encoding="utf-8"))
    try:
        report = run(machine, steps, arguments.to, found=before or None)
    except DeviceLostError:
        return AGAIN
    page = "\n".join(gpu_page.session(report))
    arguments.to.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    faults = wrong(report)
    print(page, *(f"wrong: {name}" for name in faults), f"written to {arguments.to}", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
