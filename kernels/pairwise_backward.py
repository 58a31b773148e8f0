"""Gradient of the pairwise cosine for one of its two sides."""

import torch
import triton
import triton.language as tl

from .configs import TileConfig, choose_config, current_arch
from .launch import aligned_rows, cost, on_device
from .row_norm import launch_row_norm
from .tiles import binary_exponent, load_tile, power_of_two, times_power_of_two


def _product_metadata(grid, kernel, args):
    b, n, m, d = args["B"], args["N"], args["M"], args["D"]
    size = args["y_ptr"].element_size()
    moved = b * (n * m * args["grad_ptr"].element_size() + m * d * size + 4 * n * d)
    return cost("pairwise_bwd_product", moved, **{f"flops{8 * size}": 2 * b * n * m * d})


def _project_metadata(grid, kernel, args):
    elements = args["ROWS"] * args["D"]
    moved = elements * (4 + 2 * args["x_ptr"].element_size())
    return cost("pairwise_bwd_project", moved, flops32=8 * elements)


@triton.jit
def _weighted_sum(
    grad_ptr,
    y_ptr,
    inverse_y_ptr,
    exponent_y_ptr,
    stride_gb,
    stride_gn,
    stride_gm,
    stride_yb,
    stride_ym,
    stride_yd,
    batch,
    first_n,
    first_d,
    N,
    M,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Sum over m of grad[n, m] / norm[m] * y[m, d], with y scaled by 2**-exponent if SCALED."""
    acc = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for m in range(0, M, BLOCK_M):
        column = m + tl.arange(0, BLOCK_M)
        flat = tl.cast(batch, tl.int64) * M + column
        inverse = tl.load(inverse_y_ptr + flat, mask=column < M, other=0.0)
        grad = load_tile(
            grad_ptr,
            stride_gb,
            stride_gn,
            stride_gm,
            batch,
            first_n,
            m,
            N,
            M,
            BLOCK_N,
            BLOCK_M,
            False,
        ).to(tl.float32)
        y = load_tile(
            y_ptr, stride_yb, stride_ym, stride_yd, batch, m, first_d, M, D,
            BLOCK_M, BLOCK_D, DESCRIPTORS=False,
        )  # fmt: skip
        grad *= inverse[None, :]
        if SCALED:
            exponent = tl.load(exponent_y_ptr + flat, mask=column < M, other=0)
            y = times_power_of_two(y.to(tl.float32), -exponent[:, None]).to(y.dtype)
        if y.dtype == tl.float16:
            # Gradients of a mean over a large matrix vanish in float16: bring the largest of each
            # row into [1, 2) before it is rounded.
            exponent_g = binary_exponent(tl.max(tl.abs(grad), axis=1))
            exponent_g = tl.minimum(tl.maximum(exponent_g, -126), 126)
            grad *= power_of_two(-exponent_g)[:, None]
            product = tl.dot(grad.to(tl.float16), y)
            acc += product * power_of_two(exponent_g)[:, None]
        else:
            acc = tl.dot(grad.to(y.dtype), y, acc, input_precision=PRECISION)
    return acc


@triton.jit(launch_metadata=_product_metadata)
def _pairwise_bwd_product_kernel(
    grad_ptr,  # (B, N, M)
    y_ptr,  # (B, M, D)
    inverse_y_ptr,  # (B * M,) float32
    exponent_y_ptr,  # (B * M,) int32
    any_scaled_ptr,  # () bool
    sum_ptr,  # (B, N, D) float32
    B,
    N,
    M,
    D,
    stride_gb,
    stride_gn,
    stride_gm,
    stride_yb,
    stride_ym,
    stride_yd,
    stride_sb,
    stride_sn,
    stride_sd,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    RANGE_SAFE: tl.constexpr,
):
    """Write one BLOCK_N x BLOCK_D tile of grad times the normalised rows of y.

    Owns one tile of one batch; tiles of D are innermost, so that the gradient leaves device memory
    once. Loops over M in steps of BLOCK_M, keeps the float32 sums in registers, scales the gradient
    by the inverse norms before it is rounded to y's dtype, and writes the tile once.
    Moves N M gradients, M D inputs at best and N D float32 sums; 2 N M D operations.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_d = tl.cdiv(D, BLOCK_D)
    program = tl.program_id(0)
    first_d = (program % tiles_d) * BLOCK_D
    first_n = (program // tiles_d % tiles_n) * BLOCK_N
    batch = program // (tiles_d * tiles_n)

    any_scaled = False
    if RANGE_SAFE:
        any_scaled = tl.load(any_scaled_ptr)
    if RANGE_SAFE and any_scaled:
        acc = _weighted_sum(
            grad_ptr, y_ptr, inverse_y_ptr, exponent_y_ptr, stride_gb, stride_gn, stride_gm,
            stride_yb, stride_ym, stride_yd, batch, first_n, first_d, N, M, D,
            BLOCK_N, BLOCK_D, BLOCK_M, PRECISION, SCALED=True,
        )  # fmt: skip
    else:
        acc = _weighted_sum(
            grad_ptr, y_ptr, inverse_y_ptr, exponent_y_ptr, stride_gb, stride_gn, stride_gm,
            stride_yb, stride_ym, stride_yd, batch, first_n, first_d, N, M, D,
            BLOCK_N, BLOCK_D, BLOCK_M, PRECISION, SCALED=False,
        )  # fmt: skip

    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_d, tl.int64) + tl.arange(0, BLOCK_D)
    tile = sum_ptr + tl.cast(batch, tl.int64) * stride_sb
    tile += row[:, None] * stride_sn + column[None, :] * stride_sd
    tl.store(tile, acc, mask=(row < N)[:, None] & (column < D)[None, :])


@triton.jit(launch_metadata=_project_metadata)
def _pairwise_bwd_project_kernel(
    sum_ptr,  # (B, N, D) float32
    x_ptr,  # (B, N, D)
    inverse_x_ptr,  # (B * N,) float32
    exponent_x_ptr,  # (B * N,) int32
    grad_x_ptr,  # (B, N, D)
    ROWS,  # B * N
    N,
    D,
    stride_sb,
    stride_sn,
    stride_sd,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_gb,
    stride_gn,
    stride_gd,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Turn the weighted sums t of BLOCK_N rows into gradients (t - x <x, t> / (n |x|)) / n.

    Owns BLOCK_N rows, with n = max(|x|, eps). A first loop over D sums <x, t> and <x, x>, a second
    reads the same elements again, from L2, and writes. Moves the sums, the input and the gradient
    once; 8 operations an element.
    """
    flat = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = flat < ROWS
    sum_row = sum_ptr + (flat // N) * stride_sb + (flat % N) * stride_sn
    x_row = x_ptr + (flat // N) * stride_xb + (flat % N) * stride_xn
    grad_row = grad_x_ptr + (flat // N) * stride_gb + (flat % N) * stride_gn
    exponent = tl.load(exponent_x_ptr + flat, mask=mask_n, other=0)
    inverse = tl.load(inverse_x_ptr + flat, mask=mask_n, other=0.0)
    column = tl.arange(0, BLOCK_D).to(tl.int64)

    xx = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    xt = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = (start + column)[None, :]
        mask = mask_n[:, None] & (d < D)
        x = tl.load(x_row[:, None] + d * stride_xd, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(sum_row[:, None] + d * stride_sd, mask=mask, other=0.0)
        x = times_power_of_two(x, -exponent[:, None])
        xx += x * x
        xt += x * t
    square = tl.sum(xx, axis=1)
    # The derivative of a norm at a row of zeros is 0, as torch has it.
    along = tl.where(square == 0, 0.0, tl.div_rn(inverse, tl.sqrt_rn(square))) * tl.sum(xt, axis=1)

    for start in range(0, D, BLOCK_D):
        d = (start + column)[None, :]
        mask = mask_n[:, None] & (d < D)
        x = tl.load(x_row[:, None] + d * stride_xd, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(sum_row[:, None] + d * stride_sd, mask=mask, other=0.0)
        x = times_power_of_two(x, -exponent[:, None])
        grad = inverse[:, None] * (t - x * along[:, None])
        grad = times_power_of_two(grad, -exponent[:, None]).to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_row[:, None] + d * stride_gd, grad, mask=mask)


def launch_pairwise_bwd(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    precision: str = "highest",
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return the gradient (b, n, d) for x of the pairwise cosine, given its gradient (b, n, m).

    The gradient for y is the same call with x and y exchanged and ``grad`` transposed: any strides
    are taken. Needs one float32 temporary of x's shape. ``precision`` as in the forward.
    """
    b, n, d = x.shape
    m = y.shape[1]
    grad_x = x.new_empty((b, n, d))
    if grad_x.numel() == 0 or m == 0:
        return grad_x.zero_()
    inverse_x, exponent_x = launch_row_norm(x, eps)
    inverse_y, exponent_y = launch_row_norm(y, eps)
    y = aligned_rows(y)
    weighted = x.new_empty((b, n, y.shape[-1]), dtype=torch.float32)
    with on_device(x):
        arch = current_arch()
        config = config or choose_config("pairwise_bwd", x.dtype, d, arch, precision)
        tiles = triton.cdiv(n, config.block_n) * triton.cdiv(y.shape[-1], config.block_m)
        _pairwise_bwd_product_kernel[(b * tiles,)](
            grad,
            y,
            inverse_y,
            exponent_y,
            exponent_y.any(),
            weighted,
            b,
            n,
            m,
            y.shape[-1],
            *grad.stride(),
            *y.stride(),
            *weighted.stride(),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_m,
            BLOCK_M=config.block_k,
            PRECISION=config.precision,
            RANGE_SAFE=y.dtype != torch.float16,
            **config.options(),
        )
        rows = choose_config("pairwise_bwd_project", x.dtype, d, arch)
        _pairwise_bwd_project_kernel[(triton.cdiv(b * n, rows.block_n),)](
            weighted,
            x,
            inverse_x,
            exponent_x,
            grad_x,
            b * n,
            n,
            d,
            *weighted.stride(),
            *x.stride(),
            *grad_x.stride(),
            BLOCK_N=rows.block_n,
            BLOCK_D=rows.block_k,
            **rows.options(),
        )
    return grad_x
