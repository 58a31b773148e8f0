"""Growth curves: cases that differ in one size alone, and the exponent that fits them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

# The exponent is that of the largest sizes: overheads flatten the small end of a curve.
FITTED = 3
SHARED = ("task", "dtype", "threads", "data", "threshold", "device")


class Point(NamedTuple):
    """A size, and the seconds it took."""

    size: int
    median: float
    low: float
    high: float


class Curve(NamedTuple):
    """Time along one size, all others fixed: a line of points for each contender."""

    task: str
    axis: str
    fixed: dict[str, Any]  # the other sizes, and what else the cases share
    lines: dict[str, list[Point]]
    floors: frozenset[str]


def exponent(points: list[Point]) -> float | None:
    """The p of time = constant × size^p, by least squares of logarithms; None of too few points."""
    fitted = points[-FITTED:]
    if len(fitted) < FITTED:
        return None
    xs = [math.log(p.size) for p in fitted]
    ys = [math.log(p.median) for p in fitted]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def curves(results: dict[str, Any]) -> list[Curve]:
    """Every curve of at least three sizes that the cases hold."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for case in results["cases"]:
        # Figures from before there were such cases do not say that they are none.
        if case.get("beside"):
            continue
        if not any("seconds" in entry for entry in case["contenders"].values()):
            continue
        shared = tuple(case[key] for key in SHARED)
        for axis, size in case["sizes"].items():
            others = tuple((k, v) for k, v in case["sizes"].items() if k != axis)
            groups[shared, axis, others][size] = case
    found = []
    for (shared, axis, others), cases in groups.items():
        if len(cases) < FITTED:
            continue
        lines: dict[str, list[Point]] = defaultdict(list)
        floors = set()
        for size in sorted(cases):
            for name, entry in cases[size]["contenders"].items():
                if "seconds" in entry:
                    lines[name].append(Point(size, **entry["seconds"]))
                    if entry["floor"]:
                        floors.add(name)
        fixed = dict(others) | dict(zip(SHARED, shared, strict=True))
        found.append(Curve(fixed.pop("task"), axis, fixed, dict(lines), frozenset(floors)))
    return found


def in_words(curve: Curve) -> str:
    """What the points of a curve share."""
    sizes = [f"{k} = {v}" for k, v in curve.fixed.items() if k not in SHARED]
    fixed = curve.fixed
    kind = [fixed["data"]] if fixed["data"] != "gaussian" else []
    threads = f"{fixed['threads']} thread{'s' if fixed['threads'] > 1 else ''}"
    where = threads if fixed["device"] == "cpu" else fixed["device"]
    return ", ".join([*sizes, *kind, fixed["dtype"], where])


def doubling(power: float) -> str:
    """What doubling the size does to the time."""
    return f"{2**power:.2f}×"
