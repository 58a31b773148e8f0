"""Every boundary of the blocked loops, crossed on small inputs by blocks that are smaller still."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import _reference, cosine_similarity, pairwise_cosine, testing
from cossim_fast.testing import LAYOUTS, make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=33)

SETTINGS = {
    "one element": {
        "BLOCK": 1, "STATISTICS": 1, "PANEL": 1, "CONVERTED": 1, "SIDE": 3, "SHARED_WORK": 1,
        "MIRROR": 1, "LEAF": 1, "WIDE": 1, "SHARED": 1, "CACHED": 1, "NARROW": 5, "PART": 1
    },
    "a row": {
        "BLOCK": 8, "STATISTICS": 3, "PANEL": 8, "CONVERTED": 4, "SIDE": 2, "FEWEST": 2,
        "MIRROR": 2, "LEAF": 2, "WIDE": 8, "SHARED": 20, "CACHED": 8, "NARROW": 0, "PART": 20
    },
    "some rows": {
        "BLOCK": 40, "STATISTICS": 16, "PANEL": 130, "CONVERTED": 64, "SIDE": 5, "SHARED_WORK": 64,
        "MIRROR": 5, "LEAF": 3, "WIDE": 5, "SHARED": 64, "CACHED": 40, "NARROW": 36, "PART": 64
    },
    "nearly all": {
        "BLOCK": 256, "STATISTICS": 32, "PANEL": 257, "CONVERTED": 1000, "SIDE": 16,
        "MIRROR": 16, "LEAF": 16, "WIDE": 16, "SHARED": 500, "CACHED": 200, "NARROW": 999,
        "PART": 500
    },
}  # fmt: skip
SIZES = (1, 15, 16, 17, 31, 33)


@pytest.fixture(params=SETTINGS)
def tiny(request, set_blocks):
    set_blocks(**SETTINGS[request.param], SMALL=-1)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", [1, 8, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_paired_rows(n, d, layout):
    for dtype in (torch.float16, torch.float32):
        x, y = make_inputs((n, d), (n, d), dtype=dtype, layout=layout)
        x[n // 2] = 0
        assert_close(cosine_similarity(x, y), _reference.cosine_similarity(x, y))
        assert_close(cosine_similarity(x, y, 0), _reference.cosine_similarity(x, y, 0))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 4, 5), (1, 33, 2), (17, 1, 3)])
def test_paired_rows_of_more_dimensions(shape):
    x, y = make_inputs(shape, shape)
    y[0] *= 1e30
    for dim in range(len(shape)):
        assert_close(cosine_similarity(x, y, dim), _reference.cosine_similarity(x, y, dim))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", [1, 16, 33])
def test_matrices(n, m):
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, y = make_inputs((n, 8), (m, 8), dtype=dtype)
        x[n // 2] = 0
        y[m // 2] *= 1e-4
        out = torch.full((n, m), torch.nan, dtype=dtype)
        assert_close(pairwise_cosine(x, y, out=out), _reference.pairwise_cosine(x, y))
        out = torch.full((n, n), torch.nan, dtype=dtype)
        pairwise_cosine(x, out=out)
        assert torch.equal(out, out.T)
        assert_close(out, _reference.pairwise_cosine(x))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shapes", [((5, 3, 4), (5, 7, 4)), ((33, 2, 3), (33, 2, 3))])
def test_batches_of_small_matrices(shapes):
    x, y = make_inputs(*shapes)
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
    result = pairwise_cosine(x)
    assert torch.equal(result, result.mT)
    assert_close(result, _reference.pairwise_cosine(x))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("matrix", [False, True])
def test_gradients(n, dtype, matrix):
    m = 9 if matrix else n
    x, y = make_inputs((n, 8), (m, 8), dtype=dtype)
    x[n // 2] *= 0.25
    leaves = x.requires_grad_(), y.requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in leaves]
    ours = pairwise_cosine(*leaves) if matrix else cosine_similarity(*leaves)
    theirs = F.cosine_similarity(wide[0][:, None], wide[1][None], -1) if matrix else (
        F.cosine_similarity(*wide)
    )  # fmt: skip
    (weights,) = make_inputs(tuple(ours.shape), dtype=dtype, seed=3)
    got = torch.autograd.grad(ours, leaves, weights)
    expected = torch.autograd.grad(theirs, wide, weights.double())
    for mine, wanted in zip(got, expected, strict=True):
        assert_close(mine, wanted, scale=4 * max(1, wanted.abs().max().item()))


@pytest.mark.usefixtures("tiny")
def test_odd_rows_in_every_block():
    x, y = make_inputs((33, 8), (33, 8))
    for row in range(0, 33, 3):
        x[row] *= 2.0 ** (100 if row % 2 else -100)
    eps = 1e-38
    assert_close(cosine_similarity(x, y, 1, eps), _reference.cosine_similarity(x, y, 1, eps))
    assert_close(pairwise_cosine(x, y, eps=eps), _reference.pairwise_cosine(x, y, eps))
    assert_close(pairwise_cosine(x, eps=eps), _reference.pairwise_cosine(x, None, eps))
