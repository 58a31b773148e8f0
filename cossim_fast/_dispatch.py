"""The one predicate that decides which code runs a call, before it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cossim_fast import _checks


class Executor(str, Enum):
    """Who computes a call; `cossim_fast.explain` reports it."""

    BLOCKED = "blocked"
    SMALL = "numpy in float64"
    WIDENED = "torch's own function in float64"
    BLOCKED_AUTOGRAD = "blocked, inside one autograd function"
    COMPOSITE = "composite"
    TRACED = "composite, whatever the sizes"
    KERNELS = "kernels"
    COMPILED_OP = "registered op for a matrix, composite for rows"


_NOTHING = nullcontext()
_PLAIN = (Tensor, torch.nn.Parameter)
_has_storage = torch._C._has_storage


def choose_executor(x: Tensor, y: Tensor) -> tuple[Executor, str]:
    """Return the executor for these inputs in the present state of torch, and why.

    A handful of lookups, no loops: it stands before every call, of 13 µs in torch for one row.
    """
    if torch.compiler.is_compiling():
        if _compiles_to_kernels(x, y):
            return Executor.COMPILED_OP, "CUDA tensors are compiled, and Triton is installed"
        return Executor.COMPOSITE, "the call is being traced"
    if torch._C._get_tracing_state() is not None:
        return Executor.TRACED, "torch.jit.trace records the call, for inputs of other sizes too"
    if type(x) not in _PLAIN or type(y) not in _PLAIN:
        return Executor.COMPOSITE, "an input is of a subclass of Tensor"
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return Executor.COMPOSITE, "a functorch transform or a dispatch mode is active"
    if forward_ad._current_level >= 0:
        return Executor.COMPOSITE, "forward-mode differentiation is active"
    # Sparse tensors have none, and those that were kept after the transform they belonged to.
    if not (_has_storage(x) and _has_storage(y)):
        return Executor.COMPOSITE, "an input has no storage of its own"
    if x.is_cpu and y.is_cpu:
        if not ((x.data_ptr() and y.data_ptr()) or _checks.in_memory(x, y)):
            return Executor.COMPOSITE, "the numbers of an input are not in its memory"
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            if x.is_inference() or y.is_inference():
                return Executor.COMPOSITE, "an inference tensor cannot be saved for backward"
            return Executor.BLOCKED_AUTOGRAD, "CPU tensors, and a first derivative is to come"
        return Executor.BLOCKED, "CPU tensors, and no derivative is wanted"
    if _on_gpu(x, y) and has_triton():
        return _of_gpu(x, y)
    return Executor.COMPOSITE, f"no kernel for {x.device.type} tensors here"


def _of_gpu(x: Tensor, y: Tensor) -> tuple[Executor, str]:
    """The executor of plain CUDA tensors; kernels read their memory, past torch's dispatcher."""
    if not ((x.data_ptr() and y.data_ptr()) or _checks.in_memory(x, y)):
        return Executor.COMPOSITE, "the numbers of an input are not in its memory"
    if x.is_neg() or y.is_neg():
        return Executor.COMPOSITE, "the memory of an input holds its negative"
    wanted = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if wanted and (x.is_inference() or y.is_inference()):
        return Executor.COMPOSITE, "an inference tensor cannot be saved for backward"
    return Executor.KERNELS, "CUDA tensors, and Triton is installed"


def has_triton() -> bool:
    """Whether Triton can be imported; the package does without it."""
    return _triton_is_found()


@cache
def _triton_is_found() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_exporting() -> bool:
    return torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export()


def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _is_exported_or_transformed() -> bool:
    """Whether a graph is exported, or has functorch transforms or forward-mode derivatives."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or torch.compiler.is_exporting()


# Dynamo calls these while it traces: what they ask, its guards ask too, or never changes. Traced,
# is_exporting() is true before torch 2.12 wherever something is compiled, and the query of autocast
# cannot be; see _products._products_are_full.
_ASKED: tuple[Callable[..., bool], ...] = (
    has_triton, _is_exporting, _knows_autocast, _is_exported_or_transformed,
)  # fmt: skip
for _asked in _ASKED:
    _asked._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _compiles_to_kernels(x: Tensor, y: Tensor) -> bool:
    """Whether a matrix in the graph of torch.compile is one node that launches our kernels.

    Composite, Inductor would widen 16-bit rows to float32 before the product, and keep unit rows
    and the product for the derivatives. The op has first derivatives alone, and an exported graph
    would need this package.
    """
    if _is_exported_or_transformed():
        return False
    plain = type(x) in _PLAIN and type(y) in _PLAIN
    return plain and _on_gpu(x, y) and has_triton()


def _on_gpu(x: Tensor, y: Tensor) -> bool:
    return x.is_cuda and y.is_cuda


@contextmanager
def untraced() -> Iterator[None]:
    """Let torch.jit.trace take no notice: of a look at sizes, which it would warn of and record."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast is on for this kind of device; meta tensors know none."""
    return _knows_autocast(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the device of x; next to free where it is off.

    A program that is exported keeps this, since it may run where autocast is on. ONNX has none.
    """
    if torch.compiler.is_compiling() and _is_exporting() and _knows_autocast(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    if torch._C._is_any_autocast_enabled() and autocast_is_on(x.device):
        return torch.autocast(x.device.type, enabled=False)
    return _NOTHING
