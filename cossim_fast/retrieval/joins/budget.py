"""How many pairs may be held at a time, and how many queries there is room for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Room for so many pairs.

    Attributes:
        pairs: that may be held.
    """

    pairs: int

    def fitting(self, queries: int, expected: int) -> int:
        """How many of some queries to go on with, if all promise so many pairs; at least one.

        An eighth of the room is left over: pairs need not go on as they began.
        """
        return max(queries * self.pairs * 7 // (8 * max(expected, 1)), 1)
