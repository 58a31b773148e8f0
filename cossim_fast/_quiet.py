"""numpy's warnings of what the inputs may hold, left out, and nothing else changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")

# Whether numpy keeps what it warns of in the context, which `Context.run` leaves behind.
_IN_CONTEXT = int(np.__version__.partition(".")[0]) >= 2


def quiet(function: Callable[..., Result]) -> Callable[..., Result]:
    """Have a function of positional arguments run without numpy's floating point warnings.

    np.errstate sets them back in Python: Ctrl-C may fall in before, and the caller would go on
    without warnings. Here a context of its own is left behind, or on numpy 1.26, which does not
    keep its state there, the first thing that follows is one call into C, which nothing precedes.
    """
    within = np.errstate(all="ignore")(function) if _IN_CONTEXT else function

    @functools.wraps(function)
    def inner(*arguments: Any) -> Result:
        if _IN_CONTEXT:
            return copy_context().run(within, *arguments)
        before = np.geterrobj()  # type: ignore[attr-defined]
        try:
            np.seterr(all="ignore")
            return function(*arguments)
        finally:
            np.seterrobj(before)  # type: ignore[attr-defined]

    return inner
