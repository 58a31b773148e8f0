"""Gradient of the pairwise cosine for one of its two sides."""

import torch
import triton.language as tl

from .configs import TileConfig, choose_config, current_arch
from .launch import cdiv, cost, describable, descriptor, element_size, kernel, on_device
from .row_norm import RowNorms, launch_row_norms, launch_unit_rows
from .tiles import binary_exponent, load_tile, power_of_two, times_power_of_two


def _product_metadata(grid, kernel, args):
    b, n, m, d = args["B"], args["N"], args["M"], args["D"]
    size = element_size(args["unit_ptr"])
    moved = b * (n * m * element_size(args["grad_ptr"]) + m * d * size + 4 * n * d)
    return cost("pairwise_bwd_product", moved, **{f"flops{8 * size}": 2 * b * n * m * d})


def _project_metadata(grid, kernel, args):
    elements = args["ROWS"] * args["D"]
    moved = elements * (4 + 2 * args["x_ptr"].element_size())
    return cost("pairwise_bwd_project", moved, flops32=8 * elements)


@kernel(launch_metadata=_product_metadata)
def _pairwise_bwd_product_kernel(
    grad_ptr,  # (B, N, M), if TRANSPOSED (B, M, N), or a descriptor of it
    unit_ptr,  # (B, M, D), or a descriptor of it
    sum_ptr,  # (B, N, D) float32
    B,
    N,
    M,
    D,
    stride_gb,
    stride_gn,
    stride_gm,
    stride_ub,
    stride_um,
    stride_ud,
    stride_sb,
    stride_sn,
    stride_sd,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Write one BLOCK_N x BLOCK_D tile of grad times the unit rows of y.

    Owns one tile of one batch; tiles of D are innermost, so that the gradient leaves device memory
    once. Loops over M in steps of BLOCK_M, keeps the float32 sums in registers and writes the tile
    once. A gradient of the rows' dtype is multiplied as it is; another is rounded to it first.
    Moves N M gradients, M D inputs at best and N D float32 sums; 2 N M D operations.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_d = tl.cdiv(D, BLOCK_D)
    program = tl.program_id(0)
    first_d = (program % tiles_d) * BLOCK_D
    first_n = (program // tiles_d % tiles_n) * BLOCK_N
    batch = program // (tiles_d * tiles_n)

    acc = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for m in range(0, M, BLOCK_M):
        if TRANSPOSED:
            grad = load_tile(
                grad_ptr, stride_gb, stride_gn, stride_gm, batch, m, first_n, M, N,
                BLOCK_M, BLOCK_N, DESCRIPTORS,
            ).T  # fmt: skip
        else:
            grad = load_tile(
                grad_ptr, stride_gb, stride_gn, stride_gm, batch, first_n, m, N, M,
                BLOCK_N, BLOCK_M, DESCRIPTORS,
            )  # fmt: skip
        unit = load_tile(
            unit_ptr, stride_ub, stride_um, stride_ud, batch, m, first_d, M, D,
            BLOCK_M, BLOCK_D, DESCRIPTORS,
        )  # fmt: skip
        if unit.dtype == tl.float16 and grad.dtype != tl.float16:
            # Gradients of a mean over a large matrix vanish in float16: bring the largest of each
            # row into [1, 2) before it is rounded.
            grad = grad.to(tl.float32)
            exponent_g = binary_exponent(tl.max(tl.abs(grad), axis=1))
            exponent_g = tl.minimum(tl.maximum(exponent_g, -126), 126)
            grad *= power_of_two(-exponent_g)[:, None]
            product = tl.dot(grad.to(tl.float16), unit)
            acc += product * power_of_two(exponent_g)[:, None]
        else:
            acc = tl.dot(grad.to(unit.dtype), unit, acc, input_precision=PRECISION)

    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_d, tl.int64) + tl.arange(0, BLOCK_D)
    tile = sum_ptr + tl.cast(batch, tl.int64) * stride_sb
    tile += row[:, None] * stride_sn + column[None, :] * stride_sd
    tl.store(tile, acc, mask=(row < N)[:, None] & (column < D)[None, :])


@kernel(launch_metadata=_project_metadata)
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
    norms: RowNorms | None = None,
) -> torch.Tensor:
    """Return the gradient (b, n, d) for x of the pairwise cosine, given its gradient (b, n, m).

    The gradient for y is the same call with x and y exchanged and ``grad`` transposed: any strides
    are taken, those of an expanded gradient by a copy. Needs one float32 temporary of x's shape and
    one of y's, of unit rows: multiplied by them, a gradient need not pass through registers to be
    scaled. ``precision`` as in the forward: of float32 rows those of y, or the gradient's, are
    rounded to float16 for one product. ``norms`` are those of x and y where they are known.
    """
    b, n, d = x.shape
    m = y.shape[1]
    grad_x = x.new_empty((b, n, d))
    if grad_x.numel() == 0 or m == 0:
        return grad_x.zero_()
    norms = norms or launch_row_norms(x, y, eps)
    halved = y.dtype == torch.float32 and precision != "highest"
    dtype = torch.float16 if halved else y.dtype
    unit = launch_unit_rows(y, norms.inverse_y, norms.exponent_y, dtype)
    width = unit.shape[-1]
    strides = grad.stride()
    if 0 in strides and any(
        s == 0 and size > 1 for s, size in zip(strides, grad.shape, strict=True)
    ):
        grad = grad.contiguous()
    transposed = grad.stride(-1) != 1 and grad.stride(-2) == 1
    grad = grad.mT if transposed else grad
    weighted = x.new_empty((b, n, width), dtype=torch.float32)
    with on_device(x):
        arch = current_arch()
        if config is None:
            same = grad.dtype == unit.dtype
            descriptors = same and describable(grad) and describable(unit)
            name = "pairwise_bwd" if same else "pairwise_bwd_rounded"
            config = choose_config(name, unit.dtype, d, arch, descriptors)
        tile_n, tile_d, tile_m = config.block_n, config.block_m, config.block_k
        grad_source, unit_source = grad, unit
        if config.descriptors:
            grad_tile = (1, tile_m, tile_n) if transposed else (1, tile_n, tile_m)
            grad_source = descriptor(grad, grad_tile)
            unit_source = descriptor(unit, (1, tile_m, tile_d))
        tiles = cdiv(n, tile_n) * cdiv(width, tile_d)
        _pairwise_bwd_product_kernel[(b * tiles,)](
            grad_source,
            unit_source,
            weighted,
            b,
            n,
            m,
            width,
            *grad.stride(),
            *unit.stride(),
            *weighted.stride(),
            BLOCK_N=tile_n,
            BLOCK_D=tile_d,
            BLOCK_M=tile_m,
            PRECISION=config.precision,
            TRANSPOSED=transposed,
            DESCRIPTORS=config.descriptors,
            **config.options(),
        )
        rows = choose_config("pairwise_bwd_project", x.dtype, d, arch)
        _pairwise_bwd_project_kernel[(cdiv(b * n, rows.block_n),)](
            weighted,
            x,
            norms.inverse_x,
            norms.exponent_x,
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
