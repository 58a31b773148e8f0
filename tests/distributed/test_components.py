"""Connected components of pairs in blocks, against a walk through the graph."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast.distributed.components import connected_components


def walked(i, j, n):
    """The smallest row that can be reached from each."""
    beside = [[] for _ in range(n)]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        beside[a].append(b)
        beside[b].append(a)
    label = [-1] * n
    for row in range(n):
        waiting = [row] if label[row] < 0 else []
        while waiting:
            at = waiting.pop()
            if label[at] < 0:
                label[at] = row
                waiting += beside[at]
    return label


def cut(i, j, sizes):
    ends = np.cumsum(sizes)
    return zip(np.split(i, ends), np.split(j, ends), strict=True)


@given(data=st.data())
def test_any_pairs_in_any_blocks(data):
    n = data.draw(st.integers(1, 60))
    row = st.integers(0, n - 1)
    pairs = data.draw(st.lists(st.tuples(row, row), max_size=80))
    i, j = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    sizes = data.draw(st.lists(st.integers(0, 20), max_size=6))
    found = connected_components(cut(i, j, sizes), n)
    assert found.dtype == np.int64
    assert found.tolist() == walked(i, j, n)


@pytest.mark.parametrize("shape", ["chain", "star", "tree"])
def test_a_long_way_to_the_smallest(shape):
    n, draw = 20000, np.random.default_rng(0)
    name = draw.permutation(n)
    others = np.arange(1, n)
    linked = {"chain": others - 1, "star": np.zeros_like(others), "tree": others // 2}[shape]
    order = draw.permutation(n - 1)
    i, j = name[others][order], name[linked][order]
    assert not connected_components(cut(i, j, [3000, 1, 9000]), n).any()


def test_no_pairs():
    assert connected_components([], 4).tolist() == [0, 1, 2, 3]
    assert connected_components([], 0).tolist() == []
