"""What chance alone gives: the yardstick behind every threshold of the diagnosis.

Three lengths of rounding and two kinds of random set. No figure here is fitted to data.
"""

import functools
import math

import torch
from torch import Tensor

# The first number below 1 lies this far away in each format. Cosines nearer to 1 than
# that are printed, stored and compared as 1.
BFLOAT16_STEP = 2.0**-8
FLOAT16_STEP = 2.0**-11
# Sixteen steps of float32 below 1: nearer than that, float32 ranks rounding errors.
FLOAT32_STEPS = 2.0**-20


def tail(cosine: float, dims: float) -> float:
    r"""Return the chance that two random directions have at least this cosine.

    .. math:: P(\langle u, v\rangle \ge c) =
        \int_{\arcsin c}^{\pi/2} \cos^{k-2} \Big/ \int_{-\pi/2}^{\pi/2} \cos^{k-2}

    for u, v independent and uniform on the unit sphere of k dimensions (Cai, Fan and Jiang
    2013, "Distributions of angles in random packing on spheres"). The mean of n cosines in d
    dimensions has the variance 1 / (n d) of one cosine in n d dimensions, so
    ``dims = n * d`` serves for means. In one dimension there are two directions only.

    >>> round(tail(0.5, dims=3), 4)
    0.25
    """
    cosine = min(max(cosine, -1.0), 1.0)
    if dims < 1.5:
        return 0.5
    dims = max(dims, 2.0)
    if dims > 1000:  # the normal limit, off by O(1 / dims)
        return 0.5 * math.erfc(cosine * math.sqrt(dims / 2))

    def area(start: float) -> float:
        angle = torch.linspace(start, math.pi / 2, 4001, dtype=torch.float64, device="cpu")
        return float(torch.trapezoid(angle.cos().clamp_min(0) ** (dims - 2), angle))

    return min(area(math.asin(cosine)) / area(-math.pi / 2), 1.0)


def has_neighbour(cosine: float, dims: float, n: int) -> float:
    """Return the chance that a random row has one of n - 1 others within this cosine."""
    return -math.expm1((n - 1) * math.log1p(-min(tail(cosine, dims), 1 - 2**-53)))


def generator() -> torch.Generator:
    """Return the generator of a fixed draw, on CPU whatever the default device."""
    return torch.Generator(device="cpu").manual_seed(0)


def order(n: int, draws: torch.Generator) -> Tensor:
    """Return the numbers below n in random order."""
    return torch.randperm(n, generator=draws, dtype=torch.int64, device="cpu")


@functools.cache
def spectrum_bounds(n: int, d: int) -> tuple[float, float, float]:
    """Return what one random set of n directions in d dimensions in a thousand passes.

    Of the variance around the mean: the least share in the smaller half of the axes, the
    largest in the first, and the least participation ratio. By drawing 2000 sets; for few
    rows, since with more than a few no random set comes near a line that is drawn here.

    >>> smaller_half, first, _ = spectrum_bounds(4, 3)
    >>> smaller_half < 0.001, first > 0.9
    (True, True)
    """
    rows = torch.randn(2000, n, d, generator=generator(), dtype=torch.float64, device="cpu")
    rows = torch.nn.functional.normalize(rows, dim=2)
    rows -= rows.mean(1, keepdim=True)
    gram = rows.mT @ rows if d < n else rows @ rows.mT
    rank = max(min(n - 1, d), 1)
    share = torch.linalg.eigvalsh(gram).clamp_min(0).flip(1)[:, :rank]
    share /= share.sum(1, keepdim=True)
    level = 1e-3
    return (
        float(share[:, -(rank // 2) :].sum(1).quantile(level)) if rank > 1 else 1.0,
        float(share[:, 0].quantile(1 - level)),
        float((1 / share.square().sum(1)).quantile(level)),
    )


def matched(n: int, singular_values: Tensor, draws: torch.Generator) -> Tensor:
    """Draw a random set of n rows with these singular values and mean zero.

    Its left singular vectors are a uniformly random orthonormal frame orthogonal to the
    ones vector: every measure of the spectrum is that of the set whose singular values
    these are, and what is gone are the set's neighbours. Coordinates (n, r) are returned.
    """
    # Drawn in float32, in a third of the time; orthonormal in the precision of the values.
    frame = torch.randn(
        n, len(singular_values), generator=draws, dtype=torch.float32, device="cpu"
    ).to(singular_values)
    frame -= frame.mean(0)
    orthonormal: Tensor = torch.linalg.qr(frame).Q
    return orthonormal * singular_values
