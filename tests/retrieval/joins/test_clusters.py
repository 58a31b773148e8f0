"""`deduplicate` and `communities` against their definitions, followed step by step in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cossim_fast import communities, deduplicate
from cossim_fast._score.exact import row_norms, score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins import clusters as clusters_module


def matrix(x):
    """Scores of all pairs in float64, and as they are returned."""
    n = len(x)
    i, j = (index.flatten() for index in torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"))
    scores = score_pairs(widen(x), x, i, j).view(n, n)
    return scores, scores if x.dtype == torch.float64 else scores.float()


def deduplicated(x, threshold, order):
    scores, shown = matrix(x)
    kept, dropped = [], {}
    for row in order:
        near = [k for k in kept if scores[k, row] >= threshold]
        if near:
            # max returns the first of equal ones, and kept is in the order of keeping.
            dropped[row] = max(near, key=lambda k: shown[k, row])
        else:
            kept.append(row)
    rows = sorted(dropped)
    return sorted(kept), rows, [dropped[r] for r in rows], [shown[dropped[r], r] for r in rows]


def communities_of(x, threshold, min_size):
    scores, shown = matrix(x)
    n = len(x)
    near = scores >= threshold
    norms = row_norms(x)
    itself = norms.isfinite() & ((norms > 0) | (threshold <= 0))
    near[torch.arange(n), torch.arange(n)] = itself
    used, found = set(), []
    counts = near.sum(1)
    for centre in sorted(range(n), key=lambda row: (-counts[row], row)):
        if counts[centre] < min_size or centre in used:
            continue
        others = [r for r in range(n) if near[centre, r] and r != centre and r not in used]
        if 1 + len(others) >= min_size:
            found.append([centre, *sorted(others, key=lambda r: (-shown[centre, r], r))])
            used.update(found[-1])
    return sorted(found, key=len, reverse=True)


def clusters(n, d, spread, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(n // 9, 1), d, generator=g)
    chosen = torch.randint(len(centres), (n,), generator=g)
    x = (centres[chosen] + spread * torch.randn(n, d, generator=g)).to(dtype)
    x[n // 3 : n // 3 + n // 10] = x[0]
    x[n // 2 : n // 2 + 3] = 0
    x[n // 2 + 5, 0] = torch.nan
    return x


@pytest.fixture(params=["one round", "many rounds"])
def _rounds(request, monkeypatch):
    if request.param == "many rounds":
        monkeypatch.setattr(tuning, "FIRST_ROUND", 16)
        monkeypatch.setattr(tuning, "LONGEST_ROUND", 64)
        monkeypatch.setattr(tuning, "ROUND_BATCH", 8)
        monkeypatch.setattr(tuning, "ROUND_PAIRS", 200)
        monkeypatch.setattr(clusters_module, "KEPT_PAIRS", 10)


@pytest.mark.usefixtures("_rounds")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", [-1, 0, 0.7, 0.97])
class TestAgainstTheDefinition:
    @pytest.mark.parametrize("keep", ["first", "last", "priorities"])
    def test_deduplicate(self, threshold, dtype, keep):
        x = clusters(150, 12, 0.2, dtype)
        n = len(x)
        priorities = torch.randint(0, 9, (n,), generator=torch.Generator().manual_seed(0))
        order = {
            "first": range(n),
            "last": range(n - 1, -1, -1),
            "priorities": sorted(range(n), key=lambda row: (-priorities[row], row)),
        }[keep]
        found = deduplicate(x, threshold, keep=priorities if keep == "priorities" else keep)
        kept, dropped, representatives, scores = deduplicated(x, threshold, order)
        assert found.kept.tolist() == kept
        assert found.dropped.tolist() == dropped
        assert found.representatives.tolist() == representatives
        assert found.scores.tolist() == [float(score) for score in scores]
        assert found.scores.dtype == (dtype if dtype == torch.float64 else torch.float32)

    @pytest.mark.parametrize("min_size", [1, 2, 6])
    def test_communities(self, threshold, dtype, min_size):
        x = clusters(120, 12, 0.2, dtype)
        found = [community.tolist() for community in communities(x, threshold, min_size)]
        assert found == communities_of(x, threshold, min_size)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(12, 60),
    threshold=st.floats(-1, 1),
    spread=st.floats(0, 1),
    min_size=st.integers(1, 8),
    kept=st.sampled_from([0, 1 << 20]),
    room=st.integers(10, 500),
    seed=st.integers(0, 2**31),
)
def test_any_input(n, threshold, spread, min_size, kept, room, seed):
    x = clusters(n, 5, spread, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "ROUND_PAIRS", room)
        patch.setattr(tuning, "ROUND_BATCH", 8)
        patch.setattr(clusters_module, "KEPT_PAIRS", kept)
        found = deduplicate(x, threshold)
        grouped = communities(x, threshold, min_size)
    wanted = deduplicated(x, threshold, range(n))
    assert (found.kept.tolist(), found.dropped.tolist(), found.representatives.tolist()) == (
        wanted[:3]
    )
    assert [community.tolist() for community in grouped] == communities_of(x, threshold, min_size)


def test_all_duplicates_are_one_group():
    x = torch.ones(20_000, 8) * torch.rand(20_000, 1).add_(0.5)
    found = deduplicate(x, 0.999)
    assert found.kept.tolist() == [0]
    assert found.representatives.unique().tolist() == [0]
    assert torch.equal(found.scores, torch.ones(19_999))
    (community,) = communities(x[:3000], 0.999, 10)
    assert community.tolist() == list(range(3000))


def test_arrays_give_arrays(tmp_path):
    np.save(tmp_path / "x.npy", clusters(100, 8, 0.1).numpy())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    for column in deduplicate(x, 0.9, keep=np.arange(100)):
        assert type(column) is np.ndarray
    assert {type(community) for community in communities(x, 0.9, 2)} == {np.ndarray}
    assert len(communities(x, 0.9, 2)) > 1


def test_nothing_gives_nothing():
    assert [len(column) for column in deduplicate(torch.empty(0, 3), 0.5)] == [0, 0, 0, 0]
    assert communities(torch.empty(0, 3), 0.5, 1) == []
    assert communities(torch.eye(3), 0.5, 4) == []


BAD = {
    "keep": ({"keep": "best"}, ValueError, "keep to be 'first', 'last' or an array of priorities"),
    "priorities": ({"keep": [1.0, 2.0]}, ValueError, r"keep of shape \(3,\), got \(2,\)"),
    "NaN": ({"keep": [1.0, 2.0, float("nan")]}, ValueError, "keep holds NaN"),
    "screen": ({"screen": "int4"}, ValueError, "screen to be one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_of_deduplicate(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        deduplicate(torch.eye(3), 0.5, **options)


def test_bad_arguments_of_both():
    for function, more in ((deduplicate, ()), (communities, (2,))):
        with pytest.raises(ValueError, match=r"threshold in \[-1, 1\]"):
            function(torch.eye(3), 1.5, *more)
        with pytest.raises(ValueError, match=r"x of shape \(n, d\)"):
            function(torch.ones(3), 0.5, *more)
    with pytest.raises(ValueError, match="min_size >= 1"):
        communities(torch.eye(3), 0.5, 0)
    with pytest.raises(TypeError, match="min_size to be an int"):
        communities(torch.eye(3), 0.5, 2.0)
