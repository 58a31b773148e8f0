"""What every launcher needs on the host: the device's context, the cost it reports, descriptors."""

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from .configs import TileConfig, choose_config, current_arch


def on_device(x: torch.Tensor) -> torch.cuda.device_of:
    """Make x's device current: Triton launches on the current device, whatever its arguments."""
    return torch.cuda.device_of(x)


def cost(name: str, bytes_moved: int, **operations: int) -> dict:
    """Launch metadata in the form that Triton's profiler reads: bytes, and operations by width."""
    return {"name": name, "bytes": bytes_moved, **operations}


def element_size(source) -> int:
    """Bytes an element of a tensor, or of the tensor that a descriptor describes."""
    return getattr(source, "base", source).element_size()


def aligned_rows(x: torch.Tensor) -> torch.Tensor:
    """Return x (..., d) if its rows load in 16-byte pieces, else a copy padded with zeros.

    That takes contiguous rows that start at multiples of 16 bytes, with d a multiple of 16. The
    copy costs one pass over the input; element by element, a product spends ten times as long
    issuing loads as multiplying. Zeros change neither norms nor products.
    """
    size, d = x.element_size(), x.shape[-1]
    aligned = all(stride * size % 16 == 0 for stride in x.stride()[:-1])
    if aligned and x.stride(-1) == 1 and d % 16 == 0 and x.data_ptr() % 16 == 0:
        return x
    padded = x.new_zeros((*x.shape[:-1], (d + 15) // 16 * 16))
    padded[..., :d] = x
    return padded


def same_rows(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether x and y are the same elements in the same memory, read in the same way."""
    return (
        x.data_ptr() == y.data_ptr()
        and (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
        and x.numel() > 0
    )


def describable(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor can describe x: aligned rows, no dimension repeats itself."""
    size = x.element_size()
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in x.stride()[:-1])
    return aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and x.numel() > 0


def tiled_product(
    kernel: str,
    x: torch.Tensor,
    y: torch.Tensor,
    config: TileConfig | None = None,
) -> tuple[TileConfig, torch.Tensor | TensorDescriptor, torch.Tensor | TensorDescriptor]:
    """Choose the tile of a product of the rows of x (b, n, d) and y (b, m, d), if none is given.

    Returns the tile and what its kernel loads from: the tensors, or descriptors of their tiles.
    """
    if config is None:
        descriptors = describable(x) and describable(y)
        arch = current_arch()
        config = choose_config(kernel, x.dtype, x.shape[-1], arch, descriptors)
    if not config.descriptors:
        return config, x, y
    x_tile, y_tile = ([1, rows, config.block_k] for rows in (config.block_n, config.block_m))
    from_tensor = TensorDescriptor.from_tensor
    return config, from_tensor(x, x_tile), from_tensor(y, y_tile)
