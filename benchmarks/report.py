"""Run the cases, print them beside their targets, keep the figures and publish them.

Usage:
    python benchmarks/report.py run [--full] [--fresh] [--only TEXT] [--device cuda] [--real FILE]
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

import summary
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
    parser.add_argument("--fresh", action="store_true", help="use nothing measured before")
    parser.add_argument("--only", default="", help="run cases whose name holds this text")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--real", type=Path, help="a .npy matrix of embeddings, for real rows")
    parser.add_argument("--json", type=Path, help="the file of figures")
    args = parser.parse_args()
    if args.action == "run":
        if args.real:
            from data import REAL_ROWS  # noqa: PLC0415 - publish and check do without torch

            os.environ[REAL_ROWS] = str(args.real.resolve())
        return run(args.full, args.only, args.device, args.json, args.fresh)
    path = args.json or newest()
    results = json.loads(path.read_text(encoding="utf-8"))
    pages = render(results, path.name)
    if args.action == "publish":
        import plots  # noqa: PLC0415 - needs matplotlib

        drawn = plots.draw_all(results, PAGE.parent)
        drawn.append(summary.picture(results, gpus(), PAGE.parent))
        for plot in drawn:
            print(f"drew {plot.relative_to(ROOT)}")
        for page, text in pages.items():
            page.write_text(text, encoding="utf-8")
        return 0
    stale = [page.name for page, text in pages.items() if page.read_text(encoding="utf-8") != text]
    stale += tables.stale_plots(results, PAGE.parent, also=(summary.PICTURE,))
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


def gpus() -> list[dict[str, Any]]:
    """What `make gpu` measured, a report for each device."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return [report for report in found if "roofline_per_second" in report]


def later() -> list[tuple[dict[str, Any], str]]:
    """Runs of cases that came after the run of all: run --only TEXT --json results/later-NAME.json.

    The next run of all has them too; the file is deleted then.
    """
    paths = sorted(FOLDER.glob("later-*.json"))
    return [(json.loads(path.read_text(encoding="utf-8")), path.name) for path in paths]


def render(results: dict[str, Any], name: str) -> dict[Path, str]:
    """README and the page with these figures between their markers."""
    written = {README: summary.text(results, gpus()), PAGE: tables.full(results, name, later())}
    return {
        page: with_figures(page.read_text(encoding="utf-8"), figures)
        for page, figures in written.items()
    }


def with_figures(page: str, figures: str) -> str:
    """Return the page with these figures between its markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{figures}\n{END}{after}"


def run(full: bool, only: str, device: str, path: Path | None, fresh: bool = False) -> int:
    """Measure, print and save; the exit status is 1 where a case could not be measured.

    What was measured is kept as each case ends: after an interruption the next run goes on there,
    where commit and machine are the same. All cases go on from the quick ones likewise.
    """
    import environment  # noqa: PLC0415 - publish and check do without torch
    from cases import CASES  # noqa: PLC0415

    results: dict[str, Any] = {"environment": environment.describe(device), "cases": []}
    print(tables.conditions(results["environment"]))
    for line in left_out(device):
        print(line)
    chosen = [case._replace(device=device) for case in CASES if full or only or case.quick]
    chosen = [case for case in chosen if device == "cpu" or not case.beside]
    chosen = [case for case in chosen if only in case.name]
    if not chosen:
        print(
            f"expected a case whose name holds {only!r}, and there is none; see benchmarks/cases.py"
        )
        return 2
    path = path or (None if only else results_file(full, device))
    partial = path and path.with_suffix(".partial.json")
    before = [partial, *([results_file(False, device)] if full else [])]
    known = {} if fresh else measured_before(before, results["environment"])
    known = {case.name: known[case.name] for case in chosen if case.name in known}
    print(f"{len(chosen)} cases, {len(known)} of them measured before at this commit.")
    for case in chosen:
        record = known.get(case.name)
        if record is None:
            start = time.perf_counter()
            record = measure(case)
            record["took"] = round(time.perf_counter() - start, 1)
        results["cases"].append(record)
        judge_growth(results["cases"])
        minutes = sum(each["took"] for each in results["cases"]) / 60
        results["environment"]["minutes"] = round(minutes, 1)
        if case.name not in known:
            place = f"{len(results['cases'])} of {len(chosen)}"
            print(f"\n{place}, {minutes:.0f} minutes: {tables.as_text(record)}", flush=True)
        if partial:
            partial.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and renamed: an interruption leaves the one before.
            draft = partial.with_suffix(".new")
            draft.write_text(json.dumps(results), encoding="utf-8")
            draft.replace(partial)
    print("\n" + tables.summary(results))
    if partial:
        partial.unlink(missing_ok=True)
    if device == "cuda" and all("not_run" in case for case in results["cases"]):
        print("Not saved: nothing was run, for want of a device.")
        return 0
    if path is None:
        print("Not saved: only some cases were run; --json FILE saves them.")
    else:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"Saved to {path}.")
    return int(any("failed" in case for case in results["cases"]))


def measured_before(files: list[Path | None], environment: dict[str, Any]) -> dict[str, Any]:
    """By name, the cases in these files that the same commit gave on the same machine.

    None where the commit is not known or the package was changed since, and none that failed.
    """
    if environment["commit"] == "unknown" or environment["commit"].endswith("with changes"):
        return {}
    found: dict[str, Any] = {}
    for file in files:
        if file is None or not file.exists():
            continue
        results = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in results["environment"].items() if key != "minutes"}
        if kept == environment:
            cases = [case for case in results["cases"] if "failed" not in case]
            found = {case["name"]: case for case in cases} | found
    return found


def judge_growth(records: list[dict[str, Any]]) -> None:
    """Measure the targets of growth between cases, where both are there."""
    ours = {
        record["name"]: (record["sizes"].get("n"), record["contenders"]["cossim_fast"]["seconds"])
        for record in records
        if "seconds" in record["contenders"].get("cossim_fast", {})
    }
    for record in records:
        for target in record["targets"]:
            if target["kind"] == "growth" and {record["name"], target["against"]} <= set(ours):
                (n, taken), (base, before) = ours[record["name"]], ours[target["against"]]
                allowed = (n / base) ** target["power"]
                ends = (("median", "median"), ("low", "high"), ("high", "low"))
                measured = {end: taken[end] / before[other] / allowed for end, other in ends}
                reached = measured["median"] <= target["bound"]
                target |= {"measured": measured, "reached": reached}


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
    from busy import can_be_kept  # noqa: PLC0415
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
        "beside": case.beside,
        "headline": case.headline,
        "why": case.why,
        "targets": [],
        "contenders": {},
    }
    if case.beside and not can_be_kept():
        return record | {"not_run": "this system keeps no process to one processor"}
    if processors() < case.threads:
        return record | {"failed": f"this machine has {processors()} processors"}
    if not in_child(has_device, case.device):
        return record | {"not_run": f"torch sees no {case.device} device"}
    if not contenders(case):
        return record | {"not_run": f"no contender of it runs on {case.device}"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            timed = in_child(time_case, case, Path(folder))
            # Beside a busy process a call holds what it holds elsewhere.
            compared = set() if case.beside else {OURS}
            if case.headline and not case.beside:
                compared |= {timed["fastest"], *(target.against for target in case.targets)}
            for contender in contenders(case):
                entry = timed["contenders"][contender.name]
                known = "left_out" in entry or "peak_bytes" in entry
                if contender.name in compared and not (contender.floor or known):
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
