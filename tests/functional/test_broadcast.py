"""A broadcast that pairs rows with rows is a matrix product: equal to torch's, never n·m·d big."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cossim_fast import cosine_similarity, explain, testing
from cossim_fast.testing import make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)

PATTERNS = {
    "(n, 1, d) with (1, m, d)": ((9, 1, 5), (1, 7, 5), -1),
    "(1, m, d) with (n, 1, d)": ((1, 7, 5), (9, 1, 5), 2),
    "(n, 1, d) with (m, d)": ((9, 1, 5), (7, 5), -1),
    "(n, d, 1) with (1, d, m)": ((9, 5, 1), (1, 5, 7), 1),
    "(d, n, 1) with (d, 1, m)": ((5, 9, 1), (5, 1, 7), 0),
    "(b, n, 1, d) with (b, 1, m, d)": ((3, 9, 1, 5), (3, 1, 8, 5), -1),
    "(n, b, 1, d) with (1, b, m, d)": ((9, 3, 1, 5), (1, 3, 8, 5), -1),
    "(n, 1, a, 1, d) with (1, m, 1, c, d)": ((3, 1, 4, 1, 5), (1, 2, 1, 6, 5), -1),
    "one row against many": ((1, 5), (9, 5), 1),
    "many rows against a vector": ((9, 5), (5,), -1),
    "columns against a column": ((5, 9), (5, 1), 0),
    "one row against a batch": ((4, 1, 5), (4, 9, 5), -1),
    "one row alone": ((1, 5), (1, 5), -1),
    "width 1 against width d": ((9, 1, 1), (1, 7, 5), -1),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("recording", [False, True])
def test_each_pattern_gives_the_values_shape_and_strides_of_torch(name, dtype, recording):
    first, second, dim = PATTERNS[name]
    x, y = make_inputs(first, second, dtype=dtype)
    theirs = F.cosine_similarity(x.double(), y.double(), dim)
    ours = cosine_similarity(x.requires_grad_(recording), y, dim)
    assert ours.stride() == F.cosine_similarity(x, y, dim).stride()
    assert ours.dtype == dtype
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", list(PATTERNS)[:6])
def test_these_patterns_are_matrix_products(name):
    first, second, dim = PATTERNS[name]
    x, y = make_inputs(first, second)
    assert explain(cosine_similarity, x, y, dim=dim).form == "matrix product"


def test_expanded_views_are_seen_by_their_strides():
    x, y = make_inputs((40, 6), (30, 6), dtype=torch.float64)
    wide = x[:, None].expand(40, 30, 6), y.expand(40, 30, 6)
    assert explain(cosine_similarity, *wide, dim=-1).form == "matrix product"
    assert_close(cosine_similarity(*wide, dim=-1), F.cosine_similarity(*wide, dim=-1))
    # Rows expanded alike in both are computed once and repeated, but each is its own in memory.
    alike = x[:, None].expand(40, 30, 6), (x + 1)[:, None].expand(40, 30, 6)
    result = cosine_similarity(*alike, dim=-1)
    assert_close(result, F.cosine_similarity(*alike, dim=-1))
    result[0, 0] = 9
    assert result[0, 1] != 9


@st.composite
def broadcast_pairs(draw):
    ndim = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 9]), min_size=ndim, max_size=ndim))
    dim = draw(st.integers(-ndim, ndim - 1))
    made = []
    for seed in range(2):
        shape = [draw(st.sampled_from([size, 1])) for size in sizes]
        (x,) = make_inputs(tuple(shape), dtype=torch.float64, seed=seed)
        order = draw(st.permutations(range(ndim)))
        x = x.permute(order).contiguous().permute([order.index(a) for a in range(ndim)])
        if draw(st.booleans()):
            # Only where the other's size is certain: a size of 1 beside it would be widened.
            x = x.expand(sizes)
        drop = 0
        while seed and drop < x.dim() - 1 and x.shape[drop] == 1 and draw(st.booleans()):
            drop += 1
        made.append(x[(0,) * drop] if drop else x)
    return made[0], made[1], dim


@given(broadcast_pairs())
def test_random_broadcasts_are_those_of_torch(pair):
    x, y, dim = pair
    theirs = F.cosine_similarity(x, y, dim)
    ours = cosine_similarity(x, y, dim)
    assert ours.shape == theirs.shape
    assert ours.is_contiguous() == theirs.is_contiguous()
    assert_close(ours, theirs)
    recorded = [t.detach().requires_grad_() for t in (x, y)]
    result = cosine_similarity(*recorded, dim)
    assert_close(result, theirs)
    got = torch.autograd.grad(result.sin().sum(), recorded)
    expected = torch.autograd.grad(F.cosine_similarity(*recorded, dim).sin().sum(), recorded)
    # A gradient is a difference of terms of the size 1/|x|, and no better than their rounding.
    norms = [t.norm(dim=dim) for t in torch.broadcast_tensors(x, y)]
    steepest = max((1 / n.min().item() for n in norms if n.numel() and n.min() > 0), default=1.0)
    for mine, wanted in zip(got, expected, strict=True):
        assert_close(mine, wanted, scale=32 * max(1.0, steepest) * (x.numel() + y.numel()))


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that owns its memory and that an op returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                stored = t.untyped_storage().nbytes() // t.element_size()
                self.elements = max(self.elements, min(t.numel(), stored))
        return result


@pytest.mark.parametrize(
    ("first", "second", "dim"),
    [
        ((100, 1, 64), (1, 100, 64), -1),
        ((100, 64, 1), (1, 64, 100), 1),
        ((3, 40, 1, 64), (3, 1, 40, 64), -1),
        ((1, 64), (5000, 64), 1),
    ],
)
@pytest.mark.parametrize("recording", [False, True])
def test_the_composite_form_makes_nothing_of_the_broadcast_size(first, second, dim, recording):
    x, y = make_inputs(first, second)
    x.requires_grad_(recording)
    with LargestTensor() as seen:
        result = cosine_similarity(x, y, dim)
        if recording:
            result.sum().backward()
    assert seen.elements <= max(x.numel(), y.numel(), result.numel())
    with LargestTensor() as seen:
        F.cosine_similarity(x, y, dim)
    assert seen.elements == x.broadcast_to(torch.broadcast_shapes(first, second)).numel()
