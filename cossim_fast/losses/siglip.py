"""The sigmoid loss of image-text pairs (SigLIP): each pair of a batch right or wrong by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from cossim_fast import _checks
from cossim_fast._cpu.blocks import Scratch
from cossim_fast._products import full_precision_product
from cossim_fast.losses.alike import alike, codes, leave_out
from cossim_fast.losses.autograd import Found, Number, compute
from cossim_fast.losses.info_nce import in_dtype
from cossim_fast.losses.module import LossModule
from cossim_fast.losses.reduction import reduced
from cossim_fast.losses.strips import LINEAR, in_strips, wide_rows
from cossim_fast.losses.tiles import BITS, Logits


def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
    precision: str = "highest",
    group: Any = None,
) -> Tensor:
    r"""Return the sigmoid loss of images with their texts, and as negatives with all other texts.

    .. math::
        L_i = \log(1 + e^{-S_{ii}}) + \sum_{j \ne i} \log(1 + e^{S_{ij}}),
        \qquad S_{ij} = s\, c_{ij} + b

    with c the cosines, s the scale and b the bias. The matrix of S is never made: on CPU the
    derivatives are made in tiles beside the loss, by three products in all.

    Args:
        image: (n, d); float16, bfloat16, float32 or float64, any strides.
        text: (n, d) on the same device; row i belongs to image i.
        logit_scale: s itself, not its logarithm; a float, or a tensor of one element, which may be
            learned.
        logit_bias: b, likewise; None is 0.
        image_ids: integers (n,). An image and a text of equal ids are never each other's
            negatives: such pairs, but for i with i, are left out.
        text_ids: integers (n,); of the two, one alone is that of both.
        reduction: "mean" over the images, "sum", or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".
        group: a process group of torch.distributed. Image and text are then this process's own
            rows, as many as it likes, and the texts of all processes are compared with its images.
            Its value is such that the mean over processes, which DDP takes of gradients, is the
            loss of one process that has all rows. First derivatives only.

    Returns:
        A number, or (n,) for "none", in float32, for float64 rows in float64. Without rows the mean
        is 0. A loss that is tiny because all pairs are right keeps its digits.

    A zero row has cosine 0 with all. A row that holds NaN or an infinity makes the losses of all
    pairs that it is in NaN. Derivatives by rows, scale and bias of every order exist; the first of
    a mean or a sum are made in the forward pass. Extra memory on CPU: 64 MB beyond the unit rows
    and the derivatives.

    Raises:
        ValueError: shapes that do not match, two devices, numbers out of range.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for ids).

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (2023), algorithm 1, and
    ``SigLipLoss`` of open_clip, whose means it equals.

    >>> import torch
    >>> siglip(torch.eye(3), torch.eye(3), 10.0, -10.0)
    tensor(0.6932)
    """
    dtype = _checks.loss_rows("siglip", ("image", "text"), image, text)
    _checks.loss_options("siglip", reduction, eps, precision)
    _checks.loss_number("siglip", "logit_scale", logit_scale, image.device)
    bias = 0.0 if logit_bias is None else logit_bias
    _checks.loss_number("siglip", "logit_bias", bias, image.device)
    n = len(image)
    _checks.same_count("siglip", ("image", "text"), image, text)
    _checks.pair_ids("siglip", ("image_ids", "text_ids"), image_ids, text_ids, n, n, image.device)
    loss = SigmoidLoss(
        image_ids=text_ids if image_ids is None else image_ids,
        text_ids=image_ids if text_ids is None else text_ids,
        reduction=reduction,
        eps=eps if normalize else None,
    )
    scale, bias = in_dtype(logit_scale, dtype), in_dtype(bias, dtype)
    if group is not None:
        # It needs torch.distributed, and this module.
        from cossim_fast.losses.sharded import sigmoid_loss  # noqa: PLC0415

        return sigmoid_loss(loss, image, text, scale, bias, group)
    return compute(loss, image, text, scale, bias)


class SigLipLoss(LossModule):
    """`siglip` as a module; arguments as there.

    >>> import torch
    >>> SigLipLoss()(torch.eye(3), torch.eye(3), 10.0, -10.0)
    tensor(0.6932)
    """

    def __init__(
        self,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        eps: float = 1e-8,
        precision: str = "highest",
        group: Any = None,
    ) -> None:
        super().__init__(
            reduction=reduction,
            normalize=normalize,
            eps=eps,
            precision=precision,
            group=group,
        )

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of images (n, d) and texts (n, d)."""
        return siglip(
            image,
            text,
            logit_scale,
            logit_bias,
            image_ids=image_ids,
            text_ids=text_ids,
            **self.options(),
        )


