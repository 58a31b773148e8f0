"""Top-k among the rows that each query may find, in a corpus that is not coded: `topk(where=)`.

Queries that may find the same rows are searched together, in one of three ways:

- few pairs are scored one by one;
- else the rows are gathered, a block at a time, and searched as a corpus of their own: all others
  are never read;
- several sets that each hold most rows share the coding of all rows, and the others are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest.allowed import (
    Selection,
    by_mask,
    by_rows,
    by_size,
    mask_of,
    nothing_found,
    pairs_of,
    put,
    rank,
)
from cossim_fast.retrieval.nearest.batches import Batches
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best
from cossim_fast.retrieval.screening.codes import centre_of, encode
from cossim_fast.retrieval.storage.corpus import NUMBERS, ArrayCorpus
from cossim_fast.retrieval.storage.ids import named_rows


def selections(where: Any, queries: int, n: int) -> list[Selection]:
    """Read ``where`` as `topk` takes it, and put queries that may find the same rows together.

    Raises:
        TypeError: it is neither a mask nor numbers of rows.
        ValueError: its shape does not match, or there is no such row.
    """
    mask = mask_of(where)
    if mask is not None:
        _checks.row_mask(mask, queries, n, "as the rows of the corpus")
        return by_mask(mask, queries)
    query, rows = named_rows("where", where, queries)
    _checks.row_numbers("where", rows, n)
    return by_rows(query, torch.from_numpy(rows), queries)


def search(
    asked: Tensor,
    source: ArrayCorpus,
    k: int,
    each: Sequence[Selection],
    screen: str,
    *,
    certify: bool,
    exact: bool,
    bar: Progress,
) -> Best:
    """Find the k best rows (q, k) of every query among those that it may find.

    Args:
        asked: (q, d).
        source: the corpus.
        k: how many rows.
        each: what every query may find.
        screen: as `topk` takes it.
        certify: whether to keep an upper bound of all other rows that it may find.
        exact: whether scores are returned in float64.
        bar: is told of the queries that are done.
    """
    best = nothing_found(len(asked), k, source.n)
    few, others = by_size(each, min(tuning.SCORED_PAIRS_AT_ONCE, NUMBERS // max(source.d, 1)))
    for some in few:
        _score(some, asked, source, best)
        bar.update(sum(len(one.queries) for one in some))
    shared = [one for one in others if 2 * one.count > source.n]
    if len(shared) > 1:
        others = [one for one in others if 2 * one.count <= source.n]
        _share(shared, asked, source, best, screen, certify=certify, exact=exact)
        bar.update(sum(len(one.queries) for one in shared))
    for one in others:
        if not one.count:
            continue
        name = screen_for(screen, len(one.queries))
        found = Batches(asked[one.queries], min(k, one.count), name, certify=certify, exact=exact)
        rows = one.rows
        for block in source.taken(rows):
            if found.centre is None:
                found.centre = centre_of(block)
            segment = encode(block, found.centre, first=found.seen, codes=is_coded(name))
            found.through([segment], last=found.seen + len(block) == len(rows))
        put(one, found.best(), best, rows)
        bar.update(len(one.queries))
    if not certify:
        best.dropped_bound = None
    else:
        best.skipped = _skipped(each, source)
    return best


def _score(some: Sequence[Selection], asked: Tensor, source: ArrayCorpus, best: Best) -> None:
    """Score all pairs of some selections."""
    number, position = pairs_of(some)
    union = torch.unique(position)
    if not len(union):
        return
    order = number.argsort(stable=True)
    number, position = number[order], position[order]
    asking = torch.cat([one.queries for one in some]).sort().values
    rows = torch.cat(list(source.taken(union)))
    at = torch.searchsorted(union, position)
    scores = score_pairs(widen(asked[asking]), rows, torch.searchsorted(asking, number), at)
    kept = rows.isfinite().all(1)[at] & ~scores.isnan()
    rank(number[kept], position[kept], scores[kept], best)


def _share(
    some: Sequence[Selection],
    asked: Tensor,
    source: ArrayCorpus,
    best: Best,
    screen: str,
    *,
    certify: bool,
    exact: bool,
) -> None:
    """Search all rows for each of some selections, with the others masked; all are coded once."""
    name = screen_for(screen, sum(len(one.queries) for one in some))
    k = best.positions.shape[1]
    found = [Batches(asked[one.queries], k, name, certify=certify, exact=exact) for one in some]
    allowed = [torch.zeros(source.n, dtype=torch.bool, device="cpu") for _ in some]
    for mask, one in zip(allowed, some, strict=True):
        mask[one.rows] = True
    seen, centre = 0, None
    for rows in source.blocks():
        if centre is None:
            centre = centre_of(rows)
        segment = encode(rows, centre, first=seen, codes=is_coded(name))
        seen += len(rows)
        for each, mask in zip(found, allowed, strict=True):
            each.centre = centre
            kept = segment.eligible & mask[segment.first : seen]
            each.through([replace(segment, eligible=kept)], last=seen == source.n)
    for one, each in zip(some, found, strict=True):
        put(one, each.best(), best)


def _skipped(each: Sequence[Selection], source: ArrayCorpus) -> int:
    """How many rows that some query may find hold NaN or an infinity."""
    union = torch.zeros(source.n, dtype=torch.bool, device="cpu")
    for one in each:
        union[one.rows] = True
    blocks = source.taken(union.nonzero()[:, 0])
    return sum(int((~some.isfinite().all(1)).sum()) for some in blocks)


def screen_for(screen: str, queries: int) -> str:
    """The screen for so many queries: for few of them coding the rows would not pay."""
    return "float32" if screen == "auto" and queries < tuning.CODING_PAYS else screen


def is_coded(screen: str) -> bool:
    """Whether a screen may want rows in codes."""
    return screen in ("auto", "int8")
