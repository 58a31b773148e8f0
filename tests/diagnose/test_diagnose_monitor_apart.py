"""A monitored module runs as if it were not: transforms, traces, odd tensors, failing logs."""

import types

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from cossim_fast.diagnose import CollapseMonitor, hook


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Layer(nn.Module):
    def forward(self, x):
        return x.sin()


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()

    def forward(self, x):
        return 2 * self.layer(x)


class Passing(nn.Module):
    def forward(self, x):
        return x


def forward_derivative(module, x):
    with forward_ad.dual_level():
        out = module(forward_ad.make_dual(x, torch.ones_like(x)))
        return forward_ad.unpack_dual(out).tangent


def backward(module, x):
    x = x.clone().requires_grad_()
    module(x).square().sum().backward()
    return x.grad


USES = {
    "jacrev": lambda m, x: torch.func.jacrev(m)(x),
    "jacfwd": lambda m, x: torch.func.jacfwd(m)(x),
    "grad": lambda m, x: torch.func.grad(lambda y: m(y).sum())(x),
    "vmap": lambda m, x: torch.func.vmap(m)(x.expand(3, *x.shape)),
    "jit.trace": lambda m, x: torch.jit.trace(m, (x,))(x),
    "make_fx": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x)(x),
    "symbolic_trace": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module()(x),
    "compile": lambda m, x: torch.compile(m, backend="aot_eager")(x),
    "compile, one graph": lambda m, x: torch.compile(m, backend="aot_eager", fullgraph=True)(x),
    "forward mode": forward_derivative,
    "autocast": lambda m, x: torch.autocast("cpu", dtype=torch.bfloat16)(m)(x),
    "inference": lambda m, x: torch.inference_mode()(m)(x),
    "backward": backward,
}


def JIT(test):  # noqa: N802
    """Of versions that have other plans for torch.jit."""
    for kind in ("DeprecationWarning", "FutureWarning"):
        test = pytest.mark.filterwarnings(f"ignore:`torch.jit.trace:{kind}")(test)
    return test


