"""torch.jit.trace and the exporters: recorded for inputs of one size, right for others."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.onnx.utils import unconvertible_ops

from cossim_fast import (
    CosineSimilarity,
    _products,
    _reference,
    cosine_similarity,
    explain,
    pairwise_cosine,
    testing,
)
from cossim_fast.testing import make_inputs
from old_torch import set_setting

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=64)

pytestmark = [
    # Of torch.jit and of the older exporter, in torch.
    pytest.mark.filterwarnings("ignore:.*(deprecated|legacy).*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning"),
]

# Shapes of one number of dimensions: a trace of each has to be right for the others.
FAMILIES = {
    "rows": (
        [(1, 16), (5, 16)], [(4, 16), (4, 16)], [(4, 16), (1, 16)], [(1, 16), (1, 16)],
        [(0, 16), (0, 16)], [(1, 16), (0, 16)], [(3, 1), (3, 8)], [(3, 8), (3, 1)],
        [(3, 1), (1, 9)], [(3, 0), (3, 0)],
    ),
    "a vector": ([(16,), (1, 16)], [(16,), (5, 16)], [(1,), (5, 16)], [(16,), (5, 1)]),
    "vectors": ([(16,), (16,)], [(1,), (16,)], [(7,), (7,)]),
    "numbers": ([(), ()],),
    "matrix": (
        [(5, 1, 16), (1, 6, 16)], [(1, 1, 16), (1, 6, 16)], [(5, 1, 16), (1, 1, 16)],
        [(5, 6, 16), (5, 6, 16)], [(5, 1, 16), (5, 6, 16)], [(9, 1, 1), (1, 9, 16)],
    ),
    "batched": (
        [(2, 9, 1, 4), (2, 1, 10, 4)], [(1, 9, 1, 4), (2, 1, 10, 4)],
        [(2, 9, 10, 4), (2, 9, 10, 4)], [(2, 1, 1, 4), (1, 1, 1, 4)],
    ),
}  # fmt: skip


class Called(nn.Module):
    """A function as a module, which is what exporters take."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def wide(shapes):
    return make_inputs(*shapes, dtype=torch.float64)


def or_none(function, *inputs):
    try:
        return function(*inputs)
    except (RuntimeError, IndexError):
        return None


def check_family(family, dim):
    """Trace ours at each size and run it at the others, where torch's traced function runs too."""
    checked = 0
    for traced_at in family:
        pair = wide(traced_at)
        theirs_now = nn.CosineSimilarity(dim)
        if or_none(theirs_now, *pair) is None:
            continue
        theirs = torch.jit.trace(theirs_now, pair, check_trace=False)
        forms = [
            torch.jit.trace(lambda x, y: cosine_similarity(x, y, dim), pair),
            torch.jit.trace(CosineSimilarity(dim), pair),
        ]
        for shapes in family:
            inputs = wide(shapes)
            wanted = or_none(theirs, *inputs)
            if wanted is None:
                continue
            for ours in forms:
                got = ours(*inputs)
                assert got.stride() == wanted.stride()
                assert_close(got, wanted)
                checked += 1
    return checked


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_is_right_at_other_sizes(name):
    family = FAMILIES[name]
    ndim = max(len(shape) for shape in itertools.chain(*family)) or 1
    assert all(check_family(family, dim) for dim in range(-ndim, ndim))


def test_one_row_against_many_becomes_rows_in_pairs():
    traced = torch.jit.trace(cosine_similarity, tuple(make_inputs((1, 16), (5, 16))))
    x, y = make_inputs((4, 16), (4, 16))
    assert_close(traced(x, y), _reference.cosine_similarity(x, y))


@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("sizes", [(5, 6, 8), (1, 1, 8), (4, 3, 0), (0, 2, 3)], ids=str)
def test_a_traced_matrix(batch, sizes):
    n, m, d = sizes
    x, y = make_inputs((*batch, n, d), (*batch, m, d))
    both = torch.jit.trace(pairwise_cosine, (x, y))
    alone = torch.jit.trace(pairwise_cosine, (x,))
    lead = (2,) * len(batch)
    for n, m, d in (sizes, (7, 9, 5), (1, 4, 3), (2, 1, 0)):
        x, y = make_inputs((*lead, n, d), (*lead, m, d))
        for got, first, second in ((both(x, y), x, y), (alone(x), x, x)):
            assert got.shape == (*lead, n, second.shape[-2])
            assert_close(
                got,
                F.cosine_similarity(
                    first.double()[..., :, None, :], second.double()[..., None, :, :], dim=-1
                ),
            )


def test_a_traced_matrix_into_out():
    def into(x, y, out):
        return pairwise_cosine(x, y, out=out)

    traced = torch.jit.trace(into, (*make_inputs((5, 8), (6, 8)), torch.empty(5, 6)))
    x, y = make_inputs((2, 8), (3, 8))
    out = torch.empty(2, 3)
    traced(x, y, out)
    assert_close(out, _reference.pairwise_cosine(x, y))


