"""What is no tensor but says what functions of tensors do to it: proxies, modes, classes."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_map

from cossim_fast import CosineSimilarity, cosine_similarity, explain, pairwise_cosine
from cossim_fast.testing import assert_close, make_inputs

X, Y = make_inputs((4, 8), (4, 8))
(OP,) = (op for op in op_db if op.name == "nn.functional.cosine_similarity")


class Net(nn.Module):
    """Each of ours once, of inputs and of a parameter."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.anchors = nn.Parameter(make_inputs((6, 5))[0])
        self.cosine = CosineSimilarity(-1)

    def forward(self, x, y):
        hidden = self.linear(x)
        paired = self.cosine(hidden, self.linear(y)) + cosine_similarity(
            hidden, self.anchors[0], axis=1
        )
        return paired, pairwise_cosine(hidden, self.anchors), pairwise_cosine(hidden)


def equal(got, wanted):
    assert type(got) is type(wanted)
    for mine, theirs in zip(tuple(got), tuple(wanted), strict=True):
        assert torch.equal(mine, theirs)


def test_fx_traces_the_module():
    traced = fx.symbolic_trace(CosineSimilarity(dim=0, eps=0.5))
    (node,) = (node for node in traced.graph.nodes if node.op == "call_function")
    assert node.target is cosine_similarity
    assert torch.equal(traced(X, Y), cosine_similarity(X, Y, 0, 0.5))


def test_fx_traces_a_model_that_calls_each_function():
    net = Net()
    traced = fx.symbolic_trace(net)
    equal(traced(X, Y), net(X, Y))
    equal(pickle.loads(pickle.dumps(traced))(X, Y), net(X, Y))  # found again by their names
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets.count(cosine_similarity) == targets.count(pairwise_cosine) == 2


class Recorder:
    """No tensor; answers with what it was asked."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func, types, args, kwargs or {}


@pytest.mark.parametrize("swap", [False, True])
def test_a_class_is_asked_as_torch_asks_it(swap):
    one = Recorder()
    pair = (X, one) if swap else (one, X)
    answers = F.cosine_similarity(*pair), cosine_similarity(*pair, 0)
    for _, types, args, _ in answers:
        assert Recorder in types
        assert args[swap is False] is X
        assert args[swap] is one
    assert answers[1][0] is cosine_similarity
    assert answers[1][3] == {"dim": 0, "eps": 1e-8}
    assert CosineSimilarity(-1, 0.5)(*pair)[3] == {"dim": -1, "eps": 0.5}
    function, _, args, given = pairwise_cosine(*pair, precision="high")
    assert function is pairwise_cosine
    assert args[swap] is one
    assert given == {"eps": 1e-8, "out": None, "precision": "high"}
    assert pairwise_cosine(one)[2] == (one, None)
    assert pairwise_cosine(X, Y, out=one)[3]["out"] is one


class Declines:
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


@pytest.mark.parametrize("function", [F.cosine_similarity, cosine_similarity, pairwise_cosine])
def test_a_class_that_declines_is_refused_as_by_torch(function):
    with pytest.raises(TypeError, match="__torch_function__"):
        function(Declines(), X)


class Counted(torch.Tensor):
    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("function", [cosine_similarity, pairwise_cosine])
def test_a_subclass_sees_one_function_and_gets_its_kind(function):
    Counted.seen.clear()
    got = function(X.as_subclass(Counted), Y)
    assert Counted.seen == [function]
    assert type(got) is Counted
    assert_close(got.as_subclass(torch.Tensor), function(X, Y), terms=8)


class ByMeta(TorchFunctionMode):
    """Run each function of tensors for meta tensors too, as torch's test_meta_outplace does."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append(func)
        to_meta = (args, kwargs or {})
        to_meta = tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, to_meta)
        on_meta = func(*to_meta[0], **to_meta[1])
        assert on_meta.is_meta
        assert (on_meta.shape, on_meta.dtype) == (result.shape, result.dtype)
        assert on_meta.stride() == result.stride()
        return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_mode_sees_one_function_whose_meta_result_agrees(dtype):
    for sample in OP.sample_inputs("cpu", dtype):
        wanted = cosine_similarity(sample.input, *sample.args, **sample.kwargs)
        with ByMeta() as mode:
            got = cosine_similarity(sample.input, *sample.args, **sample.kwargs)
        assert mode.seen == [cosine_similarity]
        assert torch.equal(got, wanted)
    x, y = X.to(dtype), Y.to(dtype)
    with ByMeta() as mode:
        pairwise_cosine(x, y)
    assert mode.seen == [pairwise_cosine]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_is_a_mode_and_changes_nothing(device):
    wanted = cosine_similarity(X, Y), pairwise_cosine(X, Y), CosineSimilarity()(X, Y)
    with torch.device(device):
        got = cosine_similarity(X, Y), pairwise_cosine(X, Y), CosineSimilarity()(X, Y)
    equal(got, wanted)


def test_compiled_under_a_default_device():
    torch._dynamo.reset()
    net = Net()
    with torch.device("meta"):
        got = torch.compile(net, fullgraph=True, backend="eager")(X, Y)
    for mine, wanted in zip(got, net(X, Y), strict=True):
        assert_close(mine, wanted, terms=8)
    torch._dynamo.reset()


def test_the_module_is_found_by_who_looks_for_torchs():
    ours = CosineSimilarity(dim=-1, eps=0.5)
    assert isinstance(ours, nn.CosineSimilarity)
    assert (ours.dim, ours.eps) == (-1, 0.5)
    assert repr(ours) == "CosineSimilarity(dim=-1, eps=0.5)"
    assert ours.state_dict() == nn.CosineSimilarity().state_dict() == {}
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(twin) is CosineSimilarity
        assert torch.equal(twin(X, Y), cosine_similarity(X, Y, -1, 0.5))
    # torch's own forward is not what runs: rows of 1e30 overflow there.
    big = torch.full((1, 4), 1e30)
    assert ours(big, big).item() == 1.0


def test_axis_is_another_name_of_dim():
    for axis in (0, 1, -1, -2):
        got = cosine_similarity(X, Y, axis=axis)
        assert torch.equal(got, cosine_similarity(X, Y, dim=axis))
        assert got.shape == F.cosine_similarity(X, Y, axis=axis).shape
    with pytest.raises(IndexError, match="out of range"):
        cosine_similarity(X, Y, axis=2)
    for function in (F.cosine_similarity, cosine_similarity):
        for dim, axis in ((0, 0), (1, 0), (1, 1)):  # the default too, where it is given
            with pytest.raises(TypeError, match="axis"):
                function(X, Y, dim=dim, axis=axis)
        with pytest.raises(TypeError, match="must be int"):
            function(X, Y, axis="rows")
    with pytest.raises(TypeError, match=r"dim or its other name axis, got dim=1 and axis=0"):
        explain(cosine_similarity, X, Y, 1, axis=0)
