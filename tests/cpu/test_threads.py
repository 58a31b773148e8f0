"""Threads of our own: the answers of one thread, after a fork, at the end, and when one fails."""

import os
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch

from cossim_fast import _reference, _threads, cosine_similarity, testing
from cossim_fast._cpu import gradients as cpu_gradients
from cossim_fast._cpu import rows as cpu_rows
from cossim_fast._cpu.blocks import scratch_places
from cossim_fast.testing import make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=100)


@pytest.fixture
def shared(set_blocks):
    """Rows are shared from few on, in blocks of a few rows, among three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    set_blocks(SHARED=64, CACHED=256, BLOCK=256, PART=64, SMALL=-1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runs(monkeypatch):
    """Record the threads of each call that are more than one."""
    found = []
    run_shared = _threads.run_shared

    def recording(threads, work):
        if threads > 1:
            found.append(threads)
        run_shared(threads, work)

    for module in ("blocks", "rows"):
        monkeypatch.setattr(f"cossim_fast._cpu.{module}.run_shared", recording)
    return found


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("shape", [(1000, 7), (301, 100), (5, 60, 33)])
@pytest.mark.parametrize("dim", [-1, 0])
def test_the_answer_is_that_of_one_thread(shape, dim, dtype, runs):
    x, y = make_inputs(shape, shape, dtype=dtype)
    result = cosine_similarity(x, y, dim)
    assert runs == [3]
    assert_close(result, _reference.cosine_similarity(x, y, dim))
    torch.set_num_threads(1)
    assert torch.equal(result, cosine_similarity(x, y, dim))
    assert runs == [3]


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_are_those_of_one_thread(dtype, needed, runs):
    x, y = make_inputs((301, 100), (301, 100), dtype=dtype)
    leaves = [t.requires_grad_(wanted) for t, wanted in zip((x, y), needed, strict=True)]
    wanted = [t for t in leaves if t.requires_grad]

    def gradients():
        return torch.autograd.grad(cosine_similarity(x, y).sum(), wanted)

    shared_out = gradients()
    assert runs == [3, 3]
    torch.set_num_threads(1)
    for found, alone in zip(shared_out, gradients(), strict=True):
        assert torch.equal(found, alone)
    assert runs == [3, 3]


@pytest.fixture(params=["shared out", "by the caller", "where OpenMP cannot be asked"])
def way(request, set_blocks, monkeypatch):
    """How blocks are worked on, by three threads of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    set_blocks(SMALL=-1, BLOCK=4096, PART=4096 if request.param == "shared out" else 1 << 40)
    if request.param == "where OpenMP cannot be asked":
        monkeypatch.setattr(_threads, "can_be_single_threaded", lambda: False)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dim", [1, 0])
