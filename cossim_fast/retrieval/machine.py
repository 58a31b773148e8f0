"""What exact search measures on this machine, once a process; ``cossim info`` shows it."""

from cossim_fast.retrieval.screening import costs, screens
from cossim_fast.retrieval.screening.screens import Offer


def screens_here() -> dict[str, Offer]:
    """Every screen by name, narrowest first: how it runs here, and whether it is used."""
    return {name: screens.offer(name) for name in screens.NAMES}


def screen_for(width: int) -> str:
    """The first screen that ``"auto"`` takes for rows of so many numbers."""
    return screens.choose(width)[0].name


def scored_pair_ns() -> float:
    """Nanoseconds to score a pair of rows of 384 numbers in float64 on one core."""
    return costs.pair_ns()
