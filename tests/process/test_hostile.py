"""The attacks themselves: a planted fault is reported, with the seed that repeats it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from hostile import flips, harness, kills, settings, truth
from hostile.harness import Attack
from hostile.tries import Child, Done, WrongError, leftovers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="attacks need fork")
RUN = Path(harness.__file__).with_name("run.py")


def _made(attack, seed=3, tries=1, **options):
    (found,) = harness.run([attack], seed, tries=tries, **options)
    return found


def test_attacks_have_names_of_their_own_and_run_in_both_forms():
    attacks = harness.all_attacks()
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names) > 20
    for attack in attacks:
        assert attack.tries[0] >= attack.tries[1] >= 0
    # Each file of attacks takes part in the short form.
    short = {attack.run.__module__ for attack in attacks if attack.tries[1]}
    assert short == {f"hostile.{name}" for name in harness.MODULES}


def test_what_came_of_tries_is_counted_and_told():
    def some(rng, folder, tally):
        with tally.one("first") as how:
            how.append("refused")
        with tally.one("second"):
            raise WrongError("3 pairs missing")
        with tally.one("third"):
            raise RuntimeError("internal error")
        tally.held()
        raise ValueError("no attack any more")

    found = _made(Attack("some", some, (1, 1), ("answered", "resumed")), tries=2, at_once=2)
    assert found.held == {"refused": 2, "answered": 2}
    assert {seed for seed, _, _ in found.failed} == {3, 4}
    said = harness.table([found], whole=True)
    assert "2 times: second: 3 pairs missing" in said
    assert "RuntimeError in test_hostile.py:" in said
    assert "no attack any more" in said
    # Of the two tries, that which ended first.
    again = r"python tests/helpers/hostile/run.py --only some --seed [34] --tries 1"
    assert re.search(again, said)
    assert "never resumed" in said
    assert not harness.right([found], whole=False)


def test_a_whole_run_has_to_reach_what_it_attacks():
    found = _made(Attack("idle", lambda rng, folder, tally: tally.held("refused"), (1, 1)))
    assert harness.right([found], whole=False)
    assert not harness.right([found], whole=True)
    assert not harness.right([], whole=False)


def test_a_seed_repeats_a_try():
    def draws(rng, folder, tally):
        tally.held(str(rng.integers(10**9)))

    attack = Attack("draws", draws, (1, 1))
    several = _made(attack, seed=3, tries=3).held
    assert len(several) == 3
    assert _made(attack, seed=5).held.keys() <= several.keys()


def test_a_crash_and_a_hang_are_failures_and_nothing_is_left(tmp_path):
    left = tmp_path / "left"

    def crash(rng, folder, tally):
        tally.held("before")
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(rng, folder, tally):
        child = Child(lambda: time.sleep(60))
        left.write_text(f"{child.pid} {folder}")
        child.wait(60)

    crashed = _made(Attack("crash", crash, (1, 1)))
    assert crashed.held == {"before": 1}
    assert "ended by SIGKILL" in crashed.failed[0][2]
    hung = _made(Attack("hang", hang, (1, 1), limit=1.0))
    assert hung.failed == [(3, "", "no end within 1 s")]
    pid, folder = left.read_text().split()
    assert not Path(folder).parent.exists()
    for _ in range(200):  # it is not this process's to wait for
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("a process was left")


def _planted(monkeypatch):
    """A reader of index files whose checksums always fit."""
    from cossim_fast.retrieval.storage import tensor_file

    before = zlib.crc32

    class Fits(int):
        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

        __hash__ = int.__hash__

    monkeypatch.setattr(tensor_file.zlib, "crc32", lambda *data: Fits(before(*data)))


def test_a_reader_that_accepts_flips_is_found_out(monkeypatch):
    attack = Attack("flips", flips.index(mapped=False), (1, 1))
    unharmed = _made(attack)
    assert unharmed.failed == []
    _planted(monkeypatch)
    found = _made(attack, tries=3)
    assert any("wrong" in why for _, _, why in found.failed)


def test_a_save_in_place_is_found_out(monkeypatch):
    from cossim_fast import CosineIndex

    def in_place(self, path):
        whole = path.with_name("whole")
        save(self, whole)
        data = whole.read_bytes()
        whole.unlink()
        with path.open("wb") as file:
            for start in range(0, len(data), 1 << 16):
                file.write(data[start : start + (1 << 16)])
                file.flush()
                time.sleep(0.0001)  # so that some kill falls between

    save = CosineIndex.save
    monkeypatch.setattr(CosineIndex, "save", in_place)
    assert _made(Attack("save", kills.kill_save, (1, 1)), tries=3).failed


def test_a_setting_that_is_lowered_is_found_out(monkeypatch):
    import torch

    from hostile import forks

    def lowered(self):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        time.sleep(0.02)
        torch.set_float32_matmul_precision(before)

    monkeypatch.setattr(settings, "SECONDS", 1.0)
    monkeypatch.setattr(forks.Calls, "medium", lowered)
    found = _made(Attack("users", settings.users, (1, 1)))
    assert {why for _, _, why in found.failed} == {"a setting that was made during a call is lost"}


def test_an_interrupt_that_comes_at_once_is_not_raised_by_the_tracer(monkeypatch):
    import torch

    from cossim_fast._threads import single_threaded
    from hostile.interrupts import Interrupter

    later = Interrupter._arm

    def at_once(self, seconds):
        if seconds == self._soon and not self.came:
            self.came = True
            signal.raise_signal(signal.SIGINT)
        later(self, seconds)

    def interrupted(rng, folder, tally):
        torch.set_num_threads(2)
        single_threaded(int)  # what the first call finds out is kept
        interrupter = Interrupter()
        for number in range(1, interrupter.lines(lambda: single_threaded(int)) + 1):
            interrupter.came = False
            interrupter.at_line(number, lambda: single_threaded(int))
            with tally.one(f"line {number}"):
                assert interrupter.came
                assert torch.get_num_threads() == 2

    monkeypatch.setattr(Interrupter, "_arm", at_once)
    found = _made(Attack("interrupted", interrupted, (1, 1)))
    assert found.failed == []
    assert found.held["answered"] > 3


def test_wrong_answers_are_told_from_right_ones():
    rng = np.random.default_rng(0)
    q, x = truth.rows(rng, 5, 8), truth.rows(rng, 50, 8)
    true = truth.cosines(q, x)
    rows = np.argsort(-true, 1, kind="stable")[:, :3]
    scores = np.take_along_axis(true, rows, 1).astype(np.float32)
    truth.check_topk(scores, rows, q, x, 3)
    with pytest.raises(WrongError, match="wrong rows for 5 of 5"):
        truth.check_topk(scores, np.argsort(true, 1)[:, :3], q, x, 3)
    with pytest.raises(WrongError, match="wrong scores"):
        truth.check_topk(scores * np.float32(1 - 2**-22), rows, q, x, 3)
    with pytest.raises(WrongError, match="one row twice"):
        truth.check_topk(scores[:, [0, 0, 1]], rows[:, [0, 0, 1]], q, x, 3)
    i, j = np.nonzero(true >= 0.2)
    truth.check_pairs(i, j, true[i, j], q, 0.2, x)
    with pytest.raises(WrongError, match="1 pairs missing"):
        truth.check_pairs(i[1:], j[1:], true[i, j][1:], q, 0.2, x)
    with pytest.raises(WrongError, match="too many"):
        truth.check_pairs(i, j, true[i, j], q, true[i, j].max(), x)
    with pytest.raises(WrongError, match="off by"):
        truth.check_matrix(true + 1e-5, q, x)


def test_a_refusal_is_one_line(tmp_path):
    assert not Done(0, "", "", 0).refused()
    assert Done(2, "", "cossim: x.npy is no file\n", 0).refused()
    assert Done(2, "", "cossim: going on from a\ncossim: it is of others\n", 0).refused()
    for status, err in ((1, "Traceback\nKeyError: 'x'\n"), (2, "one\ntwo\n"), (2, ""), (-11, "")):
        with pytest.raises(WrongError):
            Done(status, "", err, 0).refused()
    (tmp_path / ".x.12-0123abcd.part").touch()
    with pytest.raises(WrongError, match=r"left behind: \.x\.\*\.part"):
        leftovers(tmp_path, set())


@pytest.mark.parametrize(("attack", "status"), [("flip-checkpoint-topk", 0), ("no such", 1)])
def test_it_runs_as_a_script(attack, status):
    done = subprocess.run(
        [sys.executable, str(RUN), "--only", attack, "--tries", "1"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "tried" in done.stdout
