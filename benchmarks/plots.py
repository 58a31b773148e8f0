"""Plots of the figures: time against size, and error against time.

Every contender has its own marker and line style, so that lines can be told apart without colour;
ours is black and thick, floors are dashed grey without markers.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

import growth
import tables

# Okabe and Ito's colours but yellow, which is too light on white, from dark to light.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "d")
LINES = ("-", (0, (6, 2)), (0, (1, 1)), "-.", (0, (6, 1, 1, 1, 1, 1)))
FLOOR_LINES = ((0, (5, 4)), (0, (2, 3)), (0, (8, 2, 2, 2)), (0, (1, 4)))
COLUMNS = 2
LEGEND_COLUMNS = 3
# An axis of fewer orders of magnitude than this has room for labels between them.
FEW = 200
ERROR_TASKS = ("rows", "matrix", "top-k")
# An error of 0 is drawn here.
LEAST = 1e-17
# Points that fall together can be told apart.
HOLLOW = {"linestyle": "none", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.6}
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "cossim_fast",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def style(name: str, names: list[str], floors: frozenset[str]) -> dict[str, Any]:
    """How a contender is drawn in a figure of these contenders."""
    if name in floors:
        line = FLOOR_LINES[sorted(floors).index(name) % len(FLOOR_LINES)]
        return {"color": "0.45", "linestyle": line, "linewidth": 1.4}
    if name == tables.OURS:
        return {"color": "black", "marker": "o", "linewidth": 2.6, "markersize": 6, "zorder": 5}
    place = [n for n in names if n not in floors and n != tables.OURS].index(name)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
        "linewidth": 1.3,
        "markersize": 5,
    }


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot of the page into a folder; return the files."""
    drawn = []
    found = growth.curves(results)
    with mpl.rc_context(STYLE):
        for task in tables.plotted(results):
            figure = draw_growth([curve for curve in found if curve.task == task])
            drawn.append(save(figure, folder / tables.plot_name(task), results))
        drawn.append(save(draw_errors(results), folder / tables.ERRORS, results))
    return drawn


def save(figure: Figure, path: Path, results: dict[str, Any]) -> Path:
    """Write a figure, with a note of which figures it shows."""
    metadata = {"Description": f"figures {tables.digest(results)}"}
    if path.suffix == ".svg":
        metadata["Date"] = None  # type: ignore[assignment]  # the same figures give the same file
    figure.savefig(path, metadata=metadata, bbox_inches="tight", dpi=100)
    return path


