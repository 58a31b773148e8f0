"""From measures to a verdict. Each line drawn here says what it is the edge of.

The lines are reasons, not fits: a step of a number format, a majority, the second decimal
of a cosine, or what a random set with the same n, d and spectrum gives (chance.py).
"""

from dataclasses import dataclass

from cossim_fast.diagnose import chance, notes
from cossim_fast.diagnose.classes import Classes
from cossim_fast.diagnose.geometry import Geometry
from cossim_fast.diagnose.groups import Groups
from cossim_fast.diagnose.neighbours import Neighbours
from cossim_fast.diagnose.notes import Finding
from cossim_fast.diagnose.survey import EPS, Numbers

# What differs in the third decimal only is of no use to anyone who prints cosines.
SECOND_DECIMAL = 0.01
MAJORITY = 0.5
# Near-duplicates make up 0.4 % to 13.6 % of four large text corpora: Lee et al. (2022),
# "Deduplicating training data makes language models better". More is no accident.
NATURAL_DUPLICATES = 0.15
# Standard deviations of the random sets. At 4, one set in 30 000 passes by luck.
SIGNIFICANT = 4.0
# Of the directions that rows within one of two groups can use: RankMe.
WITHIN_CLASSES = 0.25
# Below this many rows a measure says little, whatever its value.
FEW_ROWS = 16


@dataclass(frozen=True)
class Measured:
    """All that a verdict may look at; parts that were not measured are None."""

    numbers: Numbers | None
    geometry: Geometry | None
    neighbours: Neighbours | None = None
    classes: Classes | None = None
    groups: Groups | None = None


@dataclass(frozen=True)
class Judged:
    """A finding, and by which factor it lies beyond the line that makes it one."""

    finding: Finding
    margin: float


def judge(m: Measured) -> tuple[Judged, ...]:
    """Return what holds, worst first; ``healthy`` alone where nothing does.

    Broken numbers in the smaller part of the rows come last: what is said of all others is
    measured without them, and stands.
    """
    if (single := _single_feature(m)) is not None:
        broken = _broken(m)
        return (single,) if broken is None else (broken, single)
    # A point is the end of anisotropy, and needs no second name.
    point = _point(m)
    crowded = _crowded(m) if point is None else None
    skewed = _anisotropic(m) if point is None and crowded is None else None
    order = (point, _duplicated(m), crowded, _dimensional(m), skewed)
    found = tuple(judged for judged in order if judged is not None)
    broken = _broken(m)
    if broken is not None:
        few = 2 * broken.finding.rows <= m.numbers.rows if m.numbers is not None else False
        found = (*found, broken) if few else (broken, *found)
    return found or (_healthy(m),)


def confidence(judged: Judged, m: Measured) -> str:
    """Return ``certain``, ``high`` or ``low``, for a fact, a clear margin, or neither."""
    if judged.margin == float("inf"):
        return "certain"
    if m.geometry is not None and m.geometry.rows < FEW_ROWS:
        return "low"
    return "high" if judged.margin >= 2 else "low"


def _broken(m: Measured) -> Judged | None:
    x = m.numbers
    if x is None:
        return None
    reasons = []
    if x.non_finite_rows:
        reasons.append(f"{x.non_finite_rows} of {x.rows} rows hold NaN or infinity")
    # Zero is a number like any other where rows are numbers.
    if x.zero_rows and x.features > 1:
        reasons.append(
            f"{x.zero_rows} of {x.rows} rows are zero, or shorter than eps = {EPS:g}, and have "
            "no direction"
        )
    if x.saturated:
        reasons.append(f"{x.saturated} numbers are stuck at the largest of {x.dtype}")
    if 2 * x.subnormal > x.entries - x.zeros:
        reasons.append(
            f"{x.subnormal} of {x.entries} numbers are below the normal range of {x.dtype}, "
            "where digits are lost"
        )
    if not reasons:
        return None
    advice = (
        "Find the first step that makes them before anything else is judged: an empty or "
        "padded input, a dead ReLU layer, an overflow in 16 bits, a division by zero. Keep "
        "embeddings in a range around 1, or in float32."
    )
    lost = x.rows if 2 * x.subnormal > x.entries - x.zeros else x.saturated_rows
    rows = max(lost, x.non_finite_rows + x.zero_rows)
    return Judged(Finding("broken_numbers", "; ".join(reasons) + ".", advice, rows), float("inf"))


