"""Watch a training run, and say at which step its embeddings collapse."""

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cossim_fast import _checks
from cossim_fast.diagnose import memory, verdicts
from cossim_fast.diagnose.apart import apart_from_training, being_traced
from cossim_fast.diagnose.classes import measure_classes
from cossim_fast.diagnose.findings import EQUAL_VALUES
from cossim_fast.diagnose.geometry import geometry_of
from cossim_fast.diagnose.groups import two_groups
from cossim_fast.diagnose.hook import hook
from cossim_fast.diagnose.loss_pass import LossWatch, pass_of
from cossim_fast.diagnose.neighbours import Neighbours, measure_neighbours
from cossim_fast.diagnose.pairs import compared_axis, pair
from cossim_fast.diagnose.rows import Rows, unit
from cossim_fast.diagnose.sinks import Record, open_sink
from cossim_fast.diagnose.survey import survey

_ALARMS = ("broken_numbers", "point_collapse", "duplicated", "dimensional_collapse")
# What neighbours that are nearer than by chance speak against.
_ACQUITTED = ("point_collapse", "dimensional_collapse")
# With fewer rows than this the shape of a batch says nothing.
_FEWEST = 8
# Rows whose values a comparison looks at, and records for which neighbours stay fresh.
_COMPARED = 32
_OLD = 20
# Different reasons that are counted one by one; an error may name another size at every step.
_REASONS = 20

_Alarm = tuple[str, str]  # the cause, and the text


class CollapseWarning(UserWarning):
    """Embeddings collapsed, or a tensor was compared with itself, at the step it names."""


