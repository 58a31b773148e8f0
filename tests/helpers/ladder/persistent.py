"""Checks of the matrix that programs write by going from tile to tile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ladder import oracle
from ladder.checks import EPS, F16, F32, Load, guards, on_device

# Tiles of a few rows, so that small matrices have many; block_m is twice block_n, as squares need.
SMALL = {"block_n": 16, "block_m": 32, "block_k": 32, "num_warps": 4, "group": 2}


def small_tile(load: Load, **changes: object) -> object:
    """A TileConfig of the kernels or of a mutant of them."""
    fields = SMALL | {"persistent": True, "descriptors": True} | changes
    return load("architecture").TileConfig(**fields)


@contextmanager
def programs(load: Load, count: int) -> Iterator[list[int]]:
    """Within, a device has so many multiprocessors; the list grows with each launch that asks."""
    module, asked = load("pairwise"), []
    original = module.multiprocessors

    def multiprocessors() -> int:
        asked.append(count)
        return count

    module.multiprocessors = multiprocessors
    try:
        yield asked
    finally:
        module.multiprocessors = original


def check_persistent(
    load: Load,
    dtype: torch.dtype = F16,
    shape: tuple[int, int, int, int] = (2, 67, 72, 67),
    count: int = 3,
    precision: str = "highest",
    out_dtype: torch.dtype | None = None,
) -> None:
    """Bits of the kernel that gives each tile a program; nothing else touched, all written."""
    b, n, m, d = shape
    x, y = oracle.inputs(b, n, d, dtype=dtype), oracle.inputs(b, m, d, dtype=dtype, seed=1)
    launch, tile = load("pairwise").launch_pairwise_fwd, small_tile(load)
    memory, outputs = guards()
    with programs(load, count) as asked, memory, outputs:
        xs, ys = on_device(x, y)
        got = launch(xs, ys, EPS, precision, out_dtype, tile).cpu()
    assert asked == [count]
    plain = launch(xs, ys, EPS, precision, out_dtype, replace(tile, persistent=False)).cpu()
    assert torch.equal(got, plain)
    unit = 2**-11 if precision == "high" else 2**-22
    assert oracle.error(got, oracle.pairwise(x, y, EPS)) <= 2 * max(
        torch.finfo(got.dtype).eps / 2, unit
    )


def check_persistent_with_itself(
    load: Load,
    dtype: torch.dtype = F16,
    n: int = 72,
    d: int = 67,
    count: int = 3,
    out_dtype: torch.dtype | None = F32,
) -> None:
    """Half of the matrix is multiplied, the other half is its mirror, to the bit."""
    x = oracle.inputs(2, n, d, dtype=dtype)
    launch, tile = load("pairwise").launch_pairwise_fwd, small_tile(load)
    memory, outputs = guards()
    with programs(load, count) as asked, memory, outputs:
        (rows,) = on_device(x)
        got = launch(rows, rows, EPS, "highest", out_dtype, tile).cpu()
    assert asked == [count]
    assert torch.equal(got, got.mT)
    alone = replace(tile, persistent=False)
    assert torch.equal(got, launch(rows, rows, EPS, "highest", out_dtype, alone).cpu())
    exact = oracle.pairwise(x, x, EPS)
    assert oracle.error(got, exact) <= 2 * max(torch.finfo(got.dtype).eps / 2, 2**-22)
