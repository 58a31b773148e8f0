"""Make Triton's interpreter round, multiply and reduce as a device does.

The stock interpreter of the versions named in ``KNOWN_VERSIONS``

- adds and multiplies bfloat16 as the integers of its bit patterns, and truncates float32 to it;
- multiplies float32 exactly whatever the input precision asked for, and refuses two of them;
- runs a reduction with an unknown combine function one element at a time;
- lets numpy warn where a device silently gives infinity or NaN.

``harden()`` replaces these methods; tests/kernels/test_kernel_interpreter.py checks each.
"""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as stock

KNOWN_VERSIONS = ("3.9",)
Builder, Handle = stock.InterpreterBuilder, stock.TensorHandle


def is_interpreting() -> bool:
    """Whether kernels decorated from now on run in the interpreter."""
    return triton.knobs.runtime.interpret


class UnknownTritonError(RuntimeError):
    """A Triton that nobody has compared with what stands here."""


def is_known(version: str) -> bool:
    """Whether the ladder was checked with this version of Triton."""
    return version.startswith(tuple(f"{known}." for known in KNOWN_VERSIONS))


def check_version(version: str) -> None:
    """Refuse a Triton whose interpreter nobody has compared with these replacements."""
    if not is_known(version):
        raise UnknownTritonError(
            f"tests/helpers/ladder/interpreter.py knows the interpreter of Triton "
            f"{', '.join(KNOWN_VERSIONS)}, got {version}: compare its replacements with "
            f"triton/runtime/interpreter.py, then add the version to KNOWN_VERSIONS"
        )


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Float32 values of bfloat16 bit patterns (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bit patterns of the bfloat16 nearest to float32 x, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16).reshape(np.shape(x))


def truncate_tf32(x: np.ndarray) -> np.ndarray:
    """What a tensor core sees of a float32 register handed over as tf32: 10 bits of mantissa."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _parts(x: np.ndarray, count: int, rounding: Callable[[np.ndarray], np.ndarray]) -> list:
    """Split x into parts that the tensor core holds: each the rounding of what is left."""
    parts = []
    for _ in range(count):
        part = rounding(x)
        parts.append(part)
        x = np.where(np.isfinite(x), x - part, np.float32(0))
    return parts


def _nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    return widen_bfloat16(round_bfloat16(x))


# input precision -> (parts a factor is split into, how a part is rounded, pairs multiplied)
_SPLITS = {
    "tf32": (1, truncate_tf32, [(0, 0)]),
    "tf32x3": (2, truncate_tf32, [(1, 0), (0, 1), (0, 0)]),
    "bf16x3": (2, _nearest_bfloat16, [(1, 0), (0, 1), (0, 0)]),
    "bf16x6": (3, _nearest_bfloat16, [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)]),
}


def _split_product(a: np.ndarray, b: np.ndarray, precision: str) -> np.ndarray:
    count, rounding, pairs = _SPLITS[precision]
    a_parts, b_parts = _parts(a, count, rounding), _parts(b, count, rounding)
    return sum(np.matmul(a_parts[i], b_parts[j]) for i, j in pairs)


def _is_bfloat16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widened(handle):
    """The handle as float32 if it is bfloat16, itself otherwise."""
    if not _is_bfloat16(handle):
        return handle
    return Handle(widen_bfloat16(handle.data), tl.float32)


def _cast_impl(self, src, dst_type):
    source, target = _widened(src), dst_type.scalar
    if target == tl.bfloat16:
        return Handle(round_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
    return Handle(source.data.astype(stock._get_np_dtype(target)), target)


def _binary_op(self, lhs, rhs, op):
    if not _is_bfloat16(lhs):
        return _stock_binary_op(self, lhs, rhs, op)
    result = op(_widened(lhs).data, _widened(rhs).data)
    if result.dtype == np.bool_:
        return Handle(result, tl.int1)
    return Handle(round_bfloat16(result), tl.bfloat16)


def _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    name = str(input_precision).rsplit(".", 1)[-1].lower()
    if a.dtype.scalar == tl.float32 and name in _SPLITS:
        return Handle(_split_product(a.data, b.data, name) + d.data, d.dtype.scalar)
    product = np.matmul(_widened(a).data, _widened(b).data, dtype=d.data.dtype)
    return Handle(product + d.data, d.dtype.scalar)


def _generic_reduce(self, inputs):
    """Fold whole slices along the axis with the combine function, in order."""
    flat, axis = self.unravel(inputs, self.axis)
    length = flat[0].handle.data.shape[axis]

    def piece(i):
        taken = [np.take(x.handle.data, i, axis=axis) for x in flat]
        return [self.to_tensor(data, x.dtype) for data, x in zip(taken, flat, strict=True)]

    acc = piece(0)
    for i in range(1, length):
        result = self.combine_fn.fn(*acc, *piece(i))
        acc = list(result) if isinstance(result, tuple) else [result]
    output = []
    for value, x in zip(acc, flat, strict=True):
        data = value.handle.data
        if self.keep_dims:
            rank = 1 if self.axis is not None else len(inputs[0].handle.data.shape)
            for _ in range(rank):
                data = np.expand_dims(data, axis if self.axis is not None else 0)
        output.append(self.to_tensor(data, x.dtype))
    return output


def _quiet_call(self, *args, **kwargs):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        return _stock_call(self, *args, **kwargs)


_stock_binary_op = Builder.binary_op
_stock_call = stock.GridExecutor.__call__


def harden() -> None:
    """Replace the interpreter's methods; calling it again changes nothing."""
    check_version(triton.__version__)
    Builder.cast_impl = _cast_impl
    Builder.binary_op = _binary_op
    Builder.create_dot = _create_dot
    stock.ReduceOps.generic_reduce = _generic_reduce
    stock.GridExecutor.__call__ = _quiet_call
    builder = stock.interpreter_builder
    builder.options = dataclasses.replace(
        builder.options, allowed_dot_input_precisions=("ieee", *_SPLITS)
    )
