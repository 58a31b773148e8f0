"""Inverse norms of rows, safe over the whole range of the input's dtype, and rows times them.

They have a launch of their own for small matrices too. A tile of the product would have to sum them
as it is done here, in partial sums of 128 columns, since a row's bits may not depend on how many
rows there are: each tile of 128 x 256 would read its rows once more, 590 kB at d = 768 in float16,
which takes 5 microseconds at the 64 bytes a clock that L2 gives a multiprocessor (by arithmetic).
The launch that this saves takes 2 to 3 of the device, and 10 of the host.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cdiv, cost, kernel, on_device
from .tiles import inverse_norm, scaled_square, times_power_of_two


def _metadata(grid, kernel, args):
    rows = args["ROWS_X"] + args["ROWS_Y"]
    moved = rows * args["D"] * args["x_ptr"].element_size() + 8 * rows
    return cost("row_norm", moved, flops32=2 * rows * args["D"])


def _unit_metadata(grid, kernel, args):
    elements = args["ROWS"] * args["WIDTH"]
    size = args["x_ptr"].element_size() + args["out_ptr"].element_size()
    return cost("unit_rows", elements * size + 8 * args["ROWS"], flops32=2 * elements)


@triton.jit
def _write_norms(
    x_ptr,  # (B, N, D)
    inverse_ptr,  # (ROWS,) float32
    exponent_ptr,  # (ROWS,) int32
    scaled_ptr,  # () int32, or None
    tile,
    ROWS,  # B * N
    N,
    D,
    stride_xb,
    stride_xn,
    stride_xd,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write exponents and inverse norms of BLOCK_N rows, and 1 if an exponent is not 0."""
    row = tl.cast(tile, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = row < ROWS
    x_row = x_ptr + (row // N) * stride_xb + (row % N) * stride_xn
    square, exponent = scaled_square(x_row, stride_xd, row_mask, D, eps, BLOCK_N, BLOCK_D)
    tl.store(inverse_ptr + row, inverse_norm(square, exponent, eps), mask=row_mask)
    tl.store(exponent_ptr + row, exponent, mask=row_mask)
    if scaled_ptr is not None:  # noqa: SIM102  (known when compiled)
        # Whoever writes, writes the same.
        if tl.max(tl.abs(exponent), axis=0) > 0:
            tl.store(scaled_ptr, 1)


@kernel(launch_metadata=_metadata)
def _row_norm_kernel(
    x_ptr,  # (B, N_X, D)
    y_ptr,  # (B, N_Y, D), or None
    inverse_ptr,  # (ROWS_X + ROWS_Y,) float32
    exponent_ptr,  # (ROWS_X + ROWS_Y,) int32
    scaled_ptr,  # () int32, or None
    ROWS_X,  # B * N_X
    ROWS_Y,  # B * N_Y, or 0
    N_X,
    N_Y,
    D,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_yb,
    stride_yn,
    stride_yd,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a power-of-two exponent and the inverse norm of the row scaled by it, for two inputs.

    Owns BLOCK_N rows of x or of y, loops over D in steps of BLOCK_D, keeps BLOCK_N x BLOCK_D
    partial sums in registers and writes 8 bytes a row. Rows whose squares leave float32's
    comfortable range are read twice more, from L2: once for their largest magnitude, once scaled.
    Moves the inputs once; 2 operations an element.
    """
    program = tl.program_id(0)
    tiles_x = tl.cdiv(ROWS_X, BLOCK_N)
    if program < tiles_x:
        _write_norms(
            x_ptr, inverse_ptr, exponent_ptr, scaled_ptr, program, ROWS_X, N_X, D,
            stride_xb, stride_xn, stride_xd, eps, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    elif y_ptr is not None:
        _write_norms(
            y_ptr, inverse_ptr + ROWS_X, exponent_ptr + ROWS_X, scaled_ptr, program - tiles_x,
            ROWS_Y, N_Y, D, stride_yb, stride_yn, stride_yd, eps, BLOCK_N, BLOCK_D,
        )  # fmt: skip


class RowNorms(NamedTuple):
    """What `launch_row_norms` gives of x (b, n, d) and of y (b, m, d).

    The parts of x and of y are views that are made when they are asked for: each costs the host a
    microsecond, and the product of float16 rows needs half of them.
    """

    inverse: torch.Tensor  # (b * n + b * m,) float32, or (b * n,) of x alone
    exponent: torch.Tensor  # as many, int32
    any_scaled: torch.Tensor | None = None  # () int32: 1 if one is not 0; None for float16
    of_x: slice | None = None  # all of them, where y is x
    of_y: slice | None = None

    @property
    def inverse_x(self) -> torch.Tensor:
        """Of x: (b * n,)."""
        return self.inverse if self.of_x is None else self.inverse[self.of_x]

    @property
    def inverse_y(self) -> torch.Tensor:
        """Of y: (b * m,)."""
        return self.inverse if self.of_y is None else self.inverse[self.of_y]

    @property
    def exponent_x(self) -> torch.Tensor:
        """Of x: (b * n,)."""
        return self.exponent if self.of_x is None else self.exponent[self.of_x]

    @property
    def exponent_y(self) -> torch.Tensor:
        """Of y: (b * m,)."""
        return self.exponent if self.of_y is None else self.exponent[self.of_y]

    def swapped(self) -> "RowNorms":
        """The same, of y and of x."""
        return self._replace(of_x=self.of_y, of_y=self.of_x)


def launch_row_norms(
    x: torch.Tensor, y: torch.Tensor | None, eps: float, config: TileConfig | None = None
) -> RowNorms:
    """Return inverse norms and exponents of the rows of x and y, by one launch; y=None is x.

    The inverse is 1 / max(norm, eps) of the row multiplied by ``2 ** -exponent``; the exponent is 0
    for every row whose squared norm lies within [2^-100, 2^100], so for float16 always.
    """
    b, n, d = x.shape
    m = 0 if y is None else y.shape[1]
    inverse = x.new_empty((b * (n + m),), dtype=torch.float32)
    exponent = x.new_empty((b * (n + m),), dtype=torch.int32)
    scaled = None if x.dtype == torch.float16 else x.new_zeros((), dtype=torch.int32)
    if inverse.numel() > 0:
        with on_device(x):
            config = config or choose_config("row_norm", x.dtype, d, current_arch())
            tiles = cdiv(b * n, config.block_n) + cdiv(b * m, config.block_n)
            _row_norm_kernel[(tiles,)](
                x,
                y,
                inverse,
                exponent,
                scaled,
                b * n,
                b * m,
                n,
                m,
                d,
                *x.stride(),
                *(x if y is None else y).stride(),
                float(eps),
                BLOCK_N=config.block_n,
                BLOCK_D=config.block_k,
                **config.options(),
            )
    if y is None:
        return RowNorms(inverse, exponent, scaled)
    return RowNorms(inverse, exponent, scaled, slice(b * n), slice(b * n, None))


def launch_row_norm(
    x: torch.Tensor, eps: float, config: TileConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inverse, exponent), both (b * n,), of the rows of x (b, n, d)."""
    return launch_row_norms(x, None, eps, config)[:2]


@kernel(launch_metadata=_unit_metadata)
def _unit_rows_kernel(
    x_ptr,  # (B, N, D)
    inverse_ptr,  # (B * N,) float32
    exponent_ptr,  # (B * N,) int32
    out_ptr,  # (B, N, WIDTH)
    ROWS,  # B * N
    N,
    D,
    WIDTH,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_ob,
    stride_on,
    stride_od,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write BLOCK_N rows over their norms, and zeros from D to WIDTH.

    Owns BLOCK_N rows, loops over WIDTH in steps of BLOCK_D.
    Moves the input and the output once; 2 operations an element.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < ROWS
    x_row = x_ptr + (row // N) * stride_xb + (row % N) * stride_xn
    out_row = out_ptr + (row // N) * stride_ob + (row % N) * stride_on
    inverse = tl.load(inverse_ptr + row, mask=inside, other=0.0)
    exponent = tl.load(exponent_ptr + row, mask=inside, other=0)
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    for start in range(0, WIDTH, BLOCK_D):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=inside[:, None] & (d < D), other=0.0)
        x = times_power_of_two(x.to(tl.float32), -exponent[:, None]) * inverse[:, None]
        out = x.to(out_ptr.dtype.element_ty)
        tl.store(out_row[:, None] + d * stride_od, out, mask=inside[:, None] & (d < WIDTH))


def launch_unit_rows(
    x: torch.Tensor,
    inverse: torch.Tensor,
    exponent: torch.Tensor,
    dtype: torch.dtype,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return the rows of x (b, n, d) over max(norm, eps), padded with zeros: (b, n, d'), d' >= d.

    ``inverse`` and ``exponent`` are what ``launch_row_norm`` gives. The rows are rounded to
    ``dtype`` and load in pieces of 16 bytes: d' is a multiple of 16.
    """
    b, n, d = x.shape
    out = x.new_empty((b, n, cdiv(d, 16) * 16), dtype=dtype)
    if out.numel() == 0:
        return out
    with on_device(x):
        config = config or choose_config("unit_rows", x.dtype, d, current_arch())
        _unit_rows_kernel[(cdiv(b * n, config.block_n),)](
            x,
            inverse,
            exponent,
            out,
            b * n,
            n,
            d,
            out.shape[-1],
            *x.stride(),
            *out.stride(),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_k,
            **config.options(),
        )
    return out
