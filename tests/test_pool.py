"""How candidates are ordered and counted: against the plain way to do it."""

import numpy as np
import pytest
import torch

from cossim_fast._cpu_screen import stable_order
from cossim_fast.retrieval import pool
from cossim_fast.retrieval.pool import Candidates, Pool


def drawn(seed):
    """Groups that stand together, values with ties, rows in any order: (p,) each."""
    draw = np.random.default_rng(seed)
    size = int(draw.integers(0, 200))
    group = np.sort(draw.integers(0, 5, size))
    return group, draw.integers(-4, 4, size) / 3, draw.permutation(size)


@pytest.mark.parametrize("widest", [0, 1 << 20])
@pytest.mark.parametrize("seed", range(50))
def test_ranking(seed, widest, monkeypatch):
    monkeypatch.setattr(pool, "WIDEST_TABLE", widest)
    group, value, row = drawn(seed)
    assert np.array_equal(pool.ranking(group, value, row, 5), np.lexsort((row, -value, group)))


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("seed", range(50))
def test_kth_largest(seed, k):
    group, value, order = drawn(seed)
    group = group[order]  # they need not stand together
    floor = np.random.default_rng(seed).uniform(-2, 1, 5)
    floor[seed % 5] = np.inf
    found = pool.kth_largest(group, value, k, floor)
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
    assert np.array_equal(pool.ranking(group, value, group, 1000), np.lexsort((-value, group)))


@pytest.mark.parametrize("most", [1, 1 << 16, 1 << 17, 1 << 40])
def test_stable_order(most):
    numbers = np.random.default_rng(0).integers(0, most, 5000)
    numbers[::7] = numbers[0]
    assert np.array_equal(stable_order(numbers), np.argsort(numbers, kind="stable"))
    assert len(stable_order(numbers[:0])) == 0


def test_what_misses_a_raised_threshold_is_dropped_and_noted():
    held = Pool(2, 2, guess=False, certify=True)
    query = np.array([1, 0, 1, 1, 0])
    middle = np.array([0.9, 0.2, 0.5, 0.1, 0.3])
    held.add(query, np.arange(5), middle + 0.01, middle - 0.01)
    held.raise_thresholds(5, 5)
    assert held.threshold[0] <= 0.19
    assert held.threshold[1] <= 0.49
    assert held.threshold.tolist() == pytest.approx([0.19, 0.49], abs=0.05)
    assert len(held) == 4
    assert held.excluded.tolist() == [-torch.inf, pytest.approx(0.11)]
    assert held.pending == 0


class Known:
    """Scores that were drawn before; how many were asked for."""

    error = 1e-12

    def __init__(self, scores, likely):
        self.scores, self.likely, self.asked = scores, likely, 0

    def near(self, query, row):
        self.asked += len(query)
        return self.exact(query, row)

    def exact(self, query, row):
        return self.scores[query, row]


@pytest.mark.parametrize("lean", ["by chance", "all one way", "best ones down, others up"])
@pytest.mark.parametrize("likely", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_the_best_are_kept_however_the_errors_lean(k, likely, lean):
    draw = np.random.default_rng(k)
    scores = draw.uniform(-0.5, 0.9, (3, 40))
    scores[1] = 0.7  # ties, in the order of rows
    off = draw.normal(0, 0.1, scores.shape)
    if lean != "by chance":
        off = np.full(scores.shape, 0.19)
    if lean == "best ones down, others up":
        off *= np.where(scores > np.quantile(scores, 0.8, axis=1, keepdims=True), -1, 1)
    middle = scores + off.clip(-0.19, 0.19)
    query, row = np.divmod(draw.permutation(120), 40)
    held, known = Pool(3, k), Known(torch.from_numpy(scores), likely)
    held.add(query, row, middle[query, row] + 0.2, middle[query, row] - 0.2)
    held.settle(known, exact=True)
    best, rows = np.full((3, k), np.nan), np.full((3, k), -1)
    held.best(best, rows)
    order = np.lexsort((np.arange(40) + 0 * scores, -scores), axis=1)[:, :k]
    assert np.array_equal(rows, order)
    assert np.array_equal(best, np.take_along_axis(scores, order, 1))
    assert not len(held.refuted())
    assert int(held.rescored.sum()) == known.asked


def test_candidates_are_taken_and_kept_by_column():
    columns = np.arange(4), np.arange(4) * 10, np.ones(4), np.zeros(4), np.zeros(4, bool)
    some = Candidates(*columns)
    assert some.taken(np.array([3, 1])).row.tolist() == [30, 10]
    assert some.kept(some.query > 1).row.tolist() == [20, 30]
    assert Candidates.join([Candidates.none(), some]).middle().tolist() == [0.5] * 4
