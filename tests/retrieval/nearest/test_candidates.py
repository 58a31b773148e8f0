"""How candidates are ordered and counted: against the plain way to do it."""

import numpy as np
import pytest

from cossim_fast._numpy import stable_order
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest import candidates
from cossim_fast.retrieval.nearest.candidates import Candidates


def drawn(seed):
    """Groups that stand together, values with ties, rows in any order: (p,) each."""
    draw = np.random.default_rng(seed)
    size = int(draw.integers(0, 200))
    group = np.sort(draw.integers(0, 5, size))
    return group, draw.integers(-4, 4, size) / 3, draw.permutation(size)


@pytest.mark.parametrize("widest", [0, 1 << 20])
@pytest.mark.parametrize("seed", range(50))
def test_ranking(seed, widest, monkeypatch):
    monkeypatch.setattr(tuning, "WIDEST_TABLE", widest)
    group, value, row = drawn(seed)
    assert np.array_equal(
        candidates.ranking(group, value, row, 5), np.lexsort((row, -value, group))
    )


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("seed", range(50))
def test_kth_largest(seed, k):
    group, value, order = drawn(seed)
    group = group[order]  # they need not stand together
    floor = np.random.default_rng(seed).uniform(-2, 1, 5)
    floor[seed % 5] = np.inf
    found = candidates.kth_largest(group, value, k, floor)
    for number in range(5):
        held = np.sort(value[group == number])
        step = (1 + 2.0**-10 - floor[number]) / 64
        if len(held) < k or held[-k] <= floor[number]:
            assert found[number] == -np.inf
        elif held[-k] <= floor[number] + step:
            assert found[number] <= held[-k]
        else:
            # From below, by a step at most: the last one holds what lies above, too.
            least = min(held[-k], 1 + 2.0**-10) - 1.001 * step
            assert least <= found[number] <= held[-k]


def test_one_group_with_nearly_everything_makes_no_wide_table():
    group = np.repeat([0, 1, 999], [3, 100_000, 2])
    value = np.linspace(-1, 1, len(group))
    assert np.array_equal(
        candidates.ranking(group, value, group, 1000), np.lexsort((-value, group))
    )


@pytest.mark.parametrize("most", [1, 1 << 16, 1 << 17, 1 << 40])
def test_stable_order(most):
    numbers = np.random.default_rng(0).integers(0, most, 5000)
    numbers[::7] = numbers[0]
    assert np.array_equal(stable_order(numbers), np.argsort(numbers, kind="stable"))
    assert len(stable_order(numbers[:0])) == 0


def test_candidates_are_taken_and_kept_by_column():
    columns = np.arange(4), np.arange(4) * 10, np.ones(4), np.zeros(4), np.zeros(4, bool)
    some = Candidates(*columns)
    assert some.taken(np.array([3, 1])).row.tolist() == [30, 10]
    assert some.kept(some.query > 1).row.tolist() == [20, 30]
    assert Candidates.concatenate([Candidates.none(), some]).middle().tolist() == [0.5] * 4
