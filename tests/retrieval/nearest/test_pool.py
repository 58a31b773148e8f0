"""What a pool keeps, and what it proves too low."""

import numpy as np
import pytest
import torch

from cossim_fast.retrieval.nearest.pool import Pool


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
    assert held.dropped_bound.tolist() == [-torch.inf, pytest.approx(0.11)]
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
    held.finalize(known, exact=True)
    best, rows = np.full((3, k), np.nan), np.full((3, k), -1)
    held.best(best, rows)
    order = np.lexsort((np.arange(40) + 0 * scores, -scores), axis=1)[:, :k]
    assert np.array_equal(rows, order)
    assert np.array_equal(best, np.take_along_axis(scores, order, 1))
    assert not len(held.refuted())
    assert int(held.rescored.sum()) == known.asked
