"""Two tensors whose cosine surprises: the facts about them, and the report."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast.diagnose import memory, notes
from cossim_fast.diagnose.findings import findings_of
from cossim_fast.diagnose.notes import Finding, Findings, Note
from cossim_fast.diagnose.rowstats import PairFacts, measure


@dataclass(frozen=True)
class PairReport(Findings):
    """What :func:`pair` found: print it, or read ``finding``, ``also`` and ``to_dict()``."""

    facts: PairFacts
    findings: tuple[Finding, ...] = field(repr=False)

    @property
    def finding(self) -> str:
        """The name of the cause that explains most rows, ``"none"`` where none holds."""
        return self.findings[0].name

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for a log or for JSON."""
        return {
            "finding": self.finding,
            "also": list(self.also),
            "evidence": self.evidence,
            "advice": self.advice,
            **self.facts.to_dict(),
        }

    def __str__(self) -> str:
        return notes.as_text(self._note())

    def _repr_html_(self) -> str:
        return notes.as_html(self._note())

    def _note(self) -> Note:
        f = self.facts
        sides = (
            ("", "a", "b"),
            ("shape", str(f.a.shape), str(f.b.shape)),
            ("dtype", f.a.dtype, f.b.dtype),
            ("device", f.a.device, f.b.device),
            ("norms", f.a.norm_text(), f.b.norm_text()),
            ("begins", f.a.head_text(), f.b.head_text()),
        )
        memory_text = "one object" if f.same_object else "two objects"
        memory_text += ", shared elements" if f.overlapping else ", no element in common"
        if f.overlapping and not f.same_object:
            memory_text += f" ({f.same_rows} of {f.rows} rows at the same index)"
        if f.same_storage and not f.overlapping:
            memory_text += " (parts of one storage)"
        checks = (
            ("memory", memory_text),
            ("equal rows", f"{f.equal_rows} of {f.rows}"),
            ("multiples", f"{f.parallel_rows} of {f.rows}{f.factor_text()}"),
            ("cosine, cossim_fast", f.route_text(f.ours)),
            ("cosine, torch", f.route_text(f.torch)),
            ("cosine, float64", f.route_text(f.exact)),
            ("largest difference", notes.number(f.route_difference, 2)),
            ("less the features' mean", notes.cosine(f.cosine_less_feature_mean)),
            ("less the batch's mean", notes.cosine(f.cosine_less_batch_mean)),
        )
        return Note("pair", self.findings, (sides, checks), f.remarks)


@as_one
def pair(a: Any, b: Any, *, dim: int | None = None) -> PairReport:
    r"""Find out why two tensors have the cosine similarity that they have.

    .. math:: c_i = \langle a_i, b_i \rangle / (\max(\|a_i\|, \epsilon) \max(\|b_i\|, \epsilon))

    is computed by three routes (this package, torch, and the formula in float64), and the
    causes that are known to make it 1 are tried one by one. All that hold are reported; the
    finding is the one that explains most rows, among equals the first of ``non_finite``,
    ``zero_rows``, ``broadcast``, ``same_object``, ``shared_storage``, ``equal_values``,
    ``positive_multiple``, ``opposite``, ``common_offset``, ``single_feature`` and
    ``low_precision``; or ``none``. A cause that concerns rows holds when it holds for more than
    half of them; a single row that is zero, or not finite, is enough. Memory is shared where
    both read one element at one index; other overlaps are remarked on.

    Args:
        a: tensor, or anything NumPy reads as numbers, of any shape, real dtype and device.
        b: the same, of a shape that broadcasts with a's, on the same device.
        dim: the axis that is compared; the others count rows. As in torch the second, dim=1,
            by default; that of the elements where there is but one.

    Returns:
        PairReport: ``finding``, ``also``, ``evidence``, ``advice``, ``facts``.

    Zero rows, NaN and infinities are findings, not errors; an empty comparison is an error.
    Sums run in float64. Nothing is differentiated, and the inputs are not changed. Peak extra
    memory: O(rows), blocks of 2^20 elements, and a copy of an input that is not contiguous.

    Raises:
        TypeError: an input is complex, sparse, or not made of numbers.
        ValueError: the shapes do not broadcast, hold nothing, or lie on two devices.
        IndexError: there is no axis ``dim``.

    >>> import torch
    >>> report = pair(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    >>> report.finding, report.facts.factor
    ('positive_multiple', (2.0, 2.0))
    """
    same_object = a is b
    x, y = _checks.as_tensor("a", a).detach(), _checks.as_tensor("b", b).detach()
    dim = compared_axis(x, y, dim)
    shape = _checks.comparison(x, y, dim)
    overlapping = memory.overlaps(x, y)
    facts = measure(
        x,
        y,
        shape,
        dim,
        same_object=same_object,
        same_storage=memory.same_storage(x, y),
        overlapping=overlapping or _share_memory(a, b),
        same_elements=memory.same_elements(x, y, shape) if overlapping else 0,
        same_rows=memory.same_rows(x, y, shape, dim) if overlapping else 0,
    )
    return PairReport(facts, findings_of(facts))


def compared_axis(a: Tensor, b: Tensor, dim: int | None) -> int:
    """Return the axis to compare along: torch's default, and for vectors their one axis."""
    return dim if dim is not None else int(max(a.dim(), b.dim()) > 1)


def _share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays overlap, which a copy that torch needed (negative strides) would hide."""
    both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return both and bool(np.may_share_memory(a, b)) and bool(np.shares_memory(a, b))
