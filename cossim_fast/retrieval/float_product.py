"""The float32 product of a search, by the faster of the two libraries that torch brings.

torch.mm calls MKL, which does not use 512-bit instructions on every processor that has them;
oneDNN's linear layer does. Multiply-adds a nanosecond on one core, MKL and oneDNN: Zen 5 54 and
128. So both are asked once a process, and oneDNN is taken where it is faster by a third.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor

from cossim_fast import _threads
from cossim_fast._dtypes import cpu_products
from cossim_fast.retrieval.int8 import even_rows, width

_WIDTH, _QUERIES, _ROWS = 384, 256, 1024
# oneDNN has to be so many times as fast.
_FASTER = 4 / 3


def product(rows: Tensor, others: Tensor) -> Tensor:
    """Rows (n, d) times others (m, d), transposed, in float32: (n, m).

    Sums of d products, each rounded, in an order that nobody knows; so off by at most
    d 2^-24 / (1 - d 2^-24) of the product of the norms.
    """
    n, m = len(rows), len(others)
    with cpu_products("highest"):
        if min(n, m) < _FEWEST or not linear_is_faster():
            # out= keeps autocast away.
            return torch.mm(rows, others.mT, out=torch.empty((n, m), dtype=torch.float32))
        # Of few shapes: oneDNN makes code for each, and keeps it.
        return _linear(_padded(rows, even_rows(n)), _padded(others, width(m)))[:n, :m]


# Fewer rows on either side are multiplied by MKL.
_FEWEST = 16


def _padded(rows: Tensor, count: int) -> Tensor:
    if count == len(rows):
        return rows
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _linear(rows: Tensor, others: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, others, None, "none", [], "")
    return found


@functools.cache
def linear_is_faster() -> bool:
    """Whether oneDNN's product is that of full float32 numbers here, and faster than MKL's."""
    found: bool = _threads.on_one(_compare)
    return found


def _compare() -> bool:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(_ROWS, _WIDTH, generator=draw, dtype=torch.float32)
    q, out = x[:_QUERIES].clone(), torch.empty(_ROWS, _QUERIES, dtype=torch.float32)
    times = []
    with cpu_products("highest"):
        try:
            found = _linear(x, q)
        except (AttributeError, NotImplementedError, RuntimeError):
            return False  # a build of torch without oneDNN
        exact = x.double() @ q.double().mT
        # The environment may tell oneDNN to round factors to fewer bits.
        if not bool(((found - exact).abs() <= _WIDTH * 2.0**-24 * exact).all()):
            return False
        for _ in range(4):
            begun = time.perf_counter_ns()
            _linear(x, q)
            between = time.perf_counter_ns()
            torch.mm(x, q.mT, out=out)
            times.append((between - begun, time.perf_counter_ns() - between))
    linear, mm = (min(column) for column in zip(*times[1:], strict=True))
    return bool(_FASTER * linear < mm)
