"""Checks of the ops between block maxima and rescoring: bits of the CPU bodies, truth in float64.

As in ``checks``, each takes ``load``, which imports a module of the kernels or of a mutant of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cossim_fast._cpu import topk_ops
from ladder import coding, oracle
from ladder.checks import F32, Load, guards, on_device
from ladder.runtime import DEVICE

INT8 = torch.int8
BLOCK = coding.BLOCK


@dataclass(frozen=True)
class Screen:
    """A corpus and queries, their codes, what bounds them, and the exact cosines."""

    queries: Tensor  # (n, d)
    corpus: Tensor  # (m, d)
    eligible: Tensor  # (m,)
    query_codes: Tensor
    query_terms: Tensor
    corpus_codes: Tensor
    block_terms: Tensor
    cosines: Tensor  # (n, m) float64, -inf where not eligible

    @property
    def maxima(self) -> Tensor:
        return topk_ops.block_max(self.query_codes, self.corpus_codes, BLOCK, self.eligible)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (n, blocks) of the best row of each block."""
        terms = self.query_terms[:, :, None], self.block_terms[:, None]
        return topk_ops.cosine_bounds(self.maxima, *terms)

    def best_of_blocks(self) -> Tensor:
        """The largest exact cosine (n, blocks) of each block."""
        padded = F.pad(self.cosines, (0, -self.cosines.shape[1] % BLOCK), value=-torch.inf)
        return padded.view(len(padded), -1, BLOCK).amax(2)


def screen(queries: Tensor, corpus: Tensor, eligible: Tensor, dtype: torch.dtype = INT8) -> Screen:
    """Code a corpus and queries, and compute what the codes are held to."""
    codes, block_terms, mean = coding.code_corpus(corpus, eligible, dtype)
    query_codes, query_terms = coding.code_queries(queries, mean, dtype)
    cosines = coding.unit_rows(queries) @ coding.unit_rows(corpus).T
    cosines = cosines.masked_fill(~eligible, -torch.inf)
    return Screen(queries, corpus, eligible, query_codes, query_terms, codes, block_terms, cosines)


def example(n: int = 11, m: int = 1403, d: int = 67, dtype: torch.dtype = INT8) -> Screen:
    """Ragged, with rows and a whole block that are not eligible, and a query that holds NaN."""
    queries, corpus = oracle.inputs(n, d, dtype=F32), oracle.inputs(m, d, dtype=F32, seed=1) + 0.3
    eligible = torch.ones(m, dtype=torch.bool)
    eligible[::7] = False
    eligible[BLOCK : 2 * BLOCK] = False
    queries[-1, 3] = torch.nan
    return screen(queries, corpus, eligible, dtype)


def check_block_thresholds(
    load: Load, k: int = 3, groups: int = 16, dtype: torch.dtype = INT8, m: int = 1403
) -> None:
    s = example(m=m, dtype=dtype)
    maxima = s.maxima
    memory, outputs = guards()
    with memory, outputs:
        terms = s.query_terms.to(DEVICE), s.block_terms.to(DEVICE)
        launch = load("thresholds").launch_block_thresholds
        got, blocks = (t.cpu() for t in launch(on_device(maxima)[0], *terms, k, groups))
    expected, chosen = topk_ops.block_thresholds(maxima, s.query_terms, s.block_terms, k, groups)
    assert got.tolist() == expected.tolist()
    # Valid: no larger than the k-th best cosine. Useful: what the groups give and no less.
    kth = s.cosines.topk(min(k, m), dim=1).values[:, -1]
    assert bool((got[:-1].double() <= kth[:-1]).all())
    assert got[-1] == -torch.inf
    lower = s.bounds()[0][:-1]
    if groups >= maxima.shape[1] >= k:
        assert got[:-1].tolist() == lower.topk(k, dim=1).values[:, -1].tolist()
    # As many different blocks as there are, up to k, each of which reaches the threshold.
    for of_query in (blocks, chosen):
        assert (of_query.shape, of_query.dtype) == ((len(maxima), k), torch.int64)
        assert of_query[-1].tolist() == [-1] * k
        for i, found in enumerate(of_query[:-1].tolist()):
            known = [block for block in found if block >= 0]
            present = lower[i] > -torch.inf
            wanted = min(k, int(present.sum())) if min(groups, len(present)) >= k else 0
            assert len(set(known)) == len(known) <= k
            assert all(block < len(present) for block in known)
            assert len(known) == wanted or groups < len(present)
            assert bool((lower[i, known] >= got[i]).all())


