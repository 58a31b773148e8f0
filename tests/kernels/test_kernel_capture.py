"""A call can be captured as a CUDA graph: between launches it makes tensors, and looks at none.

The launchers of CUDA tensors run on CPU tensors here, with a driver that compiles and records. All
that reaches torch's dispatcher is listed, and nothing of it waits for a device or reads its memory.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cossim_fast import _autograd, cosine_similarity, functional, pairwise_cosine
from cossim_fast._dispatch import Executor
from ladder.checks import BF16, F16, F32
from ladder.reach import as_cuda  # noqa: F401  (a fixture)
from ladder.runtime import INTERPRETING
from ladder.stub import compiled_for

pytestmark = [
    pytest.mark.kernel_contract,
    pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET"),
]
# Memory from torch's allocator, views of it, and kernels of torch's that write to it.
MAKES = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_zeros", "zeros", "zeros_like",
}  # fmt: skip
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "squeeze_", "t", "transpose",
    "unsqueeze", "view",
}  # fmt: skip
WRITES = {"_to_copy", "add", "clone", "copy_", "fill_", "slice_backward", "zero_"}


class Watched(TorchDispatchMode):
    """Refuses every operation that is not among those above."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        moved = name == "_to_copy" and "device" in (kwargs or {})
        if moved or name not in MAKES | VIEWS | WRITES:
            raise AssertionError(f"{name} in a call that is captured")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def captured(as_cuda, monkeypatch):  # noqa: F811
    """Within, kernels are launched though a dispatch mode looks on."""
    for module in (functional, _autograd):
        monkeypatch.setattr(module, "choose_executor", lambda x, y: (Executor.KERNELS, ""))
    with compiled_for("sm_90") as launches, Watched():
        yield launches


def both(function, x, y):
    x, y = (t.detach().requires_grad_() for t in (x, y))
    result = function(x, y)
    return torch.autograd.grad(result, (x, y), torch.empty_like(result), allow_unused=True)


CALLS = {
    "matrix": pairwise_cosine,
    "rounded": partial(pairwise_cosine, precision="high"),
    "with itself": lambda x, y: pairwise_cosine(x),
    "into": lambda x, y: pairwise_cosine(x.detach(), y.detach(), out=x.new_empty(len(x), len(y))),
    "rows": lambda x, y: cosine_similarity(x, y[: len(x)], dim=-1),
    "columns": lambda x, y: cosine_similarity(x, y[: len(x)], dim=0),
    "broadcast": lambda x, y: cosine_similarity(x[:, None], y[None], dim=-1),
}


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("width", [32, 23], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name, width, dtype, captured):
    x, y = (torch.empty(rows, width, dtype=dtype, device="cpu") for rows in (5, 7))
    CALLS[name](x, y)
    forward = len(captured)
    assert forward > 0
    if name != "into":
        both(CALLS[name], x, y)
        assert len(captured) > 2 * forward


def test_what_waits_is_refused(captured):
    for wait in (torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.__bool__):
        with pytest.raises(AssertionError, match="in a call that is captured"):
            wait(torch.empty((), device="cpu", dtype=F32))
