"""Lines of UTF-8."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from cossim_fast.files.errors import DamagedError


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Each line with its number, counted from 1; a mark of byte order is none of it.

    Raises:
        DamagedError: it is no UTF-8, or a line that is not at the end is empty.
    """
    # Not closed with what wraps it: who opened it does that.
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    number, empty = 0, 0
    try:
        for number, line in enumerate(text, 1):
            if not line.strip():
                empty = empty or number
            elif empty:
                raise DamagedError(f"line {empty} is empty")
            else:
                yield number, line
    except UnicodeDecodeError as error:
        raise DamagedError(f"line {number + 1} or later is no UTF-8: {error}") from error
    finally:
        text.detach()