def _single_feature(m: Measured) -> Judged | None:
    x, g = m.numbers, m.geometry
    if (x.features if x is not None else g.features if g is not None else 0) != 1:
        return None
    evidence = (
        "the rows have one element, and a vector of one number has only a sign: every cosine is "
        "1 or -1 whatever the numbers are."
    )
    advice = (
        "Nothing, where these are the outputs of a regression or of a score: cosine says nothing "
        "of them. Otherwise look for the axis that holds the features: a mean, an index or a "
        "reshape too much took it away."
    )
    return Judged(Finding("single_feature", evidence, advice), float("inf"))


_REPULSION = (
    "If the network is untrained, train it, with normalisation layers and a smaller "
    "bias at the start. If it is trained: give the loss a repulsion (contrastive "
    "negatives, a margin, VICReg or Barlow Twins terms), or a stop-gradient and predictor; "
    "lower the learning rate; look for dead ReLUs and a bias that swamps the input."
)


def _point(m: Measured) -> Judged | None:
    g = m.geometry
    if g is None or g.distance >= SECOND_DECIMAL or _by_chance(g):
        return None
    if is_flat(g):
        rest = "what is left without the mean lies in a few directions"
        line = SECOND_DECIMAL
    elif g.distance < chance.BFLOAT16_STEP and not _recoverable(m):
        rest = "what is left without the mean has no more structure than noise"
        line = chance.BFLOAT16_STEP
    else:
        return None
    evidence = (
        f"the mean cosine of two different rows is {notes.cosine(g.mean_cosine)}: nearly every "
        f"input is mapped to one direction, and {rest}."
    )
    exact = g.distance < chance.FLOAT32_STEPS
    margin = float("inf") if exact else line / g.distance
    return Judged(Finding("point_collapse", evidence, _REPULSION), margin)


def _crowded(m: Measured) -> Judged | None:
    """Whether most rows lie at one point, while the others hold the mean cosine down."""
    near = m.neighbours
    if m.geometry is None or near is None or near.crowd <= MAJORITY or _has_classes(m):
        return None
    # In few dimensions rows are near by chance, and two points lie on one axis.
    if near.near_by_chance > 0.01 or _one_axis(m.geometry):
        return None
    evidence = (
        f"{notes.percent(near.crowd)} of the rows lie within a hundredth of the mean "
        "distance of one of them: most inputs are mapped to one direction."
    )
    return Judged(Finding("point_collapse", evidence, _REPULSION), near.crowd / MAJORITY)


def _recoverable(m: Measured) -> bool:
    """Whether rows that share a direction still rank each other, so that centring helps.

    Their neighbours must be nearer than in random sets of the same spectrum, and be
    neighbours in each half of the features; most directions must be in use, and float32 must
    be able to tell their cosines apart.
    """
    g, near = m.geometry, m.neighbours
    if g is None or near is None or g.distance < chance.FLOAT32_STEPS:
        return False
    structured = near.score > SIGNIFICANT and near.replication > SIGNIFICANT
    return structured and g.rankme_share > MAJORITY


def _duplicated(m: Measured) -> Judged | None:
    x, near = m.numbers, m.neighbours
    twins = x.rows_with_twin / x.rows if x is not None else 0.0
    close = 0.0
    if near is not None and not _has_classes(m):
        # Rows are near in twos: the share of n of them spreads by sqrt(2 p (1 - p) / n).
        p = near.near_by_chance
        spread = (2 * p * (1 - p) / near.near_rows) ** 0.5
        if near.near_share - p > SIGNIFICANT * spread:
            close = near.near_share - p
    share = max(twins, close)
    if x is None or share <= NATURAL_DUPLICATES:
        return None
    evidence = f"{x.rows_with_twin} of {x.rows} rows have an exact copy ({x.distinct_rows} differ)"
    if near is not None and close > twins:
        evidence += (
            f", and {notes.percent(near.near_share)} of {near.near_rows} rows have a "
            f"neighbour nearer than 2^-11 of the mean distance, where chance puts "
            f"{notes.percent(near.near_by_chance, 2)}"
        )
    advice = (
        "Look at a group of copies: the same inputs read twice, an iterator that restarts, "
        "augmentation without effect, preprocessing that maps different inputs to one. Remove "
        "copies before splitting into training and test sets."
    )
    return Judged(Finding("duplicated", evidence + ".", advice), share / NATURAL_DUPLICATES)


def _by_chance(g: Geometry) -> bool:
    """Whether random rows have so high a mean cosine in one set of a thousand."""
    # The mean over n (n - 1) / 2 pairs of cosines that vary by 1 / d.
    return chance.tail(g.mean_cosine, g.features * g.rows * (g.rows - 1) / 2) > 1e-3


def is_flat(g: Geometry) -> bool:
    """Whether the rows less their mean use only few of the directions they could use."""
    line = SECOND_DECIMAL
    if g.rows <= FEW_ROWS:
        line = min(line, chance.spectrum_bounds(g.rows, g.features)[0])
    return g.lower_half < line or _one_axis(g)


