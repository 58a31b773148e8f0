"""How fast int8 and bfloat16 products are on this processor, beside float32: measured once.

That takes 50 ms a process on a core of Zen 5, most of it for the first machine code of oneDNN.

Where oneDNN has no kernel for a processor's instructions, its reference code takes 4000 times as
long as VNNI. So ``"auto"`` takes only products that were measured to be fast. Results do not depend
on it. Multiply-adds a nanosecond on one core, as they were measured:

| kind                | int8 | bfloat16 | float32 |
| ------------------- | ---- | -------- | ------- |
| Zen 3 (AVX2)        | 80   | 4        | 45      |
| Zen 4 (VNNI)        | 204  | 90       | 44      |
| Zen 5 (VNNI)        | 470  | 245      | 128     |
| Emerald Rapids, AMX | 1050 | 460      | 73      |
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from cossim_fast import _threads
from cossim_fast.retrieval.screening import float_product, operators

# [rows, queries, width] Shape of a trial: 25 million multiply-adds, 0.5 ms in float32 on a core of
# Zen 5, and 0.06 in int8.
_TRIAL = 512, 128, 384
# [rows, queries, width] Shape of the trial before it, after which a slow product is given up.
_FIRST = 64, 16, 64
# [rows] Of a trial with one query.
_ROWS = 4096
# [runs] Of each product: the quickest counts, since other processes can only delay one.
_RUNS = 5
# [seconds] The trial is left out if it is predicted to take longer.
_LONGEST = 0.05
# [ratio] ``"auto"`` takes a narrow product that is so many times as fast as float32: one that is
# hardly faster does not make up for its wider bound.
FASTER = 1.25

Call = Callable[[], object]


class Rate(NamedTuple):
    """How fast a product is; zeros where there is none."""

    products: float  # multiply-adds a nanosecond
    times: float  # as fast as float32


@functools.cache
def int8() -> Rate:
    """The rate of `int8.filtered`; ``times`` is that of the slower of it and `int8.product`."""
    plain, filtered = _threads.on_one(lambda: [_compare(_linear_of(t)) for t in _LINEAR])
    return Rate(filtered.products, min(plain.times, filtered.times))


@functools.cache
def float32() -> Rate:
    """The rate of a product of float32."""
    return _threads.on_one(lambda: _compare(_float32_of))


@functools.cache
def bfloat16() -> Rate:
    """The rate of a product of bfloat16; zeros where torch has no fast one.

    torch warns where it takes a slow one, so it is asked first.
    """
    try:
        there = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        there = False
    return _threads.on_one(lambda: _compare(_bfloat16_of)) if there else Rate(0.0, 0.0)


@functools.cache
def mixed() -> float:
    """How many times as fast as `int8.product` `operators.mixed` is for one query."""
    return _threads.on_one(_mixed)


_LINEAR = torch.float32, torch.uint8


def _linear_of(dtype: torch.dtype) -> Callable[[int, int, int], Call]:
    def made(n: int, q: int, d: int) -> Call:
        rows = torch.ones((n, d), dtype=torch.uint8, device="cpu")
        scale = torch.ones(q, dtype=torch.float32, device="cpu")
        packed = operators.pack(torch.ones((q, d), dtype=torch.int8, device="cpu"))
        return lambda: operators.linear(rows, 0, packed, scale, None, dtype)

    return made


def _bfloat16_of(n: int, q: int, d: int) -> Call:
    rows, queries = (torch.ones((count, d), dtype=torch.bfloat16, device="cpu") for count in (n, q))
    out = torch.empty((n, q), dtype=torch.bfloat16, device="cpu")
    return lambda: operators.bfloat16(rows, queries, out)


def _float32_of(n: int, q: int, d: int) -> Call:
    rows, queries = (torch.ones((count, d), dtype=torch.float32, device="cpu") for count in (n, q))
    return lambda: float_product.product(rows, queries)


def _compare(made: Callable[[int, int, int], Call]) -> Rate:
    """Measure a product of (n, d) and (q, d), and that of float32 in turns with it."""
    shape, (n, q, d) = _FIRST, _TRIAL
    mine, usual = _quickest(made(*shape), _float32_of(*shape))
    if mine * (n * q * d) / math.prod(shape) <= _LONGEST:
        shape = _TRIAL
        mine, usual = _quickest(made(*shape), _float32_of(*shape))
    return Rate(math.prod(shape) / (mine * 1e9), usual / mine)


def _mixed() -> float:
    d = _TRIAL[2]
    codes = torch.ones((_ROWS, d), dtype=torch.int8, device="cpu")
    query = torch.ones((1, d), dtype=torch.bfloat16, device="cpu")
    product = _linear_of(torch.float32)(_ROWS, 16, d)
    mine, usual = _quickest(lambda: operators.mixed(query, codes), product)
    return usual / mine


def _quickest(*calls: Call) -> list[float]:
    """The seconds of the quickest of a few runs of each call, which take turns."""
    for call in calls:
        call()  # makes its machine code
    best = [float("inf")] * len(calls)
    for _ in range(_RUNS):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[number] = min(best[number], time.perf_counter() - start)
    return best