@dataclass(frozen=True)
class SigmoidLoss:
    """The loss of rows x (n, d) and y (n, d), as `losses.autograd.Loss` wants it."""

    image_ids: Tensor | None = None
    text_ids: Tensor | None = None
    reduction: str = "mean"
    eps: float | None = 1e-8

    @property
    def is_scalar(self) -> bool:
        """Whether the loss is reduced to one number."""
        return self.reduction != "none"

    def value(self, x: Tensor, y: Tensor, scale: float, bias: float) -> Tensor:
        """The loss, in tiles."""
        run = _Run(self, x, y, scale, bias)
        run.look()
        return self._reduced(run)

    def gradients(
        self, x: Tensor, y: Tensor, scale: float, bias: float, incoming: Tensor | None,
        by_x: bool, by_y: bool,
    ) -> tuple[Tensor, Found]:  # fmt: skip
        """The loss and its derivatives, in tiles."""
        run = _Run(self, x, y, scale, bias)
        run.incoming = None if incoming is None else incoming.to(run.logits.dtype)
        factor = 1 / max(len(x), 1) if self.reduction == "mean" else 1.0
        dx, dy, ds = run.logits.gradients(run.weigh, by_x, by_y, factor)
        return self._reduced(run), (dx, dy, ds, float(run.by_bias.sum()) * factor)

    def _reduced(self, run: _Run) -> Tensor:
        return reduced(run.losses, len(run.losses), self.reduction).to(run.logits.dtype)

    def composite(self, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        """The loss by differentiable torch operations."""
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = wide_rows(x.to(wide), self.eps), wide_rows(y.to(wide), self.eps)
        n = len(x)
        losses = in_strips(self._strip, n, n, x, y, scale, bias)
        return reduced(losses, n, self.reduction)

    def _strip(self, rows: slice, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        logits = scale * full_precision_product(x[rows], y.mT) + bias
        row = torch.arange(len(y), device=x.device)
        positive = row[rows, None] == row
        losses = -logsigmoid(torch.where(positive, logits, -logits))
        if self.image_ids is not None and self.text_ids is not None:
            same = self.image_ids[rows, None] == self.text_ids
            losses = torch.where(same & ~positive, 0.0, losses)
        return losses.sum(1)


class _Run:
    """One computation of a loss on CPU."""

    def __init__(self, loss: SigmoidLoss, x: Tensor, y: Tensor, scale: float, bias: float) -> None:
        self.logits = Logits(x, y, scale, bias, loss.eps)
        # (n,): the losses, and the derivative of all of them by the bias that comes from each.
        self.losses = torch.zeros(len(x), dtype=torch.float64, device="cpu")
        self.by_bias = torch.zeros_like(self.losses)
        self.incoming: Tensor | None = None
        self._codes: list[Tensor] | None = None
        if loss.image_ids is not None and loss.text_ids is not None:
            self._codes = codes(loss.image_ids, loss.text_ids)

    def look(self) -> None:
        """Fill in the losses alone."""
        self.logits.run([partial(self._look_at, rows) for rows in self.logits.rows])

    def _look_at(self, rows: slice) -> Tensor:
        strip, scratch = self.logits.strip(rows), Scratch(self.logits.dtype)
        for columns in self.logits.columns:
            tile = self.logits.tile(strip, rows, columns)
            self._add_losses(rows, columns, tile, scratch)
        return self.losses[rows]

    def weigh(self, rows: slice, tiles: list[tuple[slice, Tensor]]) -> None:
        """Turn logits into the gradient by them, and add up losses."""
        scratch = Scratch(self.logits.dtype)
        for columns, tile in tiles:
            positive = self._add_losses(rows, columns, tile, scratch)
            tile.mul_(1 / BITS).sigmoid_()
            _own(tile, rows, columns).copy_(positive.neg().sigmoid_().neg_())
            if self.incoming is not None:
                tile.mul_(self.incoming[rows, None])
            self.by_bias[rows] += tile.sum(1)

    def _add_losses(self, rows: slice, columns: slice, tile: Tensor, scratch: Scratch) -> Tensor:
        """Add a tile's losses; leave out of it what is no negative, and return its positives.

        Positives are returned in natural units. softplus(z) = max(z, 0) + log1p(exp(-|z|)).
        """
        own = _own(tile, rows, columns)
        positive = own / BITS
        if self._codes is not None:
            images, texts = self._codes
            leave_out(tile, alike(tile, images[rows], texts[columns]))
        own.fill_(-torch.inf)
        terms = torch.abs(tile, out=scratch.like(tile)).neg_().exp2_()
        sums = _sums_of_log1p(terms)
        sums += torch.clamp_min(tile, 0.0, out=terms).sum(1) / BITS
        self.losses[rows] += sums
        first = max(rows.start, columns.start)
        self.losses[first : first + len(positive)] += softplus(-positive, threshold=LINEAR)
        return positive


def _sums_of_log1p(terms: Tensor) -> Tensor:
    """The sum of each row of log1p of terms (r, c) in [0, 1], which are overwritten."""
    # Of pairs, log1p a + log1p b = log1p(a + b (1 + a)); eight are 255 at most. A logarithm takes
    # 0.47 ns an element, products and sums 0.1.
    for _ in range(3):
        half, odd = divmod(terms.shape[1], 2)
        if odd or not half:
            break
        a, b = terms.split(half, 1)
        terms = a.addcmul_(b, a + 1.0)
    return terms.log1p_().sum(1)


def _own(tile: Tensor, rows: slice, columns: slice) -> Tensor:
    """The pairs of row i with column i, of which a tile may have none."""
    return tile.diagonal(rows.start - columns.start)
