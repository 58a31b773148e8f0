"""The session on a GPU, gone through without one: its minutes are too few for a typing error."""

import json
import sys
from pathlib import Path

import pytest

from ladder.runtime import INTERPRETING, needs_interpreter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = [pytest.mark.kernel_logic, needs_interpreter]


@pytest.fixture(scope="module")
def session():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_session

        yield gpu_session
    finally:
        sys.path.remove(str(BENCHMARKS))


STEPS = (
    "ceilings", "correctness", "search by stage", "coding and maxima", "scans and streams",
    "matrices", "float32 products", "compiled and small", "contrastive loss",
)  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_every_trial_of_a_step_runs(session, name, tmp_path):
    assert INTERPRETING
    assert tuple(step.name for step in session.STEPS) == STEPS
    steps = [step for step in session.STEPS if step.name == name]
    machine = session.Machine("cpu", scale=2048, repeats=2)
    report = session.run(machine, steps, tmp_path / "found.json")
    assert session.wrong(report) == []
    assert len(report["steps"][name]) > 2
    assert json.loads((tmp_path / "found.json").read_text()) == report


def test_what_fails_is_recorded_and_the_rest_goes_on(session, tmp_path):
    path = tmp_path / "found.json"

    def trials(machine):
        yield session.Trial("fails", lambda: 1 / 0)
        yield session.Trial("is wrong", lambda: {"right": False})
        yield session.Trial("reads", lambda: json.loads(path.read_text())["steps"])

    def broken(machine):
        raise TypeError("a typing error")

    steps = [session.Step("first", 10, broken), session.Step("second", 10, trials)]
    report = session.run(session.Machine("cpu", 2048), steps, path)
    assert session.wrong(report) == ["first: preparation", "second: fails", "second: is wrong"]
    assert report["steps"]["first"]["preparation"]["failed"] == "TypeError: a typing error"
    before = report["steps"]["second"]["reads"]["second"]
    # On disk before the third trial began, which is named for whoever comes after it.
    assert list(before) == ["fails", "is wrong", "reads"]
    assert before["fails"]["failed"].startswith("ZeroDivisionError")
    assert before["reads"] == session.ENDED


def test_a_process_goes_on_where_the_one_before_it_ended(session, tmp_path):
    path = tmp_path / "found.json"
    ran = []

    def trials(machine):
        ran.append("prepared")
        for name in "abc":
            yield session.Trial(name, lambda name=name: ran.append(name) or {"found": name})

    steps = [session.Step(name, 10, trials) for name in ("done", "half", "prepares")]
    before = {
        "machine": {},
        "finished": ["done"],
        "steps": {
            "done": {"a": {"found": "before"}},
            "half": {"a": {"found": "before"}, "b": session.ENDED},
            "prepares": {"preparation": session.ENDED},
        },
    }
    report = session.run(session.Machine("cpu", 2048), steps, path, found=before)
    assert ran == ["prepared", "c"]
    assert report["steps"]["half"] == {
        "a": {"found": "before"}, "b": session.ENDED, "c": {"found": "c"},
    }  # fmt: skip
    assert session.wrong(report) == ["half: b", "prepares: preparation"]


def test_a_device_that_a_kernel_broke_is_left_to_another_process(session, tmp_path, monkeypatch):
    def unspecified(machine):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(session.Machine, "wait", unspecified)
    steps = [session.Step("first", 10, lambda machine: [session.Trial("fails", lambda: 1 / 0)])]
    with pytest.raises(session.DeviceLostError, match="fails"):
        session.run(session.Machine("cpu", 2048), steps, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"]["first"]["fails"]["failed"].startswith("ZeroDivisionError")
    assert found["finished"] == []


def test_a_step_leaves_out_what_its_seconds_do_not_allow(session, tmp_path, monkeypatch):
    monkeypatch.setattr(session.Machine, "real", True)
    monkeypatch.setattr(session, "describe", lambda machine: {})
    seconds = iter(range(0, 1000, 4))
    compiled = []

    def trials(machine):
        for name in "abc":
            yield session.Trial(name, dict, lambda name=name: compiled.append(name))

    steps = [session.Step("short", 9, trials)]
    report = session.run(
        session.Machine("cpu"), steps, tmp_path / "found.json", clock=lambda: next(seconds)
    )
    assert report["steps"]["short"] == {"a": {}, "b": {}, "c": {"left out": "after 9 seconds"}}
    assert sorted(compiled) == ["a", "b", "c"]


def test_a_file_is_shown_and_published(session, tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    trials = {"copy": {"ms": 2.5, "quartiles": [2.0, 3.0]}}
    report = {"machine": {"device": "Pretend GPU"}, "finished": [], "steps": {"rates": trials}}
    path.write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--table", str(path)])
    assert session.main() == 0
    assert "| copy | ms 2.5, (2 to 3) |" in capsys.readouterr().out
    done = []
    monkeypatch.setattr(session.gpu_page, "keep_session", done.append)
    monkeypatch.setattr(session.gpu_page, "publish", lambda: done.append("page"))
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--publish", str(path)])
    assert session.main() == 0
    assert done == [report, "page"]
