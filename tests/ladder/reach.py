"""Send CPU tensors down the road of CUDA tensors: the public functions then launch kernels."""

import pytest

from cossim_fast import _ops, functional
from cossim_fast._dispatch import Executor

OPS = ("rowwise_fwd", "rowwise_bwd", "pairwise_fwd", "pairwise_bwd", "block_max", "rescore")


@pytest.fixture
def as_cuda(monkeypatch):
    """Within, every tensor is taken for a CUDA tensor: by the predicate, and by the dispatcher.

    Two things are replaced: the predicate's answer, and the CPU body of each op by its CUDA body.
    """
    monkeypatch.setattr(
        functional,
        "choose_executor",
        lambda *inputs: (Executor.REGISTERED_OP, "a test takes these for CUDA tensors"),
    )
    for name in OPS:
        bodies = getattr(_ops, name)._backend_fns
        monkeypatch.setitem(bodies, None, bodies["cuda"])
