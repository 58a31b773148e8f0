"""Float32 rows split into planes beforehand: what `TileConfig.planes` selects in the forward."""

import pytest
import torch
import triton
from cossim_fast.kernels import configs
from cossim_fast.kernels.architecture import current_arch
from cossim_fast.kernels.configs import choose_planes
from cossim_fast.kernels.pairwise import launch_pairwise_fwd
from torch import Tensor

from ladder import checks, oracle
from ladder.checks import EPS, F32
from ladder.runtime import DEVICE, INTERPRETING, kernels, needs_kernels
from ladder.stub import StubDriver

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
SHAPES = [(2, 131, 77, 67), (1, 1, 1, 1), (1, 128, 128, 64), (1, 129, 17, 65), (3, 2, 131, 40)]
PARTS = pytest.mark.parametrize("parts", [2, 3])


@pytest.fixture(params=["sm_80", "sm_90"])
def arch(request, monkeypatch):
    """The architecture whose tiles and loads are chosen; a GPU has its own."""
    if INTERPRETING:
        monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(request.param))
    elif request.param != "sm_80":
        pytest.skip("a GPU has one architecture")
    return request.param


def forward(x: Tensor, y: Tensor, parts: int, eps: float = EPS) -> Tensor:
    """Cosines (b, n, m) of float32 rows, by planes."""
    config = choose_planes(parts, current_arch())
    return launch_pairwise_fwd(x.to(DEVICE), y.to(DEVICE), eps, config=config).cpu()


def bound(d: int) -> float:
    """What `pairwise_cosine` promises of "highest"."""
    return 2 * (d + 4) * 2.0**-24


@PARTS
def test_parts_add_up_to_the_scaled_rows(parts):
    checks.check_planes(kernels, parts)
    checks.check_planes(kernels, parts, 5, 6, 1)
    checks.check_planes(kernels, parts, 3, 2, 1030)


@PARTS
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_float64(parts, shape, arch):
    checks.check_pairwise_fwd(kernels, F32, shape, parts=parts)


@PARTS
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_a_matrix_with_itself_is_symmetric(parts, scale, arch):
    checks.check_pairwise_with_itself(kernels, F32, scale=scale, parts=parts)
    checks.check_pairwise_with_itself(kernels, F32, 130, 72, scale, parts)


def hard_rows(kind: str, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two sets of rows (1, n, d) whose products lose digits, or whose parts could."""
    x, y = (oracle.inputs(1, n, d, dtype=F32, seed=seed) for seed in (0, 1))
    if kind == "entries spread over e^8":
        spread = torch.linspace(-8, 8, d).exp()
        return x * spread, y * spread.flip(0)
    if kind == "nearly parallel":
        return x[:, :1] + 1e-3 * x, x[:, :1] + 1e-3 * y
    if kind == "one large entry":
        x[..., 0] *= 1e4
        y[..., -1] *= 1e4
        return x, y
    half = x[..., : d // 2].abs() + 1  # what is left is cancelled
    return torch.cat([half, half], -1), torch.cat([half, -half], -1).flip(1)


@PARTS
@pytest.mark.parametrize(
    "kind", ["entries spread over e^8", "nearly parallel", "one large entry", "cancelling"]
)
def test_hard_rows_keep_the_published_bound(parts, kind, arch):
    for d in (2, 66, 400):
        x, y = hard_rows(kind, 9, d)
        got = forward(x, y, parts)
        assert oracle.error(got, oracle.pairwise(x, y, EPS)) <= bound(d)


@PARTS
@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e-9, 1.0, 1e30, 1e38])
def test_rows_of_any_magnitude_keep_the_published_bound(parts, scale, arch):
    x = oracle.inputs(1, 9, 72, dtype=F32).clamp(-3, 3)
    x[0, 3, 1:] *= 1e-7
    x, y = x * scale, x.flip(1) / (2 * scale) if scale > 1e-30 else x.flip(1)
    for eps in (0.0, EPS):
        got = forward(x, y, parts, eps)
        assert oracle.error(got, oracle.pairwise(x, y, eps)) <= bound(72)


@PARTS
def test_bad_rows_stay_alone_and_zero_rows_give_zero(parts, arch):
    x, y = oracle.inputs(1, 9, 72, dtype=F32), oracle.inputs(1, 8, 72, dtype=F32, seed=1)
    x[0, 2, 5] = torch.nan
    x[0, 4] = 0
    y[0, 6, 71] = -torch.inf
    c = forward(x, y, parts)[0]
    bad = torch.zeros(9, 8, dtype=torch.bool)
    bad[2], bad[:, 6] = True, True
    assert bool((torch.isnan(c) == bad).all())
    assert bool((c[4][~bad[4]] == 0).all())


@PARTS
def test_strided_and_broadcast_rows(parts, arch):
    x = oracle.inputs(40, 3, 70, dtype=F32).transpose(0, 1)
    y = oracle.inputs(1, 70, 33, dtype=F32, seed=1).mT[:, ::2].expand(3, 17, 70)
    assert oracle.error(forward(x, y, parts), oracle.pairwise(x, y, EPS)) <= bound(70)


@PARTS
def test_values_stay_within_one(parts):
    x = oracle.inputs(1, 67, 3, dtype=F32)
    assert float(forward(x, x * 3, parts).abs().max()) <= 1


@PARTS
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (1, 2, 3, 0)])
def test_empty_inputs(parts, shape):
    b, n, m, d = shape
    c = forward(torch.ones(b, n, d), torch.ones(b, m, d), parts)
    assert c.tolist() == torch.zeros(b, n, m).tolist()


def test_one_table_makes_them_the_default(arch, monkeypatch, forgets_choices):
    x, y = oracle.inputs(2, 9, 67, dtype=F32), oracle.inputs(2, 8, 67, dtype=F32, seed=1)

    def run(precision: str) -> Tensor:
        return launch_pairwise_fwd(x.to(DEVICE), y.to(DEVICE), EPS, precision).cpu()

    within, lower = run("highest"), run("high")
    monkeypatch.setattr(configs, "_PLANES_OF_HIGHEST", dict.fromkeys(configs._PLANES, 2))
    forgets_choices()
    assert torch.equal(run("highest"), forward(x, y, 2))
    assert not torch.equal(run("highest"), within)
    assert torch.equal(run("high"), lower)
