"""A GPU driver that compiles for an architecture and records launches instead of making them.

The real launchers run, with real tensors, through Triton's own specialisation; only the last step,
handing the binary to a device, is replaced. What is inspected is therefore the very code that the
call would run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

# The largest dynamic shared memory of one block, in bytes.
SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_103": 227 * 1024,
    "sm_120": 99 * 1024,
    "sm_121": 99 * 1024,
    "gfx90a": 64 * 1024,
    "gfx942": 64 * 1024,
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its grid, the compiled code and the cost that the launcher reported."""

    name: str
    grid: tuple[int, int, int]
    kernel: triton.compiler.CompiledKernel
    cost: dict
    constants: dict  # the tile, and the options of the compiler


def target_of(arch: str) -> GPUTarget:
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


class StubDriver:
    """Stands where Triton's driver stands; knows an architecture but has no device."""

    def __init__(self, arch: str):
        self.target = target_of(arch)
        # Triton caches compiled kernels by device number, so each architecture is a device, and
        # none has the number of a real one.
        self.device = 1000 + list(SHARED_MEMORY).index(arch)
        self.cost: dict = {}
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (None, name, 0, 0, 1024),
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_MEMORY[arch],
                "multiprocessor_count": 4,
            },
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, *args):
            self.cost = launch_metadata.get()

        return launch


@contextmanager
def compiled_for(arch: str) -> Iterator[list[Launch]]:
    """Within, kernels are compiled for ``arch`` and their launches land in the list yielded."""
    stub = StubDriver(arch)
    launches: list[Launch] = []
    original_run = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = original_run(self, *args, grid=grid, warmup=warmup, **kwargs)
        launches.append(Launch(self.__name__, grid, kernel, stub.cost, kwargs))
        return kernel

    driver = triton.runtime.driver
    previous = driver._active
    driver._active, JITFunction.run = stub, run
    try:
        yield launches
    finally:
        driver._active, JITFunction.run = previous, original_run
