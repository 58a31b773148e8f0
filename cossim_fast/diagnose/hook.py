"""The forward hook of a monitor: what torch.compile makes of it, and what copies keep of it."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def hook(observe: Callable[[Any], None]) -> "_Hook":
    """Return a forward hook that hands each output to ``observe``."""
    _keep_hooks_from_dynamo()
    return _Hook(observe)


class _Hook:
    """What the module holds; a copy or a pickle of the module holds an idle one."""

    def __init__(self, observe: Callable[[Any], None] | None) -> None:
        self._observe = observe

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # Dynamo evaluates these as it traces; what must be one graph has no place for a hook.
        if torch.compiler.is_dynamo_compiling() and _must_be_one_graph():
            return
        self._pass_on(output)

    def _pass_on(self, output: Any) -> None:
        if self._observe is not None:
            self._observe(output)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[None]]:
        return _Hook, (None,)


def _must_be_one_graph() -> bool:
    """Whether the trace in progress may not be broken: an export, or ``fullgraph=True``.

    torch has no public name for the latter. Where a version has another, the answer is yes: a
    compiled module is not observed then, which is better than an error in the user's forward pass.
    """
    if torch.compiler.is_exporting():
        return True
    module = sys.modules.get("torch._dynamo.symbolic_convert")
    current = getattr(getattr(module, "InstructionTranslator", None), "current_tx", None)
    translator = None if current is None else current()
    return bool(getattr(translator, "one_graph", True))


# Called while Dynamo traces, once a graph, and the answer stands in the graph's place. Before 2.12
# Dynamo itself takes every trace for an export.
_must_be_one_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _keep_hooks_from_dynamo() -> None:
    """Exempt the hook from tracing: no decorator, which would load dynamo at import, in seconds."""
    _Hook._pass_on = torch.compiler.disable(_Hook._pass_on)  # type: ignore[method-assign]
    # Where the trace breaks, the hook runs as plain Python, and is no graph of its own. A version
    # without this name would make one of it, which does no harm.
    skip = getattr(torch._dynamo.eval_frame, "skip_code", None)
    if skip is not None:
        skip(_Hook.__call__.__code__)
