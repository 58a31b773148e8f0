"""To measure beside a training run: which states of torch forbid it, and how to leave no trace."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


def being_traced() -> str | None:
    """Say why nothing may be computed now without becoming part of what is being recorded."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace was recording"
    if torch.compiler.is_compiling():
        return "torch.export or torch.compile was tracing"
    if torch._C._are_functorch_transforms_active():
        return "inside a function transform such as vmap or grad"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph was being captured"
    return None


@contextmanager
def apart_from_training() -> Iterator[None]:
    """Compute without derivatives, autocast, default device and modes; restored at the end.

    Modes see every operation: they count its FLOPs, keep it for a recomputation, or record it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack() > 0:
            stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        yield
