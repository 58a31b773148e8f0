"""The hardened interpreter: each replacement does what a device does, and the tools can fail."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from ladder import interpreter, memory
from ladder.runtime import needs_interpreter

pytestmark = [pytest.mark.kernel_memory, needs_interpreter]


@triton.jit
def _add_and_round_kernel(x_ptr, y_ptr, sum_ptr, rounded_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(sum_ptr + i, x + y)
    tl.store(rounded_ptr + i, (x.to(tl.float32) * 1.001).to(tl.bfloat16))


@triton.jit
def _dot_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    offsets = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(x_ptr + offsets), tl.load(y_ptr + offsets), input_precision=PRECISION)
    tl.store(out_ptr + offsets, product)


@triton.jit
def _combine(a, i, b, j):
    return tl.maximum(a, b), tl.where(b > a, j, i)


@triton.jit
def _reduce_kernel(x_ptr, value_ptr, index_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i[:, None] * N + i[None, :])
    where = tl.broadcast_to(i[None, :], (N, N))
    value, index = tl.reduce((x, where), 1, _combine)
    tl.store(value_ptr + i, value)
    tl.store(index_ptr + i, index)


@triton.jit
def _copy_kernel(x_ptr, out_ptr, READ: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < READ, other=0.0)
    tl.store(out_ptr + i, x, mask=i < WRITE)


@triton.jit
def _count_kernel(out_ptr, N):
    tl.atomic_add(out_ptr + N, 1)


def test_bfloat16_adds_and_rounds_to_nearest_even():
    x, y = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    total, rounded = torch.empty_like(x), torch.empty_like(x)
    _add_and_round_kernel[(1,)](x, y, total, rounded, N=64)
    assert total.equal(x + y)
    assert rounded.equal((x.float() * 1.001).bfloat16())


def test_rounding_of_infinity_nan_and_ties():
    x = torch.tensor([torch.inf, -torch.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 0.0, -0.0])
    bits = torch.from_numpy(interpreter.round_bfloat16(x.numpy()).view(np.int16))
    assert bits.view(torch.bfloat16).equal(x.bfloat16())
    nan = interpreter.round_bfloat16(np.array([np.nan], np.float32))
    assert np.isnan(interpreter.widen_bfloat16(nan)).all()


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [("ieee", 0, 1e-5), ("bf16x6", 0, 1e-5), ("tf32x3", 1e-6, 1e-4), ("bf16x3", 1e-5, 1e-3),
     ("tf32", 1e-4, 1e-1)],
)  # fmt: skip
def test_products_lose_what_their_precision_loses(precision, low, high):
    x, y = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    out = torch.empty(32, 32)
    _dot_kernel[(1,)](x, y, out, N=32, PRECISION=precision)
    error = float((out.double() - x.double() @ y.double()).abs().max())
    assert low <= error <= high


def test_bfloat16_and_int8_products_are_exact():
    x, y = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty(32, 32)
    _dot_kernel[(1,)](x, y, out, N=32, PRECISION="tf32")
    torch.testing.assert_close(out.double(), x.double() @ y.double(), rtol=0, atol=1e-5)
    codes = torch.randint(-127, 128, (2, 32, 32), dtype=torch.int8)
    sums = torch.empty(32, 32, dtype=torch.int32)
    _dot_kernel[(1,)](codes[0], codes[1], sums, N=32, PRECISION="ieee")
    assert sums.equal((codes[0].long() @ codes[1].long()).int())


def test_reduction_with_its_own_combine_function():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    value, index = torch.empty(64), torch.empty(64, dtype=torch.int32)
    _reduce_kernel[(1,)](x, value, index, N=64)
    expected = x.max(dim=1)
    assert value.equal(expected.values)
    assert index.long().equal(expected.indices)


def test_unknown_versions_are_refused():
    interpreter.check_version("3.9.4")
    with pytest.raises(RuntimeError, match=r"knows the interpreter of Triton 3\.9, got 3\.10\.0"):
        interpreter.check_version("3.10.0")


def test_memory_checker_lets_a_correct_kernel_pass():
    x, out = torch.ones(20), torch.zeros(20)
    with memory.checked_memory():
        _copy_kernel[(1,)](x, out, READ=20, WRITE=20, BLOCK=32)
    assert out.equal(x)


@pytest.mark.parametrize(("read", "write", "what"), [(21, 20, "load"), (20, 21, "store")])
def test_memory_checker_catches_a_step_out_of_a_tensor(read, write, what):
    # Both lie inside one storage, so that nothing but the checker could notice.
    storage = torch.zeros(100)
    x, out = storage[:20], storage[50:70]
    with memory.checked_memory(), pytest.raises(InterpreterError, match=f"{what} of 4 bytes"):
        _copy_kernel[(1,)](x, out, READ=read, WRITE=write, BLOCK=32)


def test_memory_checker_catches_an_atomic_one_past_the_end():
    count = torch.zeros(10, dtype=torch.int32)
    with memory.checked_memory():
        _count_kernel[(1,)](count[:4], 3)
        with pytest.raises(InterpreterError, match="atomic of 4 bytes"):
            _count_kernel[(1,)](count[:4], 4)
    assert count.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_guarded_outputs_catch_unwritten_and_overwritten_elements():
    x = torch.ones(20)
    with memory.guarded_outputs():
        _copy_kernel[(1,)](x, x.new_empty(20), READ=20, WRITE=20, BLOCK=32)
    with pytest.raises(memory.OutOfBoundsError, match="1 of 20"), memory.guarded_outputs():
        _copy_kernel[(1,)](x, x.new_empty(20), READ=20, WRITE=19, BLOCK=32)
    with pytest.raises(memory.OutOfBoundsError, match="outside"), memory.guarded_outputs():
        _copy_kernel[(1,)](x, x.new_empty(20), READ=20, WRITE=21, BLOCK=32)


def test_margins_hold_nan_and_the_values_stay():
    x = torch.arange(6.0).view(2, 3)
    inner = memory.margined(x)
    assert inner.equal(x)
    assert inner.data_ptr() % 16 == 0
    beyond = torch.as_strided(inner, (2, 4), inner.stride())
    assert bool(torch.isnan(beyond[:, 3]).all())
