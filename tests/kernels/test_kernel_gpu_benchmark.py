"""The GPU benchmark as far as it goes without one: a dry run with a clock that is handed in."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def page(gpu):
    return sys.modules["gpu_page"]


class ScriptedClock:
    """Runs what it is given and pretends that each call took one more millisecond than the last."""

    def __init__(self):
        self.calls = 0

    def milliseconds(self, run) -> float:
        run()
        self.calls += 1
        return float(self.calls)


class ConstantClock:
    def milliseconds(self, run) -> float:
        run()
        return 2.0


def test_dry_run_writes_a_report_with_the_devices_name(gpu, page, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "REPEATS", 3)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    chosen = gpu.cases(compiled=lambda function: function, scale=2048)
    report = gpu.run(chosen, "cpu", "Pretend GPU 9000 (SXM)", ConstantClock(), 1000, 32)
    path = gpu.write(report, tmp_path)
    assert path.name == "pretend-gpu-9000-sxm.json"
    written = json.loads(path.read_text())
    assert written["device"] == "Pretend GPU 9000 (SXM)"
    assert set(written["cases"]) == {
        f"{case.name}, {str(case.dtype).removeprefix('torch.')}" for case in chosen
    }
    # 2 milliseconds for a copy of 64 x 32 x 32 bytes, read and written.
    assert written["roofline_per_second"]["copy"] == 2 * 64 * 32 * 32 / 2e-3
    assert written["roofline_per_second"]["torch.int8"] == 2 * 32**3 / 2e-3
    assert page.kept(tmp_path) == [written]
    shown = page.page([written])
    assert "## Pretend GPU 9000 (SXM)" in shown
    assert (
        "| paired rows, float32, (256, 768) with (256, 768) | cossim_fast | 2.000 (2.000" in shown
    )
    rows = written["cases"]["paired rows, float32"]["contenders"]
    assert rows["cossim_fast"]["median_ms"] == 2.0
    moved = 2 * 256 * 768 * 4 + 256 * 4
    copied = written["roofline_per_second"]["copy"]
    assert rows["cossim_fast"]["share"] == pytest.approx(moved / copied / 2e-3)
    assert rows["cossim_fast"]["largest_error"] < 1e-6


def test_contenders_take_turns_and_warm_up_does_not_count(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "REPEATS", 2)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    order = []
    contenders = {name: lambda inputs, name=name: order.append(name) for name in "ab"}
    case = gpu.Case("order", torch.float32, {"x": (4, 4)}, contenders, 64)
    assert gpu.measure(case, "cpu", ScriptedClock(), 0) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == list("ababab")


def test_inputs_rotate_through_more_than_the_cache(gpu):
    case = gpu.Case("rotate", torch.float32, {"x": (16, 16)}, {}, 0)
    buffers = gpu.rotating_inputs(case, "cpu", 10_000)
    assert len(buffers) * 16 * 16 * 4 > 2 * 10_000
    assert len({x["x"].data_ptr() for x in buffers}) == len(buffers)


def test_share_takes_the_tighter_of_bandwidth_and_operations(gpu):
    case = gpu.Case("roof", torch.float16, {}, {}, moved=100, operations=4000)
    roofline = {"copy": 1e5, "torch.float16": 1e6}
    row = gpu.summary(case, {"ours": [8.0, 8.0, 8.0]}, roofline)
    # 1 ms to move, 4 ms to multiply, 8 ms taken.
    assert row["contenders"]["ours"]["share"] == pytest.approx(0.5)


def test_without_a_gpu_it_says_so(gpu, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main() == 1
    assert "needs a GPU" in capsys.readouterr().err


def test_the_committed_page_is_the_committed_figures(page):
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.kept())


def small(contender, **times):
    return {"rows": 64, "dtype": "float16", "gradients": True, "contender": contender, **times}


SESSION = {
    "machine": {"device": "Pretend GPU 9000", "torch": "2.99"},
    "finished": ["rates"],
    "steps": {
        "rates": {"copy": {"ms": 1.0, "quartiles": [0.9, 1.25]}, "read": {"failed": "a | b\nc"}},
        "small": {
            "64": small("ours", host_us=41.25, device_us=9.0),
            "64 theirs": small("theirs", host_us=52.0),
            "64, graph": small("ours", graph_us=6.0),
        },
    },
}


def test_a_session_is_shown_with_a_table_of_small_calls(page, tmp_path):
    path = page.keep_session(SESSION, tmp_path)
    assert path.name == "pretend-gpu-9000-session.json"
    assert page.kept(tmp_path) == [SESSION]
    shown = page.page([SESSION])
    assert "| copy | ms 1, (0.9 to 1.25) |" in shown
    assert r"| read | failed a \| b c |" in shown
    assert (
        "| rows | dtype | passes | ours, host us | ours, device us | ours, graph us | th" in shown
    )
    assert "| 64 | float16 | with gradients | 41.2 | 9.0 | 6.0 | 52.0 |  |  |" in shown


def test_host_times_are_shown_beside_the_ones_before(page):
    call = {
        "host_us": 30.4, "kernels": ["a", "b"], "launches": 1, "no_views": 4,
        "operations": {"new_empty": 3, "zero_": 1, "view": 2},
    }  # fmt: skip
    host = {"device": "Zen", "python": "3", "torch": "2", "triton": "3", "calls": {"f(x)": call}}
    assert "| f(x) | 30 |  | 3 | 2 | 6 | 4 |" in page.page([host])
    host["before"] = {"f(x)": {"host_us": 81.0}}
    assert "| f(x) | 30 | 81 | 3 | 2 | 6 | 4 |" in page.page([host])
