"""Arguments of the registered ops, which anyone can call."""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast._checks.functions import drop_in_dtype, pairwise_arguments
from cossim_fast._checks.tensors import COMPUTED

LONGEST_CODE = 133_000  # 127 * 127 * d < 2^31
SCREEN_BLOCKS = (1, 32, 64)


def paired_rows(x: Tensor, y: Tensor) -> torch.dtype:
    """Check the pair of a row-wise op; return the dtype of its result."""
    if x.dim() != 2 or x.shape != y.shape or x.device != y.device:
        raise ValueError(
            "expected x and y of one shape (n, d) on one device, "
            f"got {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}"
        )
    return drop_in_dtype(x, y)


def batched_rows(x: Tensor, y: Tensor, eps: float, precision: str) -> torch.dtype:
    """Check the arguments of a matrix op; return the dtype of its result."""
    if x.dim() != 3:
        raise ValueError(f"expected x of shape (b, n, d), got {tuple(x.shape)}")
    return pairwise_arguments(x, y, eps, precision)


def coded_rows(rows: Tensor, centre: Tensor) -> None:
    """Check the arguments of the op that codes rows for the int8 screen."""
    if rows.dim() != 2 or centre.shape != rows.shape[1:]:
        raise ValueError(
            "expected rows of shape (n, d) and a centre of shape (d,), "
            f"got {tuple(rows.shape)} and {tuple(centre.shape)}"
        )
    if not rows.dtype.is_floating_point or centre.dtype != torch.float32:
        raise TypeError(
            f"expected floating rows and a float32 centre, got {rows.dtype} and {centre.dtype}"
        )
    if rows.shape[1] > LONGEST_CODE:
        raise ValueError(
            f"expected d <= {LONGEST_CODE}, whose sums of codes fit int32, got d = {rows.shape[1]}"
        )


def scanned_rows(queries: Tensor, rows: Tensor) -> None:
    """Check the arguments of the op that scans rows as they are."""
    if queries.dim() != 2 or rows.dim() != 2 or queries.shape[1] != rows.shape[1]:
        raise ValueError(
            "expected queries of shape (q, d) and rows of shape (n, d), "
            f"got {tuple(queries.shape)} and {tuple(rows.shape)}"
        )
    if queries.dtype != torch.float32 or rows.dtype not in COMPUTED:
        raise TypeError(
            f"expected float32 queries and floating rows, got {queries.dtype} and {rows.dtype}"
        )


def screen(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> torch.dtype:
    """Check the arguments of the block-maximum screen; return the dtype of its result."""
    if queries.dim() != 2 or corpus.dim() != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            "expected queries of shape (n, d) and corpus of shape (m, d), "
            f"got {tuple(queries.shape)} and {tuple(corpus.shape)}"
        )
    if queries.dtype != corpus.dtype or queries.dtype not in (torch.int8, torch.bfloat16):
        raise TypeError(
            "expected queries and corpus both int8 or both bfloat16, "
            f"got {queries.dtype} and {corpus.dtype}"
        )
    if queries.dtype == torch.int8 and queries.shape[1] > LONGEST_CODE:
        raise ValueError(
            f"expected int8 codes of d <= {LONGEST_CODE}, whose sums fit int32, "
            f"got d = {queries.shape[1]}; screen in bfloat16"
        )
    if block not in SCREEN_BLOCKS:
        raise ValueError(f"expected a block of 1, 32 or 64 rows, got {block}")
    if eligible is not None and (
        eligible.shape != corpus.shape[:1] or eligible.dtype != torch.bool
    ):
        raise ValueError(
            f"expected eligible of shape ({corpus.shape[0]},) and dtype torch.bool, "
            f"got {tuple(eligible.shape)} and {eligible.dtype}"
        )
    return torch.int32 if queries.dtype == torch.int8 else torch.float32


def candidates(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> None:
    """Check the arguments of the rescoring of candidate pairs."""
    if queries.dim() != 2 or corpus.dim() != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            "expected queries of shape (n, d) and corpus of shape (m, d), "
            f"got {tuple(queries.shape)} and {tuple(corpus.shape)}"
        )
    if queries.dtype not in COMPUTED or corpus.dtype not in COMPUTED:
        raise TypeError(
            f"expected floating queries and corpus, got {queries.dtype} and {corpus.dtype}"
        )
    pairs(query_index, corpus_index)


