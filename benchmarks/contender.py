"""What a contender is, and whether it can run here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from cases import Case

Call = Callable[[], Any]


class Part(NamedTuple):
    """A call that does 1/times of the work: its time counts as often."""

    call: Call
    times: float


class Inside(NamedTuple):
    """A call of which a part alone counts: it returns the seconds of that part."""

    call: Callable[[], float]


def plain(call: Call | Part | Inside) -> Call:
    """What is called."""
    return call.call if isinstance(call, Part | Inside) else call


def _as_it_is(answer: Any, case: Case) -> Any:
    return answer


def _always(case: Case) -> bool:
    return True


def _never(case: Case) -> bool:
    return False


class Contender(NamedTuple):
    """One way to do a task.

    `prepare(case, *inputs)` returns the call that is timed; what a user of the library does once
    and beforehand stays outside of it. `read(answer, case)` turns what the call returned into the
    form in which answers are checked (see answers.py), untimed.
    """

    name: str
    prepare: Callable[..., Call | Part | Inside]
    module: str = "torch"  # what has to be installed; "module:name" where it has to have that name
    floor: bool = False  # does less than the task: shows its limit
    approximate: bool = False  # does not claim the exact answer
    read: Callable[[Any, Case], Any] = _as_it_is
    takes: Callable[[Case], bool] = _always
    too_slow: Callable[[Case], bool] = _never  # it would take minutes: left out with a line
    devices: tuple[str, ...] = ("cpu",)
    preloaded: bool = True  # its module is imported once, and not in each child

    def missing(self) -> str | None:
        """Say what it lacks to run here."""
        module, _, attribute = self.module.partition(":")
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if not attribute:
            return None
        try:
            loaded = importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # of what it needs itself
            return f"{module} does not load: {error}"
        return None if hasattr(loaded, attribute) else f"{module} has no {attribute}"


def calling(function: Callable[..., Any]) -> Callable[..., Call]:
    """Time function(*inputs)."""
    return lambda case, *inputs: lambda: function(*inputs)
