"""Tensors whose numbers a function cannot read as they lie, and how to get at them."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
# What torch promotes beside a dtype that is computed in; float8 and quantized numbers are not.
_PROMOTED = frozenset(
    {
        *COMPUTED, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.complex64,
        torch.complex128,
    }
)  # fmt: skip


def unlike_dense(x: Tensor) -> str | None:
    """What a tensor is that is not a dense one of numbers, and how to make one of it."""
    if x.is_nested:
        return (
            "a nested tensor; pass the tensors of x.unbind() one by one, or rows of one length "
            "from torch.nested.to_padded_tensor"
        )
    # By the name: the module of masked tensors is experimental.
    if type(x).__name__ == "MaskedTensor":
        return "a MaskedTensor; fill what is masked with .to_tensor(0.0)"
    if x.layout is not torch.strided:
        return f"layout {x.layout}; call .to_dense() first"
    if x.is_quantized:
        return converted(x.dtype)
    return None


def converted(dtype: torch.dtype) -> str | None:
    """A dtype that torch does not promote, and how to convert from it; None for others."""
    if dtype in _PROMOTED:
        return None
    return f"{dtype}; call {'.dequantize()' if dtype in _QUANTIZED else '.float()'} first"


def one_is_fake(x: Tensor, y: Tensor) -> bool:
    """Whether one of two tensors has no values, in a mode that refuses the other for that."""
    fakes = [t for t in (x, y) if type(t).__name__ == "FakeTensor"]
    return len(fakes) == 1 and not fakes[0].fake_mode.allow_non_fake_inputs  # type: ignore[attr-defined]


def unreadable(x: Tensor) -> str | None:
    """Why the numbers of a dense tensor cannot be read here, and what to pass instead."""
    if x.is_meta:
        return "a tensor on the meta device; make one with values"
    name = type(x).__name__
    if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        fix = ".full_tensor()" if name == "DTensor" else "a plain tensor made of it"
        return f"{name}, whose numbers lie elsewhere; pass {fix}"
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "a tensor inside a function transform such as vmap; call the function outside"
    if torch._is_functional_tensor(x):
        return "a functional tensor; call the function outside functionalization"
    if freed(x):
        return "a tensor whose memory was freed; fill it again first"
    return None


def freed(x: Tensor) -> bool:
    """Whether the storage of a plain tensor was cut to nothing, as sharded training does."""
    return x.numel() > 0 and not x.data_ptr() and x.untyped_storage().nbytes() == 0


def in_memory(x: Tensor, y: Tensor) -> bool:
    """Whether the numbers of two plain tensors are at their addresses; of which one is 0.

    Empty tensors are; zeros that torch keeps as such, and functional tensors, are not.

    Raises:
        ValueError: the memory of one was freed: torch itself would read what is there now.
    """
    if freed(x) or freed(y):
        raise ValueError(
            "expected tensors that hold values, got one whose memory was freed; fill it again first"
        )
    return not any(t.numel() and not t.data_ptr() for t in (x, y))
