"""First derivatives of the cosine matrix on CPU, in strips of rows that threads share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from cossim_fast import _products, _threads
from cossim_fast._cpu.blocks import BLOCK
from cossim_fast._cpu.gradients import project
from cossim_fast._cpu.matrix import SIDE, is_shared
from cossim_fast._cpu.products import CHAIN, LEAST, by_onednn
from cossim_fast._cpu.units import normalize, panel_rows
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._shapes import even

# [elements] Of the incoming gradient that are converted at a time, so that they stay in cache.
CONVERTED = 1 << 21
# [strips] Into which few rows are cut.
STRIPS = 8
# [rows] Fewest of such a strip.
FEWEST = 64
# [entries] Those summed in one chain are padded to a multiple of this.
CHAIN_STEP = 64


def matrix_gradient(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The derivative by x of <grad, cosine matrix>.

    That is (T - x <x, T> / (n |x|)) / n with T = grad @ unit_y and n = max(|x|, eps).
    """
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.shape[1] == 0:
        return result.zero_()
    dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    size = x.shape[1] * y.shape[1] * x.shape[2]
    for g, x_item, y_item, to in zip(grad.detach(), x.detach(), y.detach(), result, strict=True):
        _Strips(g, x_item, y_item, to, eps, dtype, size).fill()
    return result


class _Strips:
    """The gradient (n, d) of one matrix (n, m): T is summed over the panels of y."""

    def __init__(
        self, grad: Tensor, x: Tensor, y: Tensor, result: Tensor, eps: float, dtype: torch.dtype,
        size: int,
    ) -> None:  # fmt: skip
        self._grad, self._x, self._y, self._result = grad, x, y, result
        self._eps = eps
        self._dtype = dtype
        n, d = x.shape
        self._panel = panel_rows(d)
        threads = _threads.usable_threads()
        strip = min(even(-(-n // STRIPS), FEWEST), SIDE)
        self._is_shared = is_shared(size) and n > strip * (threads - 1)
        self._threads = threads if self._is_shared else 1
        self._by_onednn = dtype == torch.float32 and by_onednn(size)
        self._strip = strip if self._is_shared else SIDE if self._by_onednn else self._panel

    def fill(self) -> None:
        """Compute the result."""
        n, m = self._grad.shape
        d = self._x.shape[1]
        unit = torch.empty((min(self._panel, m), d), dtype=self._dtype, device="cpu")
        total = torch.empty((min(self._panel, n), d), dtype=self._dtype, device="cpu")
        for rows in _spans(n, self._panel):
            t = total[: len(self._x[rows])].zero_()
            for columns in _spans(m, self._panel):
                y = self._y[columns]
                unit_y = unit[: len(y)]
                self._prepare(y, unit_y)
                last = columns.stop == m
                parts = [
                    partial(self._add, _within(rows, some), columns, unit_y, t[some], last)
                    for some in _spans(len(t), self._strip)
                ]
                _threads.run_independent(self._threads, parts)

    def _prepare(self, y: Tensor, unit_y: Tensor) -> None:
        step = max(BLOCK // max(y.shape[1], 1), 1) if self._is_shared else len(y)
        spans = _spans(len(y), step)
        parts = [partial(normalize, y[some], self._eps, unit_y[some]) for some in spans]
        _threads.run_independent(self._threads, parts)

    def _add(self, rows: slice, columns: slice, unit_y: Tensor, t: Tensor, last: bool) -> None:
        """Add a strip's product with a panel to its T; after the last one, finish the strip."""
        strip = self._grad[rows, columns]
        if self._by_onednn:
            self._add_by_onednn(strip, unit_y, t)
        elif strip.dtype == self._dtype and 0 not in strip.stride():
            t.add_(_products.mm(strip, unit_y))
        else:
            # Converted in pieces that stay in cache; mm would copy what is expanded.
            for some in _spans(strip.shape[1], max(CONVERTED // len(strip), 1)):
                piece = strip[:, some].to(self._dtype).contiguous()
                t.add_(_products.mm(piece, unit_y[some]))
        if last:
            unit = torch.empty_like(t)
            norm = normalize(self._x[rows], self._eps, unit)
            project(t, unit, norm, self._eps)
            self._result[rows] = t

    def _add_by_onednn(self, strip: Tensor, unit_y: Tensor, t: Tensor) -> None:
        """In chains as short as those of the forward product, padded with zeros to few shapes."""
        more = even(len(t), LEAST) - len(t)
        tile = pad(t, (0, 0, 0, more)) if more else t
        for some in _spans(strip.shape[1], CHAIN):
            y = unit_y[some]
            behind = -len(y) % CHAIN_STEP
            piece = pad(strip[:, some].to(self._dtype), (0, behind, 0, more))
            tile = _products.linear(piece, (pad(y, (0, 0, 0, behind)) if behind else y).T, tile)
        t.copy_(tile[: len(t)])


def _spans(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)
