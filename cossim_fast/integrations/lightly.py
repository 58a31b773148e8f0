"""In place of ``lightly.loss.NTXentLoss``, a subclass of it.

Written after lightly 1.6, ``loss/ntx_ent_loss.py``.

What differs: the logits are never in memory as a whole, neither one process's nor all processes';
a loss is computed in float32 at least, and is float32 for rows of float16 and bfloat16; rows of any
magnitude are right; with `gather_distributed`, ranks may have unequal numbers of rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightly.loss.ntx_ent_loss import NTXentLoss as _NTXentLoss
from torch import Tensor
from torch.nn.functional import normalize

from cossim_fast import losses

# The smallest norm that F.normalize divides by.
_EPS = 1e-12


class NTXentLoss(_NTXentLoss):
    """The loss of finding each row's other view (SimCLR), or among a memory bank (MoCo).

    It takes the library's arguments: `temperature`, what cosines are divided by, > 0;
    `memory_bank_size`, (rows, width) of the bank, or 0; and `gather_distributed`, whether the rows
    of other processes are negatives too.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss of rows (n, d) and their other views (n, d).

        With a memory bank, of rows of `out0` alone, whose negatives are the bank's rows; where
        `out0` has a gradient, those of `out1` take the places of the oldest ones afterwards.
        """
        if self.memory_bank.size[0]:
            return self._among_bank(out0, out1)
        several = self.gather_distributed and dist.is_initialized() and dist.get_world_size() > 1
        group = dist.group.WORLD if several else None
        return losses.nt_xent(out0, out1, temperature=self.temperature, eps=_EPS, group=group)

    def _among_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        _, bank = self.memory_bank(normalize(out1, dim=1), update=out0.requires_grad)
        bank = bank.T.to(out1.device)
        # Rows of equal ids are never each other's negatives: those of the batch.
        ids = torch.zeros(len(out1) + len(bank), dtype=torch.int64, device=out1.device)
        ids[len(out1) :] = 1
        return losses.info_nce(
            out0,
            torch.cat([out1, bank.to(out1.dtype)]),
            temperature=self.temperature,
            query_ids=ids[: len(out0)],
            key_ids=ids,
            eps=_EPS,
        )
