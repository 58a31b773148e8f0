"""Rows above thresholds and floors by the search of a GPU, against brute force."""

import pytest
import torch

from ladder import coding, screening
from ladder.searching import all_scores, gaussian, search, search_range


@pytest.mark.parametrize("above", [0, 1])
def test_rows_below_a_floor_need_not_come_back(above):
    """Every row that reaches its query's floor comes back in its place, few others."""
    s = screening.example()
    k = 10
    whole = search(s, k)
    floors = -coding.rounded_up(-whole.scores[:, 3]).nan_to_num(-torch.inf) + above
    found = search(s, k, floors=floors)
    scores, rows = all_scores(s), found.rows
    for i in range(len(rows)):
        reaching = int((scores[i] >= floors[i].double()).sum())
        assert rows[i, :reaching].tolist() == whole.rows[i, :reaching].tolist()
        assert bool((found.rescored <= whole.rescored).all())
    assert bool((found.thresholds >= floors).all())
    if above:
        assert bool((found.rows == -1)[:-1].all())
        assert bool(found.scores.isnan()[:-1].all())
    nothing_known = search(s, k, floors=torch.full((len(rows),), torch.nan))
    assert torch.equal(nothing_known.rows, whole.rows)


@pytest.mark.parametrize("capacity", [1, 256])
def test_all_rows_that_reach_a_threshold(capacity):
    s = screening.example()
    scores = all_scores(s)
    # One row meets the threshold of each query exactly; three queries have others.
    thresholds = scores.topk(25, dim=1).values[:, -1].contiguous()
    thresholds[0], thresholds[1], thresholds[2] = -torch.inf, torch.inf, torch.nan
    query, row, score = search_range(s, thresholds, capacity=capacity)
    wanted = (scores >= thresholds[:, None]) & (scores > -torch.inf)
    assert torch.stack([query, row], 1).tolist() == wanted.nonzero().tolist()
    assert torch.equal(score, scores[query, row])
    counts = query.bincount(minlength=len(scores)).tolist()
    assert counts == [int(s.eligible.sum()), 0, 0] + [25] * (len(scores) - 4) + [0]


def test_range_of_nothing():
    s = screening.example()
    for nobody in (
        screening.screen(s.queries[:0], s.corpus, s.eligible),
        screening.screen(s.queries, s.corpus[:0], s.eligible[:0]),
    ):
        found = search_range(nobody, torch.zeros(len(nobody.queries), dtype=torch.float64))
        assert [tuple(t.shape) for t in found] == [(0,)] * 3


def test_floors_and_thresholds_are_checked():
    s = screening.screen(*gaussian(4, 100, 32))
    with pytest.raises(ValueError, match=r"floors of shape \(4,\) and dtype torch.float32"):
        search(s, 1, floors=torch.zeros(3))
    with pytest.raises(ValueError, match=r"thresholds of shape \(4,\) and dtype torch.float64"):
        search_range(s, torch.zeros(4))
