"""Cases beside a busy process: when it spins and rests, that it ends, and what is measured."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import busy
import children
import peers
import timing
from cases import CASES, OURS, OURS_QUIET, TORCH, Case, Target

pytestmark = pytest.mark.skipif(not busy.can_be_kept(), reason="processes are pinned on Linux")


@pytest.fixture
def other():
    with busy.Busy(max(os.sched_getaffinity(0))) as made:
        yield made


def spent_in(other, seconds):
    """Processor time that it spends meanwhile."""
    other.rest()
    before = other.spent
    other.spin()
    time.sleep(seconds)
    other.rest()
    return other.spent - before


def test_it_spins_on_its_processor_and_rests_when_told(other):
    assert os.sched_getaffinity(other._process.pid) == {max(os.sched_getaffinity(0))}
    assert spent_in(other, 0.2) > 0.02
    before = other.spent
    time.sleep(0.2)
    other.rest()
    assert other.spent - before < 0.02
    other.spin()
    with other.resting():
        before = other.spent
        time.sleep(0.2)
        other.rest()
        assert other.spent - before < 0.02


def test_it_is_gone_afterwards_also_after_a_failure():
    def fail():
        with other:
            other.spin()
            raise ValueError("fails")

    other = busy.Busy(max(os.sched_getaffinity(0)))
    with pytest.raises(ValueError, match="fails"):
        fail()
    assert other._process.returncode is not None


# Starts one, says which, and is killed while it spins, or rests.
OWNER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from busy import Busy
other = Busy(max(os.sched_getaffinity(0)))
if sys.argv[2] == "spins":
    other.spin()
print(other._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["spins", "rests"])
def test_it_ends_when_its_owner_is_killed(state):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(Path(busy.__file__).parent), state],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = int(owner.stdout.readline())
    os.kill(pid, 0)
    owner.kill()
    owner.wait()
    for pipe in (owner.stdin, owner.stdout):
        pipe.close()
    state = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 60
    # Until somebody waits for it, it may be there as a zombie.
    while state.exists() and state.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_cases_beside_it_take_two_threads_and_name_what_they_are_compared_with():
    beside = [case for case in CASES if case.beside]
    assert {"rows", "rows gradient", "matrix", "self", "top-k", "join", "build"} <= {
        case.task for case in beside
    }
    for case in beside:
        assert (case.threads, case.quick) == (2, True)
        assert case.name.endswith("beside one busy process")
        assert Target("speed", 0.5, OURS_QUIET) in case.targets
        named = {target.against for target in case.targets} - {OURS_QUIET}
        assert {c.name for c in peers.contenders(case)} == named | {OURS}


def test_a_case_is_measured_beside_it_and_ours_without_it_too(monkeypatch):
    made = []

    class Recorded(busy.Busy):
        def __init__(self, processor):
            super().__init__(processor)
            self.spins = False
            made.append(self)

        def spin(self):
            super().spin()
            self.spins = True

        def rest(self):
            super().rest()
            self.spins = False

    seen = {OURS: set(), TORCH: set()}

    def call(name):
        def calling():
            seen[name].add(bool(made) and made[0].spins)
            time.sleep(0.001)

        return calling

    monkeypatch.setattr(timing, "Busy", Recorded)
    monkeypatch.setattr(timing, "BUDGET_BESIDE", 0.1)
    calls = {name: (call(name), 0.001) for name in seen}
    samples, spent = timing.alternate_beside(calls, set())
    assert set(samples) == {OURS, TORCH, OURS_QUIET}
    assert {len(seconds) for seconds in samples.values()} == {timing.FEWEST_ROUNDS}
    assert seen == {OURS: {False, True}, TORCH: {True}}
    assert spent > 0.02
    assert made[0]._process.returncode is not None


def test_a_case_from_end_to_end():
    shapes = ((2000, 24), (2000, 24))
    targets = (Target("speed", 0.5, OURS_QUIET), Target("speed", 1, TORCH))
    case = Case("rows", shapes, torch.float32, 1, targets, beside=True)
    context = timing.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=children.time_case, args=(theirs, case))
    child.start()
    timed = ours.recv()
    child.join()
    assert set(timed["contenders"]) == {OURS, TORCH, OURS_QUIET}
    assert timed["contenders"][OURS_QUIET]["floor"]
    # One processor for both: each gets half of it.
    assert timed["measured"][0]["median"] < 0.8
    assert timed["measured"][1]["median"] > 0
    assert timed["fastest"] == TORCH