def test_gradients_of_a_trace():
    traced = torch.jit.trace(CosineSimilarity(-1), tuple(make_inputs((1, 1, 8), (1, 6, 8))))
    pair = make_inputs((5, 1, 8), (1, 7, 8), dtype=torch.float32, requires_grad=True)
    got = torch.autograd.grad(traced(*pair).sin().sum(), pair)
    exact = [t.detach().double().requires_grad_() for t in pair]
    wanted = torch.autograd.grad(F.cosine_similarity(*exact, -1).sin().sum(), exact)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_close(mine, theirs, scale=8)


def test_a_trace_keeps_what_is_promised_of_rows():
    """Rows of any magnitude, zero rows and the range [-1, 1]."""
    traced = torch.jit.trace(cosine_similarity, tuple(make_inputs((2, 4), (2, 4))))
    x = torch.tensor([1e30, 1e-6, 0.0, 3.0])[:, None] * torch.tensor([1.0, 2.0, -1.0, 0.5])
    assert_close(traced(x, x), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    (many,) = make_inputs((4000, 7))
    assert traced(many, 3 * many).max() <= 1


@pytest.mark.parametrize(
    ("shapes", "error"),
    [(((2, 3), (4, 5)), ValueError), (((2, 3), (2, 2, 3)), ValueError)],
)
def test_a_wrong_shape_is_refused_while_tracing(shapes, error):
    with pytest.raises(error, match="expected y of shape"):
        torch.jit.trace(pairwise_cosine, tuple(make_inputs(*shapes)))
    assert torch._C._get_tracing_state() is None


FORMS = {
    "rows": (cosine_similarity, ((5, 16), (5, 16))),
    "broadcast": (lambda x, y: cosine_similarity(x[:, None], y[None], -1), ((5, 16), (6, 16))),
    "matrix": (pairwise_cosine, ((5, 16), (6, 16))),
    "batched": (pairwise_cosine, ((2, 5, 16), (2, 6, 16))),
    "symmetric": (lambda x, y: pairwise_cosine(x) + 0 * y.sum(), ((5, 16), (6, 16))),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_older_exporter_has_every_operation(form):
    """tests/adapters/test_onnx.py runs what it exports."""
    function, shapes = FORMS[form]
    graph, lacking = unconvertible_ops(Called(function), tuple(make_inputs(*shapes)))
    assert len(list(graph.nodes())) > 10
    assert lacking == []


def tensor_nodes(graph):
    return [n for n in graph.nodes() if n.outputsSize() == 1 and n.output().isCompleteTensor()]


@pytest.mark.parametrize("form", FORMS)
def test_no_setting_of_products_shows_in_what_is_exported(form, monkeypatch):
    """Ours are float64 where this process lets torch round; another runs what is exported."""
    function, shapes = FORMS[form]
    inputs = tuple(make_inputs(*shapes))
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    wanted = torch.jit.trace(function, inputs).graph
    monkeypatch.setattr(_products, "_settings_leave_whole", lambda by, run: False)
    exported = torch.jit.trace(function, inputs).graph
    names = [node.kind() for node in tensor_nodes(exported)]
    assert names == [node.kind() for node in tensor_nodes(wanted)]
    products = [line for line in str(exported).splitlines() if "aten::matmul" in line]
    assert not any("Double(" in line for line in products)


def test_explain_says_that_a_trace_is_recorded():
    def answer(x, y):
        said.append(explain(cosine_similarity, x[:, None], y[None], dim=-1))
        return x + 1

    said = []
    torch.jit.trace(answer, tuple(make_inputs((5, 8), (6, 8))), check_trace=False)
    assert said[0].executor == "composite, whatever the sizes"
    assert said[0].form == "paired rows"


@pytest.mark.parametrize("traced_inside", [False, True])
@pytest.mark.parametrize("run_inside", [False, True])
@pytest.mark.parametrize("word", ["none", "bf16"])
def test_a_trace_keeps_its_precision(traced_inside, run_inside, word):
    """In autocast too, which casts the products of a trace, and whatever torch is set to."""
    x, y = make_inputs((6, 64), (5, 64))
    with torch.autocast("cpu", enabled=traced_inside):
        traced = torch.jit.trace(pairwise_cosine, (x, y), check_trace=False)
        rows = torch.jit.trace(
            lambda a, b: cosine_similarity(a[:, None], b, -1), (x, y), check_trace=False
        )
    set_setting("mkldnn", word)
    try:
        with torch.autocast("cpu", enabled=run_inside):
            got = traced(x, y), rows(x, y)
    finally:
        set_setting("mkldnn", "none")
    for matrix in got:
        assert matrix.dtype == torch.float32
        assert_close(matrix, pairwise_cosine(x.double(), y.double()).float(), terms=64)


class Both(torch.nn.Module):
    def forward(self, a, b):
        return pairwise_cosine(a, b), cosine_similarity(a[:, None], b, -1)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_right_in_autocast(strict):
    x, y = make_inputs((6, 64), (5, 64))
    exported = torch.export.export(Both(), (x, y), strict=strict)
    with torch.autocast("cpu"):
        got = exported.module()(x, y)
    for matrix in got:
        assert matrix.dtype == torch.float32
        assert_close(matrix, pairwise_cosine(x.double(), y.double()).float(), terms=64)
