"""The facts of a pair against brute force, and how a report reads."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cossim_fast import diagnose
from cossim_fast.diagnose import chance, geometry, memory


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force_overlap(a, b):
    def addresses(x):
        size = x.element_size()
        for index in itertools.product(*map(range, x.shape)):
            offset = sum(i * s for i, s in zip(index, x.stride(), strict=True))
            yield from range(x.data_ptr() + offset * size, x.data_ptr() + (offset + 1) * size)

    return not set(addresses(a)).isdisjoint(addresses(b))


X = randn(12, 10)
VIEWS = {
    "all": X,
    "flat": X.view(-1),
    "even rows": X[::2],
    "odd rows": X[1::2],
    "left": X[:, :5],
    "right": X[:, 5:],
    "transposed tail": X.T[7:],
    "first row expanded": X[:1].expand(4, 10),
    "every third number": X.view(-1)[::3],
    "every third from 1": X.view(-1)[1::3],
    "one number": X[3, 4],
    "a copy": X.clone(),
    "as bytes": X.view(torch.uint8)[5:6],
}


@pytest.mark.parametrize(("one", "two"), [*itertools.combinations(VIEWS, 2)])
def test_overlap_is_that_of_the_addresses(one, two):
    a, b = VIEWS[one], VIEWS[two]
    assert memory.overlaps(a, b) == brute_force_overlap(a, b)


@pytest.mark.parametrize(("one", "two"), [*itertools.combinations_with_replacement(VIEWS, 2)])
def test_places_that_both_read_are_counted(one, two):
    a, b = VIEWS[one], VIEWS[two]
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        return
    x, y = a.expand(shape), b.expand(shape)
    same = np.zeros(shape, dtype=bool)
    for index in itertools.product(*map(range, shape)):
        same[index] = a.dtype == b.dtype and x[index].data_ptr() == y[index].data_ptr()
    assert memory.same_elements(a, b, tuple(shape)) == same.sum()
    for dim in range(len(shape)):
        assert memory.same_rows(a, b, tuple(shape), dim) == same.all(dim).sum()


def test_an_overlap_at_other_places_is_a_remark():
    x = randn(20, 64)
    report = diagnose.pair(x[:-1], x[1:])
    assert (report.finding, report.also) == ("none", ())
    assert "no row is compared with itself" in report.facts.remarks[0]
    assert "no row is compared with itself" in " ".join(str(report).split())


def test_same_storage_is_told_from_overlap():
    first, second = randn(8, 4).chunk(2)
    facts = diagnose.pair(first, second).facts
    assert facts.same_storage
    assert not facts.overlapping


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_cosines_match_the_formula(dtype, dim):
    a, b = randn(5, 6, 7).to(dtype), randn(5, 6, 7, seed=1).to(dtype)
    x, y = (t.double().movedim(dim, -1).reshape(-1, t.shape[dim]).numpy() for t in (a, b))
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    facts = diagnose.pair(a, b, dim=dim).facts
    np.testing.assert_allclose(
        facts.exact, (cosines.min(), cosines.mean(), cosines.max()), rtol=1e-12, atol=1e-14
    )
    torch_says = F.cosine_similarity(a, b, dim=dim).double()
    assert facts.torch[1] == pytest.approx(float(torch_says.mean()), abs=torch.finfo(dtype).eps)
    assert facts.route_failures == 0


def test_centred_cosines_match_numpy():
    a, b = (randn(9, 30) + 2).double(), (randn(9, 30, seed=1) + 2).double()
    facts = diagnose.pair(a, b).facts
    pearson = np.mean([np.corrcoef(u, v)[0, 1] for u, v in zip(a.numpy(), b.numpy(), strict=True)])
    assert facts.cosine_less_feature_mean == pytest.approx(pearson, abs=1e-12)
    u, v = F.normalize(a), F.normalize(b)
    mean = torch.cat([u, v]).mean(0)
    less = float(F.cosine_similarity(u - mean, v - mean).mean())
    assert facts.cosine_less_batch_mean == pytest.approx(1 - (1 - less) * 17 / 18, abs=1e-12)


def test_blocks_do_not_change_the_facts(monkeypatch):
    a, b = randn(50, 16), randn(50, 16, seed=1)
    whole = diagnose.pair(a, b).facts
    monkeypatch.setattr("cossim_fast.diagnose.rowstats._BLOCK", 64)
    parts = diagnose.pair(a, b).facts
    assert parts.exact == pytest.approx(whole.exact, abs=1e-14)
    assert parts.cosine_less_batch_mean == pytest.approx(whole.cosine_less_batch_mean, abs=1e-13)


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (randn(3, 4), randn(3, 5), ValueError, r"broadcast with a of shape \(3, 4\), got \(3, 5\)"),
        (torch.empty(0, 4), torch.empty(0, 4), ValueError, "at least one element"),
        (torch.empty(4, 0), torch.empty(4, 0), ValueError, "at least one element"),
        (torch.ones(3, dtype=torch.complex64), randn(3), TypeError, "real numbers, got torch.com"),
        (torch.eye(3).to_sparse(), torch.eye(3), TypeError, "to_dense"),
        (torch.empty(3, device="meta"), torch.empty(3, device="meta"), TypeError, "meta"),
        ("words", randn(3), TypeError, "a to be a tensor or an array of numbers, got str"),
        (None, randn(3), TypeError, "got NoneType"),
    ],
)
def test_errors_say_what_was_expected(a, b, error, words):
    with pytest.raises(error, match=words):
        diagnose.pair(a, b)


@pytest.mark.parametrize("shape", [(16, 512, 1, 1), (5, 7, 32), (6, 8), (9, 3, 2)])
def test_the_axis_is_that_of_torch(shape):
    a, b = randn(*shape), randn(*shape, seed=1)
    facts = diagnose.pair(a, b).facts
    assert facts.exact[1] == pytest.approx(float(F.cosine_similarity(a, b).mean()), abs=1e-6)
    assert facts.features == shape[1]


def test_dim_out_of_range():
    with pytest.raises(IndexError, match=r"expected dim in \[-2, 1\], got 2"):
        diagnose.pair(randn(3, 4), randn(3, 4), dim=2)


def test_inputs_are_left_alone():
    a = randn(4, 5).requires_grad_()
    before = a.detach().clone()
    diagnose.pair(a, a * 2)
    assert torch.equal(a, before)
    assert a.grad is None


def test_read_only_memory_map(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 5)))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert diagnose.pair(x[:3], x[3:]).finding == "none"
    assert diagnose.pair(x, x[:]).finding == "shared_storage"


@pytest.mark.parametrize(
    ("one", "two", "dim", "words"),
    [
        ((64, 1), (64,), 1, "a of shape (64, 1) has size 1 along dim=1"),
        ((64,), (64, 1), -1, "b of shape (64, 1) has size 1 along dim=-1"),
        ((64, 1), (64,), 0, "b of shape (64,) has size 1 along dim=0"),
        ((8, 12, 1), (8, 12, 64), 2, "stretched to 64 elements"),
        ((32, 1, 64), (32, 64), -1, "every row is compared with every row"),
    ],
)
def test_a_side_that_was_stretched_is_named(one, two, dim, words):
    report = diagnose.pair(randn(*one).abs(), randn(*two, seed=1).abs(), dim=dim)
    assert report.finding == "broadcast"
    assert words in report.evidence


def test_rows_that_meet_several_are_remarked_on():
    tokens = randn(8, 12, 64)
    report = diagnose.pair(tokens.mean(1, keepdim=True), randn(8, 12, 64, seed=1), dim=-1)
    assert "12 along axis 1" in report.facts.remarks[-1]
    assert "8 along axis 0" in diagnose.pair(tokens.mean(0), tokens, dim=-1).facts.remarks[-1]
    assert diagnose.pair(randn(64), randn(5, 64, seed=1)).facts.remarks == ()


def test_a_vector_broadcasts_with_a_batch():
    report = diagnose.pair(randn(8), randn(5, 8, seed=1))
    assert report.facts.rows == 5
    assert report.finding == "none"


@pytest.mark.parametrize("factor", [2.0, 0.1, 1e-3, 3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_multiples_are_found_through_rounding(factor, dtype):
    a = randn(16, 32).double() / 10
    report = diagnose.pair(a.to(dtype), (factor * a).to(dtype))
    assert report.finding == "positive_multiple"
    assert report.facts.factor == pytest.approx((factor, factor), rel=0.02)


def test_all_that_holds_is_reported_by_the_rows_it_explains():
    x = randn(6, 8)
    x[0] = 0
    x[1] = float("nan")
    report = diagnose.pair(x, x)
    assert [report.finding, *report.also] == [
        "same_object",
        "equal_values",
        "non_finite",
        "zero_rows",
    ]
    assert [finding.rows for finding in report.findings] == [6, 5, 1, 1]


def test_one_bad_row_hides_nothing():
    features = randn(64, 32)
    features[5] = 0
    report = diagnose.pair(features, features.clone())
    assert (report.finding, report.also) == ("equal_values", ("zero_rows",))
    monitor = diagnose.CollapseMonitor(every=1)
    with pytest.warns(diagnose.CollapseWarning, match="equal_values"):
        monitor.compare(features, features.clone())


def test_report_reads_like_a_note():
    text = str(diagnose.pair([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]))
    assert text.startswith("pair: positive_multiple\n")
    words = " ".join(text.split())
    assert "Cosine looks at direction alone" in words
    assert "b = 2 a" in words
    assert max(map(len, text.splitlines())) <= 100


def test_report_serves_logs_and_notebooks():
    report = diagnose.pair(randn(3, 4), randn(3, 4, seed=1))
    logged = json.loads(json.dumps(report.to_dict()))
    assert logged["finding"] == "none"
    assert logged["exact"] == list(report.facts.exact)
    fragment = report._repr_html_()
    assert "<code>none</code>" in fragment
    assert fragment.count("<table>") == fragment.count("</table>") == 2


@pytest.mark.parametrize("dims", [2, 3, 5, 40, 5000])
def test_chance_of_a_cosine_is_that_of_draws(dims):
    draws = 40_000
    u = F.normalize(randn(draws, dims), dim=1)[:, 0] if dims < 1000 else randn(draws) / dims**0.5
    for cosine in (0.0, 0.3 / dims**0.5, 1 / dims**0.5):
        seen = float((u >= cosine).float().mean())
        assert chance.tail(cosine, dims) == pytest.approx(seen, abs=4 / (2 * math.sqrt(draws)))


def test_matched_set_keeps_the_spectrum_alone():
    x = randn(40, 12).double()
    x -= x.mean(0)
    values = geometry.singular_values(x)
    drawn = chance.matched(40, values, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.svdvals(drawn), values)
    torch.testing.assert_close(
        drawn.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-12, rtol=0
    )
