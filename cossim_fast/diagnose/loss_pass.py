"""What one pass of a contrastive loss says of its embeddings, without another product.

With q_i = N_i / (1 + N_i) the weight of row i's gradient, w_ij the softmax over its negatives alone
and E_i their mean cosine under it, the derivative by the scale is Σ q_i (E_i - c_i), c_i the cosine
of the positive. The entropy of w_i is log N_i - s (E_i - c_i), so that Σ q_i log N_i - s dL/ds is
the sum of q_i times the entropies: over how many negatives a row that still learns spreads them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cossim_fast.diagnose.rows import unit
from cossim_fast.diagnose.sinks import Record

if TYPE_CHECKING:
    from cossim_fast.losses.seen import Pass

# A positive that takes all but the second decimal of its softmax: its row learns no more.
_SATURATED = math.log(0.01 / 0.99)
# All but few.
_MOST = 0.9
# CLIP clamps its scale at 100. Trained SigLIP, whose pairs saturate each by itself, has 110.
_COLDEST, _COLDEST_OF_PAIRS = 1 / 100, 1 / 1000
# From here on logits are cosines, or less, and the weights of all negatives much the same.
_HOTTEST = 1.0
# Times that a temperature has fallen or risen since the first record, to have run away.
_MOVED = 2.0
# [numbers] Of a block of rows in float64.
_BLOCK = 2**19

_ADVICE = (
    "Clamp the scale after each step (CLIP: logit_scale.clamp_(max=math.log(100))), give it a "
    "smaller learning rate and no weight decay, or fix the temperature."
)


def pass_of(output: Any) -> "Pass | None":
    """The pass of a loss of ours that made this number; None of anything else."""
    if not isinstance(output, Tensor) or output.dim() or output.grad_fn is None:
        return None
    from cossim_fast.losses import seen  # noqa: PLC0415 - importing the package needs no losses

    return seen.pass_of(output)


@dataclass
class LossWatch:
    """Judges one pass after the other of one loss; keeps the first temperature."""

    first: float | None = None

    def record(self, step: int, found: "Pass") -> tuple[Record, list[tuple[str, str]]]:
        """Return the record of a pass, and alarms: causes and texts."""
        record = measure(found)
        if self.first is None:
            self.first = record["temperature"]
        cause = _cause(record, self.first)
        record = {"step": step, "source": "loss", "verdict": cause or "healthy"} | record
        return record, [] if cause is None else [(cause, f"step {step}: {cause}: {_say(record)}")]


def _cause(record: Record, first: float) -> str | None:
    """What is wrong, if anything, with a temperature that was `first` at the first record."""
    temperature = record["temperature"]
    if not (math.isfinite(temperature) and math.isfinite(record["positive_cosine"])):
        return "broken_numbers"
    if "saturated" in record:
        cold = temperature < _COLDEST and record["saturated"] >= _MOST
    else:
        cold = temperature < _COLDEST_OF_PAIRS
    cold = cold and temperature * _MOVED <= first
    hot = temperature > _HOTTEST and temperature >= first * _MOVED
    return "temperature_runaway" if temperature <= 0 or cold or hot else None


def measure(found: "Pass") -> Record:
    """Return what a pass says: cosines, saturated rows, effective negatives, temperature."""
    positive, negative = _mean_cosines(found)
    record: Record = {
        "rows": len(found.x),
        "positive_cosine": positive,
        "negative_cosine": negative,
        "temperature": 1 / found.scale if found.scale else math.inf,
    }
    if found.log_ratios is None or not len(found.log_ratios):
        return record
    ratios = found.log_ratios
    weights = torch.sigmoid(ratios)
    entropy = math.nan
    if (total := float(weights.sum())) > 0:
        # A row without negatives has weight 0 and a logarithm of -inf.
        terms = torch.where(weights > 0, weights * ratios, 0.0)
        entropy = (float(terms.sum()) - found.scale * found.by_scale) / total
    return record | {
        "saturated": float((ratios < _SATURATED).double().mean()),
        "effective_negatives": math.exp(min(entropy, 700.0)),
        "negatives": found.negatives,
    }


def _mean_cosines(found: "Pass") -> tuple[float, float]:
    """The mean cosines of the positives and of all other pairs; of x with itself, of two rows."""
    itself = found.x is found.y
    sum_x = torch.zeros(found.x.shape[1], dtype=torch.float64, device="cpu")
    sum_y, total, count, own = torch.zeros_like(sum_x), 0.0, 0, 0.0
    for rows in _blocks(found.x):
        x, norms = unit(found.x[rows])
        # A row that is not finite has none.
        total += 0.0 if bool(norms.isfinite().all()) else math.nan
        sum_x += x.sum(0)
        own += float(x.square().sum())
        kept = found.positives[rows] >= 0
        others, _ = unit(found.y[found.positives[rows][kept]])
        total += float((x[kept] * others).sum())
        count += int(kept.sum())
    if not itself:
        for rows in _blocks(found.y):
            y, norms = unit(found.y[rows])
            total += 0.0 if bool(norms.isfinite().all()) else math.nan
            sum_y += y.sum(0)
    pairs = len(found.x) * len(found.y) - count - (len(found.x) if itself else 0)
    rest = float(sum_x @ (sum_x if itself else sum_y)) - total - (own if itself else 0.0)
    return (total / count if count else math.nan), (rest / pairs if pairs > 0 else math.nan)


def _blocks(x: Tensor) -> Iterator[slice]:
    step = max(_BLOCK // max(x.shape[1], 1), 1)
    return (slice(start, start + step) for start in range(0, len(x), step))


def _say(record: Record) -> str:
    """Say what is seen, and what to do about it."""
    temperature = f"the temperature is {record['temperature']:.3g}"
    cosines = (
        f"positives have a mean cosine of {record['positive_cosine']:.3f}, negatives of "
        f"{record['negative_cosine']:.3f}"
    )
    if record["verdict"] == "broken_numbers":
        return f"{temperature}, and {cosines}: rows, or the temperature, are not finite."
    if record["temperature"] <= _COLDEST and "saturated" in record:
        why = f"{record['saturated']:.0%} of the softmaxes give all but 1 % to the positive"
    elif "effective_negatives" in record:
        share = f"{record['effective_negatives']:.0f} of {record['negatives']} negatives"
        why = f"rows weigh {share} as if they were alike"
    else:
        why = "logits are far from what pairs of cosines can tell apart"
    return f"{temperature}: {why}, while {cosines}. {_ADVICE}"
