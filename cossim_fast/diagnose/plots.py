"""Pictures of a report, each a matplotlib Figure of its own; the extra ``viz`` draws them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._extras import require
from cossim_fast.diagnose import labels as class_labels
from cossim_fast.diagnose.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Above this many rows t-SNE takes minutes, and a heatmap has more cells than pixels.
_TSNE_ROWS = 1000
_HEATMAP_ROWS = 200
# One for each of ten colours, so that classes differ in print without colours too.
_MARKERS = "osD^vPX*<>"


def pca(report: Measures) -> "Figure":
    """Draw the sampled unit rows along their first two principal axes, on equal scales."""
    centred = report.sample - report.sample.mean(0)
    u, s, _ = torch.linalg.svd(centred.double(), full_matrices=False)
    share = s.square() / s.square().sum().clamp_min(1e-300)
    points = _two_columns(u * s)
    figure, axes = _axes("Principal axes of the unit rows")
    _scatter(axes, points, report)
    axes.set_xlabel(f"first axis ({100 * float(share[0]):.1f} % of the variance)")
    second = 100 * float(share[1]) if len(share) > 1 else 0.0
    axes.set_ylabel(f"second axis ({second:.1f} %)")
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def tsne(report: Measures) -> "Figure":
    """Draw neighbourhoods by t-SNE of cosine distances (van der Maaten and Hinton 2008)."""
    manifold = require("sklearn.manifold", extra="viz")
    rows = report.sample[:_TSNE_ROWS].double()
    distances = (1 - rows @ rows.T).clamp_min(0).fill_diagonal_(0)
    embedding = manifold.TSNE(
        metric="precomputed",
        init="random",
        perplexity=min(30.0, (len(rows) - 1) / 3),
        random_state=0,
    ).fit_transform(distances.numpy())
    figure, axes = _axes("Neighbourhoods (t-SNE of cosine distances)")
    _scatter(axes, embedding, report)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def cosine_histogram(report: Measures) -> "Figure":
    """Draw the distribution of the cosines of pairs beside that of random directions."""
    pairs = _needed(report.pairs)
    edges = np.asarray(pairs.edges)
    figure, axes = _axes("Cosines of pairs of rows")
    # Five bins of the record make one of the picture.
    counts = np.asarray(pairs.counts, dtype=float).reshape(-1, 5).sum(1)
    edges = edges[::5]
    width = edges[1] - edges[0]
    density = counts / counts.sum() / width
    axes.stairs(density, edges, fill=True, color="tab:blue", alpha=0.7, label="this set")
    grid = np.linspace(-1, 1, 801)
    d = report.numbers.features
    if d > 2:
        log = (d - 3) / 2 * np.log(np.clip(1 - grid**2, 1e-300, None))
        chance = np.exp(log - log.max())
        chance /= chance.sum() * (grid[1] - grid[0])
        axes.plot(grid, chance, color="0.3", linewidth=1, label=f"random, {d} dimensions")
    mean = report.mean_cosine
    axes.axvline(mean, color="tab:red", linestyle="--", linewidth=1, label=f"mean {mean:.4f}")
    axes.set(xlim=(-1, 1.02), xlabel="cosine", ylabel="density")
    axes.legend(frameon=False)
    return figure


def cosine_heatmap(report: Measures) -> "Figure":
    """Draw the matrix of cosines of some rows, those of one label side by side."""
    step = max(len(report.sample) // _HEATMAP_ROWS, 1)
    rows = report.sample[::step][:_HEATMAP_ROWS]
    title = "Cosine of row i and row j"
    if report.sample_labels is not None:
        labels = report.sample_labels[::step][:_HEATMAP_ROWS]
        rows = rows[labels.argsort(stable=True)]
        title += ", in the order of the labels"
    figure, axes = _axes(title)
    image = axes.imshow((rows @ rows.T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set(xlabel="row j", ylabel="row i")
    return figure


def singular_spectrum(report: Measures) -> "Figure":
    """Draw the singular values of the unit rows less their mean, largest first."""
    geometry = _needed(report.geometry)
    values = np.asarray(geometry.singular_values)
    largest = max(float(values[0]), 1e-300)
    # What lies below the rounding of float64 is zero, and a logarithm cannot show it.
    relative = np.clip(values / largest, 1e-9, None)
    figure, axes = _axes("Singular values of the unit rows less their mean")
    axes.semilogy(np.arange(1, len(relative) + 1), relative, color="tab:blue")
    for value, name, style in (
        (geometry.rankme, "RankMe", "--"),
        (geometry.participation_ratio, "participation ratio", ":"),
    ):
        axes.axvline(value, color="tab:red", linestyle=style, label=f"{name} {value:.1f}")
    axes.set(xlabel=f"index (of {geometry.max_rank})", ylabel="relative to the largest")
    axes.set_ylim(max(float(relative.min()) / 2, 5e-10), 2)
    axes.legend(frameon=False)
    return figure


def training(records: Sequence[dict[str, Any]]) -> "Figure":
    """Draw the records of a CollapseMonitor: mean cosine and effective rank over the steps."""
    outputs = [r for r in records if r["source"] == "output" and "mean_cosine" in r]
    compared = [r for r in records if r["source"] == "comparison"]
    figure, axes = _axes("Measures over training")
    for rows, name, marker in ((outputs, "mean cosine", "o"), (compared, "comparison", "x")):
        if rows:
            axes.plot(
                [r["step"] for r in rows], [r["mean_cosine"] for r in rows], marker, ls="-",
                markersize=3, label=name,
            )  # fmt: skip
    axes.plot(
        [r["step"] for r in outputs], [r["rankme_share"] for r in outputs], "s-",
        color="tab:green", markersize=3, label="RankMe / largest possible",
    )  # fmt: skip
    axes.set(xlabel="step", ylim=(-1.05 if _goes_negative(records) else -0.05, 1.05))
    ticker = require("matplotlib.ticker", extra="viz")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def of_report(report: Measures) -> dict[str, "Figure"]:
    """Draw every picture that a report has the data for."""
    if report.geometry is None:
        return {}
    drawn = {
        "histogram": cosine_histogram(report),
        "spectrum": singular_spectrum(report),
        "heatmap": cosine_heatmap(report),
        "pca": pca(report),
    }
    if len(report.sample) >= 10:
        drawn["tsne"] = tsne(report)
    return drawn


def _axes(title: str) -> tuple["Figure", "Axes"]:
    # A Figure of its own, not one of pyplot's: nothing global is changed or kept alive.
    figure: Figure = require("matplotlib.figure", extra="viz").Figure(
        figsize=(5.6, 4.2), layout="constrained"
    )
    axes: Axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    return figure, axes


def _scatter(axes: "Axes", points: Any, report: Measures) -> None:
    """Draw points; a legend names up to ten classes, a colour bar numbers more."""
    x, y = points[:, 0], points[:, 1]
    if report.sample_labels is None:
        axes.scatter(x, y, s=6, color="tab:blue")
        return
    labels = report.sample_labels[: len(points)].numpy()
    names = report.label_names
    if len(names) > len(_MARKERS):
        drawn = axes.scatter(x, y, s=6, c=labels, cmap="viridis", vmin=0, vmax=len(names) - 1)
        figure: Any = axes.figure
        figure.colorbar(drawn, ax=axes, label=f"number of the class, of {len(names)} in order")
        return
    drawn_classes = []
    for code, marker in zip(range(len(names)), _MARKERS, strict=False):
        chosen = labels == code
        drawn_classes.append(
            axes.scatter(x[chosen], y[chosen], s=16, marker=marker, color=f"C{code}", linewidths=0)
        )
    legend = axes.legend(
        # matplotlib leaves out what begins with "_" or is empty, and reads mathematics in names.
        drawn_classes,
        [str(code) for code in range(len(names))],
        title="class",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize=8,
        markerscale=1.5,
    )
    class_labels.name_classes(legend, names)


def _two_columns(points: Tensor) -> Any:
    if points.shape[1] < 2:
        points = torch.cat([points, torch.zeros_like(points)], 1)
    return points[:, :2].numpy()


def _goes_negative(records: Sequence[dict[str, Any]]) -> bool:
    return any(record.get("mean_cosine", 0) < -0.05 for record in records)


def _needed(part: Any) -> Any:
    if part is None:
        raise ValueError("expected a report of at least two rows with a direction, got none")
    return part
