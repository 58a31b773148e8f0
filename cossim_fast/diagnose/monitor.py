"""Watch a training run, and say at which step its embeddings collapse."""

import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cossim_fast import _checks
from cossim_fast.diagnose import memory, verdicts
from cossim_fast.diagnose.geometry import geometry_of
from cossim_fast.diagnose.neighbours import Neighbours, measure_neighbours
from cossim_fast.diagnose.pairs import pair
from cossim_fast.diagnose.rows import Rows, unit
from cossim_fast.diagnose.sinks import Record, open_sink
from cossim_fast.diagnose.survey import survey

_ALARMS = ("broken_numbers", "point_collapse", "duplicated", "dimensional_collapse")
_COMPARED_WITH_ITSELF = ("same_object", "shared_storage", "equal_values")
# With fewer rows than this the shape of a batch says nothing.
_FEWEST = 8
# Rows whose values a comparison looks at, and records for which neighbours stay fresh.
_COMPARED = 32
_OLD = 20


class CollapseWarning(UserWarning):
    """Embeddings collapsed, or a tensor was compared with itself, at the step it names."""


class CollapseMonitor:
    r"""Measure a module's outputs every few steps, and warn once when they collapse.

    Attach it to a module, whose forward calls it then counts as steps, and use it as a
    context manager; or call :meth:`compare` in the loop; or both. A record holds the mean
    cosine, RankMe, the participation ratio (see :func:`embeddings`) and the verdict on at
    most ``rows`` rows of the batch; a comparison's record holds the finding of :func:`pair`.

    Args:
        module: whose output to watch: a tensor (n, ...), or a tuple, list or dict in which
            the first such tensor is taken. Under torch.compile(fullgraph=True) attach to the
            compiled module; under DistributedDataParallel to either module.
        every: steps from one record to the next, beginning at step 0.
        rows: rows of the batch that are measured.
        log: a path ending in .csv or .jsonl (appended to), a SummaryWriter, a callable that
            takes a dict, or a list of these.
        warn: whether to warn (``CollapseWarning``), once for each cause.

    Under torch.distributed every process measures its own batch, and rank 0 alone warns and
    writes; nothing is communicated. Outputs are detached and measured in float64 on the
    CPU, outside autocast: one copy of ``rows`` rows a record. Copies and pickles of the
    module are not watched.

    Raises:
        TypeError, ValueError: an argument is not of the kind above.

    >>> import torch
    >>> layer = torch.nn.Linear(8, 4)
    >>> with CollapseMonitor(layer, every=2, warn=False) as monitor:
    ...     for _ in range(4): _ = layer(torch.eye(8))
    >>> [record["step"] for record in monitor.records]
    [0, 2]
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        every: int = 100,
        rows: int = 128,
        log: Any = None,
        warn: bool = True,
    ) -> None:
        every = _checks.whole_number("every", every)
        rows = _checks.whole_number("rows", rows, least=2)
        logs = log if isinstance(log, (list, tuple)) else [] if log is None else [log]
        self.records: list[Record] = []
        self.every = every
        self.rows = rows
        self.warn = warn
        self.outputs = 0
        self.comparisons = 0
        self._sinks = [open_sink(each) for each in logs]
        self._warned: set[str] = set()
        self._suspicion: tuple[str, Neighbours | None, int] = ("", None, 0)
        self._handle = None
        if module is not None:
            _keep_hooks_from_dynamo()
            self._handle = module.register_forward_hook(_Hook(self))

    def __enter__(self) -> "CollapseMonitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hook; the records stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def observe(self, output: Any) -> None:
        """Count one step, and measure its output where a record is due.

        The hook calls this; call it yourself where there is no module to attach to.
        """
        step, self.outputs = self.outputs, self.outputs + 1
        if step % self.every:
            return
        batch = _first_tensor(output)
        if batch is None or batch.shape[0] < _FEWEST or batch.numel() == 0:
            return
        stride = max(batch.shape[0] // self.rows, 1)
        rows = batch.detach()[::stride][: self.rows].flatten(1)
        with torch.autocast("cpu", enabled=False):
            self._record(step, rows.to("cpu"))

    def compare(self, v1: Tensor, v2: Tensor | None) -> str | None:
        """Check a comparison that the loop is about to make; return its finding, if any.

        Memory is checked in every call, values every ``every`` calls. Without a second
        tensor, as before the first step, the call is only counted.
        """
        step, self.comparisons = self.comparisons, self.comparisons + 1
        if v2 is None:
            return None
        finding = "same_object" if v1 is v2 else None
        if finding is None and memory.overlaps(v1, v2):
            finding = "shared_storage"
        if step % self.every == 0:
            report = pair(*_some_rows(v1.detach(), v2.detach()))
            if finding is None and report.finding != "none":
                finding = report.finding
            verdict = finding or "none"
            mean = report.facts.exact[1]
            self._emit(
                {"step": step, "source": "comparison", "verdict": verdict, "mean_cosine": mean}
            )
        if finding in _COMPARED_WITH_ITSELF:
            self._alarm(
                finding,
                f"comparison {step}: {finding}: the batch is compared with itself, so its "
                "cosine is 1. Keep a copy of the one before: "
                "previous = features.detach().clone().",
            )
        return finding

    def _record(self, step: int, batch: Tensor) -> None:
        rows = Rows(batch)
        first = survey(rows, None, rows.blocks())
        directions = unit(batch[first.valid])[0]
        geometry = geometry_of(directions) if len(directions) > 1 else None
        measured = verdicts.Measured(first.numbers, geometry)
        worst = verdicts.judge(measured)[0].finding
        if geometry is not None and worst.name in ("point_collapse", "dimensional_collapse"):
            # Neighbours can acquit. They cost ten times the rest, so the last ones seen
            # serve again until the suspicion changes or they have grown old.
            suspicion, near, seen_at = self._suspicion
            if near is None or suspicion != worst.name or len(self.records) >= seen_at + _OLD:
                near = measure_neighbours(rows, first.valid, first.mean, directions, geometry)
                self._suspicion = worst.name, near, len(self.records)
            measured = verdicts.Measured(first.numbers, geometry, near)
            worst = verdicts.judge(measured)[0].finding
        record: Record = {
            "step": step,
            "source": "output",
            "verdict": worst.name,
            "norm": first.numbers.norm_median,
            "constant_features": first.numbers.constant_features,
            "rows": rows.n,
        }
        if geometry is not None:
            record |= {
                "mean_cosine": geometry.mean_cosine,
                "distance": geometry.distance,
                "rankme": geometry.rankme,
                "rankme_share": geometry.rankme_share,
                "participation_ratio": geometry.participation_ratio,
                "leading": geometry.leading,
            }
        self._emit(record)
        if worst.name in _ALARMS:
            self._alarm(worst.name, f"step {step}: {worst.name}: {worst.evidence} {worst.advice}")

    def _emit(self, record: Record) -> None:
        self.records.append(record)
        if _is_first_rank():
            for sink in self._sinks:
                sink(record)

    def _alarm(self, cause: str, text: str) -> None:
        if cause in self._warned:
            return
        self._warned.add(cause)
        if self.warn and _is_first_rank():
            warnings.warn(text, CollapseWarning, stacklevel=3)


class _Hook:
    """What the module holds; a copy or a pickle of the module holds an idle one."""

    def __init__(self, monitor: CollapseMonitor | None) -> None:
        self._monitor = monitor

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._monitor is not None:
            self._monitor.observe(output)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[None]]:
        return _Hook, (None,)


@functools.cache
def _keep_hooks_from_dynamo() -> None:
    """Exempt the hook from tracing: no decorator, which would load dynamo at import, in seconds."""
    _Hook.__call__ = torch.compiler.disable(_Hook.__call__)  # type: ignore[method-assign]


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.dim() >= 2 else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (list, tuple)):
        parts = output
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


def _some_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first rows of both; the last batch of an epoch may be the shorter."""
    if a.dim() < 2 or b.dim() < 2:
        return a, b
    count = min(len(a), len(b), _COMPARED)
    return a[:count], b[:count]


def _is_first_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )
