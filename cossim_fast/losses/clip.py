"""The loss of image-text pairs (CLIP): images find their texts, and texts their images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cossim_fast import _checks
from cossim_fast.losses.info_nce import in_dtype, shared_or_not
from cossim_fast.losses.module import LossModule
from cossim_fast.losses.softmax import SoftmaxLoss


def clip(
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
    r"""Return the mean loss of finding each image's text and each text's image.

    .. math::
        L_i = \tfrac{1}{2} \log\Bigl(1 + \sum_{j \ne i} e^{s (c_{ij} - c_{ii})}\Bigr)
            + \tfrac{1}{2} \log\Bigl(1 + \sum_{j \ne i} e^{s (c_{ji} - c_{ii})}\Bigr)

    with c the cosines and s the scale: the mean of the two cross-entropies of the logits s c + b,
    whose matrix is never made.

    Args:
        image: (n, d); float16, bfloat16, float32 or float64, any strides.
        text: (n, d) on the same device; row i belongs to image i.
        logit_scale: s itself, not its logarithm; a float, or a tensor of one element, which may be
            learned.
        logit_bias: b, likewise, which cancels: its derivative is 0.
        image_ids: integers (n,). An image and a text of equal ids are never each other's negatives.
        text_ids: integers (n,); of the two, one alone is that of both.
        reduction: "mean" over the pairs, "sum", or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".
        group: a process group of torch.distributed. Rows are then this process's own, as many as
            it likes, and those of all processes are its negatives. Its value is such that the mean
            over processes, which DDP takes of gradients, is the loss of one that has all rows.
            First derivatives only.

    Returns:
        A number, or (n,) for "none", in float32, for float64 rows in float64.

    What zero rows, NaN and few rows give, precision, derivatives and memory are those of
    :func:`cossim_fast.losses.info_nce` with ``symmetric=True``.

    Raises:
        ValueError: shapes that do not match, two devices, numbers out of range.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for ids).

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision
    (2021), figure 3, and ``ClipLoss`` of open_clip.

    >>> import torch
    >>> clip(torch.eye(3), torch.eye(3), 1.0)
    tensor(0.5514)
    """
    dtype = _checks.loss_rows("clip", ("image", "text"), image, text)
    _checks.loss_options("clip", reduction, eps, precision)
    _checks.loss_number("clip", "logit_scale", logit_scale, image.device)
    _checks.same_count("clip", ("image", "text"), image, text)
    n = len(image)
    _checks.pair_ids("clip", ("image_ids", "text_ids"), image_ids, text_ids, n, n, image.device)
    loss = SoftmaxLoss(
        query_ids=text_ids if image_ids is None else image_ids,
        key_ids=image_ids if text_ids is None else text_ids,
        symmetric=True,
        reduction=reduction,
        eps=eps if normalize else None,
    )
    found = shared_or_not(loss, image, text, in_dtype(logit_scale, dtype), group)
    if logit_bias is None:
        return found
    _checks.loss_number("clip", "logit_bias", logit_bias, image.device)
    if not isinstance(logit_bias, Tensor):
        return found
    bias = logit_bias.reshape(()).to(found.dtype)
    return found + 0.0 * bias


class ClipLoss(LossModule):
    """`clip` as a module; arguments as there.

    >>> import torch
    >>> ClipLoss()(torch.eye(3), torch.eye(3), 1.0)
    tensor(0.5514)
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
        return clip(
            image,
            text,
            logit_scale,
            logit_bias,
            image_ids=image_ids,
            text_ids=text_ids,
            **self.options(),
        )
