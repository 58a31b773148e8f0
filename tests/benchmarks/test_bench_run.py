"""How cases are measured: the table itself, turns and rounds, children, and what is left out."""

import importlib.util
import multiprocessing
import os
import time

import pytest
import torch

import children
import data
import held
import peers
import timing
from cases import CASES, FASTEST, OURS, OURS_QUIET, Case, Target
from contender import Contender, Inside, Part
from cossim_fast.testing import derived_tolerance

TINY = Case("rows", ((40, 8), (40, 8)), torch.float32, 1)
NAMES = {task: {c.name for c in listed} for task, listed in peers.CONTENDERS.items()}


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_targets_and_data_of_a_case_exist(case):
    for target in case.targets:
        assert target.ours in NAMES[case.task]
        if target.kind in ("speed", "extra"):
            quiet = {OURS_QUIET} if case.beside else set()
            assert target.against in NAMES[case.task] | {FASTEST} | quiet
    assert case.data in data.MAKERS
    assert OURS in {c.name for c in peers.contenders(case)}


def test_quick_and_full_cover_every_task():
    tasks = {case.task for case in CASES}
    assert tasks == set(peers.CONTENDERS)
    assert {case.task for case in CASES if case.quick} == tasks


@pytest.mark.parametrize("kind", sorted(data.MAKERS))
def test_rows_are_the_same_at_each_call_and_finite(kind):
    shapes = ((30, 384), (50, 384))
    first, second = data.make(kind, shapes, torch.float16)
    assert (first.shape, second.shape, first.dtype) == (shapes[0], shapes[1], torch.float16)
    again = data.make(kind, shapes, torch.float16)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert torch.equal(first, second[:30]) == (kind == "equal")
    assert first.isfinite().all()


def cosines_of(kind, n=400):
    (x,) = data.make(kind, ((n, 384),), torch.float32)
    x = torch.nn.functional.normalize(x.double())
    return (x @ x.T)[~torch.eye(n, dtype=torch.bool)]


def test_hard_rows_are_hard():
    assert cosines_of("cone").min() > 0.99
    assert (cosines_of("duplicates") > 1 - 1e-9).double().mean() * 399 > 5
    (spiky,) = data.make("spiky", ((400, 384),), torch.float32)
    assert spiky[:, :4].std() > 40 * spiky[:, 4:].std()


def test_too_few_real_rows_are_an_error_and_clustered_ones_stand_in():
    n, d = data.real_shape()
    with pytest.raises(ValueError, match=f"expected {n + 1} real rows"):
        data.make("real", ((n + 1, d),), torch.float32)
    assert data.real_or_clustered(n, d) == "real"
    assert data.real_or_clustered(n + 1, d) == "clustered"
    assert data.real_or_clustered(n, d + 1) == "clustered"


def test_a_larger_file_is_used_where_it_is_named(tmp_path, monkeypatch):
    import numpy as np

    path = tmp_path / "more.npy"
    np.save(path, np.full((5000, 3), 2, np.float16))
    monkeypatch.setenv(data.REAL_ROWS, str(path))
    assert data.real_shape() == (5000, 3)
    assert data.make("real", ((7, 3),), torch.float32)[0].tolist() == [[2.0] * 3] * 7
    described = data.describe_real()
    assert described["file"] == "more.npy"
    assert str(tmp_path) not in str(described)


def test_contenders_take_turns_and_slow_ones_one_call(monkeypatch):
    monkeypatch.setattr(timing, "MOST_ROUNDS", 6)
    monkeypatch.setattr(timing, "BUDGET", 3.0)
    order = []
    # A floor is no measure of who is slow.
    seconds = {OURS: 0.2, "theirs": 0.6, "floor": 0.001, "slow": 1.5, "slowest": 9.0}

    def sampler(device):
        def sample(call, repeats):
            order.append(call())
            return seconds[order[-1]]

        return sample

    monkeypatch.setattr(timing, "sampler", sampler)
    calls = {name: (lambda name=name: name, seconds[name]) for name in seconds}
    samples = timing.alternate(calls, {"floor"})
    turns = {OURS: [0.2] * 5, "theirs": [0.6] * 5, "floor": [0.001] * 5}
    assert samples == turns | {"slow": [1.5], "slowest": [9.0]}
    assert "slowest" not in order, "its first call was enough"
    rounds = order[order.index("slow") + 1 :]
    assert len(rounds) == 15
    for start in range(0, 15, 3):
        assert set(rounds[start : start + 3]) == set(turns)


