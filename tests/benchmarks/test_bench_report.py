"""The report: exponents, losses, targets, tables and plots, from figures made up here."""

import json

import pytest

import growth
import report
import tables
from bench_figures import case, entry, results
from growth import Point


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power):
    points = [Point(n, 3e-6 * n**power, 0, 0) for n in (10, 100, 500, 3000)]
    assert growth.exponent(points) == pytest.approx(power)


def test_the_exponent_is_that_of_the_largest_sizes():
    # Overhead of 1 up to 1000 rows, then quadratic.
    points = [Point(n, max(1.0, (n / 1000) ** 2), 0, 0) for n in (10, 100, 1000, 2000, 4000)]
    assert growth.exponent(points) == pytest.approx(2)
    assert growth.exponent(points[:2]) is None


def test_curves_are_cases_that_differ_in_one_size_alone():
    sizes = [case(n=n, ours=n / 1e6) for n in (4000, 1000, 2000)]
    odd = [case(n=1000, d=64), case(n=8000, dtype="float16"), case(n=16000, threads=1)]
    odd.append(case(n=2000, ours=1.0, beside=True))
    (curve,) = growth.curves(results(*sizes, *odd))
    assert (curve.task, curve.axis, curve.fixed["d"]) == ("rows", "n", 384)
    assert [p.size for p in curve.lines["cossim_fast"]] == [1000, 2000, 4000]
    assert curve.floors == {"a read"}
    assert growth.exponent(curve.lines["cossim_fast"]) == pytest.approx(1)
    assert growth.exponent(curve.lines["theirs"]) == pytest.approx(0)


def test_a_contender_that_was_left_out_at_a_size_has_fewer_points():
    cases = [case(n=n) for n in (1000, 2000, 4000)]
    cases[1]["contenders"]["theirs"] = {"left_out": "fails", "floor": False, "approximate": False}
    (curve,) = growth.curves(results(*cases))
    assert [p.size for p in curve.lines["theirs"]] == [1000, 4000]


def test_doubling():
    assert growth.doubling(1.0) == "2.00×"
    assert growth.doubling(0.0) == "1.00×"


def test_a_loss_comes_first_with_its_reason():
    lost = case(ours=2.0, theirs=1.0, why="Because of this.")
    page = tables.full(results(lost), "core.json")
    slower = page.index("## What is slower than a peer")
    assert slower < page.index("## Growth") < page.index("## Targets") < page.index("## Every case")
    reason = page.index("Because of this.\n")
    line = "| paired rows (1000, 384), float32, 2 threads | theirs 0.5× (0.495 to 0.505) |"
    assert slower < reason < page.index(line) < page.index("## Growth")
    lost["why"] = ""
    assert tables.UNEXPLAINED in tables.full(results(lost), "core.json")


def test_floors_and_approximate_contenders_win_no_race():
    found = case()
    found["contenders"]["roughly"] = entry(0.5, approximate=True)
    assert tables.losses(results(found)) == {}
    assert "Nothing, beyond the interval." in tables.full(results(found), "x.json")
    assert tables.losses(results(case(theirs=1.005))) == {}, "within the interval"


def test_a_missed_target_is_said_before_the_table():
    target = {
        "kind": "speed",
        "bound": 3.0,
        "against": "theirs",
        "ours": "cossim_fast",
        "text": "at least 3× as fast as theirs",
        "measured": {"median": 2.0, "low": 1.9, "high": 2.1},
        "reached": False,
    }
    page = tables.full(results(case(targets=[target])), "x.json")
    missed = "Not reached:\n\n- paired rows (1000, 384), float32, 2 threads: at least 3× as fast"
    assert f"{missed} as theirs: 2× (1.9 to 2.1) as fast\n" in page
    assert "0 of 1 targets reached, 1 not" in page


def test_what_was_left_out_or_not_run_is_said():
    gone = case()
    gone["contenders"]["theirs"] = {
        "left_out": "faiss is not installed",
        "floor": False,
        "approximate": False,
    }
    assert "left out: faiss is not installed" in tables.as_text(gone)
    assert "| theirs | left out: faiss is not installed |" in tables.full(results(gone), "x.json")
    absent = case(not_run="torch sees no cuda device", contenders={}, targets=[])
    assert tables.as_text(absent).endswith("not run: torch sees no cuda device")
    assert "Not run: torch sees no cuda device." in tables.full(results(absent), "x.json")


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (2e-6, "2 µs"), (1234.5, "1234 s")]
)
def test_seconds(value, text):
    assert tables.seconds(value) == text


