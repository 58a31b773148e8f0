"""CPU bodies of the screen and the rescoring: the contracts that the kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _products
from cossim_fast._score.exact import round_up, score_pairs, widen, widened

CODED = 64  # rows that share a scale, a residual and a radius
CODE_WIDTH = 16  # codes of a row are padded to a multiple: kernels read full vectors of them
# [numbers] Coded at a time: 256 MB in float64, a few times.
CODED_AT_ONCE = 1 << 25

NO_PAIR = 2**31 - 1  # in a list of pairs, block * n + query in int32: none
QUERIES_AT_ONCE = 256
BLOCKS_AT_ONCE = 64
# Errors of the float32 evaluation of a bound, see `cosine_bounds`.
RELATIVE_SLACK = 2.0**-21
ABSOLUTE_SLACK = 2.0**-36


def lowest(dtype: torch.dtype) -> float:
    """The maximum of a block without a row: int32's least value, or -inf."""
    return -torch.inf if dtype.is_floating_point else float(torch.iinfo(dtype).min)


def code_rows(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, terms and eligibility of rows, measured in float64; see `_ops.code_rows`.

    A few operations on many rows at a time, which suits a GPU too: float64 rows are coded so there.
    """
    n, d = rows.shape
    blocks = -(-n // CODED)
    codes = rows.new_zeros((blocks * CODED, d + -d % CODE_WIDTH), dtype=torch.int8)
    terms = rows.new_empty((3, blocks), dtype=torch.float32)
    eligible = rows.new_empty((n,), dtype=torch.bool)
    step = max(CODED_AT_ONCE // max(d, 1) // CODED, 1) * CODED
    for start in range(0, n, step):
        wide = widened(rows[start : start + step])
        norms = torch.linalg.vector_norm(wide, dim=1)
        finite = norms.isfinite()
        eligible[start : start + step] = finite
        unit = wide / norms.masked_fill(norms == 0, 1.0)[:, None]
        y = (unit - centre.double()).masked_fill_(~finite[:, None], 0.0)
        y = torch.nn.functional.pad(y, (0, 0, 0, -len(y) % CODED)).view(-1, CODED, d)
        # In float32, as the kernels read it; rounded up, so that no code exceeds 127.
        scale = round_up(y.abs().amax((1, 2)) / 127).double()
        z = (y / scale[:, None, None]).round()
        at = slice(start // CODED, start // CODED + len(y))
        codes.view(-1, CODED, codes.shape[1])[at, :, :d] = z
        z.mul_(scale[:, None, None]).sub_(y)
        longest = [torch.linalg.vector_norm(v, dim=2).amax(1) for v in (z, y)]
        terms[:, at] = torch.stack([scale.float(), *map(round_up, longest)])
    return codes, terms, eligible


def scan_error(d: int, dtype: torch.dtype) -> float:
    """What an estimate of `_ops.scan_rows` is off by, over the norm of its query.

    Derived at `launch_scan_rows` of the kernels; what is computed here errs by 2^-24.
    """
    return (0.0 if dtype.itemsize == 2 else 2.0**-10) + (d + 16) * 2.0**-21


def scan_rows(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Block maxima and eligibility of rows in float64; see `_ops.scan_rows`.

    As `code_rows`, it suits a GPU too, where float64 rows are scanned so.
    """
    n, d = rows.shape
    blocks = -(-n // CODED)
    maxima = queries.new_empty((len(queries), blocks))
    eligible = rows.new_empty((n,), dtype=torch.bool)
    step = max(CODED_AT_ONCE // max(d, 1) // CODED, 1) * CODED
    factor = queries.double()
    for start in range(0, n, step):
        wide = widened(rows[start : start + step])
        norms = torch.linalg.vector_norm(wide, dim=1)
        finite = norms.isfinite()
        eligible[start : start + step] = finite
        wide = wide.masked_fill(~finite[:, None], 0.0)
        scores = _products.mm(factor, wide.mT) / norms.masked_fill(norms == 0, 1.0)
        scores = scores.masked_fill(~finite, -torch.inf)
        scores = torch.nn.functional.pad(scores, (0, -len(wide) % CODED), value=-torch.inf)
        scores = scores.view(len(queries), scores.shape[1] // CODED, CODED)
        maxima[:, start // CODED : start // CODED + scores.shape[1]] = scores.amax(2)
    return maxima, eligible


def block_max(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> Tensor:
    """The largest product of each query with each block of rows.

    Products of int8 codes go through float64, which holds their sums exactly: torch's own integer
    product saturates on some processors.
    """
    integer = queries.dtype == torch.int8
    wide = torch.float64 if integer else torch.float32
    n, m = queries.shape[0], corpus.shape[0]
    blocks = (m + block - 1) // block
    out = queries.new_empty((n, blocks), dtype=torch.int32 if integer else torch.float32)
    if out.numel() == 0:
        return out
    nothing = lowest(out.dtype)
    columns = corpus.to(wide).mT
    # A NaN product counts as no row, as in the kernel.
    for start in range(0, n, QUERIES_AT_ONCE):
        some = queries[start : start + QUERIES_AT_ONCE].to(wide)
        scores = _products.mm(some, columns).nan_to_num_(
            nan=nothing, posinf=torch.inf, neginf=-torch.inf
        )
        if eligible is not None:
            scores.masked_fill_(~eligible, nothing)
        padded = torch.nn.functional.pad(scores, (0, blocks * block - m), value=nothing)
        out[start : start + QUERIES_AT_ONCE] = padded.view(-1, blocks, block).amax(-1)
    return out


def cosine_bounds(
    product: Tensor, query_terms: Tensor, block_terms: Tensor
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of cosines from products of codes; -inf where masked.

    ``query_terms`` are scale s, residual ρ, norm N and offset a of a query, ``block_terms`` scale
    s_B, residual ρ_B and radius R_B of a block, each shaped to broadcast with ``product`` D. With
    q̄ the unit query, y = x̄ - m a unit row less a constant vector, ρ >= ‖q̄ - s z_q‖,
    N >= ‖s z_q‖, a = <q̄, m>, ρ_B >= ‖y - s_B z_x‖ and R_B >= ‖y‖, Cauchy-Schwarz gives

        |<q̄, x̄> - (s s_B D + a)| <= E = ρ R_B + N ρ_B.

    The float32 operations below add their roundings, u = 2^-24 each. The product is off by
    3 u T, T = N (R_B + ρ_B) >= |s s_B D|; the sum with a by u (T + |a|); E by 3 u E; the last sum
    by u (T + |a| + E); a itself was rounded by u |a|. Together at most 5 u T + 3 u |a| + 4 u E, to
    first order; 8 u (T + |a| + E) = 2^-21 (...) holds the rest and its own roundings. 2^-36 covers
    what is absolute: underflow, the float64 sum behind a, and the rounding of the float64 score
    that rows are ranked by (2^-42 at the longest row that int8 codes allow).
    """
    scale, residual, norm, offset = query_terms
    block_scale, block_residual, block_radius = block_terms
    estimate = scale * block_scale * product.float() + offset
    size = norm * (block_radius + block_residual)
    margin = residual * block_radius + norm * block_residual
    margin = margin + ((size + margin + offset.abs()) * RELATIVE_SLACK + ABSOLUTE_SLACK)
    masked = product == lowest(product.dtype)
    lower = (estimate - margin).masked_fill_(masked, -torch.inf)
    return lower, (estimate + margin).masked_fill_(masked, -torch.inf)


def _all_bounds(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    """Bounds of QUERIES_AT_ONCE queries against every block."""
    some = slice(start, start + QUERIES_AT_ONCE)
    return cosine_bounds(maxima[some], query_terms[:, some, None], block_terms[:, None])


def block_thresholds(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, k: int, groups: int
) -> tuple[Tensor, Tensor]:
    """The k-th largest of the best lower bounds of groups, and k blocks that reach it."""
    n, blocks = maxima.shape
    groups = min(groups, blocks)
    out = maxima.new_full((n,), -torch.inf, dtype=torch.float32)
    chosen = maxima.new_full((n, k), -1, dtype=torch.int64)
    if k > groups:
        return out, chosen
    for start in range(0, n, QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        lower, _ = _all_bounds(maxima, query_terms, block_terms, start)
        lower = lower.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        lower = torch.nn.functional.pad(lower, (0, -blocks % groups), value=-torch.inf)
        best, stride = lower.view(lower.shape[0], -1, groups).max(1)
        largest, group = best.topk(k, sorted=False)
        out[some] = largest.amin(1)
        block = stride.gather(1, group) * groups + group
        chosen[some] = block.masked_fill_(largest == -torch.inf, -1)
    return out, chosen


def block_candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """How many pairs of a query and a block reach the threshold, and the first of them."""
    n = maxima.shape[0]
    found = [maxima.new_empty((0,), dtype=torch.int32)]
    for start in range(0, n, QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        _, upper = _all_bounds(maxima, query_terms, block_terms, start)
        hit = (upper >= thresholds[some, None]) & (maxima[some] != lowest(maxima.dtype))
        row, block = hit.nonzero(as_tuple=True)
        found.append((block * n + row + start).int())
    every = torch.cat(found)
    pairs = every.new_full((capacity,), NO_PAIR)
    pairs[: every.numel()] = every[:capacity]
    return every.new_full((1,), every.numel()), pairs


def _pair_products(
    queries: Tensor, corpus: Tensor, pairs: Tensor, block: int, eligible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Products (p, block) of pairs and the rows of their blocks, lowest where there is no row.

    And the query and the block (p,) of each pair.
    """
    m = corpus.shape[0]
    integer = queries.dtype == torch.int8
    wide = torch.float64 if integer else torch.float32
    query, number = pairs.long() % queries.shape[0], pairs.long() // queries.shape[0]
    row = number[:, None] * block + torch.arange(block, device=queries.device)
    keep = row < m
    row = row.clamp_max(m - 1)
    if eligible is not None:
        keep &= eligible[row]
    rows = corpus[row].to(wide)
    product = _products.bmm(rows, queries[query].to(wide)[:, :, None]).squeeze(2)
    product = product.to(torch.int32 if integer else wide)
    return product.masked_fill_(~keep, lowest(product.dtype)), query, number


def recheck(
    queries: Tensor, corpus: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor,
    pairs: Tensor, block: int, eligible: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How many rows of its pairs' blocks reach each query's threshold, and the first of them."""
    n = queries.shape[0]
    none = torch.empty(0, dtype=torch.int64, device=queries.device)
    found = [(none, none)]
    for some in pairs[pairs != NO_PAIR].split(BLOCKS_AT_ONCE):
        product, query, number = _pair_products(queries, corpus, some, block, eligible)
        terms = query_terms[:, query, None], block_terms[:, number, None]
        _, upper = cosine_bounds(product, *terms)
        reached = (upper >= thresholds[query, None]) & (product != lowest(product.dtype))
        pair, lane = reached.nonzero(as_tuple=True)
        found.append((query[pair], number[pair] * block + lane))
    query, row = (torch.cat(part) for part in zip(*found, strict=True))
    order = query.argsort(stable=True)
    query, row = query[order], row[order]
    counts = query.bincount(minlength=n)
    place = torch.arange(query.numel(), device=query.device) - (counts.cumsum(0) - counts)[query]
    fits = place < capacity
    rows = row.new_full((n, capacity), -1)
    rows[query[fits], place[fits]] = row[fits]
    return counts.int(), rows


def best_rows(
    queries: Tensor, corpus: Tensor, pairs: Tensor, block: int, eligible: Tensor | None
) -> Tensor:
    """The row of each pair's block with the largest product of codes, -1 if there is none."""
    out = pairs.new_full(pairs.shape, -1, dtype=torch.int64)
    for place in (pairs != NO_PAIR).nonzero().squeeze(1).split(BLOCKS_AT_ONCE):
        product, _, number = _pair_products(queries, corpus, pairs[place], block, eligible)
        nothing = lowest(product.dtype)
        if product.is_floating_point():
            product = product.nan_to_num_(nan=nothing, posinf=torch.inf, neginf=nothing)
        largest = product.amax(1, keepdim=True)
        lane = (product == largest).int().argmax(1)
        row = number * block + lane
        out[place] = row.masked_fill_(largest.squeeze(1) == nothing, -1)
    return out


def rescore(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    """Cosines of candidate pairs in float64, summed in a fixed order."""
    out = queries.new_full(query_index.shape, torch.nan, dtype=torch.float64)
    present = (query_index >= 0) & (corpus_index >= 0)
    if queries.shape[0] and corpus.shape[0]:
        chosen = query_index[present], corpus_index[present]
        out[present] = score_pairs(widen(queries), corpus, *chosen)
    return out
