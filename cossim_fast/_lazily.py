"""Properties that are computed at their first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Held = TypeVar("Held")
Value = TypeVar("Value")


class lazily(Generic[Held, Value]):  # noqa: N801 - a decorator
    """What functools.cached_property is since Python 3.12: it has no lock.

    Before, all instances shared one, which a forked child may find held by a thread that it lacks.
    Two threads may compute the value, and one of the two is kept.
    """

    def __init__(self, make: Callable[[Held], Value]) -> None:
        self._make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, held: None, owner: type) -> lazily[Held, Value]: ...

    @overload
    def __get__(self, held: Held, owner: type) -> Value: ...

    def __get__(self, held: Any, owner: type) -> Any:
        if held is None:
            return self
        # The next use finds it there before this descriptor.
        value = held.__dict__[self._name] = self._make(held)
        return value