def test_cases_that_came_later_have_conditions_of_their_own():
    new = case(name="a new loss (3, 4), float32, 1 thread")
    found = results(new) | {"environment": results(new)["environment"] | {"commit": "c0ffee"}}
    page = tables.full(results(case()), "full.json", [(found, "later-losses.json")])
    before, after = page.split("## Measured later")
    assert "A new loss" not in before
    assert "From `benchmarks/results/later-losses.json`" in after
    assert "c0ffee" in after
    assert "### A new loss" in after


def test_plots_say_which_figures_they_show_and_grow_stale(tmp_path):
    plots = pytest.importorskip("plots")
    found = results(*(case(n=n, ours=n / 1e6) for n in (1000, 2000, 4000)))
    drawn = plots.draw_all(found, tmp_path)
    assert {path.name for path in drawn} == {"benchmarks-rows.svg", "benchmarks-errors.svg"}
    assert tables.stale_plots(found, tmp_path) == []
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.draw_all(found, tmp_path)] == before
    found["cases"][0]["others_busy"] = 0.01
    assert len(tables.stale_plots(found, tmp_path)) == 2


def test_every_contender_of_a_figure_looks_different():
    plots = pytest.importorskip("plots")
    names = ["cossim_fast", *(f"peer {i}" for i in range(12)), "a floor", "another"]
    floors = frozenset(names[-2:])
    looks = [plots.style(name, names, floors) for name in names]
    # Without colour: by marker, line and width.
    grey = {(str(x.get("marker")), str(x.get("linestyle")), x["linewidth"]) for x in looks}
    assert len(grey) == len(names)


def growing(n, ours, against, power=2):
    target = {"kind": "growth", "bound": 1.1, "against": against, "power": power}
    target |= {"measured": None, "reached": None}
    return case(n=n, ours=ours, targets=[target])


def test_growth_is_judged_against_another_case():
    base = case(n=1000, ours=1.0)
    right, wrong = growing(10000, 105.0, base["name"]), growing(20000, 24.0, base["name"], 1)
    absent = growing(30000, 1.0, "no such case")
    report.judge_growth([base, right, wrong, absent])
    assert right["targets"][0]["measured"]["median"] == pytest.approx(1.05)
    assert right["targets"][0]["reached"] is True
    assert wrong["targets"][0]["measured"]["median"] == pytest.approx(1.2)
    assert wrong["targets"][0]["reached"] is False
    assert absent["targets"][0]["reached"] is None


def test_what_the_same_commit_gave_before_is_kept(tmp_path):
    file = tmp_path / "some.json"
    found = results(case(), case(n=2000) | {"failed": "for once"})
    found["cases"][1]["name"] = "failed"
    file.write_text(json.dumps(found))
    here = {key: value for key, value in found["environment"].items() if key != "minutes"}
    files = [None, tmp_path / "absent.json", file]
    assert list(report.measured_before(files, here)) == [case()["name"]]
    assert report.measured_before(files, here | {"processor": "another"}) == {}
    for commit in ("def", "unknown", "abc with changes"):
        found["environment"]["commit"] = commit
        file.write_text(json.dumps(found))
        assert bool(report.measured_before(files, here | {"commit": commit})) == (commit == "def")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    environment = pytest.importorskip("environment")
    import cases

    monkeypatch.setattr(environment, "describe", lambda device: results()["environment"].copy())
    monkeypatch.setattr(report, "left_out", lambda device: [])
    described = environment.describe("cpu")
    described.pop("minutes")
    monkeypatch.setattr(environment, "describe", lambda device: dict(described))
    chosen = cases.CASES[:3]
    monkeypatch.setattr(cases, "CASES", chosen)
    asked = []

    def measure(wanted):
        asked.append(wanted.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return case() | {"name": wanted.name}

    monkeypatch.setattr(report, "measure", measure)
    path = tmp_path / "full.json"
    with pytest.raises(KeyboardInterrupt):
        report.run(True, "", "cpu", path)
    assert not path.exists()
    assert report.run(True, "", "cpu", path) == 0
    names = [each.name for each in chosen]
    assert asked == [*names, names[2]]
    assert [each["name"] for each in json.loads(path.read_text())["cases"]] == names
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_no_case_has_is_said(tmp_path, monkeypatch, capsys):
    environment = pytest.importorskip("environment")
    monkeypatch.setattr(environment, "describe", lambda device: results()["environment"].copy())
    monkeypatch.setattr(report, "left_out", lambda device: [])
    assert report.run(True, "no such case", "cpu", tmp_path / "full.json") == 2
    assert "'no such case', and there is none" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
