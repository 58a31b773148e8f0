"""Ctrl-C anywhere: an index is as before or as after, and settings are as they were."""

import random
import signal
import sys
import threading
import types

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, _quiet, _threads, cosine_similarity, pairwise_cosine, topk
from cossim_fast.retrieval import index as index_module
from cossim_fast.retrieval.storage import ids as ids_module
from cossim_fast.retrieval.storage import parts as parts_module
from cossim_fast.retrieval.storage import snapshot as state_module

D = 8
MODULES = {m.__file__ for m in (ids_module, index_module, parts_module, state_module)}


def rows(n, seed):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def made(kind):
    """An index of some rows, with a table of ids where they are the caller's."""
    index = CosineIndex(rows(40, 0), ids=named(kind, range(40)))
    index.search(rows(1, 9), 2, exclude=index.ids[:1])
    return index


def named(kind, numbers):
    if kind == "counted":
        return None
    return [f"id{n}" for n in numbers] if kind == "strings" else [7 * n for n in numbers]


def content(index):
    """All that a caller sees: ids, and answers to queries, with ids that are looked up."""
    found = index.search(rows(3, 5), len(index))
    some = index.ids[::3]
    left = index.search(rows(3, 5), 5, exclude=some)
    return [np.asarray(x).tolist() for x in (index.ids, *found, *left)]


CHANGES = {
    "add": lambda index, kind: index.add(rows(9, 1), named(kind, range(100, 109))),
    "add as many": lambda index, kind: index.add(rows(60, 1), named(kind, range(100, 160))),
    "remove": lambda index, kind: index.remove(index.ids[3:6]),
    "remove most": lambda index, kind: index.remove(index.ids[3:32]),
}


def interrupted(call, at, files=MODULES):
    """Call, with KeyboardInterrupt at the `at`-th bytecode of some files, if there are as many.

    Return how many there were.
    """
    seen = [0]

    def trace(frame: types.FrameType, event: str, argument: object):
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            seen[0] += 1
            if seen[0] == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert seen[0] == at
    finally:
        sys.settrace(before)
    return seen[0]


def interrupt_change(index, call, at):
    """Interrupt a call of an index, and release its lock.

    Between the end of a with block and the call that releases its lock a trace may fall in, but no
    signal: see `test_locks_are_released`.
    """
    count = interrupted(call, at)
    index._lock = threading.Lock()
    return count


@pytest.mark.parametrize("kind", ["counted", "strings", "whole numbers"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_index_is_as_before_or_as_after(kind, change):
    do = CHANGES[change]
    before, index = content(made(kind)), made(kind)
    do(index, kind)
    after = content(index)
    assert before != after
    seen, fresh = {"before": 0, "after": 0}, made(kind)
    count = interrupted(lambda: do(fresh, kind), 0)
    # Anywhere, and everywhere at the end, where it is made.
    places = random.Random(count).sample(range(1, count - 25), 40)
    for at in [*places, *range(count - 25, count + 1)]:
        index = made(kind)
        interrupt_change(index, lambda index=index: do(index, kind), at)
        found = content(index)
        assert found in (before, after), f"half changed at bytecode {at} of {count}"
        seen["after" if found == after else "before"] += 1
        # It goes on: the same change, where it is not made yet, and another.
        if found == before:
            do(index, kind)
            assert content(index) == after
        index.add(rows(2, 3), named(kind, (500, 501)))
        assert len(set(index.ids.tolist())) == len(index)
    assert min(seen.values()) > 0


@pytest.mark.parametrize("kind", ["counted", "strings"])
def test_a_search_that_is_interrupted_changes_nothing(kind):
    index = made(kind)
    before = content(index)
    count = interrupted(lambda: index.search(rows(2, 1), 3, exclude=index.ids[4:6]), 0)
    for at in range(1, count, count // 40):
        index = made(kind)
        excluded = index.ids[4:6]
        interrupt_change(index, lambda i=index, h=excluded: i.search(rows(2, 1), 3, exclude=h), at)
        assert content(index) == before
        index.remove(excluded)
        assert len(index) == 38


# Settings: by signals of the system, which Python sees to where it does, and not between any two
# bytecodes. What is proven for those is that nothing falls before the one call that sets back.


def state():
    return (
        np.geterr(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
    )


def calls():
    x, y = rows(5000, 1).double()[:, :4], rows(5000, 2).double()[:, :4]
    wide, half = rows(300, 3), rows(3000, 4).half()
    index = CosineIndex(rows(500, 5))
    grad = torch.randn(50, D, requires_grad=True)
    yield lambda: cosine_similarity(rows_1, rows_1)
    yield lambda: cosine_similarity(x, y)
    yield lambda: cosine_similarity(half, half)
    yield lambda: cosine_similarity(grad, grad.detach()[:1]).sum().backward()
    yield lambda: cosine_similarity(grad, grad).sum().backward()
    yield lambda: pairwise_cosine(wide)
    yield lambda: index.search(wide[:3], 4)
    yield lambda: CosineIndex(wide)
    yield lambda: topk(wide[:3], wide, 4)
    yield lambda: _threads.single_threaded(sum, range(300))


rows_1 = rows(1, 1)


@pytest.fixture
def signals():
    """Interrupt a call again and again, at most so many seconds after it began."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers of signals here")
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)

    def interrupt(call, times, most, seed=0):
        draw, caught = random.Random(seed), 0
        for _ in range(times):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(2e-6, most))
                for _ in range(1000):
                    call()
            except KeyboardInterrupt:
                caught += 1
            yield
        # Python itself drops one now and then, in what the garbage collector calls.
        assert caught > 0.9 * times

    yield interrupt
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", range(len(list(calls()))))
def test_settings_are_as_they_were(number, signals):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # so that `single_threaded` has something to do
    call = list(calls())[number]
    call()
    before = state()
    try:
        for _ in signals(call, 400, 4e-4, seed=number):
            assert state() == before
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_locks_are_released(signals):
    index = made("strings")

    def call():
        index.add(rows(2, 1), ["a", "b"])
        index.remove(["a", "b"])

    for _ in signals(call, 400, 2e-3):
        assert not index._lock.locked()
        assert len(index) in (40, 42)
        if len(index) == 42:
            index.remove(["b", "a"])
    assert content(index) == content(made("strings"))


def test_quiet_leaves_numpy_as_it_was_wherever_it_ends():
    """At any bytecode of numpy's own, where numpy keeps its state in a context."""
    if not _quiet._IN_CONTEXT:
        pytest.skip("numpy keeps its state by thread; signals are tried above")
    divide = _quiet.quiet(lambda: np.float64(1) / np.zeros(1))
    divide()
    before = np.geterr()
    files = {_quiet.__file__, np._core._ufunc_config.__file__, __file__}
    count = interrupted(divide, 0, files)
    for at in range(1, count + 1):
        interrupted(divide, at, files)
        assert np.geterr() == before
    assert count > 10
