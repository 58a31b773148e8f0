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


def describable(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor can describe aligned rows: no dimension repeats itself."""
    return all(stride > 0 for stride in x.stride())
