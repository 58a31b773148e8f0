"""How many pairs a round may hold, and how many queries fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Room for pairs.

    Attributes:
        pairs: most pairs that may be held.
    """

    pairs: int

    def fitting(self, queries: int, expected: int) -> int:
        """How many queries fit, at least one, if all of them are expected to have so many pairs.

        An eighth of the room is left as a reserve, since the expected number is only an estimate.
        """
        return max(queries * self.pairs * 7 // (8 * max(expected, 1)), 1)