def test_a_part_counts_as_often_as_it_takes():
    calls = {name: (call, 1e-3) for name, call in (("part", Part(lambda: None, 1e6)),)}
    (seconds,) = timing.alternate(calls, {"part"}).values()
    assert min(seconds) > 1e-3  # a call of nothing takes nanoseconds


def test_of_a_call_that_says_so_a_part_alone_counts():
    def slow_with_a_part():
        time.sleep(0.002)
        return 1e-9

    (seconds,) = timing.alternate({"part": (Inside(slow_with_a_part), 0.002)}, set()).values()
    assert set(seconds) == {1e-9}
    (long,) = timing.alternate({"long": (Inside(lambda: 1e-9), 100.0)}, set()).values()
    assert long == [1e-9]


def test_a_round_that_takes_long_is_the_first_call_alone():
    def fail():
        raise AssertionError

    samples = timing.alternate({OURS: (fail, 21.0), "theirs": (fail, 30.0)}, set())
    assert samples == {OURS: [21.0], "theirs": [30.0]}


def test_the_fastest_peer_is_no_floor_not_approximate_and_not_ours():
    def entry(median, **kind):
        return {"floor": False, "approximate": False, "seconds": {"median": median}} | kind

    found = {
        OURS: entry(1.0),
        "cossim_fast, out=": entry(0.5),
        "a floor": entry(0.1, floor=True),
        "roughly": entry(0.2, approximate=True),
        "slower": entry(4.0),
        "faster": entry(3.0),
        "gone": {"floor": False, "approximate": False, "left_out": "not installed"},
    }
    assert timing.fastest_peer(found) == "faster"
    assert timing.fastest_peer({OURS: entry(1.0)}) is None


