"""What stands for a number, a sequence of ids or priorities, and what only looks like one."""

import datetime

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, communities, deduplicate, pairs_above, topk

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
TWICE = torch.cat([X, X])
DAYS = [datetime.date(2020, 1, 1) + datetime.timedelta(3 * day % 40) for day in range(40)]


@pytest.mark.parametrize(
    "three",
    [np.int64(3), np.int32(3), np.uint8(3), np.array(3), torch.tensor(3), np.uint64(3)],
    ids=repr,
)
def test_whole_numbers_of_numpy_and_torch(three):
    assert topk(X, X, three).indices.tolist() == topk(X, X, 3).indices.tolist()
    index = CosineIndex(X)
    assert index.search(X, three).indices.tolist() == index.search(X, 3).indices.tolist()
    assert len(pairs_above(TWICE, threshold=1.0, max_pairs=three * 10).i) == 20
    assert communities(TWICE, 0.99, min_size=three) == []


@pytest.mark.parametrize(
    "k", [3.0, np.float64(3), True, np.bool_(True), torch.tensor(True), "3", None, torch.ones(2)]
)
def test_what_is_no_whole_number(k):
    with pytest.raises(TypeError, match="expected k to be an int"):
        topk(X, X, k)


@pytest.mark.parametrize(
    "keep",
    [
        DAYS,
        np.array(DAYS),
        np.array(DAYS, "datetime64[D]"),
        np.array(DAYS, "datetime64[ns]"),
        np.array(DAYS, "datetime64[s]") - np.datetime64("2020-01-01"),
        [day - DAYS[0] for day in DAYS],
        [datetime.datetime(d.year, d.month, d.day, tzinfo=datetime.timezone.utc) for d in DAYS],
        [2**63 + day.toordinal() for day in DAYS],
        np.array([day.toordinal() for day in DAYS], np.longlong),
    ],
    ids=lambda keep: f"{type(keep).__name__}-{getattr(keep, 'dtype', type(keep[0]).__name__)}",
)
def test_dates_as_priorities(keep):
    expected = deduplicate(TWICE, 0.99, keep=[day.toordinal() for day in DAYS])
    assert len(expected.kept) == 20
    assert expected.kept.tolist() not in (list(range(20)), list(range(20, 40)))
    for got, wanted in zip(deduplicate(TWICE, 0.99, keep=keep), expected, strict=True):
        assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("keep", "error", "why"),
    [
        (np.array(["NaT"] * 40, "datetime64[s]"), ValueError, "NaT"),
        ([*DAYS[:39], DAYS[0] - DAYS[1]], TypeError, "dates of one kind"),
        ([*DAYS[:39], datetime.datetime(2020, 1, 1)], TypeError, "dates of one kind"),
        (DAYS[:39], TypeError, "keep"),
        ([*DAYS[:39], None], TypeError, "keep"),
        (["2020-01-01"] * 40, TypeError, "keep"),
    ],
)
def test_what_is_no_priority(keep, error, why):
    with pytest.raises(error, match=why):
        deduplicate(TWICE, 0.99, keep=keep)


@pytest.mark.parametrize("ids", ["u0", b"u0", 100, np.int64(100), {"u0": 1}, 2.5])
def test_what_is_no_sequence_of_ids(ids):
    named = CosineIndex(X, [f"u{row}" for row in range(20)])
    for call in (
        lambda: named.search(X, 3, exclude=ids),
        lambda: named.range_search(X, 0.5, exclude=ids),
        lambda: named.remove(ids),
        lambda: CosineIndex(X, ids),
        lambda: named.add(X[:1], ids),
    ):
        with pytest.raises(TypeError, match="to be a sequence"):
            call()


def test_ids_beyond_64_bits():
    for call in (
        lambda: CosineIndex(X[:1], [2**64 - 1]),
        lambda: CosineIndex(X).remove([2**64 - 1]),
        lambda: CosineIndex(X).search(X, 3, exclude=[2**64 - 1]),
        lambda: CosineIndex(X).search(X, 3, exclude=[[2**64 - 1]] * 20),
    ):
        with pytest.raises(ValueError, match=r"from -2\*\*63"):
            call()
