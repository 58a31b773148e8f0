"""What to learn from a GPU that is at hand for minutes, in the order of what it is worth.

    make gpu-session, make gpu-session DRY=1
    python benchmarks/gpu_session.py [--dry-run] [--to FILE] [STEP ...]

Each step has a budget of seconds and a list of trials; a trial that would begin after the budget
is left out and named. The JSON file is written anew after every trial, so that whatever ends the
session leaves what was found. Kernels of all trials are compiled beforehand, in threads. A trial
that fails is recorded with its error, and the next one runs.

``--dry-run`` does the same on tiny inputs, with a clock of the host, where kernels are interpreted
(TRITON_INTERPRET=1, and tests/helpers on the path): it shows that no trial holds a typing error.
"""

import argparse
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from cossim_fast.kernels import configs

import cossim_fast
from cossim_fast._replacing import replacing
from gpu_machine import Found, Machine, Step, Trial
from gpu_trials import STEPS


def describe(machine: Machine) -> Found:
    """The card and the versions that figures belong to."""
    versions = {"torch": torch.__version__, "cossim_fast": cossim_fast.__version__}
    if not machine.real:
        return {"device": "none: a dry run", **versions}
    return {"device": torch.cuda.get_device_name(), "arch": configs.current_arch(), **versions}


def warm(trials: list[Trial]) -> None:
    """Compile what trials launch, in threads: the compiler runs outside of Python's lock."""

    def compiled(kernels: Callable[[], object]) -> None:
        with suppress(Exception):  # the trial itself records it
            kernels()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, [trial.kernels for trial in trials if trial.kernels is not None]))


def run(
    machine: Machine, steps: Sequence[Step], path: Path, clock: Callable[[], float] = time.monotonic
) -> Found:
    """Run steps; write what was found to a file after every trial, and return it."""
    done: dict[str, dict[str, Found]] = {}
    report: Found = {"machine": describe(machine), "steps": done}
    for step in steps:
        found = done[step.name] = {}
        start = clock()
        prepared, trials = attempt(lambda step=step: {"trials": list(step.trials(machine))}), []
        if "failed" in prepared:
            found["preparation"] = prepared
        else:
            trials = prepared["trials"]
        if machine.real:
            warm(trials)
        for trial in trials:
            late = machine.real and clock() - start > step.seconds
            left_out: Found = {"left out": f"after {step.seconds} seconds"}
            found[trial.name] = left_out if late else attempt(trial.run)
            print(f"{step.name}: {trial.name}: {found[trial.name]}", flush=True)
            write(report, path)
        write(report, path)
    return report


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
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run needs none")
    if arguments.dry_run:
        importlib.import_module("ladder.runtime")  # an interpreter that checks, and a stub driver
    machine = Machine("cpu", scale=256, repeats=2) if arguments.dry_run else Machine("cuda")
    words = tuple(arguments.step)
    steps = tuple(step for step in STEPS if not words or step.name.startswith(words))
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    report = run(machine, steps, arguments.to)
    faults = wrong(report)
    print(*(f"wrong: {name}" for name in faults), f"written to {arguments.to}", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
