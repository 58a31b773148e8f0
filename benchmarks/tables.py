"""Figures as text: for the terminal, for README and for docs/benchmarks.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
from reasons import OF_TASK

OURS = "cossim_fast"
# Processors kept busy by other processes, beyond which figures are not to be trusted.
QUIET = 0.1
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
UNEXPLAINED = "No reason is known yet."
# By task: the plots of docs/, and what the reader sees.
PLOTS = {
    "rows": "paired rows",
    "rows gradient": "paired rows, forward + backward",
    "matrix": "matrix",
    "matrix gradient": "matrix, forward + backward",
    "top-k": "top-k",
    "build": "index build",
    "mapped": "top-k from a memory map",
    "join": "pairs above a threshold",
    "report": "diagnosis of embeddings",
}
ERRORS = "benchmarks-errors.svg"


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
    if target["kind"] == "share":
        middle, low, high = (f"{100 * measured[key]:.2g} %" for key in ("median", "low", "high"))
        return f"{middle} ({low} to {high})"
    if target["kind"] == "growth":
        return times(measured) + " the time"
    if target["kind"] == "rate":
        return times(measured, " GB/s")
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
    parts = [
        f"{found['processor']}, {found['processors']} processors, {found['capability']}",
        f"{found['system']}",
        versions,
        found["blas"],
    ]
    if found.get("instructions"):
        parts.insert(1, f"instructions: {' '.join(found['instructions'])}")
    if found.get("real"):
        n, d = found["real"]["shape"]
        parts.append(f"real rows: {found['real']['file']}, {n} of {d}")
    return "; ".join([*parts, f"commit {found['commit']}."])


def error(entry: dict[str, Any]) -> str:
    """Write the largest difference from float64, and rows that differ; floors have none."""
    if entry.get("error") is None:
        return "-"
    wrong = f", {entry['wrong']} of {entry['of']} differ" if entry.get("wrong") else ""
    return f"{entry['error']:.0e}{wrong}"


def peak(entry: dict[str, Any]) -> str:
    """Write the peak memory beyond inputs and results, where it was measured."""
    found = entry.get("peak_bytes")
    return "-" if found is None else f"{found / 1e6:.1f} MB"


def label(name: str, entry: dict[str, Any]) -> str:
    """A contender's name, and what it does not claim."""
    if entry.get("approximate"):
        return f"{name} (approximate)"
    return f"{name} (floor)" if entry.get("floor") else name


def not_measured(case: dict[str, Any]) -> str | None:
    """Why a case has no figures."""
    if "failed" in case:
        return f"not measured: {case['failed']}"
    return f"not run: {case['not_run']}" if "not_run" in case else None


def as_text(case: dict[str, Any]) -> str:
    """One case for the terminal."""
    lines = [case["name"]]
    if (reason := not_measured(case)) is not None:
        return f"{lines[0]}\n  {reason}"
    lines.append(f"  {'':34}{'median':>9}{'ours is faster':>28}{'peak':>10}  error")
    for name, entry in case["contenders"].items():
        shown = label(name, entry)
        if "left_out" in entry:
            lines.append(f"  {shown:34} left out: {entry['left_out']}")
            continue
        known = name != OURS and "ours_is_faster" in entry
        ratio = times(entry["ours_is_faster"]) if known else ""
        median = seconds(entry["seconds"]["median"])
        lines.append(f"  {shown:34}{median:>9}{ratio:>28}{peak(entry):>10}  {error(entry)}")
    for target in case["targets"]:
        reached = verdict(target).strip("*")
        lines.append(f"  {target['text']}: {outcome(target)}, {reached}")
    if "took" in case:
        lines.append(f"  measured in {case['took']} s")
    if case["others_busy"] > QUIET:
        lines.append(f"  NOT QUIET: others kept {case['others_busy']} processors busy")
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """Count the targets."""
    targets = [target for case in results["cases"] for target in case["targets"]]
    reached = sum(target["reached"] is True for target in targets)
    missed = sum(target["reached"] is False for target in targets)
    open_ = len(targets) - reached - missed
    loud = sum(case.get("others_busy", 0) > QUIET for case in results["cases"])
    warning = f" NOT QUIET: other processes were running beside {loud} cases." if loud else ""
    return (
        f"{len(results['cases'])} cases; {reached} of {len(targets)} targets reached, "
        f"{missed} not, {open_} not measured; {results['environment']['minutes']} minutes.{warning}"
    )


