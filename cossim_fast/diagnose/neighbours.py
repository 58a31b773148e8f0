"""Pairs of rows: how their cosines spread, who is a copy of whom, who has real neighbours."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cossim_fast._products import full_precision_product
from cossim_fast.diagnose import chance
from cossim_fast.diagnose.geometry import Geometry, singular_values, uniformity
from cossim_fast.diagnose.rows import Rows, unit

BINS = 400
# Rows are near duplicates where they are nearer than this share of the mean distance, 1 less
# the cosine: a part that all rows share changes neither side.
NEAR = chance.FLOAT16_STEP
# Rows are crowded within a hundredth of it: the second decimal of what tells rows apart.
CROWDED = 0.01
# Small, so that what is computed of a tile stays small beside the sample.
_TILE = 64
_QUERIES = 512
_STRUCTURE_ROWS = 512
_DRAWS = 16
_PERMUTATIONS = 200


@dataclass(frozen=True)
class Pairs:
    """The cosines of all pairs of ``rows`` rows; ``error`` bounds the histogram's shares.

    ``error`` is 0 where every pair was counted, and otherwise the distance that the true
    cumulative share keeps with 95 % probability at any one cosine: Hoeffding's inequality
    for a mean over pairs (1963), whose sample is worth rows // 2 pairs.
    """

    rows: int
    counts: tuple[int, ...]
    lowest: float
    highest: float
    uniformity: float
    error: float

    @property
    def edges(self) -> tuple[float, ...]:
        """The edges of the bins."""
        return tuple(-1 + 2 * k / BINS for k in range(BINS + 1))

    def quantile(self, share: float) -> float:
        """Return the cosine below which a share of the pairs lies, to the bin's width."""
        wanted = share * sum(self.counts)
        seen = 0
        for k, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return min(max(-1 + (2 * k + 1) / BINS, self.lowest), self.highest)
        return self.highest


@dataclass(frozen=True)
class Neighbours:
    """What is near what, among rows less their mean."""

    near_share: float  # rows with another row nearer than float16 tells apart
    near_groups: int  # groups of such rows
    crowd: float  # largest share of rows within a hundredth of the mean distance of one row
    near_rows: int  # rows that were looked at
    near_by_chance: float
    nearest: float  # mean cosine of a row and its nearest neighbour
    nearest_by_chance: float
    nearest_by_chance_sd: float
    replication: float  # see replication()

    @property
    def score(self) -> float:
        """By how many standard deviations neighbours are nearer than chance puts them."""
        return (self.nearest - self.nearest_by_chance) / max(self.nearest_by_chance_sd, 1e-9)

    @property
    def closing(self) -> float:
        """How much of the distance that chance leaves to the nearest neighbour is gone."""
        return (self.nearest - self.nearest_by_chance) / max(1 - self.nearest_by_chance, 1e-9)