@JIT
@pytest.mark.parametrize("use", USES)
def test_what_is_watched_gives_the_same_numbers(use):
    torch._dynamo.reset()
    expected = USES[use](Inner(), randn(16, 8))
    torch._dynamo.reset()
    network = Inner()
    state = torch.get_rng_state()
    with CollapseMonitor(network.layer, every=1) as monitor:
        seen = USES[use](network, randn(16, 8))
    torch.testing.assert_close(seen, expected, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    if use in ("jacrev", "jacfwd", "grad", "vmap"):
        assert monitor.records == []
        assert monitor.skipped == {"inside a function transform such as vmap or grad": 1}
    if use in ("compile", "autocast", "inference", "forward mode"):
        assert len(monitor.records) == 1


@JIT
def test_no_operation_of_the_monitor_is_in_a_trace():
    network = Inner()
    plain = str(torch.jit.trace(network, (randn(16, 8),), check_trace=False).inlined_graph)
    with CollapseMonitor(network.layer, every=1) as monitor:
        traced = str(torch.jit.trace(network, (randn(16, 8),), check_trace=False).inlined_graph)
    assert traced.count("aten::") == plain.count("aten::") == 2
    assert monitor.skipped == {"torch.jit.trace was recording": 1}


def _fake():
    with torch._subclasses.FakeTensorMode() as mode:
        return mode.from_tensor(randn(16, 8))


def _dtensor():
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(randn(16, 8), init_device_mesh("cpu", (1,)), [Shard(0)])


def _freed():
    x = randn(16, 8)
    x.untyped_storage().resize_(0)
    return x


@pytest.fixture
def _one_process():
    if not dist.is_available():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


UNREADABLE = {
    "meta": (lambda: randn(16, 8).to("meta"), "meta device"),
    "fake": (_fake, "FakeTensor"),
    "dtensor": (_dtensor, "full_tensor"),
    "sparse": (lambda: randn(16, 8).to_sparse(), "to_dense"),
    "csr": (lambda: randn(16, 8).to_sparse_csr(), "to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([randn(9, 8), randn(3, 8)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([randn(9, 8), randn(3, 8)], layout=torch.jagged),
        "nested",
    ),
    "masked": (
        lambda: torch.masked.masked_tensor(randn(16, 8), randn(16, 8) > 0),
        "MaskedTensor",
    ),
    "complex": (lambda: torch.complex(randn(16, 8), randn(16, 8)), "real numbers"),
    "float8": (lambda: randn(16, 8).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "quantized": (lambda: torch.quantize_per_tensor(randn(16, 8), 0.1, 0, torch.qint8), "qint8"),
    "freed": (_freed, "freed"),
    "one axis": (lambda: randn(16), "two axes"),
    "few rows": (lambda: randn(3, 8), "fewer than 8 rows"),
    "none": (lambda: None, "no tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_counted(kind):
    build, words = UNREADABLE[kind]
    network, x = Passing(), build()
    with CollapseMonitor(network, every=1) as monitor:
        assert network(x) is x
        assert network(x) is x
        monitor.compare(x, x)
    assert monitor.records == [] or kind in ("one axis", "few rows")
    reason = next(iter(monitor.skipped))
    assert words in reason
    assert f"times: {reason}" in monitor.summary()
    assert sum(monitor.skipped.values()) >= 2


def test_comparisons_that_cannot_be_made_are_counted():
    monitor = CollapseMonitor(every=1)
    monitor.compare(randn(16, 8), randn(16, 9))
    monitor.compare(randn(16, 8).to("meta"), randn(16, 8))
    monitor.compare("words", "letters")
    assert (monitor.comparisons, sum(monitor.skipped.values())) == (3, 3)
    assert monitor.records == []


def test_ever_new_reasons_take_no_memory():
    monitor = CollapseMonitor(every=1)
    for size in range(2, 100):
        monitor.compare(randn(16, 200), randn(16, size))
    assert len(monitor.skipped) <= 21
    assert sum(monitor.skipped.values()) == 98


def test_modes_and_defaults_of_the_user_are_not_those_of_the_monitor():
    network = nn.Linear(8, 8)
    with CollapseMonitor(network, every=1) as monitor:
        with FlopCounterMode(display=False) as counter:
            network(randn(16, 8))
        x = randn(16, 8)
        with torch.device("meta"):
            network(x)
        torch.set_default_dtype(torch.float16)
        try:
            network(x)
        finally:
            torch.set_default_dtype(torch.float32)
    assert counter.get_total_flops() == 2 * 16 * 8 * 8
    assert len(monitor.records) == 3
    assert monitor.records[1] == {**monitor.records[2], "step": 1}
    assert not monitor.skipped


def test_a_log_that_fails_does_not_end_the_run():
    def full(record):
        record.clear()
        raise OSError("No space left on device")

    kept = []
    network = Layer()
    with CollapseMonitor(network, every=1, log=[full, kept.append]) as monitor:
        with pytest.warns(RuntimeWarning, match="No space left"):
            network(randn(16, 8))
        for step in range(2):
            network(randn(16, 8, seed=step))
    assert kept == monitor.records
    assert [record["step"] for record in kept] == [0, 1, 2]
    assert monitor.log_failures == {"OSError: No space left on device": 3}
    assert "log failed 3 times" in monitor.summary()


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("missing", ["current_tx", "InstructionTranslator", "one_graph"])
def test_a_torch_with_other_names_still_runs(missing, fullgraph, monkeypatch):
    """What tells that a trace must be one graph has no public name, and may be gone."""
    torch._dynamo.reset()
    hook._keep_hooks_from_dynamo.cache_clear()
    with monkeypatch.context() as without:
        without.delattr(torch._dynamo.eval_frame, "skip_code")
        hook._keep_hooks_from_dynamo()

    class Other:
        if missing == "one_graph":
            current_tx = staticmethod(object)

    proxy = types.SimpleNamespace()
    if missing != "InstructionTranslator":
        proxy.InstructionTranslator = Other
    modules = {"torch._dynamo.symbolic_convert": proxy}
    monkeypatch.setattr(hook, "sys", types.SimpleNamespace(modules=modules))
    network = Inner()
    expected = network(randn(16, 8))
    with CollapseMonitor(network.layer, every=1) as monitor:
        compiled = torch.compile(network, backend="aot_eager", fullgraph=fullgraph)
        assert torch.equal(compiled(randn(16, 8)), expected)
        assert monitor.records == []
        network(randn(16, 8))
        assert len(monitor.records) == 1
    torch._dynamo.reset()
