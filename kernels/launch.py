"""What every launcher needs on the host: the device's context, the cost it reports, descriptors."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from .architecture import TileConfig, current_arch
from .configs import choose_config

# Launches that a kernel remembers: each is a set of sizes, strides and dtypes.
MOST_REMEMBERED = 1024


class Kernel(JITFunction):
    """A kernel that remembers what was compiled for a launch, for launches like it.

    Triton finds that out anew each time, from every argument and from settings in the environment,
    which takes 10 to 15 µs where this takes 5.5 to 9.5 (Zen 5, 11 to 18 arguments).
    Two launches are alike if they have the same device, numbers and constants, and pointers of the
    same dtypes that are multiples of 16 or not: more than Triton tells apart on CUDA. On HIP it
    also looks at the size of a pointer's memory, so that nothing is remembered there.
    """

    def __init__(self, function: Callable, launch_metadata: Callable | None):
        super().__init__(function, launch_metadata=launch_metadata)
        self.pointers = sum(name.endswith("_ptr") for name in self.arg_names)
        self.remembered: dict[tuple, tuple[CompiledKernel, tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what launches the kernel on a grid."""
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments, **constants) -> None:
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        pointers, numbers = arguments[: self.pointers], arguments[self.pointers :]
        key = (device, numbers, *map(_kind, pointers), *constants.values())
        found = self.remembered.get(key)
        if found is None:
            compiled = self.run(*arguments, grid=grid, warmup=False, **constants)
            if isinstance(compiled, CompiledKernel) and compiled.metadata.target.backend == "cuda":
                if len(self.remembered) >= MOST_REMEMBERED:
                    self.remembered.clear()
                rest = tuple(constants[name] for name in self.arg_names[len(arguments) :])
                self.remembered[key] = compiled, rest
            return
        compiled, rest = found
        stream = driver.get_current_stream(device)
        compiled[(*grid, 1, 1)[:3]](*arguments, *rest, stream=stream)


def _kind(pointer: torch.Tensor | TensorDescriptor | None) -> object:
    """What Triton compiles for, of a tensor or a descriptor, whose tile is among the constants."""
    if type(pointer) is TensorDescriptor:
        return pointer.base.dtype
    if pointer is None:
        return None
    return pointer.dtype, pointer.data_ptr() % 16 == 0


def kernel(launch_metadata: Callable | None = None) -> Callable[[Callable], JITFunction]:
    """Decorate a kernel as `triton.jit` does, and have it remember its launches."""

    def decorate(function: Callable) -> JITFunction:
        made = triton.jit(function, launch_metadata=launch_metadata)
        # Interpreted, it is of another kind.
        return Kernel(function, launch_metadata) if type(made) is JITFunction else made

    return decorate


_THERE = nullcontext()


def on_device(x: torch.Tensor) -> AbstractContextManager:
    """Make x's device current: Triton launches on the current device, whatever its arguments."""
    index = x.get_device()
    if index < 0 or index == torch.cuda.current_device():
        return _THERE
    return torch.cuda.device(index)


@lru_cache
def _multiprocessors(device: int) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(device)["multiprocessor_count"]


def multiprocessors() -> int:
    """How many multiprocessors the current device has."""
    return _multiprocessors(triton.runtime.driver.active.get_current_device())


def cdiv(count: int, size: int) -> int:
    """How many pieces of a size hold so many; `triton.cdiv` takes more than a microsecond."""
    return -(-count // size)


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
    d = x.shape[-1]
    if d % 16 == 0 and _starts_aligned(x):
        return x
    padded = x.new_zeros((*x.shape[:-1], (d + 15) // 16 * 16))
    padded[..., :d] = x
    return padded


def _starts_aligned(x: torch.Tensor) -> bool:
    """Whether the rows of x are contiguous, and each starts at a multiple of 16 bytes."""
    *strides, along = x.stride()
    if along != 1 or x.data_ptr() % 16:
        return False
    together = 0
    for stride in strides:
        together |= stride
    return together * x.element_size() % 16 == 0


def same_rows(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether x and y are the same elements in the same memory, read in the same way."""
    return (
        x.data_ptr() == y.data_ptr()
        and (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
        and x.numel() > 0
    )


def describable(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor can describe x: aligned rows, no dimension repeats itself."""
    return x.numel() > 0 and 0 not in x.stride() and _starts_aligned(x)


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
    x_tile, y_tile = ((1, rows, config.block_k) for rows in (config.block_n, config.block_m))
    return config, descriptor(x, x_tile), descriptor(y, y_tile)


_FIELDS: dict[tuple, dict] = {}


def descriptor(x: torch.Tensor, tile: tuple[int, ...]) -> TensorDescriptor:
    """Describe tiles of an x that is `describable`, for a kernel to load.

    Triton's own constructor checks the tile and the tensor each time; here, once for a dtype and a
    tile.
    """
    key = x.dtype, tile
    fields = _FIELDS.get(key)
    if fields is None:
        made = TensorDescriptor.from_tensor(x, list(tile))
        fields = _FIELDS[key] = vars(made) | {"base": None}
    found = object.__new__(TensorDescriptor)
    vars(found).update(fields, base=x, shape=x.shape, strides=x.stride())
    return found
