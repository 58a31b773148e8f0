"""Searches, joins and diagnosis are one call for what watches torch's functions."""

import itertools

import numpy as np
import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from cossim_fast import (
    CosineIndex,
    communities,
    cosine_similarity,
    deduplicate,
    diagnose,
    explain,
    iter_pairs_above,
    pairs_above,
    pairwise_cosine,
    topk,
)

X, Q = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (50, 3))

CALLS = {
    "topk": lambda q, x: topk(q, x, 2),
    "search": lambda q, x: CosineIndex(x).search(q, 2),
    "range_search": lambda q, x: CosineIndex(x).range_search(q, 0.5),
    "pairs_above": lambda q, x: pairs_above(q, x, threshold=0.5),
    "iter_pairs_above": lambda q, x: next(iter_pairs_above(q, x, threshold=0.5)),
    "deduplicate": lambda q, x: deduplicate(x, 0.9),
    "communities": lambda q, x: communities(x, 0.5, min_size=2),
    "pair": lambda q, x: diagnose.pair(q, q).to_dict(),
    "embeddings": lambda q, x: diagnose.embeddings(x).to_dict(),
}
EXPLAIN = {
    "explain a matrix": lambda q, x: explain(pairwise_cosine, q, x),
    "explain rows": lambda q, x: explain(cosine_similarity, q, q, dim=1),
}


def equal(got, wanted):
    for mine, theirs in zip(got, wanted, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert type(mine) is torch.Tensor
            assert torch.equal(mine, theirs)
        else:
            np.testing.assert_equal(mine, theirs)


class Strict(torch.Tensor):
    """Refuses every function, and even to tell its shape."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"asked about {func}")


class Plain(torch.Tensor):
    """Overrides nothing."""


@pytest.mark.parametrize("kind", [Plain, Strict])
@pytest.mark.parametrize("name", CALLS)
def test_a_subclass_is_read_as_the_numbers_it_holds(name, kind):
    q, x = Q.as_subclass(kind), X.as_subclass(kind)
    equal(CALLS[name](q, x), CALLS[name](Q, X))


@pytest.mark.parametrize("name", EXPLAIN)
def test_explain_takes_a_subclass(name):
    found = EXPLAIN[name](Q.as_subclass(Strict), X.as_subclass(Strict))
    assert found.reason == "an input is of a subclass of Tensor"


class Elsewhere(torch.Tensor):
    """Holds no numbers."""

    @staticmethod
    def __new__(cls, like):
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"asked about {func}")


class NoTensor:
    """Answers whatever it is asked."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Elsewhere, "to hold values, got Elsewhere, whose numbers are elsewhere"),
        (lambda _: NoTensor(), "to be a tensor or an array of numbers, got NoTensor"),
        (lambda _: fx.Graph().placeholder("x"), "a tensor or an array of numbers, got Node"),
        (lambda _: fx.Proxy(fx.Graph().placeholder("x")), "an array of numbers, got Proxy"),
    ],
)
@pytest.mark.parametrize("name", CALLS)
def test_what_holds_no_numbers_is_refused(name, made, message):
    with pytest.raises(TypeError, match=message):
        CALLS[name](made(Q), made(X))


class Watching(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [n for n in (*CALLS, *EXPLAIN) if n != "iter_pairs_above"])
def test_a_mode_sees_one_function(name):
    call = {**CALLS, **EXPLAIN}[name]
    wanted = call(Q, X)
    with Watching() as outer, Watching() as inner:
        got = call(Q, X)
    equal(got, wanted)
    expected = [name.split()[0]]
    assert outer.seen == inner.seen == (["__init__"] if "search" in name else []) + expected


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_mode_without_values_is_refused(name, arrays):
    q, x = (Q.numpy(), X.numpy()) if arrays else (Q, X)
    with FakeTensorMode(), pytest.raises(TypeError, match="got an active FakeTensorMode, in which"):
        CALLS[name](q, x)


def test_a_search_cannot_be_traced():
    with pytest.raises(TypeError, match="got an active ProxyTorchDispatchMode, in which"):
        make_fx(lambda q: topk(q, X, 2).scores)(Q)


@pytest.mark.parametrize("name", EXPLAIN)
def test_explain_needs_no_values(name):
    with FakeTensorMode():
        found = EXPLAIN[name](torch.empty(3, 8), torch.empty(5, 8))
    assert found.executor == "composite"


@pytest.mark.parametrize("name", ["topk", "search", "pairs_above", "deduplicate", "embeddings"])
def test_a_compiled_function_calls_it_from_between_two_graphs(name):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    def function(q, x):
        return CALLS[name](q + 1, x * 2)

    equal(torch.compile(function, backend=backend)(Q, X), function(Q, X))
    # The two lines of its own, and nothing of the search.
    nodes = set(itertools.chain.from_iterable(graphs))
    assert nodes <= {"q", "x", "l_q_", "l_x_", "L_q_", "L_x_", "output"} | {
        node for node in nodes if "built-in function" in node
    }
    torch._dynamo.reset()


def test_what_an_iterator_runs_is_the_callers():
    with Watching() as mode:
        found = topk(Q, (X[at : at + 10] for at in range(0, 50, 10)), 2)
    assert "__getitem__" in mode.seen
    equal(found, topk(Q, X, 2))
