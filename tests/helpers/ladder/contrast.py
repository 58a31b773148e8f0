"""Checks of the sums and weights of a softmax loss, by the definition in float64.

As in ``checks``, each takes ``load``, which imports a module of the kernels or of a mutant of them.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

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


def check_softmax_weights(
    load: Load,
    dtype: torch.dtype = F32,
    shape: tuple[int, int, int] = (131, 203, 67),
    temperature: float = 0.05,
    *,
    symmetric: bool = True,
    with_ids: bool = True,
    panel: torch.dtype = F32,
    x: Tensor | None = None,
    y: Tensor | None = None,
) -> None:
    """Each weight, of rows that count unequally, as near as its dtype and its logit allow."""
    n, m, d = shape
    x = oracle.inputs(n, d, dtype=dtype) if x is None else x
    y = oracle.inputs(m, d, dtype=dtype, seed=1) if y is None else y
    positives, ids = pairs(n, m)
    ids = ids if with_ids else None
    cosines = oracle.pairwise(x[None], y[None], EPS)[0].requires_grad_()
    keep = negatives(n, m, positives, ids)
    incoming = torch.linspace(0.5, 2, n, dtype=torch.float64)
    by_row, by_column = losses(cosines, keep, positives, 1 / temperature)
    total = by_row + by_column if symmetric else by_row
    (expected,) = torch.autograd.grad((total * incoming).sum(), cosines)
    expected = expected * temperature

    module = load("softmax_weights")
    scale = torch.tensor(1 / temperature)
    masked = cosines.detach().masked_fill(~keep, -torch.inf)
    terms = terms_of(module, masked, cosines.detach(), positives, scale, incoming, symmetric)
    memory, outputs = guards()
    with memory, outputs:
        launch_rows = load("softmax_sums").launch_scaled_rows
        rows = [r for side in on_device(x, y) for r in launch_rows(side, EPS)]
        on_gpu = None if ids is None else tuple(on_device(*ids))
        got = module.launch_softmax_weights(
            *rows, scale.to(DEVICE), *on_device(positives), *terms, on_gpu, panel
        )
    got, scale = got.cpu(), float(scale)
    assert got.dtype == panel
    relative = 1.01 * torch.finfo(panel).eps / 2 + scale * 2.0**-20 + 2.0**-19
    tiny = 2.0**-24 if panel == torch.float16 else 2.0**-120
    wrong = (got.double() - expected).abs() > expected.abs() * relative + tiny
    assert torch.equal(got.isnan(), expected.isnan())
    assert int(wrong.sum()) == 0


def losses(cosines: Tensor, keep: Tensor, positives: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Losses of the rows and of their positives among the rows, (n,) each, differentiable."""
    valid = positives >= 0
    at = positives.clamp_min(0)
    own = cosines.gather(1, at[:, None])[:, 0] * scale
    logits = torch.where(keep, cosines * scale, -torch.inf)
    both = logits.logsumexp(1), logits.logsumexp(0)[at]
    found = (softplus(sums - own, threshold=700) for sums in both)
    return tuple(torch.where(valid, loss, 0.0) for loss in found)


def terms_of(
    module: object,
    masked: Tensor,
    cosines: Tensor,
    positives: Tensor,
    scale: Tensor,
    incoming: Tensor,
    symmetric: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `launch_softmax_weights` takes: terms of rows, and of columns if symmetric."""
    wide, valid = scale.double(), positives >= 0
    at = positives.clamp_min(0)
    own = cosines.double().gather(1, at[:, None])[:, 0]
    _, shift, by_own = module.loss_terms(_log2_sums(masked, wide, own, 1), own, wide)
    columns = None
    if symmetric:
        anchors = own.new_full((cosines.shape[1],), torch.inf)
        factors = torch.zeros_like(anchors)
        anchors[at[valid]], factors[at[valid]] = own[valid], incoming[valid]
        sums = _log2_sums(masked, wide, anchors.nan_to_num(posinf=0.0), 0)
        _, shifts, by_key = module.loss_terms(sums, anchors, wide)
        by_own = by_own + by_key[at]
        columns = torch.stack([shifts, factors]).float().to(DEVICE)
    shift = torch.where(valid, shift, torch.inf)
    factor = torch.where(valid, incoming, 0.0)
    return torch.stack([shift, factor, by_own * factor]).float().to(DEVICE), columns
