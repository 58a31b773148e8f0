"""Gradient of the pairwise cosine for one of its two sides, or for both if they are the same."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .gradient_panel import launch_gradient_panel
from .launch import cdiv, cost, describable, descriptor, element_size, kernel, on_device
from .row_norm import RowNorms, launch_row_norms, launch_unit_rows
from .tiles import load_tile, times_power_of_two

# Bytes of the largest piece of a gradient that is copied at once.
PANEL = 2**29


def _product_metadata(grid, kernel, args):
    b, n, m, d = args["B"], args["N"], args["M"], args["D"]
    size, products = element_size(args["unit_ptr"]), 2 if args["MIRRORED"] else 1
    moved = b * (products * n * m * size + m * d * size + 4 * n * d)
    return cost("pairwise_bwd_product", moved, **{f"flops{8 * size}": 2 * products * b * n * m * d})


def _project_metadata(grid, kernel, args):
    elements = args["ROWS"] * args["D"]
    moved = elements * (4 + 2 * args["x_ptr"].element_size())
    return cost("pairwise_bwd_project", moved, flops32=8 * elements)


@triton.jit
def _add_product(
    acc,  # (BLOCK_N, BLOCK_D)
    grad_ptr,
    unit_ptr,
    batch,
    first_n,
    first_d,
    N,
    M,
    D,
    stride_gb,
    stride_gn,
    stride_gm,
    stride_ub,
    stride_um,
    stride_ud,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Add a tile of grad times the unit rows."""
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
        acc = tl.dot(grad, unit, acc, input_precision=PRECISION)
    return acc


