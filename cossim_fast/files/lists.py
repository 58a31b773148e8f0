"""Lists of numbers in a text, one after another, as the rows of a matrix."""

import itertools
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from cossim_fast.files.errors import DamagedError

# How much of a strange value an error shows.
_SHOWN = 40


def matrix_of(values: Iterable[tuple[str, Any]]) -> np.ndarray[Any, Any]:
    """Put lists (d) under each other: (n, d) of float64.

    Args:
        values: where each list stands, in words, and what `json.loads` made of it.

    Raises:
        DamagedError: one is no list of numbers, or not as long as the first.
    """
    flat, width, first = array("d"), None, ""
    for place, value in values:
        if not is_vector(value):
            raise DamagedError(f"{place}: expected a list of numbers, got {shown(value)}")
        if width is None:
            width, first = len(value), place
        if len(value) != width:
            raise DamagedError(f"{place} has {len(value)} numbers, and {first} has {width}")
        try:
            flat.extend(value)
        except OverflowError as error:
            raise DamagedError(f"{place}: a number is too large for float64") from error
    return np.frombuffer(flat, np.float64).reshape(-1, width or 0)


def is_vector(value: Any) -> bool:
    """Whether a value of JSON is a list of numbers; true and false are none."""
    return isinstance(value, list) and set(map(type, value)) <= {int, float}


def column_of(values: list[Any]) -> np.ndarray[Any, Any]:
    """Values (n,) as whole numbers, as floats, or as objects of str: labels, or ids."""
    kinds = set(map(type, values))
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    if kinds and kinds <= {int, float}:
        return np.array(values, np.float64)
    texts = np.empty(len(values), object)
    texts[:] = [value if isinstance(value, str) else str(value) for value in values]
    return texts


def numbered(names: Iterable[str]) -> bool:
    """Whether names count two columns or more from 0, as those of a frame of an array do."""
    names = list(names)
    return len(names) > 1 and all(
        name == str(at) for at, name in zip(itertools.count(), names, strict=False)
    )


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
