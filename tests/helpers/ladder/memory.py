"""Catch what the interpreter lets pass: accesses outside the arguments, elements left unwritten.

Three tools, each for what the others miss:

- ``checked_memory`` looks every address of a load, store or atomic up in the byte ranges of the
  launch's tensor arguments, and catches what leaves a tensor;
- ``margined`` surrounds an input by NaN, and catches a read past a row's end, which lands inside
  the same tensor;
- ``guarded_outputs`` makes every allocation wider than asked for and filled with a sentinel, and
  catches a write past a row's end and an element that nobody wrote.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter as stock
from triton.tools.tensor_descriptor import TensorDescriptor

MARGIN = 16  # elements; keeps float32 and narrower rows aligned for descriptors
SENTINEL = {
    torch.float16: 61440.0,  # no scaled row has entries as large
    torch.bfloat16: 61440.0,
    torch.float32: 777.0,
    torch.float64: 777.0,
    torch.int8: -128,  # no code
    torch.int32: 2**31 - 777,  # no sum of codes is as large
    torch.int64: -777,
}


class OutOfBoundsError(AssertionError):
    """A kernel touched memory outside its arguments, or left an element unwritten."""


def byte_range(x: torch.Tensor) -> tuple[int, int]:
    """First byte of x and the one past its last; strides may be anything but negative."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _check(ranges: list[tuple[int, int]], pointers, mask, what: str) -> None:
    addresses = np.broadcast_to(pointers.data, np.broadcast(pointers.data, mask.data).shape)
    addresses = addresses[np.broadcast_to(mask.data, addresses.shape)].astype(np.int64)
    if addresses.size == 0:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    inside = np.zeros(addresses.shape, dtype=bool)
    for start, stop in ranges:
        inside |= (addresses >= start) & (addresses + size <= stop)
    if not inside.all():
        first = int(addresses[~inside][0])
        raise OutOfBoundsError(
            f"{what} of {size} bytes at {first:#x}, outside every argument "
            f"({(~inside).sum()} of {inside.size} addresses)"
        )


@contextmanager
def checked_memory() -> Iterator[None]:
    """Within, an interpreted kernel that leaves its arguments raises (an InterpreterError)."""
    builder, executor = stock.InterpreterBuilder, stock.GridExecutor
    ranges: list[tuple[int, int]] = []
    originals = {
        name: getattr(builder, name)
        for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw")
    }
    original_init = executor._init_args_hst

    def init_args(self, args, kwargs):
        host_args, host_kwargs = original_init(self, args, kwargs)
        ranges.clear()
        for arg in (*host_args, *host_kwargs.values()):
            tensor = arg.base if isinstance(arg, TensorDescriptor) else arg
            if isinstance(tensor, torch.Tensor) and tensor.numel() > 0:
                ranges.append(byte_range(tensor))
        return host_args, host_kwargs

    def masked_load(self, pointers, mask, *rest, **named):
        _check(ranges, pointers, mask, "load")
        return originals["create_masked_load"](self, pointers, mask, *rest, **named)

    def masked_store(self, pointers, value, mask, *rest):
        _check(ranges, pointers, mask, "store")
        return originals["create_masked_store"](self, pointers, value, mask, *rest)

    def atomic_rmw(self, operation, pointers, value, mask, *rest):
        _check(ranges, pointers, mask, "atomic")
        return originals["create_atomic_rmw"](self, operation, pointers, value, mask, *rest)

    executor._init_args_hst = init_args
    builder.create_masked_load = masked_load
    builder.create_masked_store = masked_store
    builder.create_atomic_rmw = atomic_rmw
    try:
        yield
    finally:
        executor._init_args_hst = original_init
        for name, method in originals.items():
            setattr(builder, name, method)


def margined(x: torch.Tensor) -> torch.Tensor:
    """Return x's values as a view into a larger tensor that holds NaN (127 for int8) around it."""
    filler = float("nan") if x.is_floating_point() else 127
    shape = [size + 2 * MARGIN for size in x.shape]
    around = torch.full(shape, filler, dtype=x.dtype, device=x.device)
    return around[tuple(slice(MARGIN, -MARGIN) for _ in x.shape)].copy_(x)


@contextmanager
def guarded_outputs() -> Iterator[None]:
    """Within, ``new_empty`` returns views between sentinels; on leaving, all are checked."""
    original = torch.Tensor.new_empty
    allocated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def new_empty(self, *size, **options):
        plain = original(self, *size, **options)
        if plain.numel() == 0:
            return plain
        sentinel = SENTINEL[plain.dtype]
        around = torch.full(
            [size + 2 * MARGIN for size in plain.shape],
            sentinel,
            dtype=plain.dtype,
            device=plain.device,
        )
        inner = around[tuple(slice(MARGIN, -MARGIN) for _ in plain.shape)]
        allocated.append((around, inner))
        return inner

    torch.Tensor.new_empty = new_empty
    try:
        yield
    finally:
        torch.Tensor.new_empty = original
    for around, inner in allocated:
        sentinel = SENTINEL[around.dtype]
        unwritten = int((inner == sentinel).sum())
        if unwritten:
            raise OutOfBoundsError(f"{unwritten} of {inner.numel()} elements were never written")
        touched = around != sentinel
        touched[tuple(slice(MARGIN, -MARGIN) for _ in inner.shape)] = False
        if touched.any():
            where = touched.nonzero()[0].tolist()
            raise OutOfBoundsError(f"written outside the output, first at {where} of the margin")


@contextmanager
def huge_row_strides(module, kernel: str, stride: int) -> Iterator[set[int]]:
    """Launch ``kernel`` as if rows lay ``stride`` elements apart, touching no memory at all.

    Loads give 0 and stores are dropped; the set receives every address that was asked for.
    """
    builder = stock.InterpreterBuilder
    original_kernel = getattr(module, kernel)
    originals = builder.create_masked_load, builder.create_masked_store
    seen: set[int] = set()

    def note(pointers, mask) -> None:
        addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
        seen.update(addresses.astype(np.int64).tolist())

    def masked_load(self, pointers, mask, *rest, **named):
        note(pointers, mask)
        dtype = pointers.get_element_ty()
        zeros = np.zeros(pointers.data.shape, dtype=stock._get_np_dtype(dtype))
        return stock.TensorHandle(zeros, dtype)

    def masked_store(self, pointers, value, mask, *rest):
        note(pointers, mask)

    class Restrided:
        def __getitem__(self, grid):
            def launch(*args, **options):
                named = dict(zip(original_kernel.arg_names, args, strict=False))
                for name, value in named.items():
                    if name.startswith("stride_") and name[-1] in "nm" and value != 1:
                        named[name] = stride
                original_kernel[grid](**named, **options)

            return launch

    setattr(module, kernel, Restrided())
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    try:
        yield seen
    finally:
        setattr(module, kernel, original_kernel)
        builder.create_masked_load, builder.create_masked_store = originals
