"""Values: in [-1, 1], right for rows of any magnitude, zero rows, NaN rows, norms below eps."""

import math
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import _reference, cosine_similarity, functional, pairwise_cosine, testing
from cossim_fast.testing import derived_tolerance, make_inputs, measured_tolerance

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=60)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def paired(x, y, eps=1e-8):
    return cosine_similarity(x, y, -1, eps)


def blocked(x, y, eps=1e-8):
    with mock.patch.object(functional, "SMALL", -1):
        return paired(x, y, eps)


def blocked_recording(x, y, eps=1e-8):
    with mock.patch.object(functional, "SMALL", -1):
        return paired_recording(x, y, eps)


def paired_recording(x, y, eps=1e-8):
    return cosine_similarity(x.detach().requires_grad_(), y, -1, eps).detach()


def composite(x, y, eps=1e-8):
    return torch.vmap(lambda a, b: cosine_similarity(a, b, -1, eps))(x, y)


def diagonal(x, y, eps=1e-8):
    return pairwise_cosine(x, y, eps=eps).diagonal()


def diagonal_recording(x, y, eps=1e-8):
    return pairwise_cosine(x.detach().requires_grad_(), y, eps=eps).detach().diagonal()


def diagonal_composite(x, y, eps=1e-8):
    return torch.vmap(lambda a, b: pairwise_cosine(a, b, eps=eps))(x[None], y[None])[0].diagonal()


def registered(x, y, eps=1e-8):
    return torch.ops.cossim_fast.rowwise_fwd(x, y, eps)


def registered_diagonal(x, y, eps=1e-8):
    return torch.ops.cossim_fast.pairwise_fwd(x[None], y[None], eps, "highest")[0].diagonal()


ROUTES = (
    paired,
    paired_recording,
    blocked,
    blocked_recording,
    composite,
    diagonal,
    diagonal_recording,
    diagonal_composite,
    registered,
    registered_diagonal,
)
every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda f: f.__name__)

MAGNITUDES = [
    (torch.float16, 6e4),
    (torch.float16, 6e-5),
    (torch.float16, 6e-8),  # the smallest subnormal
    (torch.bfloat16, 3e38),
    (torch.bfloat16, 1e-30),
    (torch.float32, 3e38),
    (torch.float32, 1e30),
    (torch.float32, 1e20),
    (torch.float32, 2.0**50),
    (torch.float32, 2.0**-50),
    (torch.float32, 1e-20),
    (torch.float32, 1e-30),
    (torch.float32, 1e-37),
    (torch.float32, 1e-40),  # subnormal
    (torch.float32, 1.4e-45),  # the smallest subnormal
    (torch.float64, 1e300),
    (torch.float64, 1e-300),
    (torch.float64, 5e-324),
]


@every_route
@pytest.mark.parametrize(("dtype", "size"), MAGNITUDES, ids=str)
def test_a_row_of_any_magnitude_is_like_itself(dtype, size, route):
    x = torch.full((3, 24), size, dtype=dtype)
    x[1] *= -1
    x[2, ::2] *= -1
    assert x.isfinite().all()
    assert (x != 0).all()
    assert_close(route(x, x, eps=0.0), torch.ones(3))
    assert_close(route(x, -x, eps=0.0), -torch.ones(3))


@every_route
def test_mixed_magnitudes_in_one_batch(route):
    x, y = make_inputs((120, 40), (120, 40))
    powers = 2.0 ** torch.linspace(-120, 120, 120).round()
    x, y = x * powers[:, None], y * powers.flip(0)[torch.randperm(120)][:, None]
    x[7], y[9] = 0, 0
    assert_close(route(x, y, eps=1e-42), _reference.cosine_similarity(x, y, -1, 1e-42))


@every_route
def test_entries_of_one_row_may_differ_by_sixty_powers_of_ten(route):
    x, y = make_inputs((50, 60), (50, 60))
    x = x * 10.0 ** torch.linspace(-30, 30, 60)
    assert_close(route(x, y, eps=0.0), _reference.cosine_similarity(x, y, -1, 0.0))
    assert_close(route(y, x, eps=0.0), _reference.cosine_similarity(y, x, -1, 0.0))


