"""The shape of a set of directions: how much its rows share, and how many axes they use."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cossim_fast._products import full_precision_product
from cossim_fast.diagnose import chance
from cossim_fast.diagnose.rows import Rows, unit

# Above this many products the Gram matrix is summed from float32 products of centred rows.
_EXACT_PRODUCTS = 2**36
# Wider sets than this are measured on as many rows, whose Gram matrix is then the smaller.
_WIDEST = 4096


@dataclass(frozen=True)
class Geometry:
    """Measures of n unit rows around their mean, in float64."""

    rows: int
    features: int
    mean_cosine: float
    distance: float  # 1 - mean_cosine, without the cancellation
    mean_share: float
    max_rank: int
    rankme: float
    participation_ratio: float
    lower_half: float
    leading: float
    singular_values: tuple[float, ...]
    spectrum_rows: int

    @property
    def rankme_share(self) -> float:
        """RankMe over the largest rank possible, min(n - 1, d)."""
        return self.rankme / max(self.max_rank, 1)

    @property
    def participation_share(self) -> float:
        """Participation ratio over the largest rank possible, min(n - 1, d)."""
        return self.participation_ratio / max(self.max_rank, 1)


def mean_cosine(directions: Tensor) -> float:
    r"""Return the mean cosine of all pairs of different rows, in O(n d).

    .. math:: \frac{\|\sum_i u_i\|^2 - n}{n (n - 1)}

    Its use as a measure of anisotropy is Ethayarajh's (2019, "How contextual are
    contextualized word representations?").

    >>> round(mean_cosine(torch.eye(3)), 6)
    0.0
    """
    n = len(directions)
    return float((directions.double().sum(0).square().sum() - n) / (n * (n - 1)))


def rankme(singular_values: Tensor) -> float:
    r"""Return the effective rank :math:`\exp(-\sum_k p_k \log p_k)`, p_k = σ_k / Σσ.

    Roy and Vetterli (2007), "The effective rank"; as a measure of collapse Garrido et al.
    (2023), "RankMe". Here the rows are unit rows less their mean.

    >>> round(rankme(torch.ones(5)), 4)
    5.0
    """
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    p = singular_values / total
    return float(torch.special.entr(p).sum().exp())


def participation_ratio(singular_values: Tensor) -> float:
    r"""Return :math:`(\sum_k \lambda_k)^2 / \sum_k \lambda_k^2`, λ = σ².

    The cosines of two centred rows have the variance 1 / PR: they spread as those of random
    directions in PR dimensions do. Gao et al. (2017), "A theory of multineuronal
    dimensionality, dynamics and measurement".

    >>> round(participation_ratio(torch.ones(5)), 4)
    5.0
    """
    # Powers of two of the largest, so that squares of squares do not vanish.
    largest = singular_values.max()
    if not largest > 0:
        return 0.0
    energy = (singular_values / largest).square()
    return float(energy.sum().square() / energy.square().sum())


def describe(
    trace: float, mean: Tensor, rows: int, singular_values: Tensor, spectrum_rows: int
) -> Geometry:
    """Assemble the measures from Σ‖u - mean‖², the mean and the singular values."""
    distance = trace / (rows - 1)
    energy = singular_values.square()
    total = max(float(energy.sum()), 1e-300)
    rank = min(spectrum_rows - 1, len(mean))
    return Geometry(
        rows=rows,
        features=len(mean),
        mean_cosine=1 - distance,
        distance=distance,
        mean_share=float(mean.square().sum()),
        max_rank=rank,
        rankme=rankme(singular_values),
        participation_ratio=participation_ratio(singular_values),
        lower_half=float(energy[rank - rank // 2 :].sum()) / total if rank > 1 else 1.0,
        leading=float(energy[0]) / total,
        singular_values=tuple(singular_values.tolist()),
        spectrum_rows=spectrum_rows,
    )


def geometry_of(directions: Tensor) -> Geometry:
    """Measure unit rows (n, d) that fit in memory."""
    wide = directions.double()
    mean = wide.mean(0)
    centred = wide - mean
    values = singular_values(centred)
    return describe(float(centred.square().sum()), mean, len(wide), values, len(wide))


def geometry_streamed(
    rows: Rows, valid: Tensor, mean: Tensor, blocks: Iterable[tuple[slice, Tensor]]
) -> Geometry:
    """Measure the valid rows of a set block by block, in O(d²) memory (O(4096²) at most)."""
    n, d = int(valid.sum()), rows.d
    by_feature = d < n and d <= _WIDEST
    products = torch.float64 if n * d * d <= _EXACT_PRODUCTS else torch.float32
    gram = torch.zeros(d, d, dtype=torch.float64, device="cpu") if by_feature else None
    trace = 0.0
    for place, block in blocks:
        centred = unit(block[valid[place]])[0] - mean
        trace += float(centred.square().sum())
        if gram is not None:
            narrow = centred.to(products)
            gram += full_precision_product(narrow.T, narrow)
    if gram is not None:
        return describe(trace, mean, n, _roots(gram, n, d), n)
    chosen = torch.nonzero(valid)[:, 0]
    if n > _WIDEST:
        chosen = chosen[chance.order(n, chance.generator())[:_WIDEST]].sort().values
    sample = unit(rows[chosen])[0]
    sample -= sample.mean(0)
    return describe(trace, mean, n, singular_values(sample), len(sample))


def singular_values(centred: Tensor) -> Tensor:
    """Return the min(n - 1, d) singular values of rows (n, d) that have mean zero.

    From the smaller Gram matrix: values below 1e-8 of the largest are rounding, which no measure
    here sees. LAPACK's own took 10 s for (512, 800) where this takes 0.4 s.
    """
    n, d = centred.shape
    rows = centred.T if d < n else centred
    return _roots(full_precision_product(rows, rows.T), n, d)


def _roots(gram: Tensor, n: int, d: int) -> Tensor:
    """Return the min(n - 1, d) singular values, largest first."""
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0).sqrt()
    return values[: max(min(n - 1, d), 1)]


def uniformity(cosines: Tensor) -> float:
    r"""Return :math:`\log E\, e^{-2 \|u - v\|^2}` over given cosines.

    Wang and Isola (2020), "Understanding contrastive representation learning through
    alignment and uniformity on the hypersphere", t = 2. Lower is more uniform.

    >>> round(uniformity(torch.zeros(4)), 4)
    -4.0
    """
    return math.log(float((4 * cosines.double() - 4).exp().mean()))
