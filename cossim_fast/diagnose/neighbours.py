"""Pairs of rows: how their cosines spread, who is a copy of whom, who has real neighbours."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cossim_fast.diagnose import chance
from cossim_fast.diagnose.geometry import uniformity
from cossim_fast.diagnose.rows import Rows, unit

BINS = 400
NEAR = 1 - chance.FLOAT16_STEP
_TILE = 512
_QUERIES = 512
_STRUCTURE_ROWS = 512
_DRAWS = 16


@dataclass(frozen=True)
class Pairs:
    """The cosines of all pairs of ``rows`` rows; ``error`` bounds the histogram's shares.

    ``error`` is 0 where every pair was counted, and otherwise the distance that the true
    cumulative share keeps with 95 % probability at any one cosine: Hoeffding's inequality
    for a mean over pairs (1963, section 5b), whose sample is worth rows // 2 pairs.
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
    near_rows: int  # rows that were looked at
    near_by_chance: float
    nearest: float  # mean cosine of a row and its nearest neighbour
    nearest_by_chance: float
    nearest_by_chance_sd: float

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
    counts = torch.zeros(BINS, dtype=torch.float64)
    lowest, highest, total, pairs = 1.0, -1.0, 0.0, 0
    for start, tile in _tiles(rows):
        product = (tile @ rows[start:].T).clamp_(-1, 1)
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
    participation_ratio: float,
) -> Neighbours:
    """Look for near duplicates and for structure among the rows, ``sample`` being unit rows."""
    n = int(valid.sum())
    centred = sample - mean
    directions = torch.nn.functional.normalize(centred, dim=1).float()
    share, groups = _near_groups(directions)
    checked = len(sample)
    if checked < n:
        share, checked = _near_share(rows, valid, mean)
    nearest, by_chance, spread = _structure(centred)
    return Neighbours(
        near_share=share,
        near_groups=groups,
        near_rows=checked,
        near_by_chance=chance.has_neighbour(NEAR, participation_ratio, n),
        nearest=nearest,
        nearest_by_chance=by_chance,
        nearest_by_chance_sd=spread,
    )


def _near_groups(directions: Tensor) -> tuple[float, int]:
    """Return the share of rows with a near duplicate, and how many groups they form.

    A group is led by the first row of it: a row joins the first row that is near it.
    """
    leaders, near = [], []
    for start, tile in _tiles(directions):
        close = tile @ directions.T >= NEAR
        close[torch.arange(len(tile)), torch.arange(start, start + len(tile))] = True
        near.append(close.sum(1) > 1)
        leaders.append(close.to(torch.uint8).argmax(1))
    leader, has_near = torch.cat(leaders), torch.cat(near)
    groups = len(leader[leader][has_near].unique())
    return float(has_near.float().mean()), groups


def _near_share(rows: Rows, valid: Tensor, mean: Tensor) -> tuple[float, int]:
    """Compare some rows with every row, in one more pass."""
    chosen = torch.nonzero(valid)[:, 0]
    generator = torch.Generator().manual_seed(0)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:_QUERIES]].sort().values
    queries = torch.nn.functional.normalize(unit(rows[chosen])[0] - mean, dim=1).float()
    found = torch.zeros(len(chosen), dtype=torch.int64)
    for place, block in rows.blocks():
        keep = valid[place]
        directions = torch.nn.functional.normalize(unit(block[keep])[0] - mean, dim=1).float()
        for _, tile in _tiles(directions):
            found += (queries @ tile.T >= NEAR).sum(1)
    # Every query found itself.
    return float((found > 1).float().mean()), len(chosen)


def _structure(centred: Tensor) -> tuple[float, float, float]:
    """Return the mean cosine with the nearest neighbour, and what chance makes of it.

    Chance is a random set of the same n and the same singular values, drawn several times:
    a set whose neighbours are no nearer holds nothing that a ranking could find.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(centred), generator=generator)[:_STRUCTURE_ROWS]
    rows = centred[order]
    rows = rows - rows.mean(0)
    scale = rows.abs().max()
    if len(rows) < 3 or not scale > 0:
        return 0.0, 0.0, 0.0
    rows = rows / scale
    values = chance.spectrum(rows)
    draws = torch.tensor(
        [_nearest(chance.matched(len(rows), values, generator)) for _ in range(_DRAWS)]
    )
    return _nearest(rows), float(draws.mean()), float(draws.std())


def _nearest(rows: Tensor) -> float:
    directions = torch.nn.functional.normalize(rows, dim=1)
    cosines = directions @ directions.T
    return float(cosines.fill_diagonal_(-2).amax(1).mean())


def _tiles(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), _TILE):
        yield start, rows[start : start + _TILE]
