"""The softmax loss of one positive among negatives: of rows, and of columns too.

With N_i the sum over the negatives j of row i of exp(S_ij - S_ip), and p its positive,

    L_i = log1p N_i = softplus(log sum over negatives exp(S_ij) - S_ip),

    dL_i/dS_ij = exp(S_ij - S_ip - L_i),     dL_i/dS_ip = -N_i / (1 + N_i) = expm1(-L_i).

The positive is never part of the sum, so that nothing cancels where N_i is small: a saturated row
has a loss and gradients as exact as any other's. All vectors of logarithms are in bits and float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cossim_fast._cpu.blocks import BLOCK
from cossim_fast._products import full_precision_product
from cossim_fast.losses.alike import alike, codes, leave_out
from cossim_fast.losses.autograd import Found, Number
from cossim_fast.losses.positives import Positives
from cossim_fast.losses.reduction import reduced
from cossim_fast.losses.strips import LINEAR, in_strips, log_sum, wide_rows
from cossim_fast.losses.sums import Sums
from cossim_fast.losses.tiles import BITS, Kept, Logits, log_sums, powers, spans, within

# [bytes] Of tiles that the first pass of both directions keeps for the second.
KEPT = 48 << 20
# [bits] How far a row's or a column's sum may lie below the largest logit of a tile if one power of
# 2 serves both: float32 has powers down to 2^-126.
RANGE = 60.0
INF = torch.inf


@dataclass(frozen=True)
class SoftmaxLoss:
    """The loss of queries x (n, d) among keys y (m, d), as `losses.autograd.Loss` wants it.

    Args:
        positives: int64 (n,), the key that belongs to each query, -1 for none; None is the
            diagonal. Distinct if symmetric.
        query_ids: int64 (n,) or None.
        key_ids: int64 (m,), with query_ids: pairs of equal ids are not negatives.
        margin: negatives of a cosine greater than the positive's by more are left out.
        symmetric: the mean with the loss of each positive among the queries.
        reduction: "mean" over the queries that have a positive, "sum" or "none".
        eps: the smallest norm to divide by; None leaves rows as they are.
        sums: what its passes note, the last one last.
    """

    positives: Tensor | None = None
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None
    margin: float | None = None
    symmetric: bool = False
    reduction: str = "mean"
    eps: float | None = 1e-8
    sums: list[Sums] = field(default_factory=list, compare=False, repr=False)

    @property
    def is_scalar(self) -> bool:
        """Whether the loss is reduced to one number."""
        return self.reduction != "none"

    def value(self, x: Tensor, y: Tensor, scale: float, bias: float) -> Tensor:
        """The loss, in tiles."""
        run = _Run(self, x, y, scale, whole_rows=False)
        run.look()
        return self._reduced(run)

    def gradients(
        self, x: Tensor, y: Tensor, scale: float, bias: float, incoming: Tensor | None,
        by_x: bool, by_y: bool,
    ) -> tuple[Tensor, Found]:  # fmt: skip
        """The loss and its derivatives, in tiles."""
        run = _Run(self, x, y, scale, whole_rows=not self.symmetric)
        factor = 0.5 if self.symmetric else 1.0
        if self.reduction == "mean":
            factor /= run.count
        if self.symmetric:
            run.look(keep=run.logits.tiles_of(KEPT))
            weigh = run.weigh_both
        else:
            weigh = run.weigh_rows
        run.incoming = None if incoming is None else incoming.to(run.logits.dtype)
        dx, dy, ds = run.logits.gradients(weigh, by_x, by_y, factor, run.kept)
        if incoming is None:
            self.sums.append(run.sums())
        return self._reduced(run), (dx, dy, ds, 0.0)

    def _reduced(self, run: _Run) -> Tensor:
        return reduced(run.losses(), run.count, self.reduction).to(run.logits.dtype)

    def composite(self, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        """The loss by differentiable torch operations; the bias is the same in every logit."""
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = wide_rows(x.to(wide), self.eps), wide_rows(y.to(wide), self.eps)
        n, m = len(x), len(y)
        row, column = (torch.arange(size, device=x.device) for size in (n, m))
        positives = row if self.positives is None else self.positives
        valid = positives >= 0
        if n == 0 or m == 0:
            losses = full_precision_product(x, y.mT).sum(1)
        else:
            at = positives.clamp_min(0)
            ids, others = self.query_ids, self.key_ids
            chosen = y[at]
            positive = (x * chosen).sum(1)
            sides = positives, column, ids, others
            losses = in_strips(self._strip, n, m, x, y, positive, scale, *sides)
            if self.symmetric:
                sides = at, positives, None if others is None else others[at], ids
                by_key = in_strips(self._strip, n, n, chosen, x, positive, scale, *sides)
                losses = (losses + by_key) / 2
        losses = torch.where(valid, losses, 0.0)
        return reduced(losses, valid.sum(), self.reduction)

    def _strip(
        self, rows: slice, x: Tensor, y: Tensor, positive: Tensor, scale: Number,
        of_rows: Tensor, of_columns: Tensor, ids: Tensor | None, others: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Losses of some rows of x among y, but for pairs of equal ids of either kind."""
        cosines = full_precision_product(x[rows], y.mT)
        excluded = of_rows[rows, None] == of_columns
        if ids is not None and others is not None:
            excluded = excluded | (ids[rows, None] == others)
        own = positive[rows, None]
        if self.margin is not None:
            excluded = excluded | (cosines > own + self.margin)
        return softplus(log_sum(scale * (cosines - own), excluded), threshold=LINEAR)


