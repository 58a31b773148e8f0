"""Functions that are one call for whatever watches torch: modes, subclasses, Dynamo.

A search is a thousand operations, arrays of numpy and threads among them. Who overrides torch's
functions is asked about the search, as about a function of torch's own, and not about these.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def as_one(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function of arrays and tensors one call.

    - a `TorchFunctionMode`, such as a default device, gets the function, and nothing within it;
    - a subclass of Tensor is read as the numbers that it holds, whatever its ``__torch_function__``
      does (one whose numbers are elsewhere is refused by the function itself);
    - `torch.compile` leaves its graph for the call, and does not look into it.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # What an iterator runs is the caller's, and no part of the call.
        if any(hasattr(each, "__next__") for each in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        if torch._C._is_torch_function_mode_enabled():
            found: Result = handle_torch_function(call, (), *args, **kwargs)
            return found
        with torch._C.DisableTorchFunctionSubclass():
            return _hidden(function)(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


def _hidden(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that Dynamo does not see, if it was ever loaded: that takes seconds."""
    disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
    if disable is None:
        return function
    if function not in _HIDDEN:
        _HIDDEN[function] = disable(function)
    found: Callable[Arguments, Result] = _HIDDEN[function]
    return found


_HIDDEN: dict[Callable[..., Any], Callable[..., Any]] = {}
