"""Products in float64 in place of scores: the same bits wherever they are taken, few are left."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins import dense
from cossim_fast.retrieval.screening.codes import centre_of, encode

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def made(kind, n, d, dtype, g):
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if kind == "cone":
        x = 1 + 1e-3 * x
    elif kind == "copies":
        x = x[:1] * 2.0 ** torch.randint(-3, 4, (n, 1), generator=g)
    elif kind == "one of each":  # cosines of 0 and of a few values
        x = x.sign() * (x.abs() > 0.8)
    elif kind == "zeros and no numbers":
        x[::3] = 0
        x[1::5, -1] = torch.nan
        x[2::7, 0] = torch.inf
    elif kind == "large and small":
        x *= 10.0 ** torch.randint(-4, 4, (n, d), generator=g)
    return x.to(dtype)


def both(q, x, threshold, double, after=None):
    """(q, n) whether a pair is listed and its score; the true scores."""
    wide = widen(q)
    unit = wide.unit()
    unit[~wide.norms.isfinite()] = torch.nan
    first = 3
    segment = encode(x, centre_of(x), first=first, codes=False)
    some = slice(0, len(x))
    query, row, found = dense.pairs_above(
        unit, segment, some, threshold, double=double, after=after
    )
    assert found.dtype == (torch.float64 if double else torch.float32)
    keys = query * len(x) + row
    assert (keys.diff() > 0).all()
    listed = torch.zeros(len(q), len(x), dtype=torch.bool)
    listed[query, row] = True
    scores = torch.full(listed.shape, torch.nan, dtype=found.dtype)
    scores[query, row] = found
    pairs = torch.cartesian_prod(torch.arange(len(q)), torch.arange(len(x))).view(-1, 2)
    exact = score_pairs(wide, x, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
    exact = exact.view(len(q), len(x))
    if after is not None:
        exact[torch.arange(len(x)) + first <= after[:, None]] = torch.nan
    return listed, scores, exact


KINDS = ["random", "cone", "copies", "one of each", "zeros and no numbers", "large and small"]


@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    q=st.integers(1, 12),
    n=st.integers(1, 40),
    d=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    where=st.sampled_from(["a score", "just above", "just below", "any"]),
    any_threshold=st.floats(-1, 1),
    at_a_time=st.sampled_from([1, 500, 1 << 18]),
)
def test_what_is_decided_is_the_score(kind, dtype, q, n, d, seed, where, any_threshold, at_a_time):
    g = torch.Generator().manual_seed(seed)
    asked, x = made(kind, q, d, dtype, g), made(kind, n, d, dtype, g)
    exact = both(asked, x, -1.0, double=False)[2]
    some = exact[exact.isfinite()]
    threshold = any_threshold
    if len(some) and where != "any":
        score = float(some[seed % len(some)])
        aside = {"a score": score, "just above": 2.0, "just below": -2.0}[where]
        threshold = min(max(math.nextafter(score, aside), -1.0), 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "DENSE_NUMBERS", at_a_time)
        after = torch.randint(0, n + 6, (q,), generator=g) if seed % 2 else None
        listed, scores, exact = both(asked, x, threshold, double=False, after=after)
        assert not listed[exact.isnan()].any()
        assert listed[exact >= threshold].all()
        sure = listed & ~scores.isnan()
        assert torch.equal(scores[sure], exact[sure].float())
        assert (exact[sure] >= threshold).all()
        # No score in float64 is taken from a product.
        listed, scores, exact = both(asked, x, threshold, double=True, after=after)
        assert listed[exact >= threshold].all()
        assert scores.isnan().all()


@pytest.mark.parametrize("d", [1, 7, 128, 129, 384, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_within_their_error(kind, d):
    g = torch.Generator().manual_seed(d)
    x = made(kind, 60, d, torch.float32, g)
    pairs = torch.cartesian_prod(torch.arange(60), torch.arange(60))
    wide = widen(x)
    exact = score_pairs(wide, x, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
    product = (wide.unit() @ wide.unit().mT).view(-1)
    off = (product - exact)[exact.isfinite()].abs()
    assert off.max() <= dense.product_error(d)


def test_few_are_left_to_be_scored():
    g = torch.Generator().manual_seed(0)
    for kind in ("random", "cone", "copies"):
        q, x = made(kind, 500, 384, torch.float32, g), made(kind, 2000, 384, torch.float32, g)
        unit = widen(q).unit()
        segment = encode(x, centre_of(x), codes=False)
        *_, scores = dense.pairs_above(unit, segment, slice(0, 2000), -1.0, double=False)
        assert len(scores) == 500 * 2000
        assert scores.isnan().sum() < 1000