class _Run:
    """One computation of a loss on CPU."""

    def __init__(
        self, loss: SoftmaxLoss, x: Tensor, y: Tensor, scale: float, *, whole_rows: bool
    ) -> None:
        self.loss = loss
        self.logits = Logits(x, y, scale, eps=loss.eps, whole_rows=whole_rows)
        n, m = len(x), len(y)
        self.positives = Positives(loss.positives, n, m)
        self.count = max(self.positives.count, 1)
        self._bits = scale * BITS
        self._positive = self._positive_bits(n)
        self._row_sums = torch.full((n,), -INF, dtype=torch.float64, device="cpu")
        self._column_sums = torch.full((m,), -INF, dtype=torch.float64, device="cpu")
        self._codes: list[Tensor] | None = None
        if loss.query_ids is not None and loss.key_ids is not None:
            self._codes = codes(loss.query_ids, loss.key_ids)
        self.incoming: Tensor | None = None
        self.kept: Kept = {}
        # Of kept tiles that hold powers.
        self._shifts: dict[tuple[int, int], float] = {}

    def _positive_bits(self, n: int) -> Tensor:
        """The positives' logits in bits, (n,), +inf for rows without."""
        x, y, pairs = self.logits.x, self.logits.y, self.positives
        bits = torch.full((n,), INF, dtype=torch.float64, device="cpu")

        def fill(rows: slice) -> None:
            known = pairs.known(rows)
            both = x.at(known).double(), y.at(pairs.keys(known)).double()
            bits[known] = torch.linalg.vecdot(*both) * self._bits

        width = max(x.x.shape[1], 1)
        self.logits.run([partial(fill, rows) for rows in spans(n, BLOCK // width or 1)])
        return bits

    def losses(self) -> Tensor:
        """L (n,), in float64."""
        every = slice(0, len(self._positive))
        found = self._row_losses(every)
        if self.loss.symmetric:
            found = (found + self._key_losses(every)) / 2
        return self.positives.or_zero(found, every)

    def sums(self) -> Sums:
        """What was summed, for those who watch the loss."""
        return Sums(
            self._positive, self._row_sums, self._column_sums if self.loss.symmetric else None
        )

    def _row_losses(self, rows: slice) -> Tensor:
        return _loss(self._row_sums[rows], self._positive[rows])

    def _key_losses(self, rows: slice) -> Tensor:
        """The losses of the positives of some rows."""
        sums = self.positives.to_queries(self._column_sums, rows)
        return _loss(sums, self._positive[rows])

    def look(self, keep: int = 0) -> None:
        """Sum over the negatives of each row and, if symmetric, of each column.

        Args:
            keep: how many tiles to keep for `weigh_both`: what it says that they hold.
        """
        strips = list(enumerate(self.logits.rows))
        # As many at a time as there are threads: each has a sum for every column.
        step = self.logits.threads
        for some in (strips[i : i + step] for i in range(0, len(strips), step)):
            parts = [
                partial(self._look_at, rows, keep - i * len(self.logits.columns))
                for i, rows in some
            ]
            for sums in self.logits.run(parts):
                self._column_sums = torch.logaddexp2(self._column_sums, sums)

    def _look_at(self, rows: slice, keep: int) -> Tensor:
        strip = self.logits.strip(rows)
        by_column = torch.full_like(self._column_sums, -INF)
        for j, columns in enumerate(self.logits.columns):
            whole = self.logits.padded_tile(strip, columns)
            tile = within(whole, rows, columns)
            self._exclude(tile, rows, columns)
            if self.loss.symmetric:
                sums, by_column[columns], shift = self._sums(tile, rows, columns, j < keep)
            else:
                sums = log_sums(self._within_margin(tile, self._positive[rows, None]), 1)
                shift = None
            self._row_sums[rows] = torch.logaddexp2(self._row_sums[rows], sums)
            if j < keep:
                self.kept[rows.start, columns.start] = whole
                if shift is not None:
                    self._shifts[rows.start, columns.start] = shift
        return by_column

    def _sums(
        self, tile: Tensor, rows: slice, columns: slice, keep: bool
    ) -> tuple[Tensor, Tensor, float | None]:
        """Logarithms of the sums over a tile's rows and columns, and a shift.

        The tile, if it is to be kept, then holds 2^(logit - shift): one power serves both
        directions, unless a row or a column is so far below the largest logit that it would lose
        its digits; the shift is then None.
        """
        if self.loss.margin is None:
            shift = float(tile.amax())
            powers = (tile - shift).exp2_()
            by_row, by_column = powers.sum(1), powers.sum(0)
            if min(float(by_row.min()), float(by_column.min())) >= 2.0**-RANGE:
                if keep:
                    tile.copy_(powers)
                return by_row.double().log2_() + shift, by_column.double().log2_() + shift, shift
        seen = self._within_margin(tile, self._positive[rows, None])
        others = self._within_margin(tile, self.positives.to_keys(self._positive, columns, INF))
        return log_sums(seen, 1), log_sums(others, 0), None

    def _exclude(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Set pairs that are no negatives to -inf: positives, and those of equal ids."""
        self.positives.put(tile, rows, columns, -INF)
        if self._codes is not None:
            ids, others = self._codes
            leave_out(tile, alike(tile, ids[rows], others[columns]))

    def _within_margin(self, tile: Tensor, positive: Tensor) -> Tensor:
        """The tile, or a copy without what exceeds the positive's cosine by more than the margin.

        `positive` is (r, 1) for those of rows, (c,) for those of columns.
        """
        if self.loss.margin is None:
            return tile
        most = positive + self.loss.margin * self._bits
        above = torch.gt(tile, most.to(tile.dtype), out=torch.empty_like(tile))
        return torch.add(tile, above, alpha=-torch.finfo(tile.dtype).max, out=above)

    def weigh_rows(self, rows: slice, tiles: list[tuple[slice, Tensor]]) -> None:
        """Turn the logits of whole rows into the gradient by them."""
        shifts = []
        for columns, tile in tiles:
            self._exclude(tile, rows, columns)
            if self.loss.margin is not None:
                tile.copy_(self._within_margin(tile, self._positive[rows, None]))
            shift, sums = powers(tile)
            shifts.append(shift)
            self._row_sums[rows] = torch.logaddexp2(self._row_sums[rows], sums)
        losses = self._row_losses(rows)
        total = self._positive[rows] + losses * BITS
        by_positive = self.positives.or_zero(losses.neg().expm1(), rows)
        if self.incoming is not None:
            by_positive = by_positive * self.incoming[rows]
        for (columns, tile), shift in zip(tiles, shifts, strict=True):
            factor = torch.exp2(shift - total)
            if self.incoming is not None:
                factor = factor * self.incoming[rows]
            tile.mul_(factor.to(tile.dtype)[:, None])
            self.positives.put(tile, rows, columns, by_positive)

    def weigh_both(self, rows: slice, tiles: list[tuple[slice, Tensor]]) -> None:
        """Turn logits, or their powers of 2 (`_shifts`), into the gradient by the logits."""
        losses = self._row_losses(rows)
        total = self._positive[rows] + losses * BITS
        by_positive = losses.neg().expm1() + self._key_losses(rows).neg().expm1()
        by_positive = self.positives.or_zero(by_positive, rows)
        incoming = None if self.incoming is None else self.incoming[rows]
        if incoming is not None:
            by_positive = by_positive * incoming
        for columns, tile in tiles:
            anchored = self.positives.to_keys(self._positive, columns, INF)
            other_total = anchored + _loss(self._column_sums[columns], anchored) * BITS
            others = None
            if self.incoming is not None:
                others = self.positives.to_keys(self.incoming, columns, 0.0)
            shift = self._shifts.pop((rows.start, columns.start), None)
            if shift is None:
                self._exclude(tile, rows, columns)
                shift = self._shift(tile, rows, columns)
            if shift is not None:
                factors = _factors(shift, total, incoming), _factors(shift, other_total, others)
                tile.mul_(factors[0].to(tile.dtype)[:, None] + factors[1].to(tile.dtype))
            else:
                by_column = self._within_margin(tile, anchored)
                by_column = _weights(by_column, other_total, others)
                by_row = self._within_margin(tile, self._positive[rows, None])
                by_row = _weights(
                    by_row, total[:, None], None if incoming is None else incoming[:, None]
                )
                torch.add(by_row, by_column, out=tile)
            self.positives.put(tile, rows, columns, by_positive)

    def _shift(self, tile: Tensor, rows: slice, columns: slice) -> float | None:
        """Turn logits into 2^(logit - shift) and return it, where that keeps digits (`_sums`)."""
        shift = float(self._row_sums[rows].max())
        least = min(float(self._row_sums[rows].min()), float(self._column_sums[columns].min()))
        if self.loss.margin is not None or not shift - least <= RANGE:
            return None
        tile.sub_(shift).exp2_()
        return shift


def _factors(shift: float, total: Tensor, incoming: Tensor | None) -> Tensor:
    """2^(shift - total), float64, times what comes in."""
    found = torch.exp2(shift - total)
    return found if incoming is None else found * incoming


def _loss(sums: Tensor, positive: Tensor) -> Tensor:
    """softplus(log of the sum over negatives - positive), of bits; 0 without a positive."""
    return softplus((sums - positive) / BITS, threshold=LINEAR)


def _weights(tile: Tensor, total: Tensor, incoming: Tensor | None) -> Tensor:
    """2^(tile - total), times what comes in, in new memory."""
    found = (tile - total.to(tile.dtype)).exp2_()
    return found if incoming is None else found.mul_(incoming.to(tile.dtype))
