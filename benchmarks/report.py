"""Run the cases, print them beside their targets, and keep the figures.

Usage:
    python benchmarks/report.py run [--only TEXT] [--json FILE]
    python benchmarks/report.py publish     write the figures into README and docs
    python benchmarks/report.py check       exit 1 where README or docs say otherwise
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "core.json"
PAGES = {ROOT / "README.md": "headline", ROOT / "docs" / "benchmarks.md": "full"}
# Processors kept busy by other processes, beyond which figures are not to be trusted.
QUIET = 0.1
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
START, END = "<!-- figures: start -->", "<!-- figures: end -->"


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "publish", "check"))
    parser.add_argument("--only", default="", help="run cases whose name holds this text")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file of figures")
    args = parser.parse_args()
    if args.action == "run":
        return run(args.only, args.json)
    results = json.loads(args.json.read_text(encoding="utf-8"))
    stale = 0
    for path, kind in PAGES.items():
        old = path.read_text(encoding="utf-8")
        new = with_figures(old, headline(results) if kind == "headline" else full(results))
        if args.action == "publish":
            path.write_text(new, encoding="utf-8")
        elif new != old:
            print(f"{path.name} does not show the figures of {args.json.name}: make bench-report")
            stale = 1
    return stale


def run(only: str, path: Path) -> int:
    """Measure, print and save; the exit status is 1 where a case could not be measured."""
    import environment  # noqa: PLC0415 - publish and check do without torch
    from cases import CASES  # noqa: PLC0415

    start = time.perf_counter()
    results: dict[str, Any] = {"environment": environment.describe(), "cases": []}
    print(conditions(results["environment"]))
    for case in CASES:
        if only in case.name:
            results["cases"].append(measure(case))
            print("\n" + as_text(results["cases"][-1]), flush=True)
    results["environment"]["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print("\n" + summary(results))
    if only:
        print("Not saved: only some cases were run.")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"Saved to {path}.")
    return int(any("failed" in case for case in results["cases"]))


def measure(case: Any) -> dict[str, Any]:
    """Time a case and measure its memory, in children."""
    from cases import OURS  # noqa: PLC0415
    from peers import contenders  # noqa: PLC0415
    from timing import in_child, peak_bytes, processors, time_case  # noqa: PLC0415

    record: dict[str, Any] = {"name": case.name, "headline": case.headline, "targets": []}
    if processors() < case.threads:
        return record | {"failed": f"this machine has {processors()} processors", "contenders": {}}
    try:
        timed = in_child(time_case, case)
        compared = {OURS, *(target.against for target in case.targets)}
        for contender in contenders(case.task, case.dtype):
            entry = timed["contenders"][contender.name]
            if contender.name in compared and not contender.floor and "left_out" not in entry:
                entry["peak_bytes"] = in_child(peak_bytes, case, contender.name)
    except RuntimeError as error:
        return record | {"failed": str(error), "contenders": {}}
    record |= {key: timed[key] for key in ("contenders", "others_busy")}
    for target, measured in zip(case.targets, timed["measured"], strict=True):
        if target.kind == "memory":
            held = timed["contenders"][target.ours]["peak_bytes"]
            if held is not None:
                measured = dict.fromkeys(("median", "low", "high"), held / 1e6)  # noqa: PLW2901
        reached = None
        if measured is not None:
            value = measured["median"]
            reached = value >= target.bound if target.kind == "speed" else value <= target.bound
        record["targets"].append(
            target._asdict() | {"text": str(target), "measured": measured, "reached": reached}
        )
    return record


def with_figures(page: str, figures: str) -> str:
    """Return the page with these figures between its markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{figures}\n{END}{after}"


def seconds(value: float) -> str:
    """Write a time with three digits and its unit."""
    unit, size = next((u, s) for u, s in UNITS if value >= s or s == UNITS[-1][1])
    return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"


def times(interval: dict[str, float], sign: str = "×") -> str:
    """Write a ratio with its interval."""
    middle, low, high = (f"{interval[key]:.3g}" for key in ("median", "low", "high"))
    return f"{middle}{sign} ({low} to {high})"


def outcome(target: dict[str, Any]) -> str:
    """Write what was measured, in the terms of the target."""
    measured = target["measured"]
    if measured is None:
        return "not measured"
    if target["kind"] == "memory":
        return f"{measured['median']:.1f} MB"
    if target["kind"] == "extra":
        return times(measured, " µs")
    if target["bound"] < 1:
        ends = {"median": "median", "low": "high", "high": "low"}
        return times({key: 1 / measured[end] for key, end in ends.items()}) + " the time"
    return times(measured) + " as fast"


