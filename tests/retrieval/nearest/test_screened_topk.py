"""Exact top-k from codes to ranks, by the ops' CPU bodies or by kernels, against brute force."""

import pytest
import torch

from cossim_fast import _ops
from cossim_fast._cpu import topk_ops
from cossim_fast.retrieval.nearest import screened_topk as screened_module
from cossim_fast.retrieval.nearest.screened_topk import screened_topk
from ladder import coding, oracle, screening
from ladder.checks import BF16, F16, F32
from ladder.reach import as_cuda  # noqa: F401  (a fixture)
from ladder.runtime import DEVICE, needs_kernels
from ladder.screening import INT8
from ladder.searching import assert_exact, brute_force, gaussian, search


@pytest.mark.parametrize("screen", [INT8, BF16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, F32, F16, BF16], ids=str)
def test_gaussian_rows(dtype, screen):
    s = screening.screen(*gaussian(7, 3001, 64, dtype), screen)
    found = assert_exact(s, 5, eligible=False)
    assert int(found.rescored.max()) < 1000


def test_nan_queries_and_rows_that_may_not_be_returned():
    assert_exact(screening.example(), 10)


def test_ties_go_to_the_smaller_row_among_duplicates_by_the_hundred():
    queries, corpus, eligible = gaussian(5, 1500, 32)
    corpus[400:1200] = corpus[7]
    queries[0] = corpus[7] * 3
    queries[1] = -corpus[7]
    found = assert_exact(screening.screen(queries, corpus, eligible), 20)
    assert found.rows[0].tolist() == [7, *range(400, 419)]


def test_nothing_but_duplicates_overflows_every_list():
    queries, corpus, eligible = gaussian(5, 1500, 32)
    s = screening.screen(queries, corpus[:1].expand(1500, 32).clone(), eligible)
    found = assert_exact(s, 3, capacity=4)
    assert found.rows.tolist() == [[0, 1, 2]] * 5
    assert found.rescored.tolist() == [1500] * 5


def test_zero_rows_score_zero_and_zero_queries_everything_alike():
    queries, corpus, eligible = gaussian(6, 700, 40)
    corpus[100:300] = 0
    queries[2] = 0
    queries[3] = -corpus[300:].mean(0)
    assert_exact(screening.screen(queries, corpus, eligible), 12)


def test_rows_that_hold_nan_or_infinity_are_never_returned():
    queries, corpus, _ = gaussian(6, 700, 40)
    corpus[3, 5], corpus[64:128, 0], corpus[699, 1] = torch.nan, torch.nan, torch.inf
    assert_exact(screening.screen(queries, corpus, corpus.isfinite().all(1)), 12)


def test_all_scores_negative_and_a_ragged_last_block():
    queries = oracle.inputs(5, 48, dtype=F32).abs()
    corpus = -oracle.inputs(64 * 9 + 5, 48, dtype=F32, seed=1).abs()
    s = screening.screen(queries, corpus, torch.ones(len(corpus), dtype=torch.bool))
    found = assert_exact(s, 4)
    assert float(found.scores.max()) < 0


@pytest.mark.parametrize(("m", "k"), [(1403, 100), (64, 10), (5, 5), (5, 9), (1, 1)])
def test_fewer_blocks_than_k(m, k):
    queries, corpus, eligible = gaussian(4, m, 32)
    eligible[2::3] = False
    assert_exact(screening.screen(queries, corpus, eligible), k)


def test_many_blocks_of_which_few_may_be_returned():
    queries, corpus, eligible = gaussian(4, 2000, 32)
    eligible[:] = False
    eligible[[5, 70, 1999]] = True
    assert_exact(screening.screen(queries, corpus, eligible), 4)


def test_spiky_dimensions_and_tight_cones():
    queries, corpus, eligible = gaussian(5, 2000, 64)
    assert_exact(screening.screen(queries, corpus + 40, eligible), 6)
    queries[:, 3] *= 50
    corpus[:, 3] *= 50
    corpus[:, 9] += 100
    assert_exact(screening.screen(queries, corpus, eligible), 6)


