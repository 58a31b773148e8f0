"""In place of ``open_clip.ClipLoss`` and ``open_clip.SigLipLoss``. Needs torch alone.

Written after open_clip 3.3, ``loss.py``.

What differs: the logits are never in memory as a whole, neither one process's nor all processes';
a loss is computed in float32 at least, and is float32 for features of float16 and bfloat16; ranks
may have unequal numbers of rows. Like the library's, these losses take features as they are:
normalized, as its models give them.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from cossim_fast import losses

_DIST_IMPL = ("bidir", "shift", "reduce", "gather")


class ClipLoss(nn.Module):
    """The symmetric softmax loss of images and their texts.

    Args:
        local_loss: whether a rank's loss is that of its own rows; else each rank has the loss of
            all rows, which is the mean of these.
        gather_with_grad: whether gradients go to the rows of other ranks too. Otherwise, as in the
            library, gradients of rows after DDP's averaging are not those of one process: with
            `local_loss` they are those of a row among frozen keys, else 1 / world_size of them.
        cache_labels: changes nothing; there are no labels.
        rank: this process's among the ranks of torch.distributed, if world_size is above 1.
        world_size: how many processes there are.
        use_horovod: not to be had.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("expected use_horovod=False, got True; use torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """Return the loss of features (n, d), text i of image i, or a dict that holds it.

        The bias is the same in all logits, and changes nothing.
        """
        loss = self._loss(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _loss(
        self, image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor | None
    ) -> Tensor:
        group = _world(self.rank, self.world_size)
        if group is None or self.gather_with_grad:
            loss = losses.clip(image, text, scale, bias, normalize=False, group=group)
        elif self.local_loss:
            # Of each direction, own rows have gradients, and no keys, not even own ones.
            one_way = {"temperature": 1 / scale, "normalize": False, "group": group}
            loss = losses.info_nce(image, text.detach(), **one_way)
            loss = (loss + losses.info_nce(text, image.detach(), **one_way)) / 2
            if isinstance(bias, Tensor):
                # DDP waits for the gradient of every parameter.
                loss = loss + 0.0 * bias.reshape(())
        else:
            # Each rank has the gradient of the loss of all rows by its own. What `group` gives adds
            # up to it over the ranks, each of which has it once.
            image, text = (_less_gradient(t, self.world_size) for t in (image, text))
            loss = losses.clip(image, text, scale, bias, normalize=False, group=group)
        if group is not None and not self.local_loss:
            loss = _of_all_ranks(loss, self.world_size)
        return loss


class SigLipLoss(nn.Module):
    """The sigmoid loss of all pairs of images and texts.

    Args:
        cache_labels: changes nothing; there are no labels.
        rank: this process's among the ranks of torch.distributed, if world_size is above 1.
        world_size: how many processes there are.
        dist_impl: one of the library's words for how texts are passed on, which change nothing.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        if dist_impl is not None and dist_impl not in _DIST_IMPL:
            raise ValueError(f"expected dist_impl to be one of {_DIST_IMPL}, got {dist_impl!r}")
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """Return the loss of features (n, d), text i of image i, or a dict that holds it."""
        loss = losses.siglip(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            normalize=False,
            group=_world(self.rank, self.world_size),
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _world(rank: int, world_size: int) -> Any:
    """The group of all ranks; None for one process."""
    if world_size <= 1:
        return None
    running = dist.is_available() and dist.is_initialized()
    here = (dist.get_rank(), dist.get_world_size()) if running else None
    if here != (rank, world_size):
        raise ValueError(
            f"expected rank and world_size of torch.distributed's processes, got ({rank}, "
            f"{world_size}), where it has {here}; call torch.distributed.init_process_group first"
        )
    return dist.group.WORLD


def _less_gradient(x: Tensor, times: int) -> Tensor:
    """The same values, whose gradient is a part of the incoming one."""
    return x.detach() + (x - x.detach()) / times


def _of_all_ranks(loss: Tensor, world_size: int) -> Tensor:
    """The mean over the ranks, with the gradient of this rank's."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return loss + (total / world_size - loss.detach())
