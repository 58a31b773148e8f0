"""The causes of a cosine of 1: what holds, ranked by how many rows it explains."""

import math
from collections.abc import Callable

from cossim_fast.diagnose import chance, notes
from cossim_fast.diagnose.notes import Finding
from cossim_fast.diagnose.rowstats import EPS, PairFacts

# A false alarm in a hundred random pairs would be one too many for an offset alone; the
# offset has to hide half of the distance besides.
_LEVEL = 0.01


# One text for what the values alone cannot tell apart.
EQUAL_VALUES = (
    "The memory is separate, so that another copy changes nothing. Possible causes: a kept "
    "clone() that is compared with what it was cloned from, before the next batch takes its place; "
    "the same inputs again (an iterator made anew in each step, a fixed seed, a loader that "
    "repeats, preprocessing that maps all to one value); or, for the same inputs, a network that "
    "did not change: no optimiser step between, frozen weights (requires_grad=False, or not in "
    "the optimiser), a learning rate of 0; and in eval(), or with a dropout of 0, two views of a "
    "batch are one."
)


def findings_of(f: PairFacts) -> tuple[Finding, ...]:
    """Return the causes that hold, the first being the finding; ``none`` where none does.

    What explains more rows comes first, and among equals what is more fundamental: a zero row
    is reported, and does not hide that all others are copies.
    """
    found = [finding for cause in _CAUSES if (finding := cause(f)) is not None]
    return tuple(sorted(found, key=lambda finding: -finding.rows)) or (_none(f),)


def _non_finite(f: PairFacts) -> Finding | None:
    if f.a.non_finite_rows + f.b.non_finite_rows == 0:
        return None
    return Finding(
        "non_finite",
        f"NaN or infinity in {f.a.non_finite_rows} of {f.rows} rows of a and "
        f"{f.b.non_finite_rows} of b; their cosine is NaN, which comparisons, max and "
        "nan_to_num further on turn into something that looks like an answer.",
        "Find the first step that makes them: torch.autograd.set_detect_anomaly(True), or "
        "assert x.isfinite().all() after each layer. Usual sources: a division by zero, the "
        "log of 0, float16 overflow, a learning rate that is too high.",
        rows=f.non_finite_rows,
    )


def _zero_rows(f: PairFacts) -> Finding | None:
    if f.a.zero_rows + f.b.zero_rows == 0:
        return None
    return Finding(
        "zero_rows",
        f"{f.a.zero_rows} of {f.rows} rows of a and {f.b.zero_rows} of b are shorter than "
        f"eps = {EPS:g}: they have no direction, and their cosine is 0 or close to it "
        "whatever the other row is.",
        "Look where they come from: padding, an empty text, a dead ReLU layer, a mask. Where "
        "the values are merely tiny, scale them up, or pass a smaller eps.",
        rows=f.zero_rows,
    )


def _broadcast(f: PairFacts) -> Finding | None:
    if not f.stretched:
        return None
    return Finding(
        "broadcast",
        f"{f.stretched}. The cosine is that of {f.rows} rows that broadcasting made.",
        "Give both the same shape: squeeze() or unsqueeze() the one that lacks an axis or has one "
        "too many, and look for a mean with keepdim, an index or a sum over the wrong axis.",
        rows=f.rows,
    )


def _same_object(f: PairFacts) -> Finding | None:
    if not f.same_object:
        return None
    return Finding(
        "same_object",
        "a and b are one Python object: the tensor is compared with itself, so every cosine "
        "is 1 and will stay 1.",
        "An assignment copies a name, not the numbers. Keep the batch before with "
        "previous = features.detach().clone(), and start comparing at the second iteration.",
        rows=f.rows,
    )


def _shared_storage(f: PairFacts) -> Finding | None:
    if not f.same_elements or f.same_object:
        return None
    return Finding(
        "shared_storage",
        "a and b are two objects that read the same memory: what is written to one appears "
        f"in the other. {f.same_rows} of {f.rows} rows are compared with themselves, "
        f"{f.equal_rows} are equal now.",
        "detach(), .data, view(), expand(), slices, numpy() and torch.from_numpy() share "
        "memory; only clone() copies. Keep previous = features.detach().clone(), and do not "
        "refill a buffer of which a view is still in use.",
        rows=f.same_rows,
    )


def _equal_values(f: PairFacts) -> Finding | None:
    if not _most(f.equal_rows, f):
        return None
    shared = f.same_object or f.same_elements > 0
    where = "" if shared else ", in separate memory"
    if shared:
        advice = "They are the same memory: see there."
    else:
        advice = (
            f"{EQUAL_VALUES} Compare the inputs of the network next; if they differ, diagnose its "
            "output with diagnose.embeddings."
        )
    return Finding(
        "equal_values",
        f"{f.equal_rows} of {f.rows} rows hold the same numbers in a and b, to rounding{where}.",
        advice,
        rows=f.equal_rows,
    )


def _positive_multiple(f: PairFacts) -> Finding | None:
    if f.features < 2 or not _most(f.parallel_rows, f) or 2 * f.positive_rows < f.parallel_rows:
        return None
    if f.equal_rows >= f.parallel_rows:
        return None
    return Finding(
        "positive_multiple",
        f"{f.positive_rows} of {f.rows} rows of b are positive multiples of those of a"
        f"{f.factor_text()}. Cosine looks at direction alone, so it is 1 though the numbers "
        "differ.",
        "Where length matters, compare with a distance: torch.dist, torch.cdist, or the "
        "dot product. Where it should not differ, look for a scale that changed: a loss "
        "weight, a normalisation that is applied to one side only.",
        rows=f.positive_rows,
    )


