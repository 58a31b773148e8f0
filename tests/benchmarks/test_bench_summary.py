"""README's rows of figures: the cases they name, wins and losses alike, and a GPU's."""

import fnmatch

import pytest

import report
import summary
from bench_figures import case, results

JOIN = dict(summary.ROWS)["join"].replace("*", "4000")
# Of two contenders named here, one answers another question and one does less.
GPU = {
    "device": "A GPU",
    "cases": {
        "pairwise, float16": {
            "shapes": {"x": [8, 4], "y": [6, 4]},
            "contenders": {
                "cossim_fast, highest": {"median_ms": 2.0},
                "cossim_fast, medium": {"median_ms": 0.5},
                "normalize and matmul": {"median_ms": 3.0},
                "normalize and matmul, compiled": {"median_ms": 1.0},
                "matmul alone": {"median_ms": 0.25},
            },
        }
    },
}


def test_a_row_shows_both_times_their_ratio_and_memory():
    named = case(ours=2.0, theirs=1.0, name=JOIN)
    named["contenders"]["cossim_fast"]["peak_bytes"] = 1_500_000
    named["contenders"]["theirs"]["peak_bytes"] = 300_000
    text = summary.text(results(named, case(n=7)), [])
    (line,) = (line for line in text.splitlines() if line.startswith("| join"))
    times = "2 s | 1 s theirs | 0.5× (0.495 to 0.505)"
    assert line == f"| join | {JOIN} | {times} | 1.5 and 0.3 MB |"
    assert "A peer is faster in 1 of the 2 cases" in text
    assert "(7, 384)" not in text, "a case that no row names"


def test_a_gpus_row_is_beside_the_fastest_that_does_as_much():
    text = summary.text(results(case()), [GPU])
    both = "2 ms | 1 ms normalize and matmul, compiled | 0.5×"
    sizes = "pairwise, float16 (8, 4) with (6, 4)"
    assert f"| matrix on GPU | {sizes}, A GPU | {both} | - |" in text
    assert "| on one A GPU | ours |" in text
    assert f"| {sizes} | {both} |" in text


def test_every_row_names_a_case_that_is_measured():
    cases = pytest.importorskip("cases")
    named = dict(summary.ROWS)
    assert len(summary.ROWS) == 8
    assert named.pop(summary.GPU) in summary.ON_GPU
    # The memory of peers is measured in headline cases alone.
    shown = [one.name for one in cases.CASES if one.headline]
    for name in named.values():
        assert len(fnmatch.filter(shown, name)) == 1, name


def test_every_row_of_a_gpu_was_measured():
    assert report.gpus()
    for gpu in report.gpus():
        assert set(summary.ON_GPU) <= set(gpu["cases"])


def test_no_line_is_long():
    assert max(len(line) for line in summary.text(results(case()), [GPU]).splitlines()) <= 300


def test_the_picture_says_which_figures_it_shows(tmp_path):
    plots = pytest.importorskip("plots")
    rows = results(case(name=JOIN, theirs=3.0))
    path = summary.picture(rows, [GPU], tmp_path)
    assert path.name == summary.PICTURE
    assert summary.tables.stale_plots(rows, tmp_path, also=(path.name,)) == [plots.tables.ERRORS]
    before = path.read_bytes()
    assert summary.picture(rows, [GPU], tmp_path).read_bytes() == before