def _one_axis(g: Geometry) -> bool:
    # In two or three dimensions the first axis leads by chance, and among a few rows.
    if not (g.leading > MAJORITY and g.participation_ratio < g.max_rank / 2):
        return False
    if g.rows > FEW_ROWS:
        return True
    _, leading, ratio = chance.spectrum_bounds(g.rows, g.features)
    return g.leading > leading and g.participation_ratio < ratio


def _dimensional(m: Measured) -> Judged | None:
    g = m.geometry
    if g is None or not is_flat(g) or _explained(m):
        return None
    evidence = (
        f"of {g.max_rank} directions that {g.spectrum_rows} rows of {g.features} features can "
        f"use, the smaller half holds {notes.percent(g.lower_half, 2)} of the variance "
        f"and the first one {notes.percent(g.leading, 2)}; effective rank "
        f"{notes.number(g.rankme, 3)} (RankMe), participation ratio "
        f"{notes.number(g.participation_ratio, 3)}."
    )
    advice = (
        "Look for dead or repeated features and for a narrow layer before the output. In "
        "training: weaker augmentation, a projection head, decorrelation (VICReg, Barlow "
        "Twins) or whitening; a smaller output loses nothing."
    )
    margin = max(SECOND_DECIMAL / max(g.lower_half, 1e-30), g.leading / MAJORITY)
    return Judged(Finding("dimensional_collapse", evidence, advice), margin)


def _explained(m: Measured) -> bool:
    """Whether few directions are used because there are few classes, which is no collapse.

    C classes fit in C - 1 directions, and training drives them there: Papyan, Han and Donoho
    (2020), "Prevalence of neural collapse". Without labels the classes show as clusters:
    neighbours that close most of the distance that chance leaves. The two ends of one axis
    look like clusters too, and do not count. Two groups put one axis before all others; what
    tells is what is left within them.
    """
    if _has_classes(m) or (m.groups is not None and _healthy_within(m.groups)):
        return True
    near = m.neighbours
    if near is None or m.geometry is None or _one_axis(m.geometry):
        return False
    return near.score > SIGNIFICANT and near.closing > MAJORITY


def _healthy_within(groups: Groups) -> bool:
    """Whether two groups of rows are more than two points, or two lines.

    Training narrows the spectrum within classes, so that the line there is lower.
    """
    within = groups.within
    if within.features <= 2:
        return True
    if within.distance < chance.FLOAT32_STEPS:
        return False
    noise = within.distance < chance.BFLOAT16_STEP and groups.replication <= SIGNIFICANT
    return not noise and within.rankme_share > WITHIN_CLASSES


def _has_classes(m: Measured) -> bool:
    """Whether the labels name classes that lie apart."""
    return m.classes is not None and m.classes.count > 1 and m.classes.separate


def _anisotropic(m: Measured) -> Judged | None:
    g = m.geometry
    if g is None or g.mean_cosine <= MAJORITY:
        return None
    # Two tight classes at right angles have a mean cosine of a half, and share no direction.
    if m.classes is not None and _has_classes(m) and m.classes.between <= MAJORITY:
        return None
    if _by_chance(g):
        return None
    evidence = (
        f"the mean cosine of two different rows is {notes.cosine(g.mean_cosine)}, where random "
        f"directions give 0: {notes.percent(g.mean_share)} of the squared length of a "
        "row is the same for all rows."
    )
    advice = (
        "The differences between rows are still there: subtract the mean of the set before "
        "comparing (and the first few principal "
        "components, see Mu and Viswanath 2018, 'All-but-the-top'). Rankings change little; "
        "thresholds and margins set for cosines around 0 do not apply as it is."
    )
    return Judged(Finding("anisotropic", evidence, advice), MAJORITY / max(g.distance, 1e-30))


def _healthy(m: Measured) -> Judged:
    g = m.geometry
    if g is None:
        return Judged(Finding("healthy", "nothing was found.", "Nothing."), 1.0)
    evidence = (
        f"the mean cosine of two different rows is {notes.cosine(g.mean_cosine)}, "
        f"{notes.number(g.rankme, 3)} of {g.max_rank} directions are in use (RankMe), and no "
        "cause of a false similarity holds."
    )
    margins = [MAJORITY / max(g.mean_cosine, 1e-30)]
    if not _explained(m):
        margins.append(g.lower_half / SECOND_DECIMAL)
    if m.numbers is not None:
        twins = m.numbers.rows_with_twin / m.numbers.rows
        margins.append(NATURAL_DUPLICATES / max(twins, 1e-30))
    return Judged(Finding("healthy", evidence, "Nothing."), min(margins))
