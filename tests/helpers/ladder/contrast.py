"""Checks of the sums of a softmax loss, by the definition in float64.

As in ``checks``, each takes ``load``, which imports a module of the kernels or of a mutant of them.
"""

import torch
from torch import Tensor

from ladder import oracle
from ladder.checks import EPS, F32, Load, guards, on_device
from ladder.runtime import DEVICE

SPARED = 5  # of the checks' rows have no positive


def pairs(n: int, m: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Positives (n,), distinct and none for every fifth row, and ids (n,), (m,) that meet often."""
    generator = torch.Generator().manual_seed(5)
    positives = torch.full((n,), -1)
    least = min(n, m)
    positives[:least] = torch.randperm(m, generator=generator)[:least]
    positives[SPARED - 1 :: SPARED] = -1
    ids = (torch.randint(0, 9, (size,), generator=generator) << 40 for size in (n, m))
    return positives, tuple(ids)


def negatives(n: int, m: int, positives: Tensor, ids: tuple[Tensor, Tensor] | None) -> Tensor:
    """Which pairs (n, m) are negatives."""
    keep = positives[:, None] != torch.arange(m)
    return keep if ids is None else keep & (ids[0][:, None] != ids[1])


def check_softmax_sums(
    load: Load,
    dtype: torch.dtype = F32,
    shape: tuple[int, int, int] = (131, 203, 67),
    temperature: float = 0.05,
    *,
    symmetric: bool = True,
    with_ids: bool = True,
    x: Tensor | None = None,
    y: Tensor | None = None,
) -> None:
    n, m, d = shape
    x = oracle.inputs(n, d, dtype=dtype) if x is None else x
    y = oracle.inputs(m, d, dtype=dtype, seed=1) if y is None else y
    positives, ids = pairs(n, m)
    ids = ids if with_ids else None
    module = load("softmax_sums")
    scale = torch.tensor(1 / temperature)
    memory, outputs = guards()
    with memory, outputs:
        rows = [r for side in on_device(x, y) for r in module.launch_scaled_rows(side, EPS)]
        on_gpu = None if ids is None else tuple(on_device(*ids))
        parts = module.launch_softmax_sums(
            *rows, scale.to(DEVICE), *on_device(positives), on_gpu, symmetric
        )
    keep = negatives(n, m, positives, ids)
    cosines = oracle.pairwise(x[None], y[None], EPS)[0].masked_fill(~keep, -torch.inf)
    assert (parts[1] is None) == (not symmetric)
    for dim, part in ((1, parts[0]), (0, parts[1])):
        if part is None:
            continue
        assert part.shape[2 - dim] == cosines.shape[1 - dim]
        _assert_maxima_and_sums(*part.cpu(), cosines.shape[dim])
        shift = torch.linspace(-0.9, 0.9, cosines.shape[1 - dim])
        got = module.log2_sums(part, scale.to(DEVICE), shift.to(DEVICE), dim).cpu()
        expected = _log2_sums(cosines, scale.double(), shift.double(), dim)
        _assert_close(got, expected, float(scale))


def _log2_sums(cosines: Tensor, scale: Tensor, shift: Tensor, dim: int) -> Tensor:
    """The same number by the definition, (n,) or (m,)."""
    return (scale * (cosines - shift.unsqueeze(dim))).logsumexp(dim) / torch.log(torch.tensor(2.0))


def _assert_close(got: Tensor, expected: Tensor, scale: float) -> None:
    """An error of 2^-21 in a cosine is what pairwise products are held to; 2^-20 of the sum."""
    assert got.dtype == torch.float64
    assert torch.equal(got.isnan(), expected.isnan())
    finite = expected.isfinite()
    assert torch.equal(got[~finite & ~expected.isnan()], expected[~finite & ~expected.isnan()])
    allowed = 1.4427 * (scale * 2.0**-21 + 2.0**-20)
    if bool(finite.any()):
        assert oracle.error(got[finite], expected[finite]) <= allowed


def _assert_maxima_and_sums(maxima: Tensor, sums: Tensor, length: int) -> None:
    """A sum is relative to its own maximum: at least its one, at most one for each of a tile."""
    empty = maxima == -torch.inf
    known = ~empty & ~sums.isnan()
    assert bool(((sums[empty] == 0) | sums[empty].isnan()).all())
    assert bool((sums[known] >= 1).all())
    assert bool((sums[known] <= min(length, 256)).all())
    assert bool((maxima[known].abs() <= 1 + 2.0**-20).all())
