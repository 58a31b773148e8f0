"""Embeddings of 8-bit whole numbers: the results of the same numbers in float32."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, communities, deduplicate, iter_pairs_above, pairs_above, topk

DRAWN = np.random.default_rng(0)


@pytest.fixture(params=[np.int8, np.uint8])
def x(request):
    limits = np.iinfo(request.param)
    rows = DRAWN.integers(limits.min, limits.max + 1, (300, 40)).astype(request.param)
    rows[0], rows[1, ::2] = limits.max, limits.min
    rows[290:] = rows[:10]
    return rows


def same(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_searches_and_joins(x):
    wide = x.astype(np.float32)
    same(topk(x[:20], x, 5), topk(wide[:20], wide, 5))
    same(topk(wide[:20], x, 5), topk(wide[:20], wide, 5))
    same(topk(x[:20], iter([x[:100], x[100:]]), 5), topk(wide[:20], wide, 5))
    same(pairs_above(x, threshold=0.3), pairs_above(wide, threshold=0.3))
    same(pairs_above(x[:50], x, 0.3), pairs_above(wide[:50], wide, 0.3))
    found = [np.concatenate(some) for some in zip(*iter_pairs_above(x, threshold=0.3), strict=True)]
    assert len(found[0]) == len(pairs_above(wide, threshold=0.3).i)
    same(deduplicate(x, 0.3), deduplicate(wide, 0.3))
    assert [some.tolist() for some in communities(x, 0.3, min_size=3)] == [
        some.tolist() for some in communities(wide, 0.3, min_size=3)
    ]


def test_an_index_and_its_file(x, tmp_path):
    expected = topk(x[:20].astype(np.float32), x.astype(np.float32), 5)
    index = CosineIndex(x[:200])
    index.add(torch.from_numpy(x[200:]))
    same(index.search(x[:20], 5), expected)
    index.save(tmp_path / "x.index")
    same(CosineIndex.load(tmp_path / "x.index").search(x[:20], 5), expected)


def test_a_memory_map(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = topk(x[:20].astype(np.float32), x.astype(np.float32), 5)
    same(topk(x[:20], mapped, 5), expected)
    same(CosineIndex(mapped).search(x[:20], 5), expected)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.bool])
def test_other_whole_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match="float64, int8 or uint8, got"):
        topk(torch.ones(3, 4).to(dtype), torch.ones(3, 4), 1)
