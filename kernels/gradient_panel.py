"""Rows of a matrix's gradient as a factor of a product: rounded, scaled, added to their mirror."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import half_exponent, times_power_of_two


def _metadata(grid, kernel, args):
    elements = args["B"] * args["N"] * args["M"]
    sides = 1 if args["mirror_ptr"] is None else 2
    reads = 1 if args["ONE_STEP"] or args["exponent_ptr"] is None else 2
    size = sides * reads * args["grad_ptr"].element_size() + args["out_ptr"].element_size()
    return cost("gradient_panel", elements * size, flops32=3 * elements)


@triton.jit
def _gradients(
    grad_ptr,
    mirror_ptr,
    row,  # (BLOCK_N, 1)
    column,  # (1, BLOCK_M)
    N,
    M,
    stride_gn,
    stride_gm,
    stride_tn,
    stride_tm,
):
    """Load gradients as float32, their mirror added if there is one; 0 outside."""
    mask = (row < N) & (column < M)
    grad = tl.load(grad_ptr + row * stride_gn + column * stride_gm, mask=mask, other=0.0)
    grad = grad.to(tl.float32)
    if mirror_ptr is not None:
        mirror = tl.load(mirror_ptr + row * stride_tn + column * stride_tm, mask=mask, other=0.0)
        grad += mirror.to(tl.float32)
    return grad


@kernel(launch_metadata=_metadata)
def _gradient_panel_kernel(
    grad_ptr,  # (B, N, M)
    mirror_ptr,  # (B, N, M), or None
    out_ptr,  # (B, OUT_N, OUT_M)
    exponent_ptr,  # (B, N) int32, or None
    B,
    N,
    M,
    OUT_N,
    OUT_M,
    stride_gb,
    stride_gn,
    stride_gm,
    stride_tb,
    stride_tn,
    stride_tm,
    stride_ob,
    stride_on,
    stride_om,
    stride_eb,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """Write rows of gradients in the dtype of the result, zeros outside of them.

    Owns BLOCK_N rows of one batch and loops over M in steps of BLOCK_M. With exponents, a first
    loop finds the largest of each row, and a second reads the same gradients again and writes them
    times 2**-exponent; if ONE_STEP, they stay in registers in between. Each load has the layout of
    its own strides: what is contiguous along the rows is exchanged through shared memory only where
    it meets what is contiguous along the columns.
    Moves the input once or twice and the result once; 3 operations an element.
    """
    tiles = tl.cdiv(OUT_N, BLOCK_N)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_M).to(tl.int64)[None, :]
    rows = row[:, None]
    grad_ptr += batch * stride_gb
    if mirror_ptr is not None:
        mirror_ptr += batch * stride_tb
    out = out_ptr + batch * stride_ob + rows * stride_on

    exponent = tl.zeros((BLOCK_N,), dtype=tl.int32)
    if ONE_STEP:
        grad = _gradients(
            grad_ptr, mirror_ptr, rows, column, N, M, stride_gn, stride_gm, stride_tn, stride_tm
        )
        if exponent_ptr is not None:
            exponent = half_exponent(tl.max(tl.abs(grad), axis=1))
            grad = times_power_of_two(grad, -exponent[:, None])
        mask = (rows < OUT_N) & (column < OUT_M)
        tl.store(out + column * stride_om, grad.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        if exponent_ptr is not None:
            most = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
            for start in range(0, M, BLOCK_M):
                grad = _gradients(
                    grad_ptr, mirror_ptr, rows, start + column, N, M,
                    stride_gn, stride_gm, stride_tn, stride_tm,
                )  # fmt: skip
                most = tl.maximum(most, tl.abs(grad))
            exponent = half_exponent(tl.max(most, axis=1))
        for start in range(0, OUT_M, BLOCK_M):
            m = start + column
            grad = _gradients(
                grad_ptr, mirror_ptr, rows, m, N, M, stride_gn, stride_gm, stride_tn, stride_tm
            )
            if exponent_ptr is not None:
                grad = times_power_of_two(grad, -exponent[:, None])
            mask = (rows < OUT_N) & (m < OUT_M)
            tl.store(out + m * stride_om, grad.to(out_ptr.dtype.element_ty), mask=mask)
    if exponent_ptr is not None:
        tl.store(exponent_ptr + batch * stride_eb + row, exponent, mask=row < N)


def launch_gradient_panel(
    grad: torch.Tensor,
    mirror: torch.Tensor | None,
    dtype: torch.dtype,
    exponent: torch.Tensor | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return gradients (b, n, m) of any strides, expanded ones too, in ``dtype``.

    ``mirror`` (b, n, m) is added first. If ``exponent`` (b, n) int32 is given, each row is
    multiplied by 2**-exponent before it is rounded, and the exponents are written there: the
    largest of a row lies in [2^14, 2^15), as in ``launch_planes``, so that the largest gradients
    and the smallest are held by float16. The result is contiguous along the rows or the columns as
    the input is, and loads in pieces of 16 bytes.
    """
    b, n, m = grad.shape
    transposed = grad.stride(-1) != 1 and grad.stride(-2) == 1
    out_n, out_m = (n + -n % 16, m) if transposed else (n, m + -m % 16)
    shape = (b, out_m, out_n) if transposed else (b, out_n, out_m)
    out = grad.new_empty(shape, dtype=dtype)
    out = out.mT if transposed else out
    with on_device(grad):
        if config is None:
            along = mirror is None and not transposed
            name = "gradient_panel" if along else "gradient_panel_transposed"
            config = choose_config(name, grad.dtype, m, current_arch())
        _gradient_panel_kernel[(b * triton.cdiv(out_n, config.block_n),)](
            grad,
            mirror,
            out,
            exponent,
            b,
            n,
            m,
            out_n,
            out_m,
            *grad.stride(),
            *(grad if mirror is None else mirror).stride(),
            *out.stride(),
            0 if exponent is None else exponent.stride(0),
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_k,
            ONE_STEP=config.block_k >= out_m,
            **config.options(),
        )
    return out[:, :n, :m]
