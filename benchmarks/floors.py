"""The limits of this machine, measured beside each case: a read, and products of three dtypes.

A floor does less than the task. The narrow products take part of the corpus, since a processor
without instructions for them would need minutes for the whole; their time counts in proportion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cases import HALF_PRODUCT, INT8, PRODUCT, READ, Case
from contender import Call, Contender, Part

# Multiplications of one call of a product: more where the processor is quicker at it.
MOST = {torch.float32: 2e10, torch.int8: 2e9, torch.bfloat16: 2e8, torch.float16: 2e8}
# [rows] Side of the tiles of a product whose result is not kept.
TILE = 512
BFLOAT16 = "bfloat16 product"
READ_ONE = "x.sum()"
COPY = "x1.clone(), x2.clone()"


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def read(case: Case, *inputs: Tensor) -> Call:
    """Read every input once."""
    return lambda: [x.sum() for x in inputs]


def copy(case: Case, *inputs: Tensor) -> Call:
    """Read every input and write as much: the least that a gradient does."""
    return lambda: [x.clone() for x in inputs]


def read_mapped(case: Case, queries: Tensor, corpus: np.ndarray[Any, Any]) -> Call:
    """Read the file once, as whole numbers: their sum is the quickest."""
    words = corpus.view(np.uint64)
    return words.sum


def _slice(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Both inputs as rows, the second cut to what a product of that dtype can take."""
    x, y = _flat(x), _flat(y)
    most = max(64, math.ceil(MOST[dtype] / (x.shape[0] * x.shape[1])))
    return x, y[:most], y.shape[0] / min(most, y.shape[0])


def product(case: Case, x: Tensor, y: Tensor | None = None) -> Part:
    """Multiply every row by every row, with `out=`, in float32 or the dtype of the input."""
    y = x if y is None else y
    if case.task != "matrix":
        x, y = x.float(), y.float()
    x, y, times = _slice(x, y, x.dtype)
    out = x.new_zeros(x.shape[0], y.shape[0])
    return Part(lambda: torch.mm(x, y.T, out=out), times)


def products_of_gradient(case: Case, x: Tensor, y: Tensor) -> Part:
    """Three products: the matrix, and one for the gradient of each input."""
    call, times = product(case, x, y)
    return Part(call, 3 * times)


def fastest_products(count: float) -> Callable[..., Part]:
    """Multiply every row by every row, so many times, by the faster of torch's two ways."""

    def prepare(case: Case, x: Tensor, y: Tensor | None = None) -> Part:
        y = x if y is None else y
        if case.task == "NT-Xent loss":
            x = y = torch.cat([x, y])
        x, y, times = _slice(x, y, torch.float32)
        out = x.new_zeros(x.shape[0], y.shape[0])
        ways: list[Call] = [lambda: torch.mm(x, y.T, out=out), lambda: _tiles_by_onednn(x, y)]
        return Part(min(ways, key=_seconds), count * times)

    return prepare


def _tiles_by_onednn(x: Tensor, y: Tensor) -> None:
    """The product behind torch's compiled linear layer, tile by tile, of which none is kept."""
    # torch/_inductor/fx_passes/mkldnn_fusion.py lowers to it.
    for rows in x.split(TILE):
        for columns in y.split(TILE):
            torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")


def half_product(case: Case, x: Tensor) -> Part:
    """Multiply every row by those after it; a slice of rows stands for all."""
    call, times = product(case, x[:1024], x)
    return Part(call, times * x.shape[0] / min(1024, x.shape[0]) / 2)


def half_product_mapped(case: Case, corpus: np.ndarray[Any, Any]) -> Part:
    """The same for rows in a file; a corner of the matrix stands for all."""
    some = torch.from_numpy(np.asarray(corpus[:32768], np.float32))
    few = some[:1024]
    call, times = product(case, few, some)
    return Part(call, times * len(corpus) ** 2 / (len(few) * len(some)) / 2)


def bfloat16_product(case: Case, x: Tensor, y: Tensor | None = None) -> Part:
    """The same in bfloat16."""
    x, y, times = _slice(x, x if y is None else y, torch.bfloat16)
    x, y = x.bfloat16(), y.bfloat16()
    out = x.new_zeros(x.shape[0], y.shape[0])
    return Part(lambda: torch.mm(x, y.T, out=out), times)


def int8_product(case: Case, x: Tensor, y: Tensor | None = None) -> Part:
    """Multiply 8-bit codes by the faster of torch's two ways."""
    x, y, times = _slice(x, x if y is None else y, torch.int8)
    generator = torch.Generator().manual_seed(0)
    codes = [
        torch.randint(-63, 64, t.shape, generator=generator, dtype=torch.int8).to(x.device)
        for t in (x, y)
    ]
    ways = [_int_mm(*codes)]
    if x.device.type == "cpu" and hasattr(torch.ops.onednn, "qlinear_pointwise"):
        ways.append(_onednn(*codes))
    return Part(min(ways, key=_seconds), times)


def _seconds(call: Call) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _int_mm(x: Tensor, y: Tensor) -> Call:
    return lambda: torch._int_mm(x, y.T)


def _onednn(x: Tensor, y: Tensor) -> Call:
    """The product behind torch's quantized linear layer: unsigned codes, packed weights, float32.

    torch/ao/quantization and torch/_inductor/fx_passes/quantization.py lower to it.
    """
    unsigned = (x.int() + 64).to(torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(y, None)
    scales, zeros = torch.ones(len(y)), torch.zeros(len(y), dtype=torch.int64)
    rest = (scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, 64, packed, *rest)


BOTH = ("cpu", "cuda")
PRODUCTS = (
    Contender(PRODUCT, product, floor=True, devices=BOTH),
    Contender(BFLOAT16, bfloat16_product, floor=True, devices=BOTH),
    Contender(INT8, int8_product, floor=True, devices=BOTH),
)
READS = (Contender(READ, read, floor=True, devices=BOTH),)
READS_ONE = (Contender(READ_ONE, read, floor=True, devices=BOTH),)
READS_MAPPED = (Contender("read of the file", read_mapped, floor=True),)
COPIES = (Contender(COPY, copy, floor=True, devices=BOTH),)
GRADIENT = (
    Contender("3 × torch.mm(x, y.T, out=...)", products_of_gradient, floor=True, devices=BOTH),
)
HALF_MAPPED = (Contender(HALF_PRODUCT, half_product_mapped, floor=True),)
HALVES = (Contender(HALF_PRODUCT, half_product, floor=True), *PRODUCTS[2:])
