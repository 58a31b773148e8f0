"""The eight rows of figures that README shows, wins and losses alike, and its table of a GPU.

The rows were chosen by what people ask for, one for each kind of work, and stay the same whichever
way the figures turn out.
"""

from __future__ import annotations

import textwrap
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import tables
from tables import OURS

PICTURE = "benchmarks-summary.svg"
GPU = "matrix on GPU"
# By the name of a headline case in cases.py, where * stands for what depends on how many real rows
# the machine has; the GPU's by its name in gpu.py.
ROWS = (
    ("paired rows", "paired rows (400000, 384), float32, 2 threads"),
    ("small call", "paired rows (32, 128), float32, 2 threads"),
    ("matrix", "matrix (8192, 1024) with (8192, 1024), float32, 2 threads"),
    (GPU, "pairwise, float16"),
    ("top-k", "top-k (1024, 384) with (38976, 384), k = 10, *, float32, 2 threads"),
    ("one query", "top-k (1, 384) with (200000, 384), k = 10, clustered, float32, 2 threads"),
    ("join", "pairs above a threshold (*, 384), above 0.8, real, float32, 1 thread"),
    (
        "memory map",
        "top-k from a memory map (64, 384) with (5000000, 384), k = 10, float16, 2 threads",
    ),
)
ON_GPU = (
    "paired rows, float16",
    "pairwise, float16",
    "pairwise, float32",
    "topk, float32",
)
WIDTH = 100


class Row(NamedTuple):
    """One line of the table: medians in seconds, the ratio of speeds, and bytes where known."""

    title: str
    case: str
    ours: float
    peer: str
    theirs: float
    ratio: dict[str, float]  # median, and low and high where there is an interval
    peaks: tuple[int | None, int | None] = (None, None)


def rows(results: dict[str, Any], gpus: list[dict[str, Any]]) -> list[Row]:
    """The rows whose cases were measured, and that have a peer."""
    headlines = [case for case in results["cases"] if case["headline"] and case.get("fastest")]
    found = []
    for title, name in ROWS:
        if title == GPU:
            found += [row for gpu in gpus for row in gpu_rows(gpu, (name,), title)]
            continue
        for case in (case for case in headlines if fnmatchcase(case["name"], name)):
            ours, theirs = (case["contenders"][one] for one in (OURS, case["fastest"]))
            found.append(
                Row(
                    title,
                    case["name"],
                    ours["seconds"]["median"],
                    case["fastest"],
                    theirs["seconds"]["median"],
                    theirs["ours_is_faster"],
                    (ours.get("peak_bytes"), theirs.get("peak_bytes")),
                )
            )
    return found


def gpu_rows(gpu: dict[str, Any], names: tuple[str, ...], title: str = "") -> list[Row]:
    """The named cases of a GPU beside their fastest peer.

    What is "alone" does less than the task.
    """
    found = []
    for name in names:
        if name not in gpu["cases"]:
            continue
        case = gpu["cases"][name]
        times = {one: entry["median_ms"] / 1e3 for one, entry in case["contenders"].items()}
        # At other precisions ours answers another question.
        ours = next(time for one, time in times.items() if one in (OURS, f"{OURS}, highest"))
        peers = {one: time for one, time in times.items() if not _is_ours_or_less(one)}
        peer = min(peers, key=peers.__getitem__)
        sizes = " with ".join(str(tuple(case["shapes"][one])) for one in "xy")
        shown = f"{name} {sizes}, {gpu['device']}"
        ratio = {"median": peers[peer] / ours}
        found.append(Row(title or name, shown, ours, peer, peers[peer], ratio))
    return found


def _is_ours_or_less(contender: str) -> bool:
    return contender.startswith(OURS) or contender.endswith("alone")


def text(results: dict[str, Any], gpus: list[dict[str, Any]]) -> str:
    """What stands between README's markers."""
    lines = [
        "| | case | ours | fastest peer | speed against the fastest peer (below 1: slower) "
        "| peak memory, ours and theirs |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows(results, gpus):
        peaks = " and ".join(f"{peak / 1e6:.1f}" for peak in row.peaks if peak is not None)
        lines.append(
            f"| {row.title} | {row.case} | {tables.seconds(row.ours)} "
            f"| {tables.seconds(row.theirs)} {row.peer} | {_ratio(row.ratio)} "
            f"| {f'{peaks} MB' if peaks else '-'} |"
        )
    lost = sum(bool(tables.faster_peers(case)) for case in results["cases"])
    raced = sum(bool(case.get("fastest")) for case in results["cases"])
    lines += [
        "",
        f"A peer is faster in {lost} of the {raced} cases that have one, with which "
        "[docs/benchmarks.md](docs/benchmarks.md) begins.",
        "",
        textwrap.fill(_where(results["environment"]), WIDTH),
    ]
    for gpu in gpus:
        lines += ["", *_gpu_table(gpu)]
    return "\n".join(lines)


def _where(found: dict[str, Any]) -> str:
    return (
        f"{found['processor']}, {found['processors']} processors, {found['capability']}; "
        f"{found['system']}; Python {found['versions']['Python']}, "
        f"torch {found['versions'].get('torch', 'unknown')}; commit {found['commit']}."
    )


def _gpu_table(gpu: dict[str, Any]) -> list[str]:
    lines = [
        f"| on one {gpu['device']} | ours | fastest peer "
        "| speed against the fastest peer (below 1: slower) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in gpu_rows(gpu, ON_GPU):
        case = row.case.removesuffix(f", {gpu['device']}")
        lines.append(
            f"| {case} | {tables.seconds(row.ours)} | {tables.seconds(row.theirs)} {row.peer} "
            f"| {_ratio(row.ratio)} |"
        )
    return lines


def _ratio(ratio: dict[str, float]) -> str:
    return tables.times(ratio) if "low" in ratio else f"{ratio['median']:.3g}×"


def picture(results: dict[str, Any], gpus: list[dict[str, Any]], folder: Path) -> Path:
    """Draw the rows as bars from 1 on, to the right where ours is faster; return the file."""
    import plots  # noqa: PLC0415 - needs matplotlib; the tables do without

    return plots.draw_bars(
        {row.title: row.ratio["median"] for row in rows(results, gpus)}, folder / PICTURE, results
    )
