"""The comparison of two commits: its verdicts, and one real comparison of a tree with itself."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import compare

ROOT = Path(compare.__file__).parent.parent


def noisy(middle, noise, seed, rounds=compare.ROUNDS):
    draw = random.Random(seed)
    return [middle * (1 + noise * draw.random()) for _ in range(rounds)]


@pytest.mark.parametrize(
    ("base", "tree", "verdict"),
    [
        (1.0, 0.8, "faster"),
        (1.0, 1.25, "slower"),
        (1.0, 1.0, "no difference"),
        (1.0, 1.005, "no difference"),
    ],
)
def test_verdicts(base, tree, verdict):
    assert compare.compare(noisy(base, 0.05, 1), noisy(tree, 0.05, 2)).verdict == verdict


def test_noise_larger_than_the_difference_hides_it():
    assert compare.compare(noisy(1.0, 0.9, 1), noisy(0.97, 0.9, 2)).verdict == "no difference"


def test_equal_sides_are_hardly_ever_called_different():
    verdicts = [
        compare.compare(noisy(1.0, 0.5, seed), noisy(1.0, 0.5, seed + 1000)).verdict
        for seed in range(300)
    ]
    assert verdicts.count("no difference") >= 290


def test_a_machine_that_slows_down_slows_both():
    drift = [1 + 0.2 * i for i in range(compare.ROUNDS)]
    outcome = compare.compare([2 * x for x in drift], drift)
    assert outcome.speed == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert outcome.verdict == "faster"


def test_the_package_of_a_commit_is_laid_out_as_it_is_installed(tmp_path):
    inside = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, check=False
    )
    if inside.returncode:
        pytest.skip("not a git checkout")
    for revision in ("HEAD", None):
        folder = tmp_path / str(revision)
        folder.mkdir()
        compare.lay_out(revision, folder)
        assert (folder / "cossim_fast" / "functional.py").is_file()
        assert (folder / "cossim_fast" / "kernels" / "tiles.py").is_file()
        assert [path.name for path in folder.iterdir()] == ["cossim_fast"]


def test_a_side_measures_its_own_copy_and_says_what_it_cannot(tmp_path):
    folder = compare.lay_out(None, tmp_path)
    side = compare.Side(folder)
    try:
        assert side.ask("prepare", "paired rows (1, 8), float32, 2 threads") > 0
        assert side.ask("sample", 10) > 0
        with pytest.raises(RuntimeError, match="ValueError"):
            side.ask("prepare", "no such case")
        # A copy that gives wrong answers is not timed.
        broken = folder / "cossim_fast" / "__init__.py"
        broken.write_text(
            broken.read_text(encoding="utf-8")
            + "\ndef cosine_similarity(x, y, dim=1, eps=1e-8):\n    return x.sum(dim) * 0 + 2\n",
            encoding="utf-8",
        )
        wrong = compare.Side(folder)
        try:
            with pytest.raises(RuntimeError, match="wrong by"):
                wrong.ask("prepare", "paired rows (1, 8), float32, 2 threads")
        finally:
            wrong.close()
    finally:
        side.close()
    assert side.process.returncode == 0


def test_a_side_with_another_package_is_refused(tmp_path):
    (tmp_path / "cossim_fast").mkdir()
    with pytest.raises(RuntimeError, match="expected the package of"):
        compare.Side(tmp_path)


def test_without_a_base_it_says_so():
    done = subprocess.run(
        [sys.executable, compare.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected a commit" in done.stderr
