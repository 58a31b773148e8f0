"""The public functions: full docstrings, thin bodies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cossim_fast import _checks, _composite, _gpu
from cossim_fast._as_one import as_one
from cossim_fast._autograd import CosineMatrix, CosineRows
from cossim_fast._broadcast import MatrixPlan, matrix_plan
from cossim_fast._cpu.matrix import cosine_matrix
from cossim_fast._cpu.rows import cosine_rows, small_rows
from cossim_fast._dispatch import (
    Executor,
    autocast_is_on,
    choose_executor,
    untraced,
    without_autocast,
)
from cossim_fast._threads import one_thread_after_fork


class _Default(int):
    """The value of an argument that was not given."""


_DIM = _Default(1)


def cosine_similarity(
    x1: Tensor, x2: Tensor, dim: int = _DIM, eps: float = 1e-8, *, axis: int | None = None
) -> Tensor:
    r"""Return the cosine similarity of x1 and x2 along a dimension, in place of torch's function.

    .. math:: c = \frac{\langle x_1, x_2 \rangle}{\max(|x_1|, eps) \max(|x_2|, eps)}

    Same arguments, broadcasting, dtype promotion, errors and derivatives as
    :func:`torch.nn.functional.cosine_similarity`. What differs is better:

    - the result lies in [-1, 1], so that ``acos`` is safe (torch's exceeds 1 by rounding);
    - rows of any magnitude above eps are right: 1e30 and, with eps = 0, 1e-30 in float32, 6e4 in
      float16 (torch's squares overflow to give 0, or vanish to give 0 or NaN);
    - sums are kept in float32 or wider, and eps is compared there: float16 zero rows give 0
      (torch gives NaN, since 1e-8 is 0 in float16);
    - a broadcast that pairs every row with every row, such as (n, 1, d) with (1, m, d), is a
      matrix product: nothing of size n·m·d is made.

    Args:
        x1: float16, bfloat16, float32 or float64 (or an integer beside such a tensor), any shape,
            any device, any strides.
        x2: of a shape that broadcasts with x1's.
        dim: the dimension to reduce, counted in the broadcast shape.
        eps: the smallest norm to divide by, at least 0.
        axis: another name of `dim`, as in torch.

    Returns:
        The broadcast shape without `dim`, in ``torch.promote_types(x1.dtype, x2.dtype)``; under
        autocast in the dtype that torch's function gives there.

    Zero rows give 0 against everything (NaN for eps = 0, as in torch). A row that holds NaN or an
    infinity gives NaN, and no other. Empty rows give 0. Derivatives of every order, forward mode,
    ``vmap``, ``torch.compile``, ``torch.export``, ``torch.fx`` and ``torch.jit.trace`` work (the
    last multiplies broadcasts out, since their sizes may differ when it runs); the clamp to
    [-1, 1] and the maximum with eps are invisible to them, the latter as in torch. On CPU the
    result of paired rows lies in memory of numpy's, which ``resize_`` cannot enlarge; the extra
    memory is a few MiB a thread, and as many bytes as the inputs for their gradients.

    Raises:
        RuntimeError: shapes that do not broadcast, no floating dtype or a complex one, eps < 0,
            two devices.
        NotImplementedError: a RuntimeError, for tensors that are sparse, nested, masked, quantized
            or float8; it says how to convert them.
        IndexError: `dim` out of range.
        TypeError: an argument that is no tensor, int or float.
        ValueError: a tensor whose memory was freed, which torch would read.

    Source: the definition and its gradient are those of ``aten/src/ATen/native/Distance.cpp``.

    >>> import torch
    >>> cosine_similarity(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]]))
    tensor([1.])
    """
    if dim is _DIM:
        dim = 1 if axis is None else axis
    elif axis is not None:
        _checks.one_of_dim_and_axis(dim, axis)
    if has_torch_function_variadic(x1, x2) and not torch.compiler.is_compiling():
        return handle_torch_function(cosine_similarity, (x1, x2), x1, x2, dim=dim, eps=eps)
    dtype, dim = _checks.drop_in_arguments(x1, x2, dim, eps)
    one_thread_after_fork()
    if not x1.is_cpu and autocast_is_on(x1.device):
        # Autocast has torch's function on its float32 list, except on CPU.
        dtype = torch.promote_types(dtype, torch.float32)
    executor, _, plan = _route(x1, x2, dim, dtype)
    if executor is Executor.SMALL:
        return small_rows(x1, x2, dim, eps)
    if executor is Executor.WIDENED:  # float64, which autocast leaves alone
        return _composite.cosine_widened(x1, x2, dim, eps, dtype)
    with without_autocast(x1):
        if executor is Executor.TRACED:
            return _composite.cosine_traced(x1, x2, dim, eps, dtype)
        if plan is not None:
            matrix = _matrix(executor, plan.first, plan.second, eps, dtype, "highest")
            return plan.restore(matrix)
        if x1.shape != x2.shape:
            x1, x2 = torch.broadcast_tensors(x1, x2)
        if x1.dim() == 0:
            x1, x2 = x1[None], x2[None]
        if dim != -1:
            x1, x2 = x1.movedim(dim, -1), x2.movedim(dim, -1)
        return _rows(executor, x1, x2, eps, dtype)


def pairwise_cosine(
    x: Tensor,
    y: Tensor | None = None,
    *,
    eps: float = 1e-8,
    out: Tensor | None = None,
    precision: str = "highest",
) -> Tensor:
    r"""Return the cosine of every row of x with every row of y.

    .. math:: c_{ij} = \frac{\langle x_i, y_j \rangle}{\max(|x_i|, eps) \max(|y_j|, eps)}

    Args:
        x: (n, d) or (b, n, d); float16, bfloat16, float32 or float64; any strides.
        y: (m, d) or (b, m, d) on the same device; None compares x with itself, computes half of
            the matrix and mirrors it, so that the result is symmetric to the bit.
        eps: the smallest norm to divide by, finite, at least 0.
        out: a tensor of exactly the result's shape and dtype to write to, that overlaps no input.
        precision: how the products of float32 rows (of float16 and bfloat16 rows, on CPU) are
            formed, in the words of :func:`torch.set_float32_matmul_precision`, whose own setting
            is neither followed nor changed. With u the rounding of a factor, the error is at most
            2u + u² + 2 (d + 4) 2^-24 before the result is rounded to its dtype:
            ``"highest"``: u = 0;
            ``"high"``: u = 2^-11, one float16 product of scaled rows on a GPU, four bfloat16
            products on a CPU with AMX;
            ``"medium"``: u = 2^-8, on CPU one bfloat16 product, or two where the rows need it; on a
            GPU that of ``"high"``.
            Where there are no such products, and for small matrices on CPU, a word gives a better
            product. On CPU derivatives are those of ``"highest"``, on a GPU one float16 product
            gives each of them.

    Returns:
        (n, m) or (b, n, m) in ``torch.result_type(x, y)``, every entry in [-1, 1].

    Zero rows give 0 for eps > 0. A row that holds NaN or an infinity gives NaN in its own row or
    column alone. Rows of any magnitude above eps are right, squares in range or not. Empty inputs
    give an empty matrix, d = 0 gives zeros. Sums are kept in float32, for float64 in float64.
    Large matrices of two bfloat16 inputs (of float16 ones with AMX-FP16) are multiplied in that
    dtype, on processors that do so faster, and their products are rounded to it once more before
    they are divided by the norms: by at most 2^-8 of the result (2^-11).
    First derivatives are blocked on CPU and second ones exist, as do forward mode, ``vmap`` and
    ``torch.compile``; nothing of size n·m is kept for them. What ``torch.jit.trace`` records on CPU
    multiplies in float64, and what ``torch.export`` writes leaves autocast for the product (its
    ``run_decompositions`` takes that out, as of every program), so that neither is less exact where
    it runs than stated here. Extra memory on CPU: at most 64 MB,
    whatever n, m and d ≤ 4·10^6.

    Raises:
        ValueError: shapes that do not match, two devices, eps out of range, an unknown precision,
            an `out` of another shape, dtype or device, that overlaps an input or itself, or where
            a gradient is wanted.
        TypeError: no tensors, not dense ones, or no floating dtype.

    Source: torchmetrics' ``pairwise_cosine_similarity`` and sentence-transformers' ``cos_sim``
    compute the same without eps or range safety.

    >>> import torch
    >>> pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]]))
    tensor([[1.],
            [0.]])
    """
    if has_torch_function_variadic(x, y, out) and not torch.compiler.is_compiling():
        return handle_torch_function(
            pairwise_cosine, (x, y, out), x, y, eps=eps, out=out, precision=precision
        )
    if torch._C._get_tracing_state() is not None:
        return _traced_pairwise(x, y, eps, out, precision)
    dtype = _checks.pairwise_arguments(x, y, eps, precision)
    one_thread_after_fork()
    other = x if y is None else y
    shape = (*x.shape[:-1], other.shape[-2])
    if out is not None:
        _checks.pairwise_out(out, shape, dtype, (x, other))
    executor, _ = choose_executor(x, other)
    if executor is Executor.KERNELS:
        with without_autocast(x):
            if out is not None:
                return _gpu.write_matrix(out, x, other, eps, precision)
            return _gpu.cosine_matrix(x, other, eps, dtype, precision)
    if x.dim() == 2:
        x, y = x.unsqueeze(0), None if y is None else y.unsqueeze(0)
    with without_autocast(x):
        if out is not None and executor is Executor.BLOCKED:
            cosine_matrix(x, y, eps, out.view(x.shape[0], *shape[-2:]), precision)
            return out
        result = _matrix(executor, x, y, eps, dtype, precision).view(shape)
    return result if out is None else out.copy_(result)


def _traced_pairwise(
    x: Tensor, y: Tensor | None, eps: float, out: Tensor | None, precision: str
) -> Tensor:
    """What torch.jit.trace records of `pairwise_cosine`: the products, and nothing of sizes."""
    other = x if y is None else y
    with untraced():
        dtype = _checks.pairwise_arguments(x, y, eps, precision)
        if out is not None:
            shape = (*x.shape[:-1], other.shape[-2])
            _checks.pairwise_out(out, shape, dtype, (x, other))
    with without_autocast(x):
        result = _composite.cosine_matrix(x, other, eps, dtype)
    return result if out is None else out.copy_(result)


class Explanation(NamedTuple):
    """What runs a call: which executor, in which form, and why."""

    executor: str
    form: str
    reason: str

    def __str__(self) -> str:
        return f"{self.executor}, {self.form}: {self.reason}"


@as_one
def explain(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Explanation:
    """Return which code would run ``function(*args, **kwargs)`` now, and why; run nothing.

    Args:
        function: `cosine_similarity` or `pairwise_cosine`.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        The executor ('blocked', 'blocked, inside one autograd function', "torch's own function in
        float64", 'composite', 'composite, whatever the sizes' or 'kernels'), the form
        ('paired rows' or 'matrix product') and the reason.

    Raises:
        ValueError: another function.

    >>> import torch
    >>> explain(cosine_similarity, torch.ones(5, 1, 3), torch.ones(1, 4, 3), dim=-1).form
    'matrix product'
    """
    if function not in (cosine_similarity, pairwise_cosine):
        raise ValueError(
            f"expected function to be cosine_similarity or pairwise_cosine, got {function!r}"
        )
    arguments = inspect.signature(function).bind(*args, **kwargs)
    arguments.apply_defaults()
    given = arguments.arguments
    if function is pairwise_cosine:
        _checks.pairwise_arguments(given["x"], given["y"], given["eps"], given["precision"])
        y = given["x"] if given["y"] is None else given["y"]
        executor, reason = choose_executor(given["x"], y)
        return Explanation(executor.value, "matrix product", reason)
    x1, x2, dim, axis = given["x1"], given["x2"], given["dim"], given["axis"]
    if dim is _DIM:
        dim = 1 if axis is None else axis
    elif axis is not None:
        _checks.one_of_dim_and_axis(dim, axis)
    dtype, dim = _checks.drop_in_arguments(x1, x2, dim, given["eps"])
    route = _route(x1, x2, dim, dtype)
    form = "paired rows" if route.plan is None else "matrix product"
    return Explanation(route.executor.value, form, route.reason)


# Elements up to which starting the blocked path's operations costs more than their work: one row
# of 8 takes 125 µs there, 25 µs in float64 and 12 µs by torch's function in float32.
SMALL = 1 << 13


class _Route(NamedTuple):
    executor: Executor
    reason: str
    plan: MatrixPlan | None


# Made once: making one takes a tiny call 1 µs.
_SMALL = _Route(Executor.SMALL, "few float32 elements on CPU, no derivative", None)
_WIDENED = _Route(Executor.WIDENED, "few elements on CPU", None)


def _route(x1: Tensor, x2: Tensor, dim: int, dtype: torch.dtype) -> _Route:
    executor, reason = choose_executor(x1, x2)
    if executor in (Executor.COMPOSITE, Executor.COMPILED_OP, Executor.TRACED):
        _checks.drop_in_dense(x1, x2)
        if executor is Executor.TRACED:
            return _Route(executor, reason, None)
    by_stride = executor is Executor.BLOCKED
    if x1.shape == x2.shape:
        if 0 < x1.numel() <= SMALL and dtype is not torch.float64:
            if by_stride and x1.dtype is x2.dtype is torch.float32 and x1.dim() > 0:
                return _SMALL
            if by_stride or executor is Executor.BLOCKED_AUTOGRAD:
                return _WIDENED
        if not (by_stride and (0 in x1.stride() or 0 in x2.stride())):
            return _Route(executor, reason, None)
    return _Route(executor, reason, matrix_plan(x1, x2, dim, by_stride=by_stride))


def _rows(executor: Executor, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    if executor is Executor.BLOCKED:
        return cosine_rows(x, y, eps, dtype)
    if executor is Executor.BLOCKED_AUTOGRAD:
        return CosineRows.apply(x, y, eps, dtype)  # type: ignore[no-any-return, no-untyped-call]
    if executor in (Executor.COMPOSITE, Executor.COMPILED_OP):  # which Inductor makes one kernel of
        return _composite.cosine_rows(x, y, -1, eps, dtype)
    return _gpu.cosine_rows(x, y, eps, dtype)


def _matrix(
    executor: Executor,
    x: Tensor,
    y: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    precision: str,
) -> Tensor:
    if executor is Executor.BLOCKED:
        columns = (x if y is None else y).shape[1]
        out = torch.empty((*x.shape[:2], columns), dtype=dtype, device=x.device)
        return cosine_matrix(x, y, eps, out, precision)
    if executor is Executor.BLOCKED_AUTOGRAD:
        matrix: Tensor = CosineMatrix.apply(x, y, eps, dtype, precision)  # type: ignore[no-untyped-call]
        return matrix
    other = x if y is None else y
    if executor is Executor.COMPOSITE:
        return _composite.cosine_matrix(x, other, eps, dtype)
    if executor is Executor.KERNELS:
        return _gpu.cosine_matrix(x, other, eps, dtype, precision)
    return torch.ops.cossim_fast.pairwise_fwd(x, other, eps, precision).to(dtype)  # type: ignore[no-any-return]
