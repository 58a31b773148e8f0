"""The host's side of a call: Triton's own driver, on a libcuda whose functions do nothing.

Where `stub` replaces the launcher, everything of Triton's runs here, down to the calls of the
driver, so that what a launch costs the host can be timed without a device.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import triton
from triton.backends.nvidia import driver as nvidia

from ladder.stub import SHARED_MEMORY

ARCH = "sm_90"

# The functions that triton/backends/nvidia/driver.c names.
SOURCE = r"""
#include <cuda.h>
#define DOES_NOTHING(name, ...) CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *found, CUdevice_attribute which, CUdevice device) {
  *found = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9
         : which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? 0 : SHARED;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *found, CUfunction_attribute which, CUfunction function) {
  *found = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *found) { *found = 13020; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *found) { *found = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *found, int index) { *found = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *found) { *found = 0; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *found, const void *image) {
  *found = (CUmodule)1; return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
  *found = (CUfunction)1; return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **words) {
  *words = "none"; return CUDA_SUCCESS;
}
DOES_NOTHING(cuCtxSetCurrent, CUcontext context)
DOES_NOTHING(cuCtxGetLimit, size_t *found, CUlimit which)
DOES_NOTHING(cuCtxSetLimit, CUlimit which, size_t value)
DOES_NOTHING(cuDevicePrimaryCtxRetain, CUcontext *found, CUdevice device)
DOES_NOTHING(cuFuncSetAttribute, CUfunction f, CUfunction_attribute which, int value)
DOES_NOTHING(cuFuncSetCacheConfig, CUfunction f, CUfunc_cache config)
DOES_NOTHING(cuModuleUnload, CUmodule module)
DOES_NOTHING(cuPointerGetAttribute, void *found, CUpointer_attribute which, CUdeviceptr at)
DOES_NOTHING(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus *found)
DOES_NOTHING(cuOccupancyMaxActiveClusters, int *found, CUfunction f, const CUlaunchConfig *config)
DOES_NOTHING(cuTensorMapEncodeTiled, CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
             void *at, const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
             const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
             CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
DOES_NOTHING(cuLaunchKernelEx, const CUlaunchConfig *config, CUfunction f, void **arguments,
             void **extra)
"""


def missing() -> str:
    """What keeps this from running here, in words; empty if nothing does."""
    if torch.cuda.is_available():
        return "a machine without a GPU, whose driver Triton would find"
    return "" if shutil.which("cc") else "a C compiler, cc, for a driver that does nothing"


@cache
def _driver() -> nvidia.CudaDriver:
    """Triton's driver on that library, which stays loaded."""
    include = Path(nvidia.__file__).parent / "include"
    # Kept with the driver: some versions of Triton link a launcher for each kernel.
    made = TemporaryDirectory()
    source, library = Path(made.name, "cuda.c"), Path(made.name, "libcuda.so.1")
    source.write_text(SOURCE)
    command = [
        "cc", "-shared", "-fPIC", "-O2", f"-DSHARED={SHARED_MEMORY[ARCH]}", "-w", f"-I{include}",
        "-Wl,-soname,libcuda.so.1", str(source), "-o", str(library),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    before, triton.knobs.nvidia.libcuda_path = triton.knobs.nvidia.libcuda_path, made.name
    try:
        nvidia.library_dirs.cache_clear()
        nvidia.libcuda_dirs.cache_clear()
        nvidia.library_dirs()  # asked once
        driver = nvidia.CudaDriver.__new__(nvidia.CudaDriver)
        driver.utils, driver.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
    finally:
        triton.knobs.nvidia.libcuda_path = before
    driver.folder = made
    # What torch's CUDA build would answer, without its look whether it is initialized.
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda device: 0
    driver.get_device_capability = lambda device=None: (9, 0)
    return driver


@contextmanager
def on_no_device() -> Iterator[None]:
    """Within, launches go to a driver that does nothing, on an sm_90."""
    active = triton.runtime.driver
    previous = active._active
    active._active = _driver()
    try:
        yield
    finally:
        active._active = previous
