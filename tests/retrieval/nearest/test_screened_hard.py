"""The search of a GPU on rows that were drawn to be hard, against brute force."""

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cossim_fast.retrieval.nearest import screened_topk as screened_module
from ladder import coding, screening
from ladder.checks import F32
from ladder.screening import Screen
from ladder.searching import all_scores, search, search_range


@st.composite
def screens(draw) -> Screen:
    """Few different rows, so that ties abound; zeros, NaN queries, rows that may not come back."""
    n, m, d = draw(st.integers(1, 6)), draw(st.integers(1, 300)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=F32)

    different = draw(st.sampled_from([1, 3, 40, m]))
    corpus = normal(different, d) + draw(st.sampled_from([0.0, 0.5, 30.0]))
    corpus = corpus[torch.randint(different, (m,), generator=generator)]
    queries = normal(n, d)
    if draw(st.booleans()):
        queries[0] = 2 * corpus[0]
    if draw(st.booleans()):
        corpus[:: draw(st.integers(1, 5))], queries[-1] = 0, 0
    if draw(st.booleans()):
        queries[n // 2, 0] = torch.nan
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    eligible = torch.rand(m, generator=generator, dtype=F32) < share
    return screening.screen(queries, corpus, eligible)


# Of passes and of what is done again at once.
sizes = st.fixed_dictionaries(
    {
        "MAXIMA_AT_ONCE": st.sampled_from([7, 2**26, 2**26]),
        "ROWS_AT_ONCE": st.sampled_from([90, 2**22, 2**22]),
    }
)
capacities = st.sampled_from([None, 1, 2, 5, 70])


def ranked(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (n, m), best first and ties to the smaller row, and the rows; -1 beyond the last."""
    scores, rows = scores.sort(dim=1, descending=True, stable=True)
    return scores, rows.masked_fill(scores == -torch.inf, -1)


@settings(max_examples=100, deadline=None)
@given(
    s=screens(), k=st.integers(1, 330), capacity=capacities, sizes=sizes, floor=st.integers(0, 9)
)
def test_the_best_rows(s, k, capacity, sizes, floor):
    scores, rows = ranked(all_scores(s))
    m = scores.shape[1]
    with mock.patch.multiple(screened_module, **sizes):
        found = search(s, k, capacity=capacity)
    padded = torch.nn.functional.pad(rows[:, :k], (0, max(0, k - m)), value=-1)
    assert found.rows.tolist() == padded.tolist()
    at = found.rows >= 0
    assert torch.equal(found.scores[at], scores[:, :k][at[:, :m]])
    assert bool(found.scores[~at].isnan().all())

    # The scores of some row each, rounded down: what reaches them stands where it stood.
    floors = -coding.rounded_up(-scores[:, min(floor, m - 1)])
    with mock.patch.multiple(screened_module, **sizes):
        above = search(s, k, capacity=capacity, floors=floors)
    reaching = (found.scores >= floors[:, None].double()) & at
    assert torch.equal(above.rows[reaching], found.rows[reaching])
    assert torch.equal(above.scores[reaching], found.scores[reaching])
    assert bool((above.rescored <= found.rescored).all())


@settings(max_examples=100, deadline=None)
@given(screens(), capacities, sizes, st.integers(0, 299))
def test_all_rows_above_a_threshold(s, capacity, sizes, rank):
    scores = all_scores(s)
    thresholds = ranked(scores)[0][:, min(rank, scores.shape[1] - 1)].contiguous()
    with mock.patch.multiple(screened_module, **sizes):
        query, row, score = search_range(s, thresholds, capacity=capacity)
    wanted = (scores >= thresholds[:, None]) & (scores > -torch.inf)
    assert torch.stack([query, row], 1).tolist() == wanted.nonzero().tolist()
    assert torch.equal(score, scores[query, row])
