"""Products in few shapes: oneDNN makes machine code for each shape that it meets, and keeps it.

That takes about 1 ms and 0.6 MB a shape in float32 and bfloat16, 0.3 MB in int8, whatever the width
(Zen 5, torch 2.13), and oneDNN keeps that of the last 1024 shapes of a process; torch keeps none
beside it. So a dimension that changes from call to call is cut or padded to few sizes. MKL keeps
nothing for a shape.
"""

from __future__ import annotations

from collections.abc import Iterator


def cut(count: int, least: int, most: int) -> Iterator[slice]:
    """Cut a dimension into spans of ``most``, and what is left into smaller powers of two.

    The last span may end beyond the count, by less than ``least``.

    Args:
        count: the size of the dimension.
        least: a power of two.
        most: a power of two, at least ``least``.
    """
    start, size = 0, most
    while start < count:
        while size > least and start + size > count:
            size //= 2
        yield slice(start, start + size)
        start += size


def even(count: int, least: int) -> int:
    """A size that so much is padded to: by an eighth of a power of two, or up to ``least``."""
    step = max(1 << max((count - 1).bit_length() - 4, 0), least)
    return -(-count // step) * step
