"""Near scores: scores of many pairs at once, within a tiny error bound of `score_pairs`.

`score_pairs` gathers both rows of every pair and sums their products in a fixed order: 0.8 µs a
pair of 384 (Zen 3). torch's sampled product (`sampled_addmm`, the product of two matrices at given
places) sums in any order, and widens each row only once for all its queries: 0.3 µs a pair where a
row has several, of which the product takes 0.1. The error bound is so small that near scores nearly
always suffice to order two rows, or to round a score to float32.
"""

from __future__ import annotations

import functools
import itertools
import warnings

import numpy as np
import torch
from torch import Tensor

from cossim_fast._numpy import stable_order
from cossim_fast._score.exact import WideRows, or_one, score_pairs, widened
from cossim_fast._threads import unforked

# [pairs] Fewer are scored exactly; preparing a sampled product takes as long as 100 of them.
_FEWEST = 256
# [rows per row] A range of rows is read without a gather if at least one in so many is wanted.
_RANGE_PER_ROW = 2
# [runs] Up to so many runs of ascending rows are scored one after the other, not sorted first.
_RUNS = 8
# [pairs] Sorted by their rows at a time; 48 bytes each.
_PAIRS = 1 << 20
# [numbers] Of the rows that are widened at a time; 2 MB of float64. Zen 5, 256 000 pairs of 256
# queries, ns a pair: twice as many 55, these 50, half 54. Zen 4: 64 to 1365 rows took the same.
_NUMBERS = 1 << 18


def near_error(d: int) -> float:
    """Largest difference between a near score and the score, for rows of d numbers.

    Both divide a sum of d products by the same norms. Each sum is off by at most d + 1 roundings
    of 2^-53 of sum |q_i x_i| <= |q| |x| (Higham, Accuracy and Stability, 2002, eq. 3.5), whatever
    the order; norms by d / 2 + 2 of themselves, which matters to second order; two divisions a
    rounding each; and the score of copies was moved by 4 roundings (`exact._of_copies`). Twice
    d + 6 of them, and 1 / 16 more for the second order.
    """
    return 2.125 * (d + 6) * 2.0**-53


def near_scores(
    queries: WideRows,
    corpus: Tensor,
    query_index: Tensor,
    corpus_index: Tensor,
    corpus_norms: Tensor,
) -> Tensor:
    """Scores (p,) in float64 of pairs, within `near_error` of those of `score_pairs`.

    Args:
        queries: (q, d) from `widen`.
        corpus: (m, d), in the dtype that is stored.
        query_index: (p,) int64.
        corpus_index: (p,) int64, in any order.
        corpus_norms: `row_norms` of the corpus (m,).
    """
    pairs = query_index.numel()
    if pairs < _FEWEST or not sampled_product_works():
        return score_pairs(queries, corpus, query_index, corpus_index, corpus_norms)
    if pairs > _PAIRS:
        parts = zip(query_index.split(_PAIRS), corpus_index.split(_PAIRS), strict=True)
        return torch.cat([near_scores(queries, corpus, *part, corpus_norms) for part in parts])
    falls = np.flatnonzero(np.diff(corpus_index.numpy()) < 0) + 1
    if len(falls) > _RUNS:
        # By numpy: torch's indexing takes five times as long.
        order = stable_order(corpus_index.numpy())
        query = torch.from_numpy(query_index.numpy().take(order))
        row = torch.from_numpy(corpus_index.numpy().take(order))
        found = np.empty(pairs)
        found[order] = _sums(queries.rows, corpus, query, row).numpy()
        sums = torch.from_numpy(found)
    else:
        ends = itertools.pairwise([0, *falls.tolist(), pairs])
        runs = [(query_index[begin:end], corpus_index[begin:end]) for begin, end in ends]
        sums = torch.cat([_sums(queries.rows, corpus, *run) for run in runs])
    # index_select takes a fifth of the time of indexing.
    norms = or_one(queries.norms).index_select(0, query_index)
    norms.mul_(or_one(corpus_norms.index_select(0, corpus_index)))
    return sums.div_(norms).clamp_(-1.0, 1.0)