def bound_terms(
    n: int, blocks: int, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor | None = None
) -> None:
    """Check the terms of the bounds of n queries and so many blocks."""
    for name, terms, shape in (
        ("query_terms", query_terms, (4, n)),
        ("block_terms", block_terms, (3, blocks)),
        ("thresholds", thresholds, (n,)),
    ):
        if terms is not None and (tuple(terms.shape) != shape or terms.dtype != torch.float32):
            raise ValueError(
                f"expected {name} of shape {shape} and dtype torch.float32, "
                f"got {tuple(terms.shape)} and {terms.dtype}"
            )


def query_values(name: str, values: Tensor, queries: Tensor, dtype: torch.dtype) -> None:
    """Check values of which each query has one."""
    if values.shape != queries.shape[:1] or values.dtype != dtype:
        raise ValueError(
            f"expected {name} of shape ({queries.shape[0]},) and dtype {dtype}, "
            f"got {tuple(values.shape)} and {values.dtype}"
        )


def block_maxima(maxima: Tensor) -> None:
    """Check the result of the block-maximum screen."""
    if maxima.dim() != 2 or maxima.dtype not in (torch.int32, torch.float32):
        raise ValueError(
            "expected maxima of shape (n, blocks) and dtype torch.int32 or torch.float32, "
            f"got {tuple(maxima.shape)} and {maxima.dtype}"
        )


def block_thresholds(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, k: int, groups: int
) -> None:
    """Check the arguments of the thresholds of a screen."""
    block_maxima(maxima)
    bound_terms(maxima.shape[0], maxima.shape[1], query_terms, block_terms)
    if not 1 <= k <= groups:
        raise ValueError(f"expected 1 <= k <= groups, got k = {k} and groups = {groups}")


def block_candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> None:
    """Check the arguments of the list of candidate blocks."""
    block_maxima(maxima)
    bound_terms(maxima.shape[0], maxima.shape[1], query_terms, block_terms, thresholds)
    at_least_one(capacity)
    if maxima.shape[0] * maxima.shape[1] >= 2**31:
        raise ValueError(
            "expected less than 2^31 maxima, whose pairs fit int32, "
            f"got {tuple(maxima.shape)}; pass fewer queries at once"
        )


def at_least_one(capacity: int) -> None:
    """Check the length of a list that an op fills."""
    if capacity < 1:
        raise ValueError(f"expected a capacity of at least 1, got {capacity}")


def recheck(
    queries: Tensor, corpus: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor,
    pairs: Tensor, block: int, eligible: Tensor | None, capacity: int,
) -> None:  # fmt: skip
    """Check the arguments of the row-by-row check of candidate blocks."""
    best_rows(queries, corpus, pairs, block, eligible)
    blocks = (corpus.shape[0] + block - 1) // block
    bound_terms(queries.shape[0], blocks, query_terms, block_terms, thresholds)
    at_least_one(capacity)


def best_rows(
    queries: Tensor, corpus: Tensor, pairs: Tensor, block: int, eligible: Tensor | None
) -> None:
    """Check the arguments of the choice of one row of each candidate block."""
    screen(queries, corpus, block, eligible)
    if block == 1:
        raise ValueError("expected a block of 32 or 64 rows, got 1, whose pairs are rows")
    if pairs.dim() != 1 or pairs.dtype != torch.int32:
        raise ValueError(
            "expected pairs of shape (p,) and dtype torch.int32, "
            f"got {tuple(pairs.shape)} and {pairs.dtype}"
        )


def pairs(query_index: Tensor, other_index: Tensor) -> None:
    """Check the two lists of a list of pairs."""
    if query_index.dim() != 1 or query_index.shape != other_index.shape:
        raise ValueError(
            "expected two lists of indices of one shape (p,), "
            f"got {tuple(query_index.shape)} and {tuple(other_index.shape)}"
        )
    if query_index.dtype != torch.int64 or other_index.dtype != torch.int64:
        raise TypeError(
            f"expected indices of torch.int64, got {query_index.dtype} and {other_index.dtype}"
        )