def test_rows_within_rounding_of_each_other():
    queries, corpus, eligible = gaussian(3, 1000, 64, torch.float64)
    corpus = corpus[:1] + 1e-9 * corpus
    assert_exact(screening.screen(queries, corpus, eligible), 6)


@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_lists_that_overflow_are_redone_never_cut(capacity):
    s = screening.screen(*gaussian(9, 4000, 16))
    assert torch.equal(assert_exact(s, 10, capacity=capacity).rows, search(s, 10).rows)


def test_passes_and_pieces_change_nothing(monkeypatch):
    s = screening.screen(*gaussian(9, 2000, 32))
    whole = assert_exact(s, 10)
    monkeypatch.setattr(screened_module, "MAXIMA_AT_ONCE", 100)
    monkeypatch.setattr(screened_module, "ROWS_AT_ONCE", 256)
    for found, expected in zip(search(s, 10), whole, strict=True):
        assert torch.equal(found, expected)


def test_ties_of_queries_that_are_done_again_go_to_the_smaller_row(monkeypatch):
    queries, corpus = gaussian(5, 40, 32)[:2]
    rows = corpus[torch.randint(40, (1500,), generator=torch.Generator().manual_seed(3))]
    monkeypatch.setattr(screened_module, "ROWS_AT_ONCE", 50)
    s = screening.screen(queries, rows, torch.ones(1500, dtype=torch.bool))
    assert_exact(s, 60)
    assert_exact(s, 60, capacity=40)


def test_empty_inputs():
    s = screening.screen(*gaussian(4, 100, 32))
    nobody = screening.screen(s.queries[:0], s.corpus, s.eligible)
    assert search(nobody, 3).rows.shape == (0, 3)
    nothing = screening.screen(s.queries, s.corpus[:0], s.eligible[:0])
    assert search(nothing, 2).rows.tolist() == [[-1, -1]] * 4


def test_an_unsound_residual_is_caught():
    """The check above can fail: bounds that promise too much lose rows."""
    s = screening.screen(*gaussian(20, 4000, 32))
    s.block_terms[1] = 0
    s.query_terms[1] = 0
    with pytest.raises(AssertionError):
        assert_exact(s, 10)


@pytest.mark.parametrize("screen", [INT8, BF16], ids=str)
@pytest.mark.parametrize("shift", [0.0, 0.3, 40.0])
def test_bounds_hold_the_best_cosine_of_each_block(screen, shift):
    s = screening.screen(*gaussian(20, 1403, 67, shift=shift), screen)
    lower, upper = s.bounds()
    best = s.best_of_blocks()
    assert bool((lower.double() <= best).all())
    assert bool((upper.double() >= best).all())
    # And say something: they are no wider than a few residuals.
    assert float((upper - lower).max()) < 0.1


