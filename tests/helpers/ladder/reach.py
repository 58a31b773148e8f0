"""Send CPU tensors down the road of CUDA tensors: the public functions then launch kernels."""

import pytest
import torch

from cossim_fast import _ops

SCREEN_OPS = (
    "code_rows", "scan_rows", "block_max", "block_thresholds", "best_rows", "block_candidates",
    "recheck", "rescore",
)  # fmt: skip
MATRIX_OPS = "pairwise_fwd", "pairwise_bwd", "pairwise_self_bwd"
OPS = ("rowwise_fwd", "rowwise_bwd", *MATRIX_OPS, *SCREEN_OPS)


def take_for_cuda(patch: pytest.MonkeyPatch) -> None:
    """Have every tensor say that it lies on a CUDA device, and each op run its CUDA body.

    Two things are replaced: what tensors say, which the package's own predicate asks, and the CPU
    body of each op, which torch's dispatcher would choose.
    """
    patch.setattr(torch.Tensor, "is_cuda", True)
    patch.setattr(torch.Tensor, "is_cpu", False)
    for name in OPS:
        bodies = getattr(_ops, name)._backend_fns
        patch.setitem(bodies, None, bodies["cuda"])


@pytest.fixture
def as_cuda(monkeypatch):
    """Within, CPU tensors take the road of CUDA tensors."""
    take_for_cuda(monkeypatch)
