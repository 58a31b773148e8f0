"""The one predicate that decides which code runs a call, before it runs."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Executor(str, Enum):
    """Who computes a call; `cossim_fast.explain` reports it."""

    BLOCKED = "blocked"
    BLOCKED_AUTOGRAD = "blocked, inside one autograd function"
    COMPOSITE = "composite"
    REGISTERED_OP = "registered op"


_PLAIN = (Tensor, torch.nn.Parameter)


def choose_executor(*inputs: Tensor) -> tuple[Executor, str]:
    """Return the executor for these inputs in the present state of torch, and why."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return Executor.COMPOSITE, "the call is being traced"
    if any(type(x) not in _PLAIN for x in inputs):
        return Executor.COMPOSITE, "an input is of a subclass of Tensor"
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return Executor.COMPOSITE, "a functorch transform or a dispatch mode is active"
    if forward_ad._current_level >= 0:
        return Executor.COMPOSITE, "forward-mode differentiation is active"
    if any(x.layout is not torch.strided for x in inputs):
        return Executor.COMPOSITE, "an input is not strided"
    if all(x.device.type == "cpu" for x in inputs):
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return Executor.BLOCKED_AUTOGRAD, "CPU tensors, and a first derivative is to come"
        return Executor.BLOCKED, "CPU tensors, and no derivative is wanted"
    if inputs[0].device.type == "cuda" and has_triton():
        return Executor.REGISTERED_OP, "CUDA tensors, and Triton is installed"
    return Executor.COMPOSITE, f"no kernel for {inputs[0].device.type} tensors here"


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; the package does without it."""
    return importlib.util.find_spec("triton") is not None


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the device of x where it is on; free where it is not."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