def test_blocks_are_worked_on_by_one_thread_each(dim, way, monkeypatch):
    seen = []
    original = scratch_places

    def recording(*arguments):
        seen.append(torch.get_num_threads())
        return original(*arguments)

    monkeypatch.setattr(cpu_rows, "scratch_places", recording)
    monkeypatch.setattr(cpu_gradients, "scratch_places", recording)
    x, y = make_inputs((400, 100), (400, 100), dtype=torch.float16, requires_grad=True)
    result = cosine_similarity(x, y, dim)
    result.sum().backward()
    assert torch.get_num_threads() == 3
    # One for the cosines and one for their gradients at least: helpers may come too late.
    assert len(seen) >= 2
    assert set(seen) == ({3} if way == "where OpenMP cannot be asked" else {1})
    assert_close(result, _reference.cosine_similarity(x.detach(), y.detach(), dim))
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("shared")
def test_rows_that_want_a_gradient_are_shared_without_a_graph(runs):
    x, y = make_inputs((300, 100), (300, 100), requires_grad=True)
    cosine_similarity(x, y).sum().backward()
    with torch.inference_mode():
        cosine_similarity(x, y)
    assert runs == [3, 3, 3]
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("shared")
def test_several_threads_call_at_once():
    pairs = [make_inputs((400, 64), (400, 64), seed=seed) for seed in range(4)]
    expected = [_reference.cosine_similarity(x, y) for x, y in pairs]
    results = [[] for _ in pairs]
    callers = [
        threading.Thread(
            target=lambda x, y, found: found.extend(cosine_similarity(x, y) for _ in range(20)),
            args=(*pair, found),
        )
        for pair, found in zip(pairs, results, strict=True)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 20
        for result in found:
            assert_close(result, wanted)


def test_helpers_work_at_the_same_time():
    met = threading.Barrier(3, timeout=30)
    _threads.run_shared(3, met.wait)  # raises unless three come


@pytest.mark.parametrize("failing", ["the caller", "a helper"])
def test_an_error_reaches_the_caller_when_all_have_ended(failing):
    caller = threading.current_thread()
    met = threading.Barrier(2, timeout=30)
    ended = []

    def work():
        met.wait()
        if (threading.current_thread() is caller) == (failing == "the caller"):
            raise ValueError(failing)
        threading.Event().wait(0.05)
        ended.append(True)

    with pytest.raises(ValueError, match=failing):
        _threads.run_shared(2, work)
    assert ended == [True]
    _threads.run_shared(2, lambda: None)  # and the helpers are fit for more


def test_what_has_not_begun_is_called_off(monkeypatch):
    busy = threading.Event()
    pool = _threads.ThreadPoolExecutor(1)
    monkeypatch.setattr(_threads, "_helpers", pool)
    pool.submit(busy.wait)
    runs = []
    _threads.run_shared(2, lambda: runs.append(threading.current_thread()))  # does not wait for it
    busy.set()
    pool.shutdown()
    assert runs == [threading.current_thread()]


# Shares rows, forks, shares rows in the child and at the ends of both.
PROGRAM = """
import atexit, os, sys, torch
from cossim_fast import _threads, cosine_similarity
from cossim_fast._cpu import rows
torch.set_num_threads(2)
rows.SHARED, rows.CACHED = 64, 4096
x = torch.arange(1.0, 60_001.0).reshape(300, 200)
def check(where):
    found = cosine_similarity(x, x)
    assert (found - 1).abs().max() < 1e-6, found
    print(where, flush=True)
atexit.register(check, "end")
check("parent")
assert _threads._helpers is not None
child = os.fork()
if child == 0:
    assert _threads._helpers is None
    check("child")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    check("child")
    assert _threads._helpers is not None
else:
    assert os.waitpid(child, 0)[1] == 0
    check("parent")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_and_at_the_end_of_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["parent", "child", "child", "end", "parent", "end"]


# How many threads there is a processor for.


def test_threads_are_limited_by_torch_affinity_and_quota(monkeypatch):
    monkeypatch.undo()  # conftest's
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    found = []
    for quota in (float("inf"), 6.5, 2.5, 2.0, 0.3):
        monkeypatch.setattr(_threads, "processors_of_quota", lambda quota=quota: quota)
        found.append(_threads.usable_threads())
    assert found == [6, 6, 3, 2, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert _threads.usable_threads() == 1


def test_a_system_without_affinity_counts_its_processors(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    monkeypatch.setattr(_threads, "processors_of_quota", lambda: float("inf"))
    assert _threads.processors() == 5


# A thread that torch leaves alone.


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP may be out of reach")
def test_a_thread_is_left_alone_and_no_other(two_threads):
    assert _threads.can_be_single_threaded()
    others = []

    def stranger():
        others.append(torch.get_num_threads())

    def work():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join()
        assert _threads.single_threaded(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 1

    _threads.single_threaded(work)
    assert (torch.get_num_threads(), others) == (2, [2])


def test_a_thread_is_left_alone_no_longer_after_a_failure(two_threads):
    def fail():
        raise ValueError("fails")

    with pytest.raises(ValueError, match="fails"):
        _threads.single_threaded(fail)
    assert torch.get_num_threads() == 2


def test_where_openmp_is_out_of_reach_nothing_is_set(two_threads, monkeypatch):
    monkeypatch.setattr(_threads, "can_be_single_threaded", lambda: False)
    assert _threads.single_threaded(torch.get_num_threads) == 2


@pytest.mark.parametrize(
    "function",
    [lambda threads: None, lambda threads: torch.nothing()],
    ids=["another OpenMP's", "none"],
)
def test_openmp_is_asked_before_it_is_relied_on(function, two_threads, monkeypatch):
    monkeypatch.setattr(_threads, "_openmp", lambda: function)
    assert not _threads.can_be_single_threaded.__wrapped__()


@pytest.mark.usefixtures("two_threads")
def test_each_part_has_one_thread_and_nobody_else_loses_theirs():
    met = threading.Barrier(2, timeout=30)

    def part():
        met.wait()
        return threading.get_ident(), torch.get_num_threads()

    # New helpers: to make one sets the number of threads.
    _threads._discard_helpers()
    found = _threads.run_independent(2, [part, part])
    assert [count for _, count in found] == [1, 1]
    assert len({thread for thread, _ in found} | {threading.get_ident()}) == 3
    assert torch.get_num_threads() == 2
    others = []
    stranger = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    stranger.start()
    stranger.join()
    assert others == [2]


@pytest.mark.parametrize("threads", [1, 2, 3, 50])
def test_results_come_in_the_order_of_the_parts(threads):
    parts = [lambda number=number: number for number in range(20)]
    assert _threads.run_independent(threads, parts) == list(range(20))
    assert _threads.run_independent(threads, []) == []


def test_no_more_parts_run_at_once_than_there_are_threads():
    running, most = [], []

    def part():
        running.append(None)
        most.append(len(running))
        threading.Event().wait(0.01)
        running.pop()

    _threads.run_independent(2, [part] * 8)
    assert max(most) <= 2


@pytest.mark.parametrize("inference", [False, True])
def test_parts_are_in_inference_mode_if_the_caller_is(inference):
    with torch.inference_mode(inference):
        made = _threads.run_independent(2, [lambda: torch.ones(1)] * 2)
        made[0].add_(1)
    assert [tensor.is_inference() for tensor in made] == [inference] * 2


def _until_stopped(ended, met):
    met.wait()
    try:
        for _ in range(3000):
            _threads.go_on()
            threading.Event().wait(0.01)
    finally:
        ended.append(True)


def test_a_part_that_fails_stops_the_others():
    met, ended = threading.Barrier(2, timeout=30), []

    def failing():
        met.wait()
        raise ValueError("this one")

    parts = [lambda: _until_stopped(ended, met), failing, lambda: ended.append("begun")]
    with pytest.raises(ValueError, match="this one"):
        _threads.run_independent(2, parts)
    assert ended == [True]
    _threads.go_on()  # nobody has stopped the caller


def test_an_interrupted_caller_stops_the_parts_and_waits_for_them(monkeypatch):
    met, ended = threading.Barrier(3, timeout=30), []
    waits = []

    def interrupted(futures, **rest):
        waits.append(futures)
        if len(waits) == 1:
            met.wait()
            raise KeyboardInterrupt
        return original(futures, **rest)

    original = _threads.wait
    monkeypatch.setattr(_threads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _threads.run_independent(2, [lambda: _until_stopped(ended, met)] * 2)
    assert ended == [True, True]


def test_parts_do_not_wait_for_a_thread_that_has_not_begun(monkeypatch):
    class Late(_threads.ThreadPoolExecutor):
        """Of two threads the second never gets a processor."""

        never = None

        def submit(self, work):
            if self.never is not None:
                return self.never
            self.never = _threads.Future()
            return super().submit(work)

    pool = Late(1)
    monkeypatch.setattr(_threads, "_helpers", pool)
    found = []
    parts = [lambda: 1, lambda: 2, lambda: 3]
    caller = threading.Thread(target=lambda: found.extend(_threads.run_independent(2, parts)))
    caller.start()
    caller.join(timeout=30)
    ended = not caller.is_alive()
    pool.never.cancel()
    pool.never.set_running_or_notify_cancel()  # so that it ends where it does wait
    caller.join()
    pool.shutdown()
    assert ended
    assert found == [1, 2, 3]


def test_the_caller_works_where_no_thread_can_be_had(monkeypatch):
    pool = _threads.ThreadPoolExecutor(1)
    pool.shutdown()
    monkeypatch.setattr(_threads, "_helpers", pool)
    assert _threads.run_independent(2, [threading.get_ident] * 3) == [threading.get_ident()] * 3


@pytest.mark.parametrize("share", [True, False])
def test_who_shares_work_with_the_pool_is_no_other_thread(share, monkeypatch):
    seen, count = [], threading.active_count
    # A parallel run of the tests has threads of its own.
    those = count() - 1 - sum(thread.ident in _threads._OURS for thread in threading.enumerate())
    monkeypatch.setattr(threading, "active_count", lambda: count() - those)

    def work():
        seen.append(_threads.others_run())

    def call():
        _threads.run_shared(3, work) if share else _threads.run_independent(3, [work] * 6)

    call()
    assert seen
    assert not any(seen)
    seen.clear()
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        call()
    finally:
        stop.set()
        other.join()
    assert all(seen)
    assert not _threads._callers