def check_block_candidates(
    load: Load, capacity: int = 20, dtype: torch.dtype = INT8, quantile: float = 0.6
) -> None:
    s = example(dtype=dtype)
    maxima = s.maxima
    n = len(maxima)
    _, upper = s.bounds()
    # Each query has a threshold that one block meets exactly, the first all of them.
    thresholds = upper.nan_to_num(0.0).quantile(quantile, dim=1, interpolation="nearest")
    thresholds[0] = -torch.inf
    memory, outputs = guards()
    with memory, outputs:
        arguments = [x.to(DEVICE) for x in (s.query_terms, s.block_terms, thresholds)]
        launch = load("candidates").launch_block_candidates
        count, pairs = launch(on_device(maxima)[0], *arguments, capacity)
    present = s.best_of_blocks() > -torch.inf
    wanted = ((upper >= thresholds[:, None]) & present).nonzero().tolist()
    for total, listed in (
        (count.cpu(), pairs.cpu()),
        topk_ops.block_candidates(maxima, s.query_terms, s.block_terms, thresholds, capacity),
    ):
        assert total.tolist() == [len(wanted)]
        assert (total.dtype, listed.dtype, listed.shape) == (torch.int32,) * 2 + ((capacity,),)
        found = listed[listed != topk_ops.NO_PAIR].tolist()
        assert len(set(found)) == len(found) == min(capacity, len(wanted))
        assert {(pair % n, pair // n) for pair in found} <= {(i, j) for i, j in wanted}


def pairs_example(s: Screen, block: int, pairs: int) -> tuple[Tensor, Tensor]:
    """Different pairs of a query and a block, in any order, and the terms of blocks so large.

    Of them a third is unused; the last query's hold NaN, and some are of the ragged last block.
    """
    n, m = s.cosines.shape
    terms = s.block_terms.repeat_interleave(BLOCK // block, 1)[:, : -(-m // block)]
    generator = torch.Generator().manual_seed(3)
    ragged = n * (terms.shape[1] - 1) + 1
    chosen = torch.randperm(n * terms.shape[1], generator=generator).int()
    chosen = chosen[chosen != ragged][:pairs]
    chosen[-2] = ragged
    chosen[1::3] = topk_ops.NO_PAIR
    return chosen, terms.contiguous()


def check_recheck(
    load: Load,
    dtype: torch.dtype = INT8,
    block: int = BLOCK,
    pairs: int = 77,
    d: int = 67,
    capacity: int = 64,
) -> None:
    s = example(d=d, dtype=dtype)
    n, m = s.cosines.shape
    chosen, terms = pairs_example(s, block, pairs)
    thresholds = torch.linspace(-0.3, 0.3, n)
    thresholds[1] = -torch.inf
    arguments = (s.query_terms, terms, thresholds, chosen)
    memory, outputs = guards()
    with memory, outputs:
        codes = on_device(s.query_codes, s.corpus_codes)
        rest = [x.to(DEVICE) for x in arguments]
        launch = load("recheck").launch_recheck
        counts, rows = (
            t.cpu() for t in launch(*codes, *rest, block, s.eligible.to(DEVICE), capacity)
        )
    codes = s.query_codes, s.corpus_codes
    expected = topk_ops.recheck(*codes, *arguments, block, s.eligible, m)
    listed = topk_ops.recheck(*codes, *arguments, block, s.eligible, capacity)
    assert (counts.dtype, rows.dtype, rows.shape) == (torch.int32, torch.int64, (n, capacity))
    if dtype == INT8:
        assert counts.tolist() == expected[0].tolist()
    assert listed[0].tolist() == expected[0].tolist()
    asked = chosen[chosen != topk_ops.NO_PAIR].tolist()
    reached = 0
    for i in range(n):
        every = set(expected[1][i, : int(expected[0][i])].tolist())
        for count, of_query in ((counts[i], rows[i]), (listed[0][i], listed[1][i])):
            found = of_query[of_query >= 0].tolist()
            assert len(set(found)) == len(found) == min(int(count), capacity)
            assert set(found) <= every or dtype != INT8
        # Valid: every eligible row whose cosine reaches the threshold. Useful: not all there are.
        inside = [
            row
            for pair in asked
            if pair % n == i
            for row in range(pair // n * block, min((pair // n + 1) * block, m))
            if s.eligible[row]
        ]
        must = {row for row in inside if i < n - 1 and s.cosines[i, row] >= thresholds[i]}
        assert must <= every <= set(inside)
        if capacity >= int(counts[i]):
            assert must <= set(rows[i].tolist()) <= {*inside, -1}
        reached += len(every)
    assert 0 < reached < 0.95 * len(asked) * block


def check_best_rows(
    load: Load, dtype: torch.dtype = INT8, block: int = BLOCK, pairs: int = 77, d: int = 67
) -> None:
    s = example(d=d, dtype=dtype)
    n = len(s.queries)
    chosen, _ = pairs_example(s, block, pairs)
    # One block of nothing but ties.
    s.corpus_codes[128 : 128 + block] = s.corpus_codes[128]
    chosen[0] = 128 // block * n
    memory, outputs = guards()
    with memory, outputs:
        codes = on_device(s.query_codes, s.corpus_codes)
        launch = load("recheck").launch_best_rows
        got = launch(*codes, chosen.to(DEVICE), block, s.eligible.to(DEVICE)).cpu()
    on_cpu = topk_ops.best_rows(s.query_codes, s.corpus_codes, chosen, block, s.eligible)
    if dtype == INT8:
        assert got.tolist() == on_cpu.tolist()
    products = s.query_codes.double() @ s.corpus_codes.double().T
    products = F.pad(products.masked_fill(~s.eligible, -torch.inf), (0, BLOCK), value=-torch.inf)
    slack = 0 if dtype == INT8 else 2**-20
    for found in (got, on_cpu):
        assert (found.shape, found.dtype) == (chosen.shape, torch.int64)
        assert found[0] == 128
        for pair, row in zip(chosen.tolist(), found.tolist(), strict=True):
            first = pair // n * block
            of_block = products[pair % n, first : first + block]
            if pair == topk_ops.NO_PAIR or bool((of_block == -torch.inf).all()):
                assert row == -1
            else:
                assert first <= row < first + block
                assert of_block[row - first] >= of_block.max() - slack
    assert int((got >= 0).sum()) > 0.4 * pairs


def check_code_rows(
    load: Load, dtype: torch.dtype = torch.float32, n: int = 131, d: int = 67
) -> None:
    """Bounds that hold and are not much too large, codes that use their range, nothing beyond."""
    x = oracle.inputs(n, d, dtype=dtype)
    x[:: n // 2 + 1] = 0
    if dtype != torch.float16 and n > 6:
        x[1], x[2] = x[1] * 1e30, x[2] * 1e-36
    x[n // 3, d // 2] = torch.nan
    x[n // 4, 0] = -torch.inf
    centre = coding.unit_rows(x).mean(0).float()
    memory, outputs = guards()
    with memory, outputs:
        codes, terms, eligible = load("code_rows").launch_code_rows(*on_device(x, centre))
    assert_coded(x, centre, codes.cpu(), terms.cpu(), eligible.cpu())


def assert_coded(x: Tensor, centre: Tensor, codes: Tensor, terms: Tensor, eligible: Tensor) -> None:
    """Assert what `_ops.code_rows` promises of codes, terms and eligibility, in float64."""
    n, d = x.shape
    blocks = -(-n // coding.BLOCK)
    assert torch.equal(eligible, x.isfinite().all(1))
    assert codes.shape == (blocks * coding.BLOCK, d + -d % 16)
    assert not codes[n:].any()
    assert not codes[:, d:].any()
    assert not codes[:n][~eligible].any()
    y = (coding.unit_rows(x) - centre.double()).masked_fill(~eligible[:, None], 0.0)
    y = torch.nn.functional.pad(y, (0, 0, 0, -n % coding.BLOCK))
    scale, residual, radius = terms.double()
    missed = y - codes[:, :d].double() * scale.repeat_interleave(coding.BLOCK)[:, None]
    for bound, rows in ((residual, missed), (radius, y)):
        longest = torch.linalg.vector_norm(rows, dim=1).view(blocks, -1).amax(1)
        assert bool((bound >= longest).all())
        assert bool((bound <= longest * 1.001 + (d + 16) * 2.0**-23).all())
    largest = codes.reshape(blocks, -1).int().abs().amax(1)
    assert bool(((largest == 127) | (y.abs().view(blocks, -1).amax(1) == 0)).all())