def verdict(target: dict[str, Any]) -> str:
    """Say whether a target was reached."""
    return {True: "reached", False: "**not reached**", None: "-"}[target["reached"]]


def conditions(found: dict[str, Any]) -> str:
    """Say where and with what the figures were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['processor']}, {found['processors']} processors, {found['capability']}; "
        f"{found['system']}; {versions}; {found['blas']}; commit {found['commit']}."
    )


def as_text(case: dict[str, Any]) -> str:
    """One case for the terminal."""
    lines = [case["name"]]
    if "failed" in case:
        return f"{lines[0]}\n  not measured: {case['failed']}"
    lines.append(f"  {'':28}{'median':>9}{'ours is faster':>28}{'error':>9}{'peak':>10}")
    for name, entry in case["contenders"].items():
        if "left_out" in entry:
            lines.append(f"  {name:28} left out: {entry['left_out']}")
            continue
        ratio = "" if name == "cossim_fast" else times(entry["ours_is_faster"])
        median = seconds(entry["seconds"]["median"])
        lines.append(f"  {name:28}{median:>9}{ratio:>28}{error(entry):>9}{peak(entry):>10}")
    for target in case["targets"]:
        reached = verdict(target).strip("*")
        lines.append(f"  {target['text']}: {outcome(target)}, {reached}")
    if case["others_busy"] > QUIET:
        lines.append(f"  NOT QUIET: others kept {case['others_busy']} processors busy")
    return "\n".join(lines)


def error(entry: dict[str, Any]) -> str:
    """Write the largest difference from float64; floors have none."""
    return "-" if entry.get("error") is None else f"{entry['error']:.0e}"


def peak(entry: dict[str, Any]) -> str:
    """Write the peak memory beyond inputs and results, where it was measured."""
    found = entry.get("peak_bytes")
    return "-" if found is None else f"{found / 1e6:.1f} MB"


def summary(results: dict[str, Any]) -> str:
    """Count the targets."""
    targets = [target for case in results["cases"] for target in case["targets"]]
    reached = sum(target["reached"] is True for target in targets)
    missed = sum(target["reached"] is False for target in targets)
    open_ = len(targets) - reached - missed
    loud = sum(case.get("others_busy", 0) > QUIET for case in results["cases"])
    warning = f" NOT QUIET: other processes were running beside {loud} cases." if loud else ""
    return (
        f"{reached} of {len(targets)} targets reached, {missed} not, {open_} not measured; "
        f"{results['environment']['minutes']} minutes.{warning}"
    )


def headline(results: dict[str, Any]) -> str:
    """README's table: the headline cases, and every target that was missed."""
    lines = [
        "| case | cossim_fast | target | measured | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in results["cases"]:
        for target in case["targets"]:
            missed = target["reached"] is False
            if not missed and (not case["headline"] or target["kind"] == "memory"):
                continue
            ours = seconds(case["contenders"][target["ours"]]["seconds"]["median"])
            lines.append(
                f"| {case['name']} | {ours} | {target['text']} | {outcome(target)} "
                f"| {verdict(target)} |"
            )
    lines += ["", summary(results), "", conditions(results["environment"])]
    return "\n".join(lines)


def full(results: dict[str, Any]) -> str:
    """Every figure, a section for each case."""
    lines = [summary(results), "", conditions(results["environment"])]
    for case in results["cases"]:
        lines += ["", f"## {case['name'][0].upper()}{case['name'][1:]}", ""]
        if "failed" in case:
            lines.append(f"Not measured: {case['failed']}.")
            continue
        lines.append("| contender | median | interval | rounds | ours is faster | error | peak |")
        lines.append("| --- | ---: | --- | ---: | --- | ---: | ---: |")
        for name, entry in case["contenders"].items():
            if "left_out" in entry:
                lines.append(f"| {name} | left out: {entry['left_out']} | | | | | |")
                continue
            middle, low, high = (seconds(entry["seconds"][k]) for k in ("median", "low", "high"))
            ratio = "" if name == "cossim_fast" else times(entry["ours_is_faster"])
            lines.append(
                f"| {name} | {middle} | {low} to {high} | {entry['rounds']} | {ratio} "
                f"| {error(entry)} | {peak(entry)} |"
            )
        lines.append("")
        lines += [f"- {t['text']}: {outcome(t)}, {verdict(t)}" for t in case["targets"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
