"""Run the cases, print them beside their targets, keep the figures and publish them.

Usage:
    python benchmarks/report.py run [--full] [--only TEXT] [--device cuda] [--real FILE]
    python benchmarks/report.py publish     write the figures into README and docs, draw the plots
    python benchmarks/report.py check       exit 1 where README or docs say otherwise
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tables

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
START, END = "<!-- figures: start -->", "<!-- figures: end -->"


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "publish", "check"))
    parser.add_argument("--full", action="store_true", help="every case, not only the quick ones")
    parser.add_argument("--only", default="", help="run cases whose name holds this text")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--real", type=Path, help="a .npy matrix of embeddings, for real rows")
    parser.add_argument("--json", type=Path, help="the file of figures")
    args = parser.parse_args()
    if args.action == "run":
        if args.real:
            from data import REAL_ROWS  # noqa: PLC0415 - publish and check do without torch

            os.environ[REAL_ROWS] = str(args.real.resolve())
        return run(args.full, args.only, args.device, args.json)
    path = args.json or newest()
    pages = render(json.loads(path.read_text(encoding="utf-8")), path.name)
    if args.action == "publish":
        import plots  # noqa: PLC0415 - needs matplotlib

        for drawn in plots.draw_all(json.loads(path.read_text(encoding="utf-8")), PAGE.parent):
            print(f"drew {drawn.relative_to(ROOT)}")
        for page, text in pages.items():
            page.write_text(text, encoding="utf-8")
        return 0
    stale = [page.name for page, text in pages.items() if page.read_text(encoding="utf-8") != text]
    stale += tables.stale_plots(json.loads(path.read_text(encoding="utf-8")), PAGE.parent)
    for name in stale:
        print(f"{name} does not show the figures of {path.name}: make bench-report")
    return int(bool(stale))


def newest() -> Path:
    """The file to publish: that of every case where there is one, else that of the quick ones."""
    full, quick = results_file(True), results_file(False)
    return full if full.exists() else quick


def results_file(full: bool, device: str = "cpu") -> Path:
    """Where figures are kept."""
    name = "full" if full else "core"
    return FOLDER / (f"{name}.json" if device == "cpu" else f"{name}-{device}.json")


def render(results: dict[str, Any], name: str) -> dict[Path, str]:
    """README and the page with these figures between their markers."""
    written = {README: tables.headline(results), PAGE: tables.full(results, name)}
    return {
        page: with_figures(page.read_text(encoding="utf-8"), figures)
        for page, figures in written.items()
    }


def with_figures(page: str, figures: str) -> str:
    """Return the page with these figures between its markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{figures}\n{END}{after}"


def run(full: bool, only: str, device: str, path: Path | None) -> int:
    """Measure, print and save; the exit status is 1 where a case could not be measured."""
    import environment  # noqa: PLC0415 - publish and check do without torch
    from cases import CASES  # noqa: PLC0415

    start = time.perf_counter()
    results: dict[str, Any] = {"environment": environment.describe(device), "cases": []}
    print(tables.conditions(results["environment"]))
    for line in left_out(device):
        print(line)
    for case in CASES:
        if only in case.name and (full or only or case.quick):
            before = time.perf_counter()
            record = measure(case._replace(device=device))
            record["took"] = round(time.perf_counter() - before, 1)
            results["cases"].append(record)
            print("\n" + tables.as_text(record), flush=True)
    results["environment"]["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print("\n" + tables.summary(results))
    if device == "cuda" and all("not_run" in case for case in results["cases"]):
        print("Not saved: nothing was run, for want of a device.")
        return 0
    if only and path is None:
        print("Not saved: only some cases were run; --json FILE saves them.")
    else:
        path = path or results_file(full, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"Saved to {path}.")
    return int(any("failed" in case for case in results["cases"]))


def left_out(device: str) -> list[str]:
    """A line for each contender that cannot run here: of which tasks, and why."""
    from peers import CONTENDERS  # noqa: PLC0415

    tasks: dict[tuple[str, str], list[str]] = {}
    for task, listed in CONTENDERS.items():
        for contender in listed:
            lacks = contender.missing()
            if device in contender.devices and lacks is not None:
                tasks.setdefault((contender.name, lacks), []).append(task)
    return [f"Left out: {name} ({', '.join(of)}): {why}." for (name, why), of in tasks.items()]


def measure(case: Any) -> dict[str, Any]:
    """Time a case and measure its memory, in children."""
    from cases import OURS  # noqa: PLC0415
    from environment import has_device  # noqa: PLC0415
    from memory import peak_bytes  # noqa: PLC0415
    from peers import contenders  # noqa: PLC0415
    from timing import in_child, processors, time_case  # noqa: PLC0415

    record: dict[str, Any] = {
        "name": case.name,
        "task": case.task,
        "sizes": case.sizes,
        "dtype": str(case.dtype).removeprefix("torch."),
        "threads": case.threads,
        "data": case.data,
        "threshold": case.threshold,
        "device": case.device,
        "headline": case.headline,
        "why": case.why,
        "targets": [],
        "contenders": {},
    }
    if processors() < case.threads:
        return record | {"failed": f"this machine has {processors()} processors"}
    if not in_child(has_device, case.device):
        return record | {"not_run": f"torch sees no {case.device} device"}
    if not contenders(case):
        return record | {"not_run": f"no contender of it runs on {case.device}"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            timed = in_child(time_case, case, Path(folder))
            compared = {OURS}
            if case.headline:
                compared |= {timed["fastest"], *(target.against for target in case.targets)}
            for contender in contenders(case):
                entry = timed["contenders"][contender.name]
                if contender.name in compared and not contender.floor and "left_out" not in entry:
                    entry["peak_bytes"] = in_child(peak_bytes, case, contender.name, Path(folder))
        except RuntimeError as error:
            return record | {"failed": str(error)}
    measured = timed.pop("measured")
    record |= timed
    for target, value in zip(case.targets, measured, strict=True):
        record["targets"].append(judged(target, value, timed["contenders"]))
    return record


def judged(
    target: Any, measured: dict[str, float] | None, contenders: dict[str, Any]
) -> dict[str, Any]:
    """The target, what was measured, and whether it was reached."""
    if target.kind == "memory":
        held = contenders[target.ours].get("peak_bytes")
        if held is not None:
            measured = dict.fromkeys(("median", "low", "high"), held / 1e6)
    reached = None
    if measured is not None:
        at_least = target.kind in ("speed", "rate")
        value = measured["median"]
        reached = value >= target.bound if at_least else value <= target.bound
    return target._asdict() | {"text": str(target), "measured": measured, "reached": reached}


if __name__ == "__main__":
    sys.exit(main())