def test_a_median_has_an_interval():
    values = [float(i) for i in range(1, 62)]
    found = timing.median_interval(values)
    # 61 tosses of a coin: 23 heads or fewer in 3.6 % of cases, 24 or fewer in 6.2 %.
    assert (found["median"], found["low"], found["high"]) == (31.0, 24.0, 38.0)
    wide = timing.median_interval(values, 0.005)
    assert wide["low"] < found["low"]
    assert wide["high"] > found["high"]
    assert timing.median_interval([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}


def with_contenders(monkeypatch, *contenders):
    monkeypatch.setitem(peers.CONTENDERS, "rows", contenders)
    # The process of the tests keeps its threads.
    monkeypatch.setattr(timing, "pin", lambda threads: None)


RIGHT = Contender(OURS, lambda case, x, y: lambda: torch.nn.functional.cosine_similarity(x, y))


def test_who_is_not_installed_or_wrong_or_fails_is_left_out_with_a_reason(monkeypatch):
    def failing(case, x, y):
        raise ValueError("no such shape\nand more")

    with_contenders(
        monkeypatch,
        RIGHT,
        Contender("absent", RIGHT.prepare, "no_such_package_at_all.part"),
        Contender("older", RIGHT.prepare, "torch:no_such_function"),
        Contender("wrong", lambda case, x, y: lambda: torch.zeros(len(x))),
        Contender("failing", failing),
        Contender("on a GPU", RIGHT.prepare, devices=("cuda",)),
    )
    calls, found = timing.prepare(TINY, timing.make_inputs(TINY))
    assert set(calls) == {OURS}
    assert "on a GPU" not in found
    reasons = {name: entry.get("left_out") for name, entry in found.items()}
    assert reasons["absent"] == "no_such_package_at_all is not installed"
    assert reasons["older"] == "torch has no no_such_function"
    assert reasons["wrong"].startswith("wrong by ")
    assert reasons["failing"] == "ValueError: no such shape"
    assert reasons[OURS] is None


def test_ours_may_not_fail(monkeypatch):
    def failing(case, x, y):
        raise ValueError("broken")

    with_contenders(monkeypatch, Contender(OURS, failing))
    with pytest.raises(ValueError, match="broken"):
        timing.prepare(TINY, timing.make_inputs(TINY))


def test_targets_are_measured_against_whom_they_name():
    case = Case("rows", ((1000, 250), (1000, 250)), torch.float32, 2)
    samples = {OURS: [1.0, 1.0, 1.0], "theirs": [4.0, 5.0, 3.0], "once": [8.0]}
    found = {
        name: {"floor": False, "approximate": False, "seconds": {"median": sorted(s)[len(s) // 2]}}
        for name, s in samples.items()
    }

    def measured(target):
        return timing._measured(target, case, samples, found)

    assert measured(Target("speed", 3, "theirs"))["median"] == 4.0
    assert measured(Target("speed", 3, FASTEST))["median"] == 4.0
    assert measured(Target("speed", 3, "once"))["median"] == 8.0
    assert measured(Target("extra", 3, "theirs"))["median"] == pytest.approx(-3e6)
    assert measured(Target("extra", 3, "once"))["median"] == pytest.approx(-7e6)
    assert measured(Target("share", 1, "theirs"))["median"] == 0.25
    assert measured(Target("growth", 1, "theirs")) is None
    assert measured(Target("rate", 1))["median"] == pytest.approx(0.001 / 2)
    assert measured(Target("speed", 3, "absent")) is None
    assert measured(Target("speed", 3, "theirs", ours="absent")) is None


def test_other_threads_than_were_given_are_an_error(monkeypatch):
    pools = [{"num_threads": 4, "filepath": "/lib/libother.so"}]
    monkeypatch.setattr(timing, "threadpool_info", lambda: pools)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    timing.threads_kept(4)
    # A call that leaves torch with fewer would slow down all that follow.
    with pytest.raises(RuntimeError, match=r"torch has 4 threads, expected 8"):
        timing.threads_kept(8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match=r"libother.so has 4 threads, expected 2"):
        timing.threads_kept(2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are pinned on Linux")
def test_a_case_from_end_to_end():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    # 96 MB of inputs, and a result of 2 MB.
    shapes = ((500_000, 24), (500_000, 24))
    case = Case("rows", shapes, torch.float32, 1, (Target("memory", 64),), headline=False)
    child = context.Process(target=children.time_and_measure, args=(queue, case))
    child.start()
    timed, peak = queue.get(timeout=240)
    child.join()
    ours = timed["contenders"][OURS]
    assert ours["rounds"] >= timing.FEWEST_ROUNDS
    assert 0 < ours["seconds"]["low"] <= ours["seconds"]["median"] <= ours["seconds"]["high"]
    assert ours["error"] < derived_tolerance(torch.float32, 24).atol
    assert timed["fastest"] in timed["contenders"]
    assert timed["contenders"]["x1.sum() + x2.sum()"]["floor"]
    assert peak < 64e6


def test_memory_says_how_large_results_are():
    assert held.result_bytes(torch.zeros(10)) == 40
    assert held.result_bytes((torch.zeros(10), torch.zeros(2, dtype=torch.int64))) == 56
    assert held.result_bytes([1, 2]) is None


def test_floors_of_a_slice_count_for_the_whole(monkeypatch):
    import floors

    monkeypatch.setattr(floors, "MOST", dict.fromkeys(floors.MOST, 64 * 16 * 100))
    case = Case("top-k", ((64, 16), (1000, 16)), torch.float32, 1, k=3)
    x, y = timing.make_inputs(case)
    for floor in (floors.product, floors.bfloat16_product, floors.int8_product):
        part = floor(case, x, y)
        assert part.times == 10
        assert part.call().shape == (64, 100)
    assert torch.equal(floors.product(case, x, y).call(), x @ y[:100].T)
    gradient = floors.products_of_gradient(case, x, y)
    assert gradient.times == 30


def test_both_ways_to_the_int8_product_agree():
    import floors

    if importlib.util.find_spec("torch") is None or not hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    ):
        pytest.skip("this torch has no such operator")
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randint(-63, 64, shape, generator=generator, dtype=torch.int8)
        for shape in ((32, 40), (48, 40))
    )
    wanted = x.double() @ y.double().T
    assert torch.equal(floors._onednn(x, y)().double(), wanted)
    assert torch.equal(floors._int_mm(x, y)().double(), wanted)