def measure_pairs(directions: Tensor, n: int) -> Pairs:
    """Count the cosines of all pairs of the given unit rows, a sample of n."""
    rows = directions.float()
    counts = torch.zeros(BINS, dtype=torch.float64, device="cpu")
    lowest, highest, total, pairs = 1.0, -1.0, 0.0, 0
    for start, tile in _tiles(rows):
        product = full_precision_product(tile, rows[start:].T).clamp_(-1, 1)
        above = torch.ones_like(product, dtype=torch.bool).triu_(1)
        cosines = product[above]
        if not len(cosines):
            continue
        counts += torch.histc(cosines, BINS, -1, 1).double()
        lowest, highest = min(lowest, float(cosines.min())), max(highest, float(cosines.max()))
        total += math.exp(uniformity(cosines)) * len(cosines)
        pairs += len(cosines)
    m = len(rows)
    return Pairs(
        rows=m,
        counts=tuple(int(count) for count in counts),
        lowest=lowest,
        highest=highest,
        uniformity=math.log(total / pairs),
        error=0.0 if m == n else math.sqrt(math.log(2 / 0.05) / (2 * (m // 2))),
    )


def measure_neighbours(
    rows: Rows,
    valid: Tensor,
    mean: Tensor,
    sample: Tensor,
    geometry: Geometry,
) -> Neighbours:
    """Look for near duplicates and for structure among the rows, ``sample`` being unit rows."""
    n = int(valid.sum())
    centred = sample - mean
    scale = math.sqrt(geometry.distance) if geometry.distance > 0 else 1.0
    scaled = torch.empty(centred.shape, dtype=torch.float32, device="cpu")
    for start, tile in _tiles(centred):
        scaled[start : start + len(tile)] = tile / scale
    share, groups, crowd = _near_groups(scaled)
    del scaled
    checked = len(sample)
    if checked < n:
        share, checked = _near_share(rows, valid, mean, scale)
    nearest, by_chance, spread = _structure(centred)
    return Neighbours(
        near_share=share,
        near_groups=groups,
        crowd=crowd,
        near_rows=checked,
        near_by_chance=chance.has_neighbour(1 - NEAR, geometry.participation_ratio, n),
        nearest=nearest,
        nearest_by_chance=by_chance,
        nearest_by_chance_sd=spread,
        replication=replication(centred),
    )


def _half_squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1) / 2


def _distances(x: Tensor, y: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    """Return half the squared distance of row i of x and row j of y, given that to the origin."""
    return half_x[:, None] + half_y - full_precision_product(x, y.T)


def _near_groups(rows: Tensor) -> tuple[float, int, float]:
    """Return the share of rows with a near duplicate, how many groups they form, and the crowd.

    A group is led by the first row of it: a row joins the first row that is near it.
    """
    # Filled in place: small tensors kept between the large ones would leave holes in the heap
    # that no large one fits into again.
    leader = torch.empty(len(rows), dtype=torch.int64, device="cpu")
    has_near = torch.empty(len(rows), dtype=torch.bool, device="cpu")
    half = _half_squares(rows)
    crowd = 0
    for start, tile in _tiles(rows):
        place = slice(start, start + len(tile))
        distances = _distances(tile, rows, half[place], half)
        crowd = max(crowd, int((distances <= CROWDED).sum(1).max()))
        close = distances <= NEAR
        close[:, place].fill_diagonal_(True)
        torch.gt(close.sum(1), 1, out=has_near[place])
        leader[place] = close.to(torch.uint8).argmax(1)
    groups = len(leader[leader][has_near].unique())
    return float(has_near.float().mean()), groups, crowd / len(rows)


def _near_share(rows: Rows, valid: Tensor, mean: Tensor, scale: float) -> tuple[float, int]:
    """Compare some rows with every row, in one more pass."""
    chosen = torch.nonzero(valid)[:, 0]
    chosen = chosen[chance.order(len(chosen), chance.generator())[:_QUERIES]].sort().values
    queries = ((unit(rows[chosen])[0] - mean) / scale).float()
    half = _half_squares(queries)
    found = torch.zeros(len(chosen), dtype=torch.int64, device="cpu")
    for place, block in rows.blocks():
        keep = valid[place]
        others = ((unit(block[keep])[0] - mean) / scale).float()
        for _, tile in _tiles(others):
            found += (_distances(queries, tile, half, _half_squares(tile)) <= NEAR).sum(1)
    # Every query found itself.
    return float((found > 1).float().mean()), len(chosen)


def _structure(centred: Tensor) -> tuple[float, float, float]:
    """Return the mean cosine with the nearest neighbour, and what chance makes of it.

    Chance is a random set of the same n and the same singular values, drawn several times:
    a set whose neighbours are no nearer holds nothing that a ranking could find.
    """
    generator = chance.generator()
    rows = _few(centred, generator)
    if rows is None:
        return 0.0, 0.0, 0.0
    values = singular_values(rows)
    draws = torch.tensor(
        [_nearest(chance.matched(len(rows), values, generator)) for _ in range(_DRAWS)],
        dtype=torch.float32,
        device="cpu",
    )
    return _nearest(rows), float(draws.mean()), float(draws.std())


def replication(centred: Tensor) -> float:
    """Say how surely neighbours in half of the features are near in the rest, in deviations.

    Of noise that is independent from feature to feature, whatever its distribution, one half
    tells nothing of the other; the rounding of a stored constant is such noise, and heavy
    tails alone put neighbours nearer than a normal set has them. Against a permutation of the
    rows, as in Mantel (1967), "The detection of disease clustering and a generalized
    regression approach".
    """
    generator = chance.generator()
    rows = _few(centred, generator)
    if rows is None or rows.shape[1] < 2:
        return 0.0
    features = chance.order(rows.shape[1], generator)
    one, other = (_cosines(rows[:, half]) for half in features.tensor_split(2))
    nearest = one.fill_diagonal_(-2).argmax(1)
    n = len(rows)
    orders = [chance.order(n, generator) for _ in range(_PERMUTATIONS)]
    draws = torch.stack([other[order, order[nearest]].mean() for order in orders])
    found = other[torch.arange(n, device="cpu"), nearest].mean()
    return float((found - draws.mean()) / draws.std().clamp_min(1e-9))


def _few(centred: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return some rows around their own mean, or None where they tell nothing."""
    order = chance.order(len(centred), generator)[:_STRUCTURE_ROWS]
    rows = centred[order] - centred[order].mean(0)
    scale = rows.abs().max()
    return rows / scale if len(rows) >= 3 and scale > 0 else None


def _nearest(rows: Tensor) -> float:
    return float(_cosines(rows).fill_diagonal_(-2).amax(1).mean())


def _cosines(rows: Tensor) -> Tensor:
    directions = torch.nn.functional.normalize(rows, dim=1)
    return full_precision_product(directions, directions.T)


def _tiles(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), _TILE):
        yield start, rows[start : start + _TILE]
