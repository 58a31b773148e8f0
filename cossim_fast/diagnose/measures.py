"""What was measured of a set of embeddings, part by part, and how it is printed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cossim_fast.diagnose import notes
from cossim_fast.diagnose.classes import Classes
from cossim_fast.diagnose.geometry import Geometry
from cossim_fast.diagnose.neighbours import Neighbours, Pairs
from cossim_fast.diagnose.notes import Finding, Findings, Note
from cossim_fast.diagnose.survey import Numbers


@dataclass(frozen=True)
class Measures(Findings):
    """What was measured of a set of embeddings, and what was found.

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
