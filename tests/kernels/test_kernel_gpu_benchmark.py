"""The GPU benchmark as far as it goes without one: a dry run with a clock that is handed in."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_dry_run_writes_a_report_with_the_devices_name(gpu, tmp_path, monkeypatch):
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
    assert gpu.kept(tmp_path) == [written]
    shown = gpu.page([written])
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


def test_the_committed_page_is_the_committed_figures(gpu):
    assert gpu.PAGE.read_text(encoding="utf-8") == gpu.page(gpu.kept())