class CollapseMonitor:
    r"""Measure a module's outputs every few steps, and warn once when they collapse.

    Attach it to a module, whose forward calls it then counts as steps, and use it as a
    context manager; or call :meth:`compare` in the loop; or both. A record holds the mean
    cosine, RankMe, the participation ratio (see :func:`embeddings`) and the verdict on at
    most ``rows`` rows of the batch; a comparison's record holds the finding of :func:`pair`.

    Of a loss of :mod:`cossim_fast.losses` a record holds the mean cosine of its positives and of
    all other pairs, the temperature and, of a softmax, the share of saturated rows (the positive
    takes 99 % of it) and the effective number of negatives: e to the entropy of the softmax over a
    row's negatives, rows weighed by their gradients. All of it comes from the sums of the loss's
    own pass and one over the rows. ``temperature_runaway`` is a temperature that has halved, and
    saturates nine rows of ten below 0.01; or has doubled, to above 1.

    Args:
        module: whose output to watch: a tensor (n, ...), or a tuple, list or dict in which
            the first such tensor is taken; or the number that an ``InfoNCE``, ``ClipLoss``,
            ``SigLipLoss`` or ``NTXentLoss`` returns, on CPU and with a gradient to come. Under
            torch.compile(fullgraph=True) attach to the compiled module, since nothing can be
            seen inside a graph; under DistributedDataParallel to either module.
        every: steps from one record to the next, beginning at step 0.
        rows: rows of the batch that are measured.
        dim: the axis of the features, of outputs and of comparisons; all others then count rows.
            By default the first axis of an output counts rows, and all others hold features.
        labels: classes of the rows of the next outputs, n integers or strings: in a loop, set
            ``monitor.labels = y`` before each forward. Classes that lie apart explain few
            directions, as in :func:`embeddings`.
        log: a path ending in .csv or .jsonl (appended to), a SummaryWriter, a callable that
            takes a dict, or a list of these.
        warn: whether to warn (``CollapseWarning``), once for each cause.

    Under torch.distributed every process measures its own batch, and rank 0 alone warns and
    writes; nothing is communicated. Outputs are detached and measured in float64 on the
    CPU, outside autocast: one copy of ``rows`` rows a record. Copies and pickles of the
    module are not watched.

    What is watched goes on as if it were not: no output and no state of torch is changed, and
    nothing is raised in the module's forward (but by a warning filter that makes errors of
    ``CollapseWarning``). Outputs that cannot be read are counted in ``skipped``, by the reason:
    under a function transform, while torch traces, exports or captures, and tensors without
    plain numbers (meta, fake, DTensor, sparse, nested, masked, complex, float8, quantized). A
    log that fails is counted in ``log_failures``, and warned of once. :meth:`summary` shows both.

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
        dim: int | None = None,
        labels: Any = None,
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
        self.dim = dim
        self.labels = labels
        self.outputs = 0
        self.comparisons = 0
        self.skipped: Counter[str] = Counter()
        self.log_failures: Counter[str] = Counter()
        self._sinks = [open_sink(each) for each in logs]
        self._warned: set[str] = set()
        self._loss = LossWatch()
        self._suspicion: tuple[str, Neighbours | None, int] = ("", None, 0)
        self._handle = None
        self._module = None if module is None else weakref.ref(module)
        if module is not None:
            self._handle = module.register_forward_hook(hook(self.observe))

    def __enter__(self) -> "CollapseMonitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hook; the records stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def observe(self, output: Any, labels: Any = None) -> None:
        """Count one step, and measure its output where a record is due.

        The hook calls this; call it yourself where there is no module to attach to, and with the
        number that a loss returned before its backward pass.
        ``labels`` are those of the output's rows, in place of :attr:`labels`.
        """
        step, self.outputs = self.outputs, self.outputs + 1
        if step % self.every:
            return
        try:
            if (state := being_traced()) is not None:
                raise _SkippedError(state)
            found = pass_of(output)
            with apart_from_training():
                if found is None:
                    record, alarms = self._record(step, *self._some_rows_of(output, labels))
                else:
                    record, alarms = self._loss.record(step, found)
        except Exception as error:  # whatever it is, it is no matter of the forward
            self._skip(error)
            return
        self._emit(record)
        for alarm in alarms:
            self._alarm(*alarm)

    def compare(self, v1: Any, v2: Any, *, dim: int | None = None) -> str | None:
        """Check a comparison along ``dim`` that the loop is about to make; return its finding.

        ``dim`` is that of :func:`pair`: by default the monitor's own, or torch's, dim=1.
        Memory is checked in every call, values every ``every`` calls. Without a second
        tensor, as before the first step, the call is only counted; so is one that cannot be
        read, in ``skipped``.
        """
        step, self.comparisons = self.comparisons, self.comparisons + 1
        if v2 is None:
            return None
        try:
            if (state := being_traced()) is not None:
                raise _SkippedError(state)
            with apart_from_training():
                finding, record, itself = self._compared(step, v1, v2, dim)
        except Exception as error:  # as in observe
            self._skip(error)
            return "same_object" if v1 is v2 else None
        if record is not None:
            self._emit(record)
        if finding is not None and itself:
            same_memory = finding in ("same_object", "shared_storage")
            cause = finding if same_memory else "equal_values"
            self._alarm(cause, f"comparison {step}: {cause}: {self._why_equal(same_memory)}")
        return finding

    def _why_equal(self, same_memory: bool) -> str:
        """Say what made a comparison 1, and what is seen of the module that could have."""
        if same_memory:
            return (
                "the batch is compared with itself, so its cosine is 1. Keep a copy of the one "
                "before: previous = features.detach().clone()."
            )
        seen = []
        module = self._module() if self._module is not None else None
        if module is not None and not module.training:
            seen.append("the watched module is in eval(), where dropout is off")
        parameters = [] if module is None else list(module.parameters())
        if parameters and not any(each.requires_grad for each in parameters):
            seen.append("no parameter of the watched module requires a gradient: it is frozen")
        found = f"Seen here: {'; '.join(seen)}. " if seen else ""
        return f"most rows of both hold the same numbers. {found}{EQUAL_VALUES}"

    def summary(self) -> str:
        """Say how much was seen, and what was skipped for which reason."""
        lines = [
            f"CollapseMonitor: {self.outputs} outputs, {self.comparisons} comparisons, "
            f"{len(self.records)} records"
        ]
        for title, counts in (("skipped", self.skipped), ("log failed", self.log_failures)):
            lines += [f"  {title} {n} times: {reason}" for reason, n in counts.most_common()]
        return "\n".join(lines)

    def _some_rows_of(self, output: Any, labels: Any) -> tuple[Tensor, Tensor | None]:
        """Return at most ``rows`` rows of an output, (m, d) on the CPU, and their classes."""
        batch = _first_tensor(output)
        if batch is None:
            raise _SkippedError(
                "no tensor of two axes or more in the output, nor a loss that made its gradients"
            )
        batch = _checks.as_tensor("output", batch)
        if self.dim is not None:
            batch = batch.movedim(self.dim, -1).flatten(0, -2)
        if batch.shape[0] < _FEWEST or batch.numel() == 0:
            raise _SkippedError(f"fewer than {_FEWEST} rows, or no features")
        stride = max(batch.shape[0] // self.rows, 1)
        some = batch.detach()[::stride][: self.rows].flatten(1).to("cpu")
        labels = self.labels if labels is None else labels
        if labels is None:
            return some, None
        if len(labels) != len(batch):
            self._skip(_SkippedError("labels of another number than the rows, which were measured"))
            return some, None
        codes, _ = _checks.class_labels(labels[::stride][: self.rows], len(some))
        return some, torch.from_numpy(codes).long()

    def _compared(
        self, step: int, v1: Any, v2: Any, dim: int | None
    ) -> tuple[str | None, Record | None, bool]:
        """Return the finding, the record, and whether a cosine of 1 is certain from it."""
        a, b = _checks.as_tensor("v1", v1).detach(), _checks.as_tensor("v2", v2).detach()
        axis = compared_axis(a, b, self.dim if dim is None else dim)
        a, b = _same_number(a, b, axis)
        finding = "same_object" if v1 is v2 else None
        if finding is None and memory.overlaps(a, b):
            shape = _checks.comparison(a, b, axis)
            rows = math.prod(shape) // (shape[axis] if shape else 1)
            # Of an overlap that is shifted, as of adjacent frames, no cosine follows.
            if 2 * memory.same_rows(a, b, shape, axis) > rows:
                finding = "shared_storage"
        itself = finding is not None
        if step % self.every:
            return finding, None, itself
        report = pair(*_some_rows(a, b, axis), dim=axis)
        if finding is None and report.finding != "none":
            finding = report.finding
        itself |= any(each.name == "equal_values" for each in report.findings)
        mean = report.facts.exact[1]
        verdict = finding or "none"
        record = {"step": step, "source": "comparison", "verdict": verdict, "mean_cosine": mean}
        return finding, record, itself

    def _record(
        self, step: int, batch: Tensor, codes: Tensor | None
    ) -> tuple[Record, list[_Alarm]]:
        rows = Rows(batch)
        first = survey(rows, codes, rows.blocks())
        directions, lengths = unit(batch[first.valid])
        geometry = geometry_of(directions) if len(directions) > 1 else None
        classes, groups = None, None
        sums, sizes = first.class_sums, first.class_sizes
        if geometry is not None and codes is not None and sums is not None and sizes is not None:
            classes = measure_classes(sums, sizes, directions, codes[first.valid])
        if geometry is not None and verdicts.is_flat(geometry):
            groups = two_groups(directions, lengths)
        measured = verdicts.Measured(first.numbers, geometry, None, classes, groups)
        judged = verdicts.judge(measured)
        suspicions = [each.finding.name for each in judged if each.finding.name in _ACQUITTED]
        if geometry is not None and suspicions:
            # Neighbours can acquit. They cost ten times the rest, so the last ones seen
            # serve again until the suspicion changes or they have grown old.
            suspicion, near, seen_at = self._suspicion
            if near is None or suspicion != suspicions[0] or len(self.records) >= seen_at + _OLD:
                near = measure_neighbours(rows, first.valid, first.mean, directions, geometry)
                self._suspicion = suspicions[0], near, len(self.records)
            measured = verdicts.Measured(first.numbers, geometry, near, classes, groups)
            judged = verdicts.judge(measured)
        found = [each.finding for each in judged]
        record: Record = {
            "step": step,
            "source": "output",
            "verdict": found[0].name,
            "norm": first.numbers.norm_median,
            "constant_features": first.numbers.constant_features,
            "rows": rows.n,
            "also": " ".join(each.name for each in found[1:]),
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
        alarms = [
            (each.name, f"step {step}: {each.name}: {each.evidence} {each.advice}")
            for each in found
            if each.name in _ALARMS
        ]
        return record, alarms

    def _emit(self, record: Record) -> None:
        self.records.append(record)
        if not _is_first_rank():
            return
        for sink in self._sinks:
            try:
                sink(dict(record))
            except Exception as error:  # a full disk does not end a training run
                first = not self.log_failures
                _count(self.log_failures, error)
                if first and self.warn:
                    warnings.warn(
                        f"a log of the CollapseMonitor failed, and the run goes on: "
                        f"{type(error).__name__}: {error}; monitor.summary() counts how often",
                        RuntimeWarning,
                        stacklevel=3,
                    )

    def _skip(self, error: Exception) -> None:
        _count(self.skipped, error)

    def _alarm(self, cause: str, text: str) -> None:
        if cause in self._warned:
            return
        self._warned.add(cause)
        if self.warn and _is_first_rank():
            warnings.warn(text, CollapseWarning, stacklevel=3)


class _SkippedError(Exception):
    """What was to be measured says nothing, or cannot be read; the text says why."""


def _count(counts: Counter[str], error: Exception) -> None:
    """Count an error by what it says."""
    text = str(error).partition("\n")[0][:200]
    if not isinstance(error, _SkippedError):
        text = f"{type(error).__name__}: {text}"
    if text not in counts and len(counts) >= _REASONS:
        text = "other reasons"
    counts[text] += 1


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.dim() >= 2 else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (list, tuple)):
        parts = output
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


def _same_number(a: Tensor, b: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the first rows of both; the last batch of an epoch may be the shorter."""
    if not _begin_with_rows(a, b, axis) or len(a) == 1 or len(b) == 1:
        return a, b
    count = min(len(a), len(b))
    return a[:count], b[:count]


def _some_rows(a: Tensor, b: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the first of rows that are many."""
    if not _begin_with_rows(a, b, axis):
        return a, b
    return a[:_COMPARED], b[:_COMPARED]


def _begin_with_rows(a: Tensor, b: Tensor, axis: int) -> bool:
    """Whether the first axis of both counts rows, and is not the one that is compared."""
    return a.dim() == b.dim() >= 2 and axis not in (0, -a.dim())


def _is_first_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )
