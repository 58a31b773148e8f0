"""A set of embeddings: measure it in bounded memory, and say what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast._extras import require
from cossim_fast.diagnose import chance, verdicts
from cossim_fast.diagnose.classes import Classes, measure_classes
from cossim_fast.diagnose.geometry import Geometry, geometry_streamed
from cossim_fast.diagnose.groups import Groups, two_groups
from cossim_fast.diagnose.measures import Measures
from cossim_fast.diagnose.neighbours import (
    Neighbours,
    Pairs,
    measure_neighbours,
    measure_pairs,
)
from cossim_fast.diagnose.rows import Rows, unit
from cossim_fast.diagnose.survey import Numbers, survey

# All pairs of so many rows are counted; of larger sets, those of a random choice.
SAMPLE = 4096
_PICTURED = 1000


@dataclass(frozen=True)
class CollapseReport(Measures):
    """What :func:`embeddings` found: print it, or read ``verdict``, ``also``, ``to_dict()``.

    The parts are ``numbers``, ``geometry``, ``pairs``, ``neighbours`` and ``classes``; all
    but the first are None where fewer than two rows have a direction.
    """

    def to_html(self, path: str | Path, *, title: str = "Embeddings") -> Path:
        """Write the report with its pictures as one file that needs no network."""
        from cossim_fast.diagnose.html import write_report  # noqa: PLC0415 - needs [viz]

        return write_report(self, Path(path), title=title)


@as_one
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
    ``duplicated``, ``dimensional_collapse`` and ``anisotropic``, or ``healthy``; all that hold
    are reported. Numbers that are broken in no more than half of the rows come last. Rows of
    one number are ``single_feature``, and nothing else but broken.

    Args:
        x: (n, d) tensor, array or memory map of real numbers, n >= 2, any device.
        labels: n labels, integers or strings. Few classes that separate well explain few
            directions and near neighbours, which are then no finding. Two groups that lie apart
            are seen without labels, and judged by the spectrum within them.
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
    limit = _checks.whole_number("sample", limit, least=2)
    codes: Tensor | None = None
    names: tuple[str, ...] = ()
    if labels is not None:
        numbered, names = _checks.class_labels(labels, rows.n)
        codes = torch.from_numpy(numbered).long()
    first = survey(rows, codes, _watched(rows, "numbers", progress))
    chosen = torch.nonzero(first.valid)[:, 0]
    if len(chosen) < 2:
        none = torch.empty(0, rows.d, dtype=torch.float32, device="cpu")
        return _report(first.numbers, None, None, None, None, None, none, None)
    geometry = geometry_streamed(
        rows, first.valid, first.mean, _watched(rows, "spectrum", progress)
    )
    if len(chosen) > limit:
        order = chance.order(len(chosen), chance.generator())[:limit]
        chosen = chosen[order].sort().values
    directions, lengths = unit(rows[chosen])
    groups = two_groups(directions, lengths) if verdicts.is_flat(geometry) else None
    pairs = measure_pairs(directions, int(first.valid.sum()))
    neighbours = measure_neighbours(rows, first.valid, first.mean, directions, geometry)
    classes = None
    if codes is not None and first.class_sums is not None and first.class_sizes is not None:
        classes = measure_classes(first.class_sums, first.class_sizes, directions, codes[chosen])
    count = min(len(chosen), _PICTURED)
    pictured = torch.arange(count, device="cpu") * (len(chosen) - 1) // (count - 1)
    return _report(
        first.numbers,
        geometry,
        pairs,
        neighbours,
        classes,
        groups,
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
    groups: Groups | None,
    sample: Tensor,
    sample_labels: Tensor | None,
    label_names: tuple[str, ...] = (),
) -> CollapseReport:
    measured = verdicts.Measured(numbers, geometry, neighbours, classes, groups)
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
