"""What every launcher needs on the host: the device's context, the cost it reports, descriptors."""

import torch


def on_device(x: torch.Tensor) -> torch.cuda.device_of:
    """Make x's device current: Triton launches on the current device, whatever its arguments."""
    return torch.cuda.device_of(x)


def cost(name: str, bytes_moved: int, **operations: int) -> dict:
    """Launch metadata in the form that Triton's profiler reads: bytes, and operations by width."""
    return {"name": name, "bytes": bytes_moved, **operations}


def element_size(source) -> int:
    """Bytes an element of a tensor, or of the tensor that a descriptor describes."""
    return getattr(source, "base", source).element_size()


def rows_are_aligned(x: torch.Tensor) -> bool:
    """Whether every row of x starts at a multiple of 16 bytes and is contiguous.

    Such rows are loaded in wide pieces, and a tensor descriptor can describe them.
    """
    size = x.element_size()
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in x.stride()[:-1])
    return aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0