def draw_bars(ratios: dict[str, float], path: Path, results: dict[str, Any]) -> Path:
    """Draw ratios of speeds as bars that start at 1, to the right where ours is faster."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.42 * len(ratios) + 1), layout="constrained")
        axes = figure.add_subplot()
        for place, ratio in enumerate(ratios.values()):
            look = {"color": "black"} if ratio >= 1 else {"color": "white", "hatch": "////"}
            axes.barh(place, ratio - 1, left=1, height=0.6, edgecolor="black", **look)
            side = (
                {"ha": "left", "xytext": (4, 0)}
                if ratio >= 1
                else {"ha": "right", "xytext": (-4, 0)}
            )
            words = f"{ratio:.2g}×"
            axes.annotate(words, (ratio, place), textcoords="offset points", va="center", **side)
        axes.set_yticks(range(len(ratios)), list(ratios))
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(min(ratios.values()) / 2, max(ratios.values()) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel("our speed against the fastest peer's: slower left of 1, faster right")
        return save(figure, path, results)


def draw_growth(curves: list[growth.Curve]) -> Figure:
    """Time against size, a panel for each curve, a line for each contender."""
    rows = math.ceil(len(curves) / COLUMNS)
    columns = min(len(curves), COLUMNS)
    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), layout="constrained")
    floors = frozenset[str]().union(*(curve.floors for curve in curves))
    names = list(dict.fromkeys(itertools.chain.from_iterable(curve.lines for curve in curves)))
    for place, curve in enumerate(curves):
        axes = figure.add_subplot(rows, columns, place + 1)
        for name, points in curve.lines.items():
            axes.plot(
                [p.size for p in points],
                [p.median for p in points],
                **style(name, names, floors),
            )
        _label_sizes(axes, curve)
    _legend(figure, names, floors)
    return figure


def _label_sizes(axes: Axes, curve: growth.Curve) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({p.size for points in curve.lines.values() for p in points})
    axes.set_xticks(sizes, [_count(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    times = [p.median for points in curve.lines.values() for p in points]
    _time_ticks(axes, axes.yaxis, times)
    axes.set_xlabel(f"{curve.axis} ({'rows' if curve.axis not in 'dk' else 'numbers a row'})")
    if curve.axis == "k":
        axes.set_xlabel("k (rows returned for each query)")
    if curve.axis == "queries":
        axes.set_xlabel("queries")
    axes.set_ylabel("time a call")
    power = growth.exponent(curve.lines.get(tables.OURS, []))
    grows = "" if power is None else f"\ncossim_fast grows as {curve.axis}^{power:.2f}"
    title = f"{tables.PLOTS[curve.task]}, {growth.in_words(curve)}{grows}"
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(visible=True, color="0.9", linewidth=0.7)


def _time_ticks(axes: Axes, axis: Any, values: list[float]) -> None:
    """Label decades, and steps between them where there are few."""
    axes.autoscale_view()
    few = max(values) / min(values) < FEW
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tables.seconds(value)))
    axis.set_minor_locator(NullLocator())


def _count(size: int) -> str:
    """A size in few letters."""
    return f"{size / 1000:g}k" if size >= 1000 and size % 100 == 0 else str(size)


def _legend(figure: Figure, names: list[str], floors: frozenset[str]) -> None:
    ordered = sorted(names, key=lambda name: (name in floors, name != tables.OURS))
    handles = [Line2D([], [], **style(name, names, floors)) for name in ordered]
    shown = [f"{name} (floor)" if name in floors else name for name in ordered]
    figure.legend(
        handles,
        shown,
        loc="outside lower center",
        ncols=min(LEGEND_COLUMNS, len(shown)),
        frameon=False,
        fontsize=9,
        handlelength=4,
    )


def draw_errors(results: dict[str, Any]) -> Figure:
    """Error against time, a panel for the largest headline case of each task in float32."""
    chosen = {}
    for case in results["cases"]:
        compared = [e for e in case["contenders"].values() if e.get("error") is not None]
        wanted = case["task"] in ERROR_TASKS and not case.get("beside")
        if wanted and case["dtype"] == "float32" and len(compared) > 1:
            size = math.prod(case["sizes"].values())
            if size > chosen.get(case["task"], (0, None))[0]:
                chosen[case["task"]] = (size, case)
    cases = [case for _, case in chosen.values()]
    figure = Figure(figsize=(4.2 * max(1, len(cases)), 3.9), layout="constrained")
    names = list(dict.fromkeys(n for case in cases for n in _with_errors(case)))
    for place, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), place + 1)
        for name, entry in _with_errors(case).items():
            look = style(name, names, frozenset()) | HOLLOW
            median = entry["seconds"]["median"]
            axes.plot([median], [max(entry["error"], LEAST)], **look)
        axes.set_xscale("log")
        axes.set_yscale("log")
        times = [entry["seconds"]["median"] for entry in _with_errors(case).values()]
        _time_ticks(axes, axes.xaxis, times)
        _widen(axes, times, [max(e["error"], LEAST) for e in _with_errors(case).values()])
        axes.set_xlabel("time a call")
        axes.set_ylabel("largest error of a cosine")
        axes.set_title("\n".join(_wrapped(case["name"])), fontsize=9, loc="left")
        axes.grid(visible=True, color="0.9", linewidth=0.7)
    handles = [Line2D([], [], **style(n, names, frozenset()) | HOLLOW) for n in names]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=9,
    )
    return figure


def _widen(axes: Axes, times: list[float], errors: list[float]) -> None:
    """Keep small differences small: at least a few decades of error and some of time."""
    axes.set_xlim(min(times) / 2, max(times) * 2)
    axes.set_ylim(min(errors) / 30, max(errors) * 30)
    axes.yaxis.set_minor_locator(NullLocator())


def _with_errors(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: entry
        for name, entry in case["contenders"].items()
        if entry.get("error") is not None and "seconds" in entry
    }


def _wrapped(name: str) -> list[str]:
    """A case's name in two lines."""
    head, *rest = name.split("), ")
    return [name] if not rest else [f"{head}),", "), ".join(rest)]
