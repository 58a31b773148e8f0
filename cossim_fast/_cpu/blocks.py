"""Blocks of rows that stay in cache, scratch memory, and out-of-range rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cossim_fast._threads import run_shared, single_threaded, usable_threads

# [elements] Of one operand in a block that is widened or strided: torch's operations start slowly,
# and threads wait for the interpreter's lock between them. (100000, 384) float16 rows on two
# threads took 11 ms with 2^19 or 2^20, 13 with 2^18, 21 with 2^17 and 35 with 2^15 (Zen 5).
BLOCK = 3 << 17
# [elements] Of the least part of such work that is worth a thread. On Zen 5 two threads took 0.35
# ms for (1000, 384) float16 rows, and one took 0.17; 0.52 and 0.40 for (10000, 64); 1.36 and 1.44
# for (10000, 384).
PART = 1 << 20
# Norms within these bounds have squares, and products of two, well inside the dtype's range.
NORM_BOUNDS = {
    torch.float32: (2.0**-50, 2.0**50),
    torch.float64: (2.0**-400, 2.0**400),
}


def each_block(
    work: Callable[[int, Iterator[tuple[Tensor, ...]]], None], shape: torch.Size, *tensors: Tensor
) -> None:
    """Call `work` on blocks of tensors with the same leading `shape`, each block on one thread.

    torch would share every operation on a block among its threads, which wait at its end for the
    slowest.

    Args:
        work: called on each thread, with the elements of the largest block, and the blocks.
        shape: of the rows.
        tensors: the first of shape (*shape, d).
    """
    width = max(tensors[0].shape[-1], 1)
    elements = shape.numel() * width
    threads = max(min(usable_threads(), elements // PART), 1)
    # Blocks of one size, and as many for each thread.
    blocks = threads * -(-elements // (threads * BLOCK))
    rows = -(-shape.numel() // max(blocks, 1)) or 1
    # An iterator of a list, since threads cannot share a generator.
    left = iter(list(row_blocks(rows, shape, *tensors)))
    run_shared(threads, partial(single_threaded, work, min(rows * width, elements), left))


def norms_along_last(x: Tensor, squares: Scratch, out: Tensor) -> Tensor:
    """Write |x| along the last dimension to `out`; infinite or 0 where squares are out of range."""
    if x.stride(-1) == 1:
        return vector_norm(x, dim=-1, out=out)  # type: ignore[no-any-return]
    # Along a strided dimension torch's norm is not vectorised: ten times slower than this.
    return torch.sum(torch.mul(x, x, out=squares.like(x)), -1, out=out).sqrt_()


def row_blocks(rows: int, shape: torch.Size, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of the same leading `shape` alike into blocks of at most max(rows, 1) rows."""
    if shape.numel() <= rows or not shape:
        yield tensors
        return
    inner = math.prod(shape[1:])
    if inner <= rows:
        yield from zip(*(t.split(rows // inner) for t in tensors), strict=True)
        return
    for parts in zip(*(t.unbind() for t in tensors), strict=True):
        yield from row_blocks(rows, shape[1:], *parts)


class Scratch:
    """Memory that is reused for one block after another."""

    def __init__(self, dtype: torch.dtype, memory: Tensor | None = None) -> None:
        self.dtype = dtype
        self.memory = memory
        self.tensor: Tensor | None = None

    def like(self, block: Tensor, other: Tensor | None = None) -> Tensor:
        """Return memory of the block's shape, laid out as it (or its expanded twin) is."""
        if self.tensor is None or self.tensor.shape != block.shape:
            template = other if other is not None and 0 in block.stride() else block
            if self.memory is None or self.memory.numel() < template.numel():
                self.tensor = torch.empty_like(template, dtype=self.dtype)
            else:
                dense = torch.empty_like(template, dtype=self.dtype, device="meta")
                self.tensor = self.memory.as_strided(dense.shape, dense.stride())
        return self.tensor

    def widen(self, block: Tensor) -> Tensor:
        """Return the block in this dtype: itself where it has it."""
        return block if block.dtype == self.dtype else self.like(block).copy_(block)


def scratch_places(dtype: torch.dtype, *elements: int) -> list[Scratch]:
    """Return scratches of so many elements each that are places in one allocation.

    When several pieces at the top of its heap are freed, the C library returns them to the system,
    and mapping their pages again took (1000, 384) bfloat16 rows five times the work. It keeps one
    piece of the same size, up to 32 MB.
    """
    memory = torch.empty(sum(elements), dtype=dtype, device="cpu")
    return [Scratch(dtype, part) for part in memory.split(elements)]


def all_in_bounds(norms: Tensor) -> bool:
    """Whether every norm has a safe square: one comparison a row. False for NaN."""
    if norms.numel() == 0:
        return True
    low, high = NORM_BOUNDS[norms.dtype]
    smallest, largest = norms.aminmax()
    return smallest.item() >= low and largest.item() <= high


def out_of_range_rows(norms: Tensor, width: int) -> Iterator[tuple[Tensor, ...]]:
    """Index the rows of which a norm (the first dimension lists them) is out of bounds."""
    low, high = NORM_BOUNDS[norms.dtype]
    out_of_range = ~((norms >= low) & (norms <= high)).all(0)
    for index in out_of_range.nonzero().split(max(BLOCK // max(width, 1), 1)):
        yield index.unbind(1)
