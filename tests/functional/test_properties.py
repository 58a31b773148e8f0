"""What holds for every input: scale, sign, order and symmetry, and agreement with float64."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference, cosine_similarity, pairwise_cosine, testing
from cossim_fast._cpu import matrix as cpu_matrix
from cossim_fast._cpu import rows as cpu_rows
from cossim_fast.testing import LAYOUTS, derived_tolerance, make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=33)

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SIZES = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 31, 33])
SEEDS = st.integers(0, 2**16)
pytestmark = pytest.mark.usefixtures("small_calls")


ORDINARY = st.just(0)


@st.composite
def pairs(draw, dtypes=DTYPES, magnitudes=ORDINARY, layouts=tuple(LAYOUTS)):
    n, d = draw(SIZES), draw(SIZES)
    made = []
    for _ in range(2):
        (x,) = make_inputs((n, d), dtype=torch.float64, seed=draw(SEEDS))
        powers = torch.tensor(draw(st.lists(magnitudes, min_size=n, max_size=n)))
        x = x * 10.0 ** powers.double()[:, None]
        dtype = draw(dtypes)
        made.append(LAYOUTS[draw(st.sampled_from(layouts))](x.to(dtype)))
    return made[0], made[1]


@given(pairs())
def test_agrees_with_float64(pair):
    x, y = pair
    assert_close(cosine_similarity(x, y), _reference.cosine_similarity(x, y))
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
    assert_close(pairwise_cosine(x), _reference.pairwise_cosine(x))


@given(pairs(st.sampled_from([torch.float32, torch.float64]), st.integers(-30, 30)))
def test_agrees_with_float64_over_sixty_powers_of_ten(pair):
    x, y = pair
    assert_close(cosine_similarity(x, y, eps=0), _reference.cosine_similarity(x, y, eps=0))
    assert_close(pairwise_cosine(x, y, eps=0), _reference.pairwise_cosine(x, y, eps=0))


# The order in which torch sums depends on the strides, which arithmetic on x may change.
CONTIGUOUS = ("contiguous",)
WIDE = st.sampled_from([torch.float32, torch.float64])


@given(pairs(WIDE, layouts=CONTIGUOUS), st.integers(-20, 20))
def test_a_power_of_two_changes_no_bit(pair, power):
    x, y = pair
    factor = 2.0**power
    for function in (cosine_similarity, pairwise_cosine):
        assert torch.equal(function(x * factor, y, eps=0.0), function(x, y, eps=0.0))


@given(pairs(st.just(torch.float32)), st.floats(1e-6, 1e6))
def test_a_positive_factor_changes_nothing_but_roundings(pair, factor):
    x, y = pair
    expected = _reference.pairwise_cosine(x, y, eps=0)
    # Each product with the factor is rounded too.
    assert_close(cosine_similarity(x * factor, y, eps=0), expected.diagonal(), scale=2)
    assert_close(pairwise_cosine(x * factor, y, eps=0), expected, scale=2)


@given(pairs(layouts=CONTIGUOUS))
def test_the_sign_of_a_row_is_the_sign_of_its_results(pair):
    x, y = pair
    for function in (cosine_similarity, pairwise_cosine):
        assert torch.equal(function(-x, y), -function(x, y))


@given(pairs(layouts=CONTIGUOUS))
def test_the_pair_may_be_swapped(pair):
    x, y = pair
    assert torch.equal(cosine_similarity(x, y), cosine_similarity(y, x))
    assert_close(pairwise_cosine(y, x), pairwise_cosine(x, y).mT)


@given(pairs(), SEEDS)
def test_rows_and_entries_may_be_permuted(pair, seed):
    x, y = pair
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(x.shape[0], generator=generator)
    entries = torch.randperm(x.shape[1], generator=generator)
    expected = _reference.cosine_similarity(x, y)
    assert_close(cosine_similarity(x[rows], y[rows]), expected[rows])
    assert_close(cosine_similarity(x[:, entries], y[:, entries]), expected)
    assert_close(pairwise_cosine(x[rows], y), _reference.pairwise_cosine(x, y)[rows])


@given(pairs(magnitudes=st.integers(-3, 3)))
def test_cauchy_schwarz(pair):
    x, y = pair
    for result in (cosine_similarity(x, y), pairwise_cosine(x, y), pairwise_cosine(x)):
        assert result.abs().max() <= 1
    own = cosine_similarity(x, x)
    assert ((own == 0) | (own >= 1 - derived_tolerance(x.dtype, 33).atol)).all()


@pytest.mark.parametrize(("block", "panel"), [(1, 1), (7, 20), (64, 33), (300, 300)])
@given(pair=pairs())
def test_block_sizes_change_nothing_but_roundings(pair, block, panel):
    x, y = pair
    sizes = {"BLOCK": block, "PANEL": panel, "STATISTICS": 1 + block // 8}
    with pytest.MonkeyPatch.context() as patch:
        for module in (cpu_rows, cpu_matrix):
            for name in sizes.keys() & vars(module).keys():
                patch.setattr(module, name, sizes[name])
        assert_close(cosine_similarity(x, y), _reference.cosine_similarity(x, y))
        assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
