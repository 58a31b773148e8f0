"""Deduplication replayed from the pairs of blocks: the bits of `deduplicate`."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cossim_fast import deduplicate
from cossim_fast.distributed import replay
from cossim_fast.distributed.copies import digests, find_copies
from cossim_fast.distributed.pairs import join_block
from cossim_fast.retrieval import Deduplicated
from cossim_fast.retrieval.blocks import visiting_order
from search_data import make
from split_rows import SplitRows, ranges


def in_blocks(
    x, threshold, keep="first", *, spans=None, cuts=(), collapse=True, most_pairs=1 << 24
):
    """Deduplicate as a cluster does: digests, blocks of a join in a bad order, a replay."""
    n, rows = len(x), SplitRows(x, cuts)
    spans = spans or [(0, n)]
    order = visiting_order(keep, n)
    copies = None
    if collapse:
        found = [(first, digests(rows, first, stop)) for first, stop in spans]
        copies = find_copies(lambda: found, n, order)
    without = None if copies is None else copies.rows
    pairs = [
        join_block(rows, spans[a], rows, spans[b], threshold, True, without=without)
        for a in range(len(spans))
        for b in range(a, len(spans))
    ]
    blocks = [replay.PairBlock(partial(lambda p: p, p), len(p.i)) for p in pairs[::-1]]
    return replay.deduplicate(
        blocks, n, order=order, copies=copies, double=x.dtype == torch.float64,
        most_pairs=most_pairs,
    )  # fmt: skip


def assert_same(found, expected):
    for name in Deduplicated._fields:
        got, wanted = getattr(found, name), getattr(expected, name).numpy()
        assert got.dtype == wanted.dtype, name
        assert got.tobytes() == wanted.tobytes(), name


def hard_rows(n, kind, dtype, seed):
    """Rows of a kind, of which some are copies, scaled copies and near copies of others."""
    _, x = make(kind, n, 6, 4, torch.float32)
    draw = torch.Generator().manual_seed(seed)
    share = 2 * n // 3
    which = torch.randint(0, n, (share,), generator=draw)
    to = torch.randperm(n, generator=draw)[:share]
    how = torch.randint(0, 3, (share, 1), generator=draw)
    moved = x[which] + 0.05 * torch.randn(share, 6, generator=draw)
    x[to] = torch.where(how == 0, x[which], torch.where(how == 1, 2 * x[which], moved))
    return x.to(dtype)


@settings(max_examples=80)
@given(data=st.data())
def test_bits_are_those_of_the_local_function(data):
    n = data.draw(st.integers(1, 120))
    kind = data.draw(st.sampled_from(["gaussian", "holes", "clustered", "cone", "duplicates"]))
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    x = hard_rows(n, kind, dtype, data.draw(st.integers(0, 5)))
    threshold = data.draw(st.sampled_from([1.0, 0.98, 0.9, 0.6, 0.0, -0.5]))
    keep = data.draw(
        st.sampled_from(["first", "last"])
        | st.lists(st.integers(0, 9), min_size=n, max_size=n).map(np.array)
    )
    spans = ranges(n, data.draw(st.lists(st.integers(0, n), max_size=3)))
    most = data.draw(st.sampled_from([1, 20, 1 << 24]))
    collapse = data.draw(st.booleans())
    found = in_blocks(x, threshold, keep, spans=spans, collapse=collapse, most_pairs=most)
    assert_same(found, deduplicate(x, threshold, keep=keep))


@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_copy_may_be_nearer_to_a_row_kept_after_the_first_of_its_kind(keep):
    """Row 1 is dropped for row 0; its copy, row 3, is nearer to row 2, which is kept."""
    turned = torch.tensor([0.0, 0.30, 0.55, 0.30, 0.30])
    x = torch.stack([turned.cos(), turned.sin()], 1)
    x = x if keep == "first" else x.flip(0)
    threshold = float(np.cos(0.31))
    expected = deduplicate(x, threshold, keep=keep)
    assert len(set(expected.representatives.tolist())) == 2
    assert_same(in_blocks(x, threshold, keep), expected)
    assert_same(in_blocks(x, threshold, keep, most_pairs=1), expected)


def test_copies_make_no_pairs():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).repeat(2000, 1)
    rows = SplitRows(x)
    copies = find_copies(lambda: [(0, digests(rows, 0, 6000))], 6000)
    assert copies.rows.tolist() == list(range(3, 6000))
    assert copies.firsts.tolist() == [i % 3 for i in range(3, 6000)]
    assert not len(join_block(rows, (0, 6000), rows, (0, 6000), 0.99, True, without=copies.rows).i)
    assert_same(in_blocks(x, 0.99, spans=[(0, 100), (100, 6000)]), deduplicate(x, 0.99))


def test_what_is_no_copy():
    """Zeros score 0, NaN nothing, a scaled row differs byte by byte, and so does -0."""
    x = torch.zeros(9, 2)
    x[2:4] = torch.nan
    x[4:6] = torch.inf
    x[6] = torch.tensor([1.0, 0.0])
    x[7] = torch.tensor([2.0, 0.0])
    x[8] = torch.tensor([1.0, -0.0])
    assert not len(find_copies(lambda: [(0, digests(SplitRows(x), 0, 9))], 9).rows)
    assert not len(find_copies(lambda: [(0, digests(SplitRows(x[:6]), 0, 6))], 6).rows)
    assert not len(find_copies(list, 0).rows)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_copies_of_every_dtype_in_parts(dtype, monkeypatch):
    monkeypatch.setattr("cossim_fast.distributed.copies._SORTED", 10)
    x = torch.arange(1, 21).view(10, 2).to(dtype)[[0, 1, 2, 3, 1, 1, 4, 0, 5, 6, 7, 7, 9, 8, 9]]
    blocks = [(at, digests(SplitRows(x, (4,)), at, min(at + 6, 15))) for at in (0, 6, 12)]
    found = find_copies(lambda: blocks, 15)
    assert found.rows.tolist() == [4, 5, 7, 11, 14]
    assert found.firsts.tolist() == [1, 1, 0, 10, 12]
    found = find_copies(lambda: blocks, 15, np.arange(14, -1, -1))
    assert found.rows.tolist() == [0, 1, 4, 10, 12]
    assert found.firsts.tolist() == [7, 5, 5, 11, 14]


def test_blocks_are_read_again_only_for_the_rows_they_have(monkeypatch):
    x = hard_rows(400, "clustered", torch.float32, 0)
    rows, spans, reads = SplitRows(x), ranges(400, (100, 200, 300)), []
    pairs = [
        join_block(rows, spans[a], rows, spans[b], 0.9, True) for a in range(4) for b in range(a, 4)
    ]

    def read(number):
        reads.append(number)
        return pairs[number]

    blocks = [replay.PairBlock(partial(read, at), len(p.i)) for at, p in enumerate(pairs)]
    most = sum(block.pairs for block in blocks) // 4
    assert_same(replay.deduplicate(blocks, 400, most_pairs=most), deduplicate(x, 0.9))
    assert len(blocks) < len(reads) < 5 * len(blocks)