def _opposite(f: PairFacts) -> Finding | None:
    negative = f.parallel_rows - f.positive_rows
    if f.features < 2 or not _most(f.parallel_rows, f) or negative <= f.positive_rows:
        return None
    return Finding(
        "opposite",
        f"{negative} of {f.rows} rows of b are negative multiples of those of a"
        f"{f.factor_text()}: the cosine is -1.",
        "A sign was turned somewhere: a subtraction the wrong way round, a loss with the "
        "wrong sign, an axis of a PCA (whose signs are arbitrary).",
        rows=negative,
    )


def _common_offset(f: PairFacts) -> Finding | None:
    mean = f.exact[1]
    if not mean > 0.5 or f.features < 2:
        return None
    if chance.tail(mean, f.rows * f.features) > _LEVEL:
        return None
    options = {
        "each row's own mean over its features": f.cosine_less_feature_mean,
        "the mean of all rows of both": f.cosine_less_batch_mean,
    }
    usable = {text: value for text, value in options.items() if not math.isnan(value)}
    if not usable:
        return None
    text, less = min(usable.items(), key=lambda item: item[1])
    # Independent remainders beside a shared part p of the squared length have the cosine
    # p + (1 - p) c': the offset hides more than half of the distance 1 - c' where p > 1/2.
    # Vectors that stay alike without it are alike, whatever they share.
    if not 1 - mean < (1 - less) / 2 or not less < mean / 2 or _most(f.parallel_rows, f):
        return None
    return Finding(
        "common_offset",
        f"the cosine is {notes.cosine(mean)}, and {notes.cosine(less)} once {text} is taken "
        "away: a part that all vectors share makes up most of their length.",
        "Subtract the mean of the training set before comparing, or put a BatchNorm or "
        "LayerNorm before the output; drop a final ReLU. A mean over the axis of the features, "
        f"in place of that of the tokens, gives such vectors too: are {f.features} elements along "
        f"dim={f.dim} the features? If the network is meant to be "
        "trained already, see diagnose.embeddings: it may have collapsed.",
        rows=f.good_rows,
    )


def _single_feature(f: PairFacts) -> Finding | None:
    if f.features != 1:
        return None
    return Finding(
        "single_feature",
        f"dim={f.dim} has one element, and a vector of one number has only a sign: the "
        "cosine is 1 or -1 whatever the numbers are.",
        f"Compare along the axis that holds the features: the shapes are {f.a.shape} and "
        f"{f.b.shape}, and dim={f.dim} is not it.",
        rows=f.good_rows,
    )


def _low_precision(f: PairFacts) -> Finding | None:
    reasons = []
    if _most(f.rounded_rows, f):
        reasons.append(
            f"the cosine of {f.rounded_rows} of {f.rows} rows is ±1 only after rounding: in "
            f"float64 it is {f.route_text(f.exact)}, and the format of the inputs rounds by "
            f"{notes.number(f.resolution, 2)}"
        )
    if f.route_failures:
        reasons.append(
            f"the three routes differ by {notes.number(f.route_difference, 2)} in "
            f"{f.route_failures} of {f.rows} rows, more than rounding explains: squares "
            "overflow or vanish in this format"
        )
    if f.a.saturated + f.b.saturated:
        reasons.append(
            f"{f.a.saturated} elements of a and {f.b.saturated} of b are stuck at the largest "
            "number of their format"
        )
    if _most(f.flat_rows, f):
        reasons.append(
            f"{f.flat_rows} of {f.rows} rows vary by no more than two steps of their format: "
            "a large offset has rounded the differences away"
        )
    if not reasons:
        return None
    stuck = min(f.a.saturated + f.b.saturated, f.rows)
    explained = max(f.rounded_rows, f.route_failures, f.flat_rows, stuck)
    return Finding(
        "low_precision",
        "; ".join(reasons) + ".",
        "Compare in float32 or float64 from the start (a conversion afterwards cannot bring "
        "the digits back), take the mean away before rounding, and for angles that are this "
        "small use the distance of the unit vectors instead of the cosine.",
        rows=explained,
    )


def _none(f: PairFacts) -> Finding:
    spread = (f.rows * f.features) ** -0.5
    return Finding(
        "none",
        f"the cosine is {f.route_text(f.exact)}; directions drawn at random in "
        f"{f.features} dimensions would give 0 ± {notes.number(spread, 2)}. No known cause "
        "of a false 1 holds.",
        "If that is higher than the data should give, diagnose a whole set of vectors with "
        "diagnose.embeddings: one pair cannot show a collapse.",
    )


def _most(count: int, f: PairFacts) -> bool:
    return 2 * count > f.rows


_CAUSES: tuple[Callable[[PairFacts], Finding | None], ...] = (
    _non_finite,
    _zero_rows,
    _broadcast,
    _same_object,
    _shared_storage,
    _equal_values,
    _positive_multiple,
    _opposite,
    _common_offset,
    _single_feature,
    _low_precision,
)
