"""What this processor's products and scores take: measured once a process, in a few milliseconds.

Kinds of processor differ in the ratio of these by more than a constant can bear. Multiply-adds a
nanosecond on one core, and nanoseconds for a near score of 384 numbers:

| kind                | int8 | bfloat16 | float32 | pair       |
| ------------------- | ---- | -------- | ------- | ---------- |
| Zen 3 (AVX2)        | 80   | 4        | 45      | 300 to 800 |
| Zen 4 (VNNI)        | 204  | 90       | 44      | 90 to 300  |
| Zen 5 (VNNI)        | 470  | 245      | 128     | 90 to 240  |
| Emerald Rapids, AMX | 1050 | 460      | 73      | -          |

What is chosen by them: whether a wider screen would cost less than scoring what this one lets
through (`pair_cost`), in a search and in a join; and whether to rank all rows at once (`ranked`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cossim_fast import _cpu_screen, _threads
from cossim_fast.retrieval import int8, near, screens, tuning
from cossim_fast.retrieval.products import product

_WIDTH, _QUERIES, _ROWS, _SCORED = 384, 256, 1024, 2048


@dataclass(frozen=True)
class Rates:
    """What one core does.

    Attributes:
        products: multiply-adds a nanosecond of the product of each screen that is there.
        pair: nanoseconds of a near score of 384 numbers.
    """

    products: dict[screens.ScreenName, float]
    pair: float


@functools.cache
def measured() -> Rates:
    """Measure the rates, or return what was measured before."""
    return _threads.on_one(_measure)


def score(d: int, screen: screens.ScreenName) -> float:
    """Nanoseconds of a screen's score of rows of d numbers."""
    products = measured().products
    rest = tuning.SIEVED_NS if screen == "int8" else tuning.FLOAT_SCORE_NS
    return d / products.get(screen, products["float32"]) + rest


def pair(d: int) -> float:
    """Nanoseconds to score a candidate, and to keep it."""
    return measured().pair * d / _WIDTH + tuning.CANDIDATE_NS


def pair_cost(d: int, screen: screens.ScreenName, than: screens.ScreenName | None = None) -> float:
    """How many scores of a screen take as long as to score one pair of d numbers.

    Args:
        d: the width of rows.
        screen: whose scores are counted.
        than: count only by how much they take longer than those of this one.
    """
    took, paired = score(d, screen), pair(d)
    if than is not None:
        # A wider screen that is no slower is worth it as soon as it lets less through.
        took = max(took - score(d, than), took / 16)
        if screen == "bfloat16":
            paired *= tuning.BFLOAT16_SPARES
    return paired / took


def _measure() -> Rates:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _WIDTH, generator=draw, dtype=torch.float32)
    q = x[:_QUERIES].clone()
    products: dict[screens.ScreenName, float] = {}
    work = _ROWS * _QUERIES * _WIDTH
    there = screens.available()
    if "int8" in there:
        codes, packed = (x * 30).clamp_(-127, 127).to(torch.int8), int8.pack(q.to(torch.int8))
        unsigned = int8.unsigned(codes, torch.empty(codes.numel(), dtype=torch.uint8))
        scale = torch.full((_QUERIES,), 1e-3, dtype=torch.float32)
        offset = torch.zeros_like(scale)
        products["int8"] = work / _least(lambda: int8.sieved(unsigned, packed, scale, offset))
    products["float32"] = work / _least(functools.partial(product, x, q))
    if "bfloat16" in there:
        narrow, columns = x.bfloat16(), q.bfloat16().mT
        out = torch.empty((_ROWS, _QUERIES), dtype=torch.bfloat16)
        products["bfloat16"] = work / _least(functools.partial(torch.mm, narrow, columns, out=out))
    query = torch.randint(_QUERIES, (_SCORED,), generator=draw)
    row = torch.randint(_ROWS, (_SCORED,), generator=draw).sort().values
    wide, norms = _cpu_screen.widen(q), _cpu_screen.row_norms(x)
    scored = _least(functools.partial(near.near_scores, wide, x, query, row, norms))
    return Rates(products, scored / _SCORED)


def _least(work: Callable[[], object]) -> float:
    """Nanoseconds of the fastest of three calls, after one that makes code and finds memory."""
    times = []
    for _ in range(4):
        begun = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - begun)
    return float(min(times[1:]))
