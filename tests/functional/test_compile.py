"""Traced, exported, faked, subclassed: every way in which torch looks at a call first."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from cossim_fast import (
    CosineSimilarity,
    _reference,
    cosine_similarity,
    pairwise_cosine,
    testing,
)
from cossim_fast.testing import make_inputs
from old_torch import set_setting

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=128)


def rows(x, y):
    return cosine_similarity(x, y[: x.shape[0]])


def broadcast(x, y):
    return cosine_similarity(x[:, None], y[None], dim=-1)


def pairwise(x, y):
    return pairwise_cosine(x, y)


def symmetric(x, y):
    return pairwise_cosine(torch.cat((x, y)))


CALLS = (rows, broadcast, pairwise, symmetric)
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)


def exact(call, x, y):
    if call is rows:
        return _reference.cosine_similarity(x, y[: x.shape[0]])
    if call is symmetric:
        return _reference.pairwise_cosine(torch.cat((x, y)))
    return _reference.pairwise_cosine(x, y)


def inputs(n=9, m=11, d=16):
    return make_inputs((n, d), (m, d))


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_call
@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_in_full(call, dynamic):
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for sizes in ((9, 11, 16), (7, 12, 16), (5, 6, 40)):
        x, y = inputs(*sizes)
        assert_close(compiled(x, y), exact(call, x, y))


@every_call
def test_gradients_of_a_compiled_call(call):
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x, y = (t.requires_grad_() for t in inputs())
    got = torch.autograd.grad(compiled(x, y).sin().sum(), (x, y))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(exact(call, *wide).sin().sum(), wide)
    for mine, wanted in zip(got, expected, strict=True):
        assert_close(mine, wanted, scale=8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, in torch
def test_inductor_generates_code_for_it():
    x, y = inputs()
    compiled = torch.compile(CosineSimilarity(dim=-1), fullgraph=True)
    assert_close(compiled(x, y[:9]), _reference.cosine_similarity(x, y[:9]))


def test_compiled_results_keep_the_promises():
    compiled = torch.compile(cosine_similarity, fullgraph=True, backend="aot_eager")
    x = torch.full((4, 8), 1e30)
    x[1], x[2] = 0, torch.nan
    expected = torch.tensor([1, 0, torch.nan, 1])
    assert_close(compiled(x, x), expected)


def test_compiled_under_lower_precision_and_autocast():
    x, y = inputs(d=128)
    compiled = torch.compile(pairwise, fullgraph=True, backend="aot_eager")
    expected = exact(pairwise, x, y)
    assert_close(compiled(x, y), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_close(compiled(x, y), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
        set_setting("mkldnn", "none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(compiled(x, y), expected)


class Calling(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, y):
        return self.call(x, y)


@every_call
def test_export_with_dynamic_shapes(call):
    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    program = export(Calling(call), tuple(inputs()), dynamic_shapes=(sizes, sizes))
    for shape in ((9, 11, 16), (5, 12, 7)):
        x, y = inputs(*shape)
        assert_close(program.module()(x, y), exact(call, x, y))


@every_call
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(call, mode):
    x, y = inputs()
    graph = make_fx(call, tracing_mode=mode)(x, y)
    x, y = make_inputs((9, 16), (11, 16), seed=5)
    assert_close(graph(x, y), exact(call, x, y))


@every_call
@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(call):
    traced = torch.jit.trace(call, tuple(inputs()))
    x, y = make_inputs((9, 16), (11, 16), seed=5)
    assert_close(traced(x, y), exact(call, x, y))


def described(t):
    return t.shape, t.dtype, t.stride()


@every_call
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_fake_and_meta_results_look_like_the_real_one(call, dtype):
    x, y = (t.to(dtype) for t in inputs())
    real = call(x, y)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, y)]
        assert described(call(*fakes)) == described(real)
    outside = call(*fakes)
    assert described(outside) == described(real)
    on_meta = call(x.to("meta"), y.to("meta"))
    assert described(on_meta) == described(real)
    assert on_meta.device.type == "meta"


@every_call
@pytest.mark.parametrize("sizes", [(0, 5, 8), (0, 0, 8), (4, 5, 0), (0, 0, 0)], ids=str)
def test_fake_and_meta_results_of_nothing_look_like_the_real_one(call, sizes):
    n, m, d = sizes
    x, y = torch.ones(n, d), torch.ones(m, d)
    shape = call(x, y).shape
    with FakeTensorMode() as mode:
        assert call(*(mode.from_tensor(t) for t in (x, y))).shape == shape
    x, y = x.to("meta").requires_grad_(), y.to("meta")
    on_meta = call(x, y)
    assert on_meta.shape == shape
    (gradient,) = torch.autograd.grad(on_meta.sum(), x)
    assert gradient.shape == x.shape


def test_gradients_on_meta():
    x, y = (t.to("meta").requires_grad_() for t in inputs())
    broadcast(x, y).sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.device.type == "meta"


class Subclass(torch.Tensor):
    pass


@every_call
def test_a_subclass_comes_back_as_one(call):
    x, y = inputs()
    result = call(x.as_subclass(Subclass), y)
    assert type(result) is Subclass
    assert_close(result.as_subclass(torch.Tensor), exact(call, x, y))


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@every_call
def test_a_dispatch_mode_sees_the_ops(call):
    x, y = inputs()
    with Counting() as mode:
        result = call(x, y)
    assert mode.calls > 3
    assert_close(result, exact(call, x, y))
