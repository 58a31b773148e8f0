"""A set of embeddings: measure it in bounded memory, and say what is wrong with it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._extras import require
from cossim_fast.diagnose import notes, verdicts
from cossim_fast.diagnose.classes import Classes, measure_classes
from cossim_fast.diagnose.geometry import Geometry, geometry_streamed
from cossim_fast.diagnose.neighbours import (
    Neighbours,
    Pairs,
    measure_neighbours,
    measure_pairs,
)
from cossim_fast.diagnose.notes import Finding, Findings, Note
from cossim_fast.diagnose.rows import Rows, unit
from cossim_fast.diagnose.survey import Numbers, survey

# All pairs of so many rows are counted; of larger sets, those of a random choice.
SAMPLE = 4096
_PICTURED = 1000


@dataclass(frozen=True)
class CollapseReport(Findings):
    """What :func:`embeddings` found: print it, or read ``verdict``, ``also``, ``to_dict()``.

    The parts are ``numbers``, ``geometry``, ``pairs``, ``neighbours`` and ``classes``; all
    but the first are None where fewer than two rows have a direction.
    """

    numbers: Numbers
    geometry: Geometry | None
    pairs: Pairs | None
    neighbours: Neighbours | None
    classes: Classes | None
    findings: tuple[Finding, ...] = field(repr=False)
    confidence: str
    sample: Tensor = field(repr=False, compare=False)  # (m, d) float32, for the pictures
    sample_labels: Tensor | None = field(repr=False, compare=False)
    label_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> str:
        """The worst finding that holds, or ``"healthy"``."""
        return self.findings[0].name

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of all pairs of different rows, exact."""
        return self.geometry.mean_cosine if self.geometry is not None else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the sample as plain Python values."""
        parts = ("numbers", "geometry", "pairs", "neighbours", "classes")
        measures = {
            name: dataclasses.asdict(part)
            for name in parts
            if (part := getattr(self, name)) is not None
        }
        return {
            "verdict": self.verdict,
            "also": list(self.also),
            "confidence": self.confidence,
            "evidence": self.evidence,
            "advice": self.advice,
            **measures,
        }

    def to_html(self, path: str | Path, *, title: str = "Embeddings") -> Path:
        """Write the report with its pictures as one file that needs no network."""
        from cossim_fast.diagnose.html import write_report  # noqa: PLC0415 - needs [viz]

        return write_report(self, Path(path), title=title)

    def note(self) -> Note:
        """Return what is printed, part by part."""
        tables = [_numbers_table(self.numbers)]
        if self.geometry is not None:
            tables.append(_geometry_table(self.geometry, self.pairs, self.neighbours))
        if self.classes is not None:
            tables.append(_classes_table(self.classes))
        return Note("embeddings", self.findings, tuple(tables), (f"How sure: {self.confidence}.",))

    def __str__(self) -> str:
        return notes.as_text(self.note())

    def _repr_html_(self) -> str:
        return notes.as_html(self.note())


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
@torch.no_grad()
def embeddings(
    x: Any, labels: Any = None, *, sample: int | None = None, progress: bool = False
) -> CollapseReport:
    r"""Find out whether a set of embeddings has collapsed, and how.

    The rows are read in blocks, in two passes. Exact over all rows: the state of the
    numbers, exact duplicates, the mean cosine
    :math:`(\|\sum_i u_i\|^2 - n) / (n (n - 1))`, the singular values of the unit rows less
    their mean, and with labels the cosines within and between classes. From ``sample`` rows:
    the distribution of cosines with its error, uniformity, near duplicates and neighbours.
    The verdict is the first that holds of ``broken_numbers``, ``point_collapse``,
    ``duplicated``, ``dimensional_collapse`` and ``anisotropic``, or ``healthy``.

    Args:
        x: (n, d) tensor, array or memory map of real numbers, n >= 2, any device.
        labels: n labels, integers or strings. Few classes that separate well explain few
            directions and near neighbours, which are then no finding.
        sample: rows of which all pairs are looked at; 4096 by default. Sets no larger are
            measured in full.
        progress: whether to show a bar (needs tqdm).

    Returns:
        CollapseReport: ``verdict``, ``confidence``, ``evidence``, ``advice``, the measures.

    Zero rows, NaN and infinities are findings; the other measures leave those rows out.
    Sums run in float64, pairs in float32, outside autocast. No gradients. Peak extra
    memory: O(n) for norms and hashes, O(d²) for the spectrum, O(sample · d) for the sample,
    and one block of half a million numbers; d above 4096 takes the spectrum from 4096 rows.

    Raises:
        TypeError: the numbers are complex, or no numbers.
        ValueError: x is not (n, d) with n >= 2, or labels are not n values.

    The sources of the measures are cited where they are computed; the question itself is
    put by Jing et al. (2022), "Understanding dimensional collapse in contrastive
    self-supervised learning".

    >>> import torch
    >>> embeddings(torch.randn(200, 16, generator=torch.Generator().manual_seed(0))).verdict
    'healthy'
    """
    rows = Rows(x)
    limit = SAMPLE if sample is None else sample
    _checks.whole_number("sample", limit, least=2)
    codes: Tensor | None = None
    names: tuple[str, ...] = ()
    if labels is not None:
        numbered, names = _checks.class_labels(labels, rows.n)
        codes = torch.from_numpy(numbered).long()
    first = survey(rows, codes, _watched(rows, "numbers", progress))
    chosen = torch.nonzero(first.valid)[:, 0]
    if len(chosen) < 2:
        return _report(first.numbers, None, None, None, None, torch.empty(0, rows.d), None)
    geometry = geometry_streamed(
        rows, first.valid, first.mean, _watched(rows, "spectrum", progress)
    )
    if len(chosen) > limit:
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(chosen), generator=generator)[:limit]
        chosen = chosen[order].sort().values
    directions = unit(rows[chosen])[0]
    pairs = measure_pairs(directions, int(first.valid.sum()))
    neighbours = measure_neighbours(rows, first.valid, first.mean, directions, geometry)
    classes = None
    if codes is not None and first.class_sums is not None and first.class_sizes is not None:
        classes = measure_classes(first.class_sums, first.class_sizes, directions, codes[chosen])
    pictured = torch.linspace(0, len(chosen) - 1, min(len(chosen), _PICTURED)).long()
    return _report(
        first.numbers,
        geometry,
        pairs,
        neighbours,
        classes,
        directions[pictured].float(),
        codes[chosen[pictured]] if codes is not None else None,
        names,
    )


def _report(
    numbers: Numbers,
    geometry: Geometry | None,
    pairs: Pairs | None,
    neighbours: Neighbours | None,
    classes: Classes | None,
    sample: Tensor,
    sample_labels: Tensor | None,
    label_names: tuple[str, ...] = (),
) -> CollapseReport:
    measured = verdicts.Measured(numbers, geometry, neighbours, classes)
    judged = verdicts.judge(measured)
    return CollapseReport(
        numbers=numbers,
        geometry=geometry,
        pairs=pairs,
        neighbours=neighbours,
        classes=classes,
        findings=tuple(each.finding for each in judged),
        confidence=verdicts.confidence(judged[0], measured),
        sample=sample,
        sample_labels=sample_labels,
        label_names=label_names,
    )


def _watched(rows: Rows, name: str, progress: bool) -> Iterator[tuple[slice, Tensor]]:
    if not progress:
        return rows.blocks()
    tqdm = require("tqdm", extra="cli").tqdm
    bar: Iterator[tuple[slice, Tensor]] = tqdm(rows.blocks(), desc=name, total=rows.steps)
    return bar


def _numbers_table(x: Numbers) -> tuple[tuple[str, str], ...]:
    low, middle, high = (notes.number(v) for v in (x.norm_min, x.norm_median, x.norm_max))
    return (
        ("rows, features", f"{x.rows}, {x.features} ({x.dtype})"),
        ("norms", f"{low} to {high}, median {middle}"),
        ("not finite, zero rows", f"{x.non_finite_rows}, {x.zero_rows}"),
        ("saturated, subnormal", f"{x.saturated}, {x.subnormal} of {x.entries} numbers"),
        ("dead, constant features", f"{x.dead_features}, {x.constant_features}"),
        ("distinct rows, with a copy", f"{x.distinct_rows}, {x.rows_with_twin}"),
    )


def _geometry_table(
    g: Geometry, pairs: Pairs | None, near: Neighbours | None
) -> tuple[tuple[str, str], ...]:
    table = [
        ("mean cosine", notes.cosine(g.mean_cosine)),
        ("share of the mean direction", f"{notes.percent(g.mean_share)}"),
        ("effective rank (RankMe)", _of(g.rankme, g.max_rank)),
        ("participation ratio", _of(g.participation_ratio, g.max_rank)),
        ("variance in the smaller half", f"{notes.percent(g.lower_half, 2)}"),
    ]
    if pairs is not None:
        error = f", ± {notes.percent(pairs.error, 2)}" if pairs.error else ", exact"
        quartiles = ", ".join(notes.cosine(pairs.quantile(q)) for q in (0.25, 0.5, 0.75))
        table += [
            ("cosine, quartiles", quartiles),
            ("from all pairs of", f"{pairs.rows} rows{error}"),
            ("cosine, range", f"{notes.cosine(pairs.lowest)} to {notes.cosine(pairs.highest)}"),
            ("uniformity", notes.number(pairs.uniformity)),
        ]
    if near is not None:
        share = f"{notes.percent(near.near_share)} of {near.near_rows} rows"
        table.append(("near duplicates", f"{share}, {near.near_groups} groups"))
        if near.nearest_by_chance_sd > 0:
            nearest, by_chance = near.nearest, near.nearest_by_chance
            text = f"{notes.cosine(nearest)}, by chance {notes.cosine(by_chance)}"
            table.append(("nearest neighbour", text))
    return tuple(table)


def _classes_table(c: Classes) -> tuple[tuple[str, str], ...]:
    return (
        ("cosine within, between", f"{notes.cosine(c.within)}, {notes.cosine(c.between)}"),
        ("alignment", notes.number(c.alignment)),
        (
            "nearest neighbour's class",
            f"right in {notes.percent(c.nearest_accuracy)}, "
            f"by guess {notes.percent(c.chance_accuracy)} ({c.count} classes)",
        ),
    )


def _of(value: float, whole: int) -> str:
    share = notes.number(100 * value / max(whole, 1), 3)
    return f"{notes.number(value)} of {whole} ({share} %)"