def faster_peers(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The peers that are faster beyond the interval, and how fast ours is beside them."""
    return {
        name: entry["ours_is_faster"]
        for name, entry in case["contenders"].items()
        if "ours_is_faster" in entry
        and not (entry["floor"] or entry["approximate"])
        and not name.startswith(OURS)
        and entry["ours_is_faster"]["high"] < 1
    }


def losses(results: dict[str, Any]) -> dict[str, list[str]]:
    """Where a peer is faster beyond the interval: by reason, a line of a table for each case."""
    found: dict[str, list[str]] = {}
    for case in results["cases"]:
        faster = [f"{name} {times(ratio)}" for name, ratio in faster_peers(case).items()]
        if faster:
            why = case["why"] or OF_TASK.get(case["task"], UNEXPLAINED)
            found.setdefault(why, []).append(f"| {case['name']} | {', '.join(faster)} |")
    return found


def misses(results: dict[str, Any]) -> list[str]:
    """A line for each target that was missed."""
    return [
        f"- {case['name']}: {target['text']}: {outcome(target)}"
        for case in results["cases"]
        for target in case["targets"]
        if target["reached"] is False
    ]


def full(
    results: dict[str, Any], name: str, later: Sequence[tuple[dict[str, Any], str]] = ()
) -> str:
    """Every figure: what is slower than a peer, plots, and tables of targets and of each case.

    ``later`` are runs of cases that came after the run of all, with the names of their files; each
    has conditions of its own.
    """
    lines = [f"From `benchmarks/results/{name}`. {summary(results)}", ""]
    lines += [conditions(results["environment"]), "", *_slower(results), *_growth(results)]
    lines += ["", "## Error against time", "", f"![error against time]({ERRORS})", ""]
    lines += [*_targets(results), "", "## Every case", *_sections(results)]
    for some, file in later:
        lines += ["", "## Measured later", ""]
        lines += [f"From `benchmarks/results/{file}`. {summary(some)}", ""]
        lines += [conditions(some["environment"]), *_sections(some)]
    return "\n".join(lines)


def _sections(results: dict[str, Any]) -> list[str]:
    """A table of each case, by task."""
    lines: list[str] = []
    by_task: dict[str, list[dict[str, Any]]] = {}
    for case in results["cases"]:
        by_task.setdefault(case["name"].partition(" (")[0], []).append(case)
    for title, cases in by_task.items():
        lines += ["", f"### {_capital(title)}"]
        for case in cases:
            lines += ["", *_section(case)]
    return lines


def _slower(results: dict[str, Any]) -> list[str]:
    lines = ["## What is slower than a peer", ""]
    for why, lost in losses(results).items():
        lines += [why, "", "| case | our speed beside that peer's (below 1: slower) |"]
        lines += ["| --- | --- |", *lost, ""]
    if len(lines) == 2:
        lines.append("Nothing, beyond the interval.")
    return lines


def _targets(results: dict[str, Any]) -> list[str]:
    missed = misses(results)
    lines = ["## Targets", ""]
    if missed:
        lines += ["Not reached:", "", *missed, ""]
    lines += ["| case | target | measured | |", "| --- | --- | --- | --- |"]
    for case in results["cases"]:
        for target in case["targets"]:
            lines.append(
                f"| {case['name']} | {target['text']} | {outcome(target)} | {verdict(target)} |"
            )
    return lines


def _growth(results: dict[str, Any]) -> list[str]:
    lines = ["## Growth", ""]
    found = growth.curves(results)
    for task in plotted(results):
        lines.append(f"![{PLOTS[task]}: time as sizes grow]({plot_name(task)})")
    lines += [
        "",
        f"Exponents, fitted to the {growth.FITTED} largest sizes of a curve: time grows as the "
        "size to that power, and doubling the size takes so many times as long.",
        "",
    ]
    for curve in found:
        powers = {name: growth.exponent(points) for name, points in curve.lines.items()}
        words = [
            f"{name} {power:.2f} ({growth.doubling(power)})"
            for name, power in powers.items()
            if power is not None
        ]
        title = f"{PLOTS.get(curve.task, curve.task)} along {curve.axis}, {growth.in_words(curve)}"
        lines.append(f"- {title}: {', '.join(words)}")
    return lines


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _section(case: dict[str, Any]) -> list[str]:
    lines = [f"#### {_capital(case['name'])}", ""]
    if (reason := not_measured(case)) is not None:
        return [*lines, f"{_capital(reason)}."]
    lines.append("| contender | median | interval | rounds | ours is faster | error | peak |")
    lines.append("| --- | ---: | --- | ---: | --- | ---: | ---: |")
    for name, entry in case["contenders"].items():
        shown = label(name, entry)
        if "left_out" in entry:
            lines.append(f"| {shown} | left out: {entry['left_out']} | | | | | |")
            continue
        middle, low, high = (seconds(entry["seconds"][k]) for k in ("median", "low", "high"))
        known = name != OURS and "ours_is_faster" in entry
        ratio = times(entry["ours_is_faster"]) if known else ""
        lines.append(
            f"| {shown} | {middle} | {low} to {high} | {entry['rounds']} | {ratio} "
            f"| {error(entry)} | {peak(entry)} |"
        )
    lines.append("")
    lines += [f"- {t['text']}: {outcome(t)}, {verdict(t)}" for t in case["targets"]]
    return lines


def plotted(results: dict[str, Any]) -> list[str]:
    """The tasks that have a plot of their growth."""
    tasks = {curve.task for curve in growth.curves(results)}
    return [task for task in PLOTS if task in tasks]


def plot_name(task: str) -> str:
    """The file of a task's plot, in docs/."""
    return f"benchmarks-{task.replace(' ', '-')}.svg"


def digest(results: dict[str, Any]) -> str:
    """What a plot carries to say which figures it shows."""
    text = json.dumps(results, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stale_plots(results: dict[str, Any], folder: Path, also: tuple[str, ...] = ()) -> list[str]:
    """The plots, and others of these names, that do not show these figures."""
    names = [*(plot_name(task) for task in plotted(results)), ERRORS, *also]
    return [
        name
        for name in names
        if not (folder / name).is_file()
        or digest(results) not in (folder / name).read_text(encoding="utf-8")
    ]
