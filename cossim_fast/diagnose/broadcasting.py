"""Which side was stretched by broadcasting, and whether anybody can have meant it."""

Shape = tuple[int, ...]


def mistake(a: Shape, b: Shape, shape: Shape, dim: int) -> str:
    """Say what was stretched that no comparison of vectors means; empty where nothing was.

    >>> print(mistake((64, 1), (64,), (64, 64), 1))
    a of shape (64, 1) has size 1 along dim=1, and was stretched to 64 elements: a vector of one \
number, repeated
    >>> mistake((8,), (5, 8), (5, 8), -1)
    ''
    """
    if not shape:
        return ""
    axis = dim % len(shape)
    sides = {"a": a, "b": b}
    for name, side in sides.items():
        if axis in _stretched(side, shape):
            return (
                f"{name} of shape {side} has size 1 along dim={dim}, and was stretched to "
                f"{shape[axis]} elements: a vector of one number, repeated"
            )
    ours, theirs = (_stretched(side, shape) for side in sides.values())
    # (n, 1, d) with (1, m, d) is how all pairs are written. (n, 1, d) with (n, d) is not.
    sizes = [shape[each] for each in ours]
    if ours and len(a) != len(b) and sizes == [shape[each] for each in theirs]:
        return (
            f"a of shape {a} and b of shape {b} differ by an axis, and both were stretched, to "
            f"{shape}: every row is compared with every row"
        )
    return ""


def remark(a: Shape, b: Shape, shape: Shape) -> str:
    """Say which rows are compared with several.

    One vector with many, and all pairs, go without saying.
    """
    if _stretched(a, shape) and _stretched(b, shape):
        return ""
    for name, side in (("a", a), ("b", b)):
        axes = _stretched(side, shape)
        if axes and any(size > 1 for size in side[:-1]):
            sizes = " and ".join(f"{shape[axis]} along axis {axis}" for axis in axes)
            return (
                f"{name} of shape {side} was stretched to {sizes}: each of its rows is compared "
                "with several. If nobody meant that, look for a mean or an index over the wrong "
                "axis."
            )
    return ""


def _stretched(side: Shape, shape: Shape) -> list[int]:
    """Return the axes of the common shape along which a side had one element, or none."""
    padded = (1,) * (len(shape) - len(side)) + side
    return [axis for axis, size in enumerate(shape) if padded[axis] != size]