def test_bounds_hold_where_the_codes_err_by_nothing():
    """Rows that are codes exactly: what is left is the rounding of the bound itself."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-127, 128, (640, 48), generator=generator, dtype=INT8)
    product = (z[:320].double() @ z[320:].double().T).int()
    for exponent in range(-3, 4):
        scale = torch.tensor(0.7 * 10.0**exponent)
        norm = torch.linalg.vector_norm(z[:320].double(), dim=1) * scale.double()
        radius = torch.linalg.vector_norm(z[320:].double(), dim=1) / scale.double()
        up = coding.rounded_up
        offset = torch.linspace(-1, 1, 320, dtype=torch.float64)
        zero = torch.zeros(320)
        query_terms = torch.stack([scale.expand(320), zero, up(norm), offset.float()])
        inverse = (1 / scale.double()).float().expand(320)
        block_terms = torch.stack([inverse, zero, up(radius * (1 + 2.0**-20))])
        exact = product.double() * (scale.double() * inverse[0].double()) + offset[:, None]
        bounds = topk_ops.cosine_bounds(product, query_terms[:, :, None], block_terms[:, None])
        assert bool((bounds[0].double() <= exact).all())
        assert bool((bounds[1].double() >= exact).all())
        size = norm[:, None] * radius + offset[:, None].abs()
        assert bool(((bounds[1] - bounds[0]).double() <= 2.0**-19 * size + 2.0**-34).all())


def test_the_margin_is_needed():
    """Without its rounding terms, the bound that the test above checks does not hold."""
    product = torch.arange(2**24, 2**24 + 999, dtype=torch.int32)[:, None]
    query_terms = torch.tensor([0.1, 0, 0, 0])[:, None, None].expand(4, 999, 1)
    block_terms = torch.tensor([0.3, 0, 0])[:, None, None]
    lower, upper = topk_ops.cosine_bounds(product, query_terms, block_terms)
    exact = product.double() * float(torch.tensor(0.1)) * float(torch.tensor(0.3))
    assert bool(((lower.double() > exact) | (upper.double() < exact)).any())


def test_arguments_are_checked():
    s = screening.screen(*gaussian(4, 100, 32))
    with pytest.raises(ValueError, match="expected k >= 1, got 0"):
        search(s, 0)
    with pytest.raises(ValueError, match=r"expected block_terms of shape \(3, 2\)"):
        _ops.block_thresholds(s.maxima, s.query_terms, s.block_terms[:, :1], 1, 4)
    with pytest.raises(ValueError, match="k = 5 and groups = 4"):
        _ops.block_thresholds(s.maxima, s.query_terms, s.block_terms, 5, 4)
    with pytest.raises(ValueError, match="capacity of at least 1, got 0"):
        _ops.block_candidates(s.maxima, s.query_terms, s.block_terms, torch.zeros(4), 0)
    with pytest.raises(ValueError, match=r"expected thresholds of shape \(4,\)"):
        _ops.block_candidates(s.maxima, s.query_terms, s.block_terms, torch.zeros(3), 1)
    many = torch.zeros(1, 1, dtype=torch.int32).expand(2**16, 2**15)
    terms = torch.zeros(4, 1).expand(4, 2**16), torch.zeros(3, 1).expand(3, 2**15)
    with pytest.raises(ValueError, match=r"less than 2\^31 maxima"):
        _ops.block_candidates(many, *terms, torch.zeros(2**16), 1)
    pairs = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"pairs of shape \(p,\) and dtype torch.int32"):
        _ops.best_rows(s.query_codes, s.corpus_codes, pairs.long(), 64, None)
    with pytest.raises(ValueError, match="32 or 64 rows, got 1, whose pairs are rows"):
        _ops.best_rows(s.query_codes, s.corpus_codes, pairs, 1, None)
    with pytest.raises(ValueError, match=r"expected maxima of shape \(n, blocks\)"):
        _ops.block_candidates(s.cosines, s.query_terms, s.block_terms, torch.zeros(4), 1)


@pytest.mark.kernel_logic
@needs_kernels
@pytest.mark.parametrize("screen", [INT8, BF16], ids=str)
@pytest.mark.parametrize(("k", "capacity"), [(5, 256), (5, 2), (40, 256)])
def test_kernels_give_the_same_ranks(k, capacity, screen, as_cuda):  # noqa: F811
    """The very steps, with kernels for the ops: few blocks, many blocks and lists that overflow."""
    s = screening.example(dtype=screen)
    scores, rows = brute_force(s, k)
    inputs = [x.to(DEVICE) for x in (s.queries, s.corpus, s.query_codes, s.query_terms,
                                     s.corpus_codes, s.block_terms, s.eligible)]  # fmt: skip
    found = screened_topk(*inputs[:2], k, *inputs[2:], capacity=capacity)
    assert found.rows.tolist() == rows
    for got, expected in zip(found.scores.tolist(), scores, strict=True):
        # Two processors agree to 2^-48; none of these scores is as close to the next.
        assert got[: len(expected)] == pytest.approx(expected, rel=0, abs=2**-48)
