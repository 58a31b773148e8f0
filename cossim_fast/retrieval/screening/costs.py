"""The cost of scoring a pair, relative to that of a screen's product: measured once a process.

A near score of 384 numbers took 300 to 800 ns on Zen 3, and 90 to 300 on Zen 4 and 5. Together with
the rates of products (`rates`), this decides whether a wider screen costs less than scoring what a
narrower one lets through, in a search and in a join; whether a projection pays; and whether to rank
all rows at once (`nearest.ranked`).
"""

from __future__ import annotations

import functools
import time

import torch

from cossim_fast import _products, _threads
from cossim_fast._score.exact import row_norms, widen
from cossim_fast._score.near import near_scores, sampled_product_works
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import rates
from cossim_fast.retrieval.screening.screens import ScreenName

# The pairs that are scored to measure it.
_WIDTH = 384
_QUERIES = 256
_ROWS = 1024
_SCORED = 2048


def find_out() -> None:
    """Measure, once a process, what several threads must not measure at once.

    The first of these turns warnings off for a moment, and the others take times. A search and a
    join call this before their threads begin.
    """
    sampled_product_works()
    _products.linear_is_faster()
    pair_ns()


def pair_cost(d: int, screen: ScreenName, than: ScreenName | None = None) -> float:
    """The cost of scoring one pair of d numbers, in scores of a screen.

    Args:
        d: the width of rows.
        screen: whose score is the unit.
        than: if given, the unit is only what a score takes longer than one of this screen.
    """
    took, paired = score(d, screen), pair(d)
    if than is not None:
        # A wider screen that is no slower pays as soon as it lets less through.
        took = max(took - score(d, than), took / 16)
        if screen == "bfloat16":
            paired *= tuning.BFLOAT16_SPARES
    return paired / took


def pair(d: int) -> float:
    """Nanoseconds to score and keep a candidate of d numbers."""
    return pair_ns() * d / _WIDTH + tuning.CANDIDATE_NS


def score(d: int, screen: ScreenName) -> float:
    """Nanoseconds of one score of a screen, for rows of d numbers."""
    rest = tuning.FILTERED_NS if screen == "int8" else tuning.FLOAT_SCORE_NS
    rate = {"int8": rates.int8, "bfloat16": rates.bfloat16, "float32": rates.float32}[screen]()
    # A screen without a fast product of its own is multiplied in float32.
    return d / (rate.products or rates.float32().products) + rest


@functools.cache
def pair_ns() -> float:
    """Nanoseconds of a near score of 384 numbers on one core."""
    return _threads.on_one(_measure)


def _measure() -> float:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, _WIDTH, generator=draw, dtype=torch.float32, device="cpu")
    query = torch.randint(_QUERIES, (_SCORED,), generator=draw, device="cpu")
    row = torch.randint(_ROWS, (_SCORED,), generator=draw, device="cpu").sort().values
    queries, norms = widen(rows[:_QUERIES]), row_norms(rows)
    times = []
    for _ in range(4):
        begun = time.perf_counter_ns()
        near_scores(queries, rows, query, row, norms)
        times.append(time.perf_counter_ns() - begun)
    return min(times[1:]) / _SCORED  # the first allocates memory