@kernel(launch_metadata=_product_metadata)
def _pairwise_bwd_product_kernel(
    grad_ptr,  # (B, N, M), if TRANSPOSED (B, M, N), or a descriptor of it
    mirror_ptr,  # if MIRRORED the same gradients, or another descriptor of them
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
    MIRRORED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Write one BLOCK_N x BLOCK_D tile of grad times the unit rows of y.

    Owns one tile of one batch; tiles of D are innermost, so that the gradient leaves device memory
    once. Loops over M in steps of BLOCK_M, keeps the float32 sums in registers and writes the tile
    once. If MIRRORED, N is M, and a second loop adds the transposed gradient times the same rows.
    Moves N M gradients, M D inputs at best and N D float32 sums; 2 N M D operations; if MIRRORED
    twice the gradients and the operations.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_d = tl.cdiv(D, BLOCK_D)
    program = tl.program_id(0)
    first_d = (program % tiles_d) * BLOCK_D
    first_n = (program // tiles_d % tiles_n) * BLOCK_N
    batch = program // (tiles_d * tiles_n)

    acc = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    acc = _add_product(
        acc, grad_ptr, unit_ptr, batch, first_n, first_d, N, M, D,
        stride_gb, stride_gn, stride_gm, stride_ub, stride_um, stride_ud,
        BLOCK_N, BLOCK_D, BLOCK_M, PRECISION, TRANSPOSED, DESCRIPTORS,
    )  # fmt: skip
    if MIRRORED:
        acc = _add_product(
            acc, mirror_ptr, unit_ptr, batch, first_n, first_d, N, M, D,
            stride_gb, stride_gn, stride_gm, stride_ub, stride_um, stride_ud,
            BLOCK_N, BLOCK_D, BLOCK_M, PRECISION, not TRANSPOSED, DESCRIPTORS,
        )  # fmt: skip

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
    exponent_sum_ptr,  # (B * N,) int32, or None
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

    Owns BLOCK_N rows, with n = max(|x|, eps); the sums are t times 2**-exponent. A first loop over
    D sums <x, t> and <x, x>, a second reads the same elements again, from L2, and writes. Moves the
    sums, the input and the gradient once; 8 operations an element.
    """
    flat = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = flat < ROWS
    sum_row = sum_ptr + (flat // N) * stride_sb + (flat % N) * stride_sn
    x_row = x_ptr + (flat // N) * stride_xb + (flat % N) * stride_xn
    grad_row = grad_x_ptr + (flat // N) * stride_gb + (flat % N) * stride_gn
    exponent = tl.load(exponent_x_ptr + flat, mask=mask_n, other=0)
    inverse = tl.load(inverse_x_ptr + flat, mask=mask_n, other=0.0)
    # Gradients are those of the scaled rows times 2**power; beyond 252 they vanish or overflow.
    power = -exponent
    if exponent_sum_ptr is not None:
        power += tl.load(exponent_sum_ptr + flat, mask=mask_n, other=0)
        power = tl.minimum(
            tl.maximum(power, -252), 252
        )  # tl.clamp takes integers from Triton 3.8 on
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
        grad = times_power_of_two(grad, power[:, None]).to(grad_x_ptr.dtype.element_ty)
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

    The gradient for y is the same call with x and y exchanged and ``grad`` transposed. Needs one
    float32 temporary of x's shape and one of y's, of unit rows. ``precision`` as in the forward: of
    float32 rows those of y and the gradient are rounded to float16 for one product, the gradient by
    `launch_gradient_panel`, which scales each of its rows. A gradient of another dtype than the
    unit rows, one that is expanded or that does not load in pieces of 16 bytes is copied in the
    same way: by rows that together take PANEL bytes at most, or by 128 rows. ``norms`` are those of
    x and y where they are known.
    By instructions issued, a gradient that is scaled in the product's registers instead takes 2.1
    clocks a clock of the tensor cores (sm_90; 2.6 transposed, 3.8 on sm_100), and one as it is 0.2.
    One that is loaded number by number takes 1.4.
    """
    b, n, d = x.shape
    m = y.shape[1]
    if x.numel() == 0 or m == 0:
        return x.new_zeros((b, n, d))
    norms = norms or launch_row_norms(x, y, eps)
    unit = launch_unit_rows(y, norms.inverse_y, norms.exponent_y, _factor_dtype(y, precision))
    return _gradient(grad, False, x, unit, norms, config)


def launch_pairwise_self_bwd(
    grad: torch.Tensor,
    x: torch.Tensor,
    eps: float,
    precision: str = "highest",
    config: TileConfig | None = None,
    norms: RowNorms | None = None,
) -> torch.Tensor:
    """Return the gradient (b, n, d) for x of its cosines with itself, given theirs (b, n, n).

    It is the gradient for the one side plus that for the other, hence a product of the gradient
    plus its transpose. One in float32, and any that has to be copied, is added to its transpose as
    it is copied, and rounded once after; there is one product. One of 16 bits that is multiplied as
    it is, is multiplied twice, into the same sums: to round their sum would err as much as to round
    the rows does, and save a quarter of the time at most, by bytes.
    """
    b, n, d = x.shape
    if x.numel() == 0:
        return x.new_zeros((b, n, d))
    norms = norms or launch_row_norms(x, None, eps)
    unit = launch_unit_rows(x, norms.inverse_x, norms.exponent_x, _factor_dtype(x, precision))
    return _gradient(grad, True, x, unit, norms, config)


def _factor_dtype(rows: torch.Tensor, precision: str) -> torch.dtype:
    """The dtype in which the rows and the gradient are multiplied."""
    halved = rows.dtype == torch.float32 and precision != "highest"
    return torch.float16 if halved else rows.dtype


def _gradient(
    grad: torch.Tensor,
    mirrored: bool,
    x: torch.Tensor,
    unit: torch.Tensor,
    norms: RowNorms,
    config: TileConfig | None,
) -> torch.Tensor:
    """The gradient for x from that of its cosines with the unit rows (b, m, d'), d' >= d."""
    (b, n, d), m = x.shape, grad.shape[2]
    weighted = x.new_empty((b, n, unit.shape[-1]), dtype=torch.float32)
    as_it_is = grad.dtype == unit.dtype and (describable(grad) or describable(grad.mT))
    exponent = None
    if as_it_is and not (mirrored and grad.dtype == torch.float32):
        launch_weighted_sums(grad, unit, weighted, mirrored, config)
    else:
        if unit.dtype == torch.float16 and (mirrored or grad.dtype != torch.float16):
            exponent = x.new_empty((b * n,), dtype=torch.int32)
        rows = max(PANEL // (unit.element_size() * b * m) // 128 * 128, 128)
        for first in range(0, n, rows):
            at = slice(first, first + rows)
            panel = launch_gradient_panel(
                grad[:, at],
                grad.mT[:, at] if mirrored else None,
                unit.dtype,
                None if exponent is None else exponent.view(b, n)[:, at],
            )
            launch_weighted_sums(panel, unit, weighted[:, at], False, config)
            del panel  # before the next one
    grad_x = x.new_empty((b, n, d))
    with on_device(x):
        rows = choose_config("pairwise_bwd_project", x.dtype, d, current_arch())
        _pairwise_bwd_project_kernel[(cdiv(b * n, rows.block_n),)](
            weighted,
            x,
            norms.inverse_x,
            norms.exponent_x,
            exponent,
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


def launch_weighted_sums(
    grad: torch.Tensor,
    unit: torch.Tensor,
    out: torch.Tensor,
    mirrored: bool = False,
    config: TileConfig | None = None,
) -> None:
    """Write grad (b, n, m) times unit (b, m, d), of one dtype, to out (b, n, d) float32.

    If ``mirrored``, n is m, and the transposed gradient times the same rows is added.
    """
    b, n, m = grad.shape
    width = unit.shape[-1]
    transposed = grad.stride(-1) != 1 and grad.stride(-2) == 1
    grad = grad.mT if transposed else grad
    with on_device(grad):
        if config is None:
            descriptors = describable(grad) and describable(unit)
            config = choose_config("pairwise_bwd", unit.dtype, width, current_arch(), descriptors)
        tile_n, tile_d, tile_m = config.block_n, config.block_m, config.block_k
        grad_source, mirror_source, unit_source = grad, grad, unit
        if config.descriptors:
            tiles = (1, tile_m, tile_n), (1, tile_n, tile_m)
            grad_source = descriptor(grad, tiles[0 if transposed else 1])
            if mirrored:
                mirror_source = descriptor(grad, tiles[1 if transposed else 0])
            unit_source = descriptor(unit, (1, tile_m, tile_d))
        programs = b * cdiv(n, tile_n) * cdiv(width, tile_d)
        _pairwise_bwd_product_kernel[(programs,)](
            grad_source,
            mirror_source if mirrored else None,
            unit_source,
            out,
            b,
            n,
            m,
            width,
            *grad.stride(),
            *unit.stride(),
            *out.stride(),
            BLOCK_N=tile_n,
            BLOCK_D=tile_d,
            BLOCK_M=tile_m,
            PRECISION=config.precision,
            TRANSPOSED=transposed,
            MIRRORED=mirrored,
            DESCRIPTORS=config.descriptors,
            **config.options(),
        )
