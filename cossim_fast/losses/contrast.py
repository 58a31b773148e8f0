"""Each row of a batch against the other rows: what `nt_xent` and `sup_con` share.

A row's loss is that of its positives P among them and all its negatives, L = -mean over p of
log(2^S_p / (sum over P 2^S + sum over negatives 2^S)), in bits. It is computed as
log2(1 + N / P) + log2(P) - mean(S_p), N and P the two sums: of one positive the last two terms
cancel, and what is left keeps its digits however small it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cossim_fast._products import full_precision_product
from cossim_fast.losses.alike import alike, floats, leave_out
from cossim_fast.losses.autograd import Found, Number
from cossim_fast.losses.reduction import reduced
from cossim_fast.losses.strips import LINEAR, class_losses, in_strips, log_sum, wide_rows
from cossim_fast.losses.sums import Sums
from cossim_fast.losses.symmetric import Triangle
from cossim_fast.losses.tiles import BITS, add_logs, log_sums


@dataclass(frozen=True)
class ContrastLoss:
    """The loss of rows (n, d) with each other, as `losses.autograd.Loss` wants it.

    These are the rows of x and then those of y, if partners are given, else those of x alone.

    Args:
        code: integers (n,); rows of equal code are not each other's negatives.
        partner: int64 (n,), each row's positive; None makes positives of all of equal code.
        reduction: "mean" over the rows that have a positive, "sum" or "none".
        eps: the smallest norm to divide by; None leaves rows as they are.
        sums: what its passes note, the last one last, where each row has one positive.
    """

    code: Tensor
    partner: Tensor | None = None
    reduction: str = "mean"
    eps: float | None = 1e-8
    sums: list[Sums] = field(default_factory=list, compare=False, repr=False)

    @property
    def is_scalar(self) -> bool:
        """Whether the loss is reduced to one number."""
        return self.reduction != "none"

    def value(self, x: Tensor, y: Tensor, scale: float, bias: float) -> Tensor:
        """The loss, in tiles."""
        run = _Run(self, self._parts(x, y), scale)
        run.look(again=False)
        return self._reduced(run.losses(), run.of.count).to(run.tiles.dtype)

    def gradients(
        self, x: Tensor, y: Tensor, scale: float, bias: float, incoming: Tensor | None,
        by_x: bool, by_y: bool,
    ) -> tuple[Tensor, Found]:  # fmt: skip
        """The loss and its derivatives, in tiles."""
        run = _Run(self, self._parts(x, y), scale)
        run.look(again=True)
        count = run.of.count
        factor = 1 / max(int((count > 0).sum()), 1) if self.reduction == "mean" else 1.0
        dx, ds = run.gradient(incoming, factor)
        if self.partner is not None and incoming is None:
            self.sums.append(run.sums())
        value = self._reduced(run.losses(), count).to(run.tiles.dtype)
        return value, (dx[: len(x)], dx[len(x) :] if by_y else None, ds, 0.0)

    def _parts(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [x] if self.partner is None else [x, y]

    def _reduced(self, losses: Tensor, count: Tensor) -> Tensor:
        return reduced(losses, (count > 0).sum(), self.reduction)

    def composite(self, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        """The loss by differentiable torch operations."""
        unit = wide_rows(torch.cat(self._parts(x, y)), self.eps)
        n = len(unit)
        if n == 0:
            return self._reduced(unit.sum(1), unit[:, :0].sum(1))
        strip = self._strip_of_pairs if self.partner is not None else self._strip_of_classes
        losses, count = in_strips(strip, n, n, unit, scale).unbind(1)
        return self._reduced(losses, count)

    def _strip_of_pairs(self, rows: slice, unit: Tensor, scale: Number) -> Tensor:
        assert self.partner is not None
        logits, same = self._strip(rows, unit, scale)
        positives = scale * (unit[rows] * unit[self.partner[rows]]).sum(1)
        losses = softplus(log_sum(logits, same) - positives, threshold=LINEAR)
        return torch.stack([losses, torch.ones_like(losses)], 1)

    def _strip_of_classes(self, rows: slice, unit: Tensor, scale: Number) -> Tensor:
        logits, same = self._strip(rows, unit, scale)
        row = torch.arange(len(unit), device=unit.device)
        return class_losses(logits, same, same & (row[rows, None] != row))

    def _strip(self, rows: slice, unit: Tensor, scale: Number) -> tuple[Tensor, Tensor]:
        """Logits of some rows with all, and whether codes are equal, (r, n)."""
        logits = scale * full_precision_product(unit[rows], unit.mT)
        return logits, self.code[rows, None] == self.code


@dataclass(frozen=True)
class _Positives:
    """Which rows (n,) are whose positives.

    Args:
        code: int64, below n.
        count: int64: of how many positives.
        partner: int64, the row's only positive; -1 for a row that has none, or several.
        several: bool: whether all other rows of equal code are positives.
    """

    code: Tensor
    count: Tensor
    partner: Tensor
    several: Tensor


def _positives(code: Tensor, partner: Tensor | None) -> _Positives:
    code, size = torch.unique(code, return_inverse=True, return_counts=True)[1:]
    if partner is not None:
        one = torch.ones_like(code)
        return _Positives(code, one, partner, one == 0)
    order = code.argsort(stable=True)
    row = torch.arange(len(code), dtype=torch.int64, device=code.device)
    place = torch.empty_like(order).scatter_(0, order, row)
    # Of two rows of a class, each stands beside the other.
    other = 2 * (size.cumsum(0) - size)[code] + 1 - place
    two = size[code] == 2
    partner = torch.where(two, order[torch.where(two, other, 0)], -1)
    return _Positives(code, size[code] - 1, partner, size[code] > 2)


class _Run:
    """One computation of a loss on CPU. All logarithms and logits are in bits."""

    def __init__(self, loss: ContrastLoss, parts: list[Tensor], scale: float) -> None:
        self.tiles = Triangle(parts, scale, loss.eps)
        self.of = of = _positives(loss.code, loss.partner)
        self._has_several = bool(of.several.any())
        n = len(loss.code)
        row = torch.arange(n, 2 * n, dtype=torch.int64, device="cpu")
        self._code = floats(of.code)
        # The least and the greatest of each block: where two blocks have none in common, all pairs
        # are negatives.
        codes = (of.code[rows] for rows in self.tiles.spans)
        self._ranges = [tuple(map(int, some.aminmax())) for some in codes]
        # Equal for pairs that are compared apart from the tiles, and for a row with itself.
        self._apart = floats(torch.where(of.several, row, of.code))
        # Equal for positives of which there are several, and for a row with itself.
        self._among = floats(torch.where(of.several, of.code, row))
        nothing = torch.full((n,), -torch.inf, dtype=torch.float64, device="cpu")
        self._negatives, self._sums = nothing, nothing.clone()
        self._means = torch.zeros_like(nothing)
        self._partners = self._partner_logits(scale * BITS)

    def _partner_logits(self, scale: float) -> Tensor:
        found = torch.zeros_like(self._means)
        for rows in self.tiles.spans:
            whole = self.tiles.units.whole(rows).double()
            others = self.tiles.units.at(self.of.partner[rows].clamp_min(0))
            found[rows] = torch.linalg.vecdot(whole, others.double()) * scale
        return found

    def look(self, *, again: bool) -> None:
        """Sum over the negatives of each row, and over its positives."""

        def work(i: int, j: int) -> None:
            tile = self.tiles.tile(i, j, again=again)
            if not self._meet(i, j):
                self._add(self._negatives, i, j, tile)
                return
            rest = tile.clone()  # what is kept is not written to
            leave_out(rest, alike(tile, *self._both(self._code, i, j)))
            self._add(self._negatives, i, j, rest)
            if self._has_several:
                among = self._positives_among(tile, i, j)
                for place, dim in self._places(self._means, i, j):
                    place.add_((tile * among).sum(dim))
                rest.copy_(tile)
                leave_out(rest, among.neg_().add_(1.0))
                self._add(self._sums, i, j, rest)

        self.tiles.each(work)
        self._means /= self.of.count.clamp_min(1)
        self._sums = torch.where(self.of.several, self._sums, self._partners)
        self._means = torch.where(self.of.several, self._means, self._partners)
        self._softplus = softplus((self._negatives - self._sums) / BITS, threshold=LINEAR)

    def _meet(self, i: int, j: int) -> bool:
        """Whether there may be equal codes in two blocks."""
        (least, greatest), (other_least, other_greatest) = self._ranges[i], self._ranges[j]
        return least <= other_greatest and other_least <= greatest

    def _positives_among(self, tile: Tensor, i: int, j: int) -> Tensor:
        """1 for positives of which there are several, else 0."""
        among = alike(tile, *self._both(self._among, i, j))
        if i == j:
            among.diagonal().zero_()
        return among

    def _both(self, of: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
        return of[self.tiles.spans[i]], of[self.tiles.spans[j]]

    def _places(self, of: Tensor, i: int, j: int) -> list[tuple[Tensor, int]]:
        """What belongs to the rows of a tile and, if they are others, to its columns."""
        rows, columns = self._both(of, i, j)
        return [(rows, 1), (columns, 0)][: 1 if i == j else 2]

    def _add(self, sums: Tensor, i: int, j: int, tile: Tensor) -> None:
        for place, dim in self._places(sums, i, j):
            place.copy_(add_logs(place, log_sums(tile, dim)))

    def sums(self) -> Sums:
        """What was summed, for those who watch the loss."""
        return Sums(self._sums, self._negatives)

    def losses(self) -> Tensor:
        """L (n,), float64, in natural units."""
        losses = self._softplus + (self._sums - self._means) / BITS
        return torch.where(self.of.count > 0, losses, 0.0)

    def gradient(self, incoming: Tensor | None, factor: float) -> tuple[Tensor, float]:
        """The derivatives by the rows and by the scale.

        By S_ij, L_i has exp(S_ij - log of P + N), less 1/|P| for a positive; of one positive,
        that is -N / (P + N).
        """
        of, dtype = self.of, self.tiles.dtype
        counted = of.count > 0
        total = torch.where(counted, self._sums + self._softplus * BITS, torch.inf)
        one = (self._negatives - total).exp2()
        share = torch.where(of.several, of.count.clamp_min(1).double().reciprocal(), one)
        if incoming is not None:
            share = share * incoming
        share = torch.where(counted, share, 0.0)
        total, pull = total.to(dtype), share.to(dtype)
        weights = None if incoming is None else incoming.to(dtype)

        def weigh(i: int, j: int, tile: Tensor) -> None:
            meet = self._meet(i, j)
            among = self._positives_among(tile, i, j) if meet and self._has_several else None
            if meet:
                leave_out(tile, alike(tile, *self._both(self._apart, i, j)))
            rows, columns = self._both(total, i, j)
            others = tile.sub(columns).exp2_()
            tile.sub_(rows[:, None]).exp2_()
            if weights is not None:
                rows, columns = self._both(weights, i, j)
                others.mul_(columns)
                tile.mul_(rows[:, None])
            tile.add_(others)
            if among is not None:
                rows, columns = self._both(pull, i, j)
                torch.add(rows[:, None], columns, out=others)
                tile.sub_(among.mul_(others))

        both = torch.where(of.partner >= 0, pull + pull[of.partner], 0.0)

        def more(rows: slice) -> Tensor:
            partners = self.tiles.units.at(of.partner[rows].clamp_min(0))
            return partners.mul_(both[rows, None].neg())

        return self.tiles.gradient(weigh, more, factor)
