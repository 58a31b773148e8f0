"""Tensors whose numbers a function cannot read directly, and what to pass instead."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
# Dtypes that torch promotes with those above; float8 and quantized dtypes are not among them.
_PROMOTED = frozenset(
    {
        *COMPUTED, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.complex64,
        torch.complex128,
    }
)  # fmt: skip


def unlike_dense(x: Tensor) -> str | None:
    """Why a tensor is not dense, and how to convert it; None for a dense tensor."""
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
    """Whether only one of two tensors is fake, in a mode that refuses others."""
    fakes = [t for t in (x, y) if type(t).__name__ == "FakeTensor"]
    return len(fakes) == 1 and not fakes[0].fake_mode.allow_non_fake_inputs  # type: ignore[attr-defined]


def unreadable(x: Tensor) -> str | None:
    """Why the numbers of a dense tensor cannot be read, and what to pass; None if they can."""
    if x.is_meta:
        return "a tensor on the meta device; make one with values"
    name = type(x).__name__
    if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        fix = ".full_tensor()" if name == "DTensor" else "a plain tensor made of it"
        return f"{name}, whose numbers are elsewhere; pass {fix}"
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "a tensor inside a function transform such as vmap; call the function outside"
    if torch._is_functional_tensor(x):
        return "a functional tensor; call the function outside functionalization"
    if freed(x):
        return "a tensor whose memory was freed; fill it again first"
    return None


def mode_without_values() -> str | None:
    """What is on where tensors that are made have no values, as while a function is traced."""
    if not torch._C._len_torch_dispatch_stack():
        return None
    keys = torch._C._TorchDispatchModeKey
    for key in (keys.FAKE, keys.PROXY, keys.FUNCTIONAL):
        mode = torch._C._get_dispatch_mode(key)
        if mode is not None:
            return f"an active {type(mode).__name__}, in which nothing has any; call it outside"
    return None


def freed(x: Tensor) -> bool:
    """Whether the storage of a plain tensor was cut to nothing, as sharded training does."""
    return x.numel() > 0 and not x.data_ptr() and x.untyped_storage().nbytes() == 0


def in_memory(x: Tensor, y: Tensor) -> bool:
    """Whether both plain tensors have memory that holds their numbers; call it if an address is 0.

    Empty tensors count as such; zero tensors without memory and functional tensors do not.

    Raises:
        ValueError: the memory of one was freed: torch itself would read whatever is there now.
    """
    if freed(x) or freed(y):
        raise ValueError(
            "expected tensors that hold values, got one whose memory was freed; fill it again first"
        )
    return not any(t.numel() and not t.data_ptr() for t in (x, y))
