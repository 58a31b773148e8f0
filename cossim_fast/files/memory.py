"""How much memory there is, for what cannot stay on disk."""

import os
import sys

from cossim_fast.files.entries import size_text
from cossim_fast.files.errors import NotEnoughMemoryError


def physical_memory() -> int:
    """Bytes that this machine has, or more than any where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return sys.maxsize


def check_fits(what: str, nbytes: int, fix: str = "") -> None:
    """Refuse what is larger than the memory before it is read.

    A system that gives memory before it has any would end the process instead.

    Raises:
        NotEnoughMemoryError: with both figures.
    """
    there = physical_memory()
    if nbytes > there:
        raise NotEnoughMemoryError(
            f"there is not enough memory for {what}: {size_text(nbytes)}, and this machine has "
            f"{size_text(there)}{fix}"
        )
