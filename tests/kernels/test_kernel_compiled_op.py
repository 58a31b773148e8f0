"""Under torch.compile, a matrix of CUDA tensors is one op that launches kernels.

Without a GPU, the tensors here lie on the CPU and are taken for CUDA's where the executor is
chosen, so that the op in the graph runs its CPU body; or they are fake ones that say "cuda".
"""

from functools import partial

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode

from cossim_fast import _dispatch, _reference, cosine_similarity, pairwise_cosine, testing
from cossim_fast.testing import make_inputs
from old_torch import TORCH, set_setting

pytestmark = [
    pytest.mark.kernel_contract,
    pytest.mark.skipif(not _dispatch.has_triton(), reason="without Triton there are no kernels"),
]
assert_close = partial(testing.assert_close, terms=64)
FORWARD, BACKWARD = "cossim_fast.pairwise_fwd", "cossim_fast.pairwise_bwd"


@pytest.fixture(autouse=True)
def _taken_for_cuda(monkeypatch):
    monkeypatch.setattr(_dispatch, "_on_gpu", lambda x, y: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps the names of the ops of forward and backward graphs, and runs them."""

    def __init__(self):
        self.forward, self.backward = [], []
        keep = [partial(self._compile, kept) for kept in (self.forward, self.backward)]
        self.backend = aot_autograd(fw_compiler=keep[0], bw_compiler=keep[1])

    @staticmethod
    def _compile(kept, module, inputs):
        kept += [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        return make_boxed_func(module.forward)


def ops(names):
    return [name.removesuffix(".default") for name in names if name.startswith("cossim_fast.")]


def pairwise(x, y):
    return pairwise_cosine(x, y)


def symmetric(x, y):
    return pairwise_cosine(x)


def broadcast(x, y):
    return cosine_similarity(x[:, None], y[None], dim=-1)


def exact(call, x, y):
    return _reference.pairwise_cosine(x, x if call is symmetric else y)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("call", [pairwise, symmetric, broadcast], ids=lambda f: f.__name__)
def test_the_graph_is_the_op(call, dtype, dynamic):
    graphs = Graphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs.backend, dynamic=dynamic)
    for sizes in ((9, 11, 16), (7, 12, 16), (5, 6, 40)):
        x, y = make_inputs((sizes[0], sizes[2]), (sizes[1], sizes[2]), dtype=dtype)
        assert_close(compiled(x, y), exact(call, x, y))
    assert set(ops(graphs.forward)) == {FORWARD}
    # Nothing is widened, normalized or multiplied beside it.
    assert not [name for name in graphs.forward if "mm" in name or "norm" in name]


def test_one_graph_serves_all_sizes():
    graphs = Graphs()
    compiled = torch.compile(pairwise, fullgraph=True, backend=graphs.backend, dynamic=True)
    for n in (5, 9, 131):
        x, y = make_inputs((n, 16), (n + 2, 16))
        assert_close(compiled(x, y), _reference.pairwise_cosine(x, y))
    assert ops(graphs.forward) == [FORWARD]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_its_gradients_are_ops_too(precision):
    graphs = Graphs()
    call = partial(pairwise_cosine, precision=precision)
    compiled = torch.compile(call, fullgraph=True, backend=graphs.backend)
    x, y = (t.requires_grad_() for t in make_inputs((9, 16), (11, 16)))
    got = torch.autograd.grad(compiled(x, y).sin().sum(), (x, y))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(_reference.pairwise_cosine(*wide).sin().sum(), wide)
    for mine, wanted in zip(got, expected, strict=True):
        assert_close(mine, wanted, scale=8)
    assert (ops(graphs.forward), ops(graphs.backward)) == ([FORWARD], [BACKWARD] * 2)


def test_the_gradient_of_a_matrix_with_itself_is_one_op():
    graphs = Graphs()
    compiled = torch.compile(pairwise_cosine, fullgraph=True, backend=graphs.backend)
    (x,) = (t.requires_grad_() for t in make_inputs((9, 16)))
    (got,) = torch.autograd.grad(compiled(x).sin().sum(), x)
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(_reference.pairwise_cosine(wide, wide).sin().sum(), wide)
    assert_close(got, expected, scale=8)
    assert ops(graphs.backward) == ["cossim_fast.pairwise_self_bwd"]


def test_under_a_lower_matmul_precision_nothing_goes_to_float64():
    x, y = make_inputs((9, 16), (11, 16))
    graphs = Graphs()
    torch.set_float32_matmul_precision("high")
    try:
        compiled = torch.compile(pairwise, fullgraph=True, backend=graphs.backend)
        assert_close(compiled(x, y), _reference.pairwise_cosine(x, y))
    finally:
        torch.set_float32_matmul_precision("highest")
        set_setting("mkldnn", "none")
    assert ops(graphs.forward) == [FORWARD]


def test_paired_rows_are_left_to_inductor():
    graphs = Graphs()
    x, y = make_inputs((9, 16), (9, 16))
    compiled = torch.compile(cosine_similarity, fullgraph=True, backend=graphs.backend)
    assert_close(compiled(x, y), _reference.cosine_similarity(x, y))
    assert ops(graphs.forward) == []


def doubled(x, y):
    return torch.func.vmap(pairwise_cosine)(x[None], y[None])[0]


def slope(x, y):
    return torch.func.grad(lambda rows: pairwise_cosine(rows, y).sum())(x)


def tangent(x, y):
    return torch.func.jvp(lambda rows: pairwise_cosine(rows, y), (x,), (x,))[1]


@pytest.mark.parametrize("call", [doubled, slope, tangent], ids=lambda f: f.__name__)
def test_transforms_within_take_the_composite_form(call):
    x, y = make_inputs((9, 16), (11, 16))
    graphs = Graphs()
    got = torch.compile(call, fullgraph=True, backend=graphs.backend)(x, y)
    torch._dynamo.reset()
    assert ops(graphs.forward) == []
    torch.testing.assert_close(got, torch.compile(call, backend="eager")(x, y))


def test_a_compiled_call_within_a_transform_takes_the_composite_form():
    x, y = make_inputs((9, 16), (11, 16))
    compiled = torch.compile(pairwise, backend="eager")
    assert_close(torch.func.vmap(compiled)(x[None], y[None])[0], _reference.pairwise_cosine(x, y))


class Matrix(torch.nn.Module):
    def forward(self, x, y):
        return pairwise_cosine(x, y)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_graph_does_not_need_the_package(strict):
    inputs = tuple(make_inputs((9, 16), (11, 16)))
    program = torch.export.export(Matrix(), inputs, strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert not [name for name in names if "cossim_fast" in name]


@pytest.mark.skipif(TORCH < (2, 9), reason="this torch traces its own logger in a fake mode")
@pytest.mark.parametrize("dynamic", [True, False])
def test_fake_cuda_tensors_show_the_graph_of_a_gpu(dynamic, monkeypatch):
    monkeypatch.undo()
    kept = []

    def keep(module, inputs):
        kept.extend(str(node.target) for node in module.graph.nodes if "call" in node.op)
        return module.forward

    compiled = torch.compile(pairwise, fullgraph=True, backend=keep, dynamic=dynamic)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = (torch.empty(n, 16, device="cuda", dtype=torch.bfloat16) for n in (9, 11))
        result = compiled(x, y)
    assert (result.shape, result.dtype, result.device.type) == ((9, 11), torch.bfloat16, "cuda")
    assert ops(kept) == [FORWARD]