def _sums(queries: Tensor, corpus: Tensor, query: Tensor, row: Tensor) -> Tensor:
    """Sums (p,) in float64 of the products of queries[query] and corpus[row]; rows ascend."""
    numbers = row.numpy()
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    low, count = int(numbers[0]), int(numbers[-1]) + 1 - int(numbers[0])
    if _RANGE_PER_ROW * len(begins) >= count:
        # Reading rows that are not wanted takes less time than gathering those that are.
        count_of = np.bincount(numbers - low, minlength=count)
        first, rows = np.append(0, count_of.cumsum()), None
        corpus = corpus[low : low + count]
    else:
        first, rows = np.append(begins, len(numbers)), torch.from_numpy(numbers.take(begins))
        count = len(begins)
    sums = torch.empty(len(numbers), dtype=torch.float64, device="cpu")
    step = min(max(_NUMBERS // max(corpus.shape[1], 1), 1), count)
    # Memory that stays: to find pages anew for every step took a third of the time.
    wide = torch.empty((step, corpus.shape[1]), dtype=torch.float64, device="cpu")
    stored = torch.empty_like(wide, dtype=corpus.dtype)
    for start in range(0, count, step):
        size = min(step, count - start)
        begin, end = int(first[start]), int(first[start + size])
        places = torch.from_numpy(first[start : start + size + 1] - begin)
        if rows is None:
            some = corpus[start : start + size]
        else:
            some = torch.index_select(corpus, 0, rows[start : start + size], out=stored[:size])
        exact = widened(some, out=wide[:size])
        sums[begin:end] = _sampled(exact, queries, places, query[begin:end])
    return sums


def float32_scores(
    queries: WideRows,
    corpus: Tensor,
    query_index: Tensor,
    corpus_index: Tensor,
    corpus_norms: Tensor,
    threshold: float,
) -> Tensor:
    """Numbers (p,) in float64 that may replace the scores of pairs where float32 is returned.

    They round to the same float32 as the scores, and reach the threshold if and only if the scores
    do. Arguments as in `near_scores`.
    """
    pairs, error = (query_index, corpus_index), near_error(corpus.shape[1])
    near = near_scores(queries, corpus, *pairs, corpus_norms)
    unsure = undecided(near, error) | ((near - threshold).abs() <= 2 * error)
    places = unsure.nonzero()[:, 0]
    if places.numel():
        near[places] = score_pairs(
            queries, corpus, query_index[places], corpus_index[places], corpus_norms
        )
    return near


def undecided(near: Tensor, error: float) -> Tensor:
    """Which near scores may round to another float32 than the score; True for NaN."""
    return (near - error).float() != (near + error).float()


def _sampled(rows: Tensor, queries: Tensor, places: Tensor, query: Tensor) -> Tensor:
    """Sums (p,) of products of rows[i] and the queries at query[places[i] : places[i + 1]]."""
    size = len(rows), len(queries)
    zeros = torch.zeros(len(query), dtype=rows.dtype, device="cpu")
    pattern = torch.sparse_csr_tensor(
        places, query, zeros, size, dtype=zeros.dtype, device="cpu", check_invariants=False
    )
    found: Tensor = unforked(torch.sparse.sampled_addmm, pattern, rows, queries.mT, beta=0.0)
    return found.values()


@functools.cache
def sampled_product_works() -> bool:
    """Whether this build of torch has a sampled product on CPU, and it keeps the bound."""
    d = 67
    numbers = torch.linspace(-1, 1, 5 * d, dtype=torch.float64, device="cpu").sin().view(5, d)
    rows, queries = numbers[:2], numbers[2:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # once: that sparse tensors in rows are in beta state
            places, query = (
                torch.tensor(each, dtype=torch.int64, device="cpu")
                for each in ([0, 1, 3], [2, 0, 2])
            )
            found = _sampled(rows, queries, places, query)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    exact = (rows @ queries.mT)[[0, 1, 1], [2, 0, 2]]
    return bool((found - exact).abs().amax() <= near_error(d) * d)