@every_route
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_results_lie_within_one_so_that_acos_is_safe(dtype, route):
    x = make_inputs((2000, 7), dtype=torch.float64)[0].to(dtype)
    for factor in (1, -1, 3, -0.7):
        result = route(x, x * factor)
        assert result.abs().max() <= 1
        assert not result.acos().isnan().any()


def test_torch_exceeds_one_where_ours_does_not():
    (x,) = make_inputs((2000, 7))
    assert F.cosine_similarity(x, x).max() > 1  # or the test above cannot fail


@every_route
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_zero_rows_give_zero(dtype, route):
    x, y = make_inputs((5, 16), (5, 16), dtype=dtype)
    x[1], y[3] = 0, 0
    x[4], y[4] = 0, 0
    result = route(x, y)
    assert torch.equal(result[[1, 3, 4]], torch.zeros(3, dtype=dtype))
    assert (result[[0, 2]] != 0).all()


@every_route
def test_zero_rows_give_nan_without_eps_as_in_torch(route):
    x, y = make_inputs((3, 16), (3, 16))
    x[1] = 0
    result = route(x, y, eps=0.0)
    assert result.isnan().tolist() == F.cosine_similarity(x, y, eps=0.0).isnan().tolist()
    assert result.isnan().tolist() == [False, True, False]


@every_route
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_poisoned_row_poisons_itself_alone(poison, dtype, route):
    x, y = make_inputs((6, 16), (6, 16), dtype=dtype)
    clean = route(x, y)
    x[2, 5], y[4, 0] = poison, poison
    result = route(x, y)
    assert result.isnan().tolist() == [False, False, True, False, True, False]
    assert torch.equal(result[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("recording", [False, True])
def test_a_poisoned_row_poisons_its_row_or_column_of_the_matrix(poison, dtype, recording):
    x, y = make_inputs((6, 16), (7, 16), dtype=dtype)
    x[2, 5], y[4, 0] = poison, poison
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[2], expected[:, 4] = True, True
    assert torch.equal(pairwise_cosine(x.requires_grad_(recording), y).isnan(), expected)
    itself = torch.zeros(6, 6, dtype=torch.bool)
    itself[2], itself[:, 2] = True, True
    assert torch.equal(pairwise_cosine(x).isnan(), itself)


@every_route
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.5, 30.0])
def test_eps_bounds_each_norm_from_below(eps, dtype, route):
    x, y = make_inputs((40, 12), (40, 12), dtype=dtype)
    sizes = torch.logspace(-6, 2, 40).to(dtype)[:, None]
    x, y = x * sizes, y * sizes.flip(0)
    assert_close(route(x, y, eps=eps), _reference.cosine_similarity(x, y, -1, eps))


@every_route
def test_half_precision_is_rounded_once(route):
    """Sums are kept in float32: half an ulp of 1 is added to their error."""
    summed = derived_tolerance(torch.float32, 384).atol
    for dtype, half_ulp in ((torch.float16, 2.0**-12), (torch.bfloat16, 2.0**-9)):
        x, y = make_inputs((500, 384), (500, 384), dtype=dtype)
        error = (route(x, y).double() - _reference.cosine_similarity(x, y)).abs().max()
        assert error <= half_ulp + summed


@pytest.mark.parametrize("width", [2**17 + 3, 2**19 + 1])
def test_very_wide_rows(width):
    x, y = make_inputs((3, width), (3, width))
    x[2] *= 1e30
    expected = _reference.pairwise_cosine(x, y)
    # torch's float32 norm of so many entries is off by 4e-6; ours are measured against that. Nine
    # elements say little of the spread.
    unit_x, unit_y = (t / t.norm(dim=1, keepdim=True) for t in make_inputs((3, width), (3, width)))
    bounds = measured_tolerance(unit_x @ unit_y.T, expected, factor=4)
    assert_close(pairwise_cosine(x, y), expected, tolerance=bounds)
    bounds = measured_tolerance((unit_x * unit_y).sum(1), expected.diagonal(), factor=4)
    assert_close(cosine_similarity(x, y), expected.diagonal(), tolerance=bounds)
