"""What a kernel is compiled for, and how it is tiled."""

from dataclasses import dataclass
from functools import cache, lru_cache

import triton
from triton.compiler.compiler import make_backend


@dataclass(frozen=True)
class TileConfig:
    """How a kernel is tiled and compiled."""

    block_n: int  # rows of a tile
    block_m: int = 0  # columns of a tile
    block_k: int = 0  # length of one step of the loop
    num_warps: int = 4
    num_stages: int = 2
    group: int = 8  # row tiles that share the column tiles in L2
    precision: str = "ieee"  # how tl.dot multiplies float32
    descriptors: bool = False  # load by tensor descriptor
    dots: int = 1  # products a step
    swap: bool = False  # corpus on the product's rows
    fuse: bool = True  # multiply and add in one rounding
    planes: int = 0  # parts that float32 rows are split into beforehand, 0 if within the product
    persistent: bool = False  # programs go from tile to tile
    flatten: bool = True  # if so, those of a matrix in one loop over tiles and steps

    def options(self) -> dict:
        """Compiler options of a launch."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fuse,
        }


def current_arch() -> str:
    """Name the architecture that Triton compiles for: ``sm_90``, ``gfx942``."""
    driver = triton.runtime.driver.active
    return _arch(driver, driver.get_current_device())


@lru_cache(maxsize=64)
def _arch(driver, device: int) -> str:
    """That of the device, which is current; asked once, since torch takes microseconds to tell."""
    target = driver.get_current_target()
    return target.arch if target.backend == "hip" else f"sm_{target.arch}"


def missing() -> str:
    """What the current device lacks to run kernels, in words; empty if nothing.

    Older devices than sm_80 lack bfloat16 products; of AMD's, those with matrix cores are known.
    """
    return _missing(current_arch())


@lru_cache(maxsize=64)
def _missing(arch: str) -> str:
    if arch.startswith("sm_"):
        known = int(arch.removeprefix("sm_")) >= 80
    else:
        known = arch in ("gfx90a", "gfx942")
    return "" if known else f"kernels need sm_80 or later, gfx90a or gfx942, and this is {arch}"


@cache
def splits_float32() -> bool:
    """Whether this Triton multiplies float32 as parts in bfloat16, which "highest" takes.

    3.4 and 3.5, which come with torch 2.8 and 2.9, do not.
    """
    backend = make_backend(triton.runtime.driver.active.get_current_target())
    options = backend.parse_options({"enable_fp_fusion": True})  # unsaid, Triton 3.9 warns
    return "bf16x6" in options.allowed_dot_input_precisions


def family_of(arch: str) -> str:
    """Group the architectures that take the same tiles.

    "mma" multiplies from registers: sm_80, sm_86 and sm_89, of which the last two have 99 KiB of
    shared memory a block, which bounds the family's tiles; so have sm_120 and sm_121.
    """
    if arch.startswith("gfx"):
        return "cdna"
    families = {"sm_90": "wgmma", "sm_100": "tcgen05", "sm_103": "tcgen05"}
    families |= {"sm_120": "sm_120", "sm_121": "sm_120"}
    return families.get(arch, "mma")
