"""Tile configurations, chosen by rule: no tuning at run time, nothing to break a graph capture.

A choice depends on the kernel, the dtype, d, the precision and the architecture alone, never on
the number of rows, so that a row's result does not change with its batch. The tiles come from
arithmetic and from compiling without spills; docs/kernels.md lists what each compiles to. None has
been timed.

The 16-bit forward on sm_90 and newer takes 128 x 128 tiles, two blocks an SM, so that one block's
store overlaps the other's product. 128 x 256 tiles would ask a quarter less of L2, which binds
before the tensor cores, but then a block has the SM to itself and only a persistent grid could
overlap its store: at d = 768 and a float32 result 2.1 ms against 2.8 ms by the peaks of an H100, at
d = 384 no difference. That is for a machine that can measure it to decide.
"""

from dataclasses import dataclass, replace

import torch
import triton


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

    def options(self) -> dict:
        """Compiler options of a launch."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fuse,
        }


def current_arch() -> str:
    """Name the architecture that Triton compiles for: ``sm_90``, ``gfx942``."""
    target = triton.runtime.driver.active.get_current_target()
    return target.arch if target.backend == "hip" else f"sm_{target.arch}"


def supports(dtype: torch.dtype) -> bool:
    """Whether kernels compute in this dtype on the current device: 16-bit and float32 rows.

    Older devices than sm_80 lack bfloat16 products; of AMD's, those with matrix cores are known.
    """
    arch = current_arch()
    if arch.startswith("sm_"):
        known = int(arch.removeprefix("sm_")) >= 80
    else:
        known = arch in ("gfx90a", "gfx942")
    return known and dtype in (torch.float16, torch.bfloat16, torch.float32)


def _family(arch: str) -> str:
    """Group the architectures that take the same tiles.

    "mma" multiplies from registers: sm_80, sm_86 and sm_89, of which the last two have 99 KiB of
    shared memory a block, which bounds the family's tiles; so does sm_120.
    """
    if arch.startswith("gfx"):
        return "cdna"
    families = {"sm_90": "wgmma", "sm_100": "tcgen05", "sm_103": "tcgen05", "sm_120": "sm_120"}
    return families.get(arch, "mma")


def _product_precision(dtype: torch.dtype, precision: str, arch: str) -> str:
    """Name the tl.dot precision of a product: float32 is split, 16-bit inputs need no choice."""
    if dtype != torch.float32:
        return "ieee"
    if precision == "highest":
        return "bf16x6"
    tf32 = arch.startswith("sm_") or arch == "gfx942"
    if precision == "medium" and tf32:
        return "tf32"
    return "tf32x3" if arch.startswith("sm_") else "bf16x3"


def _rows(elements: int, d: int) -> TileConfig:
    """So many elements a step: few long rows or many short ones."""
    block_d = min(max(triton.next_power_of_2(d), 64), 512)
    return TileConfig(elements // block_d, block_k=block_d, num_warps=4)


def _kind(dtype: torch.dtype, product: str) -> str:
    """What a product's tile depends on: the inputs' dtype, for float32 how it is multiplied."""
    if dtype == torch.float32:
        return "tf32" if product == "tf32" else "split"
    return "float16" if dtype == torch.float16 else "bfloat16"


_PAIRWISE_FWD = {
    "mma": {
        "float16": TileConfig(128, 128, 32, 8, 3),
        "bfloat16": TileConfig(128, 128, 32, 8, 3),
        "tf32": TileConfig(128, 64, 32, 8, 3),
        "split": TileConfig(128, 64, 32, 8, 2),
    },
    "wgmma": {
        "float16": TileConfig(128, 128, 64, 8, 3),
        "bfloat16": TileConfig(128, 128, 64, 8, 3),
        "tf32": TileConfig(128, 128, 32, 8, 3),
        "split": TileConfig(128, 128, 32, 8, 2),
    },
    "tcgen05": {
        "float16": TileConfig(128, 128, 64, 8, 3),
        "bfloat16": TileConfig(128, 128, 64, 8, 3),
        "tf32": TileConfig(128, 128, 32, 8, 3),
        # 0.92 to issue where steps of 32 take 1.28; six bfloat16 products would spill.
        "tf32x3": TileConfig(128, 128, 64, 8, 2),
        "split": TileConfig(128, 128, 32, 8, 2),
    },
    "cdna": {
        "float16": TileConfig(128, 128, 32, 8, 2),
        "bfloat16": TileConfig(128, 128, 32, 8, 2),
        "tf32": TileConfig(128, 128, 32, 8, 2),
        "split": TileConfig(128, 128, 32, 8, 2),
    },
}
# The gradient is scaled and rounded in registers: wide tiles spread that over more columns, where
# the registers suffice. float16 scales its sums as well, and spills at 256 columns. bfloat16 on
# sm_100: 1.44 to issue where 128 columns take 2.08.
_PAIRWISE_BWD = {
    "mma": {
        "float16": TileConfig(128, 128, 32, 8, 2),
        "bfloat16": TileConfig(128, 128, 32, 8, 2),
        "tf32": TileConfig(64, 64, 32, 8, 2),
        "split": TileConfig(64, 64, 32, 8, 2),
    },
    "wgmma": {
        "float16": TileConfig(128, 128, 32, 8, 3),
        "bfloat16": TileConfig(128, 256, 32, 8, 3),
        "tf32": TileConfig(128, 128, 32, 8, 2),
        "split": TileConfig(128, 64, 32, 8, 2),
    },
    "tcgen05": {
        "float16": TileConfig(128, 128, 64, 8, 3),
        "bfloat16": TileConfig(128, 256, 32, 8, 3),
        "tf32": TileConfig(128, 128, 32, 8, 2),
        "split": TileConfig(128, 64, 32, 8, 2),
    },
    "cdna": {
        "float16": TileConfig(128, 128, 32, 8, 2),
        "bfloat16": TileConfig(128, 128, 32, 8, 2),
        "tf32": TileConfig(128, 128, 32, 8, 2),
        "split": TileConfig(128, 64, 32, 8, 2),
    },
}
# sm_120 compiles the split products of sm_80 with spills.
_PAIRWISE_FWD["sm_120"] = _PAIRWISE_FWD["mma"] | {"split": TileConfig(64, 64, 32, 8, 3)}
_PAIRWISE_BWD["sm_120"] = _PAIRWISE_BWD["mma"] | {"split": TileConfig(64, 64, 32, 4, 2)}
# By family: tiles for int8 codes and for bfloat16 rows.
_BLOCK_MAX = {
    "mma": (TileConfig(128, 128, 64, 8, 2, dots=2), TileConfig(128, 128, 32, 8, 3)),
    "wgmma": (TileConfig(128, 256, 128, 8, 3), TileConfig(128, 128, 64, 8, 3)),
    "tcgen05": (TileConfig(128, 256, 128, 8, 3), TileConfig(128, 128, 64, 8, 3)),
    "cdna": (TileConfig(128, 128, 64, 8, 2), TileConfig(128, 128, 32, 8, 2)),
}


_BLOCK_MAX["sm_120"] = _BLOCK_MAX["mma"]
# Sixteen pairs a program, the fewest columns of a product. Reading the codes binds, so the stages
# hold at least 20 KiB in flight a multiprocessor.
_RECHECK = {
    "mma": (TileConfig(16, 0, 128, 4, 4), TileConfig(16, 0, 64, 4, 4)),
    "wgmma": (TileConfig(16, 0, 128, 4, 3), TileConfig(16, 0, 64, 4, 3)),
    "tcgen05": (TileConfig(16, 0, 128, 4, 3), TileConfig(16, 0, 64, 4, 3)),
    "cdna": (TileConfig(16, 0, 64, 4, 2), TileConfig(16, 0, 32, 4, 2)),
}
_RECHECK["sm_120"] = _RECHECK["mma"]


def choose_config(
    kernel: str,
    dtype: torch.dtype,
    d: int,
    arch: str,
    precision: str = "highest",
    descriptors: bool = False,
) -> TileConfig:
    """Choose the tile of a kernel.

    ``precision`` ("highest", "high", "medium") matters for float32 products alone;
    ``descriptors`` says that the inputs could be loaded by descriptor, which is done from sm_90 on.
    """
    family = _family(arch)
    if kernel in ("row_norm", "pairwise_bwd_project"):
        return _rows(2048, d)
    if kernel in ("rowwise_fwd", "rowwise_bwd"):
        # More elements spill: in the backward, which holds twice the operands, and on sm_100.
        elements = 2048 if kernel == "rowwise_fwd" else 1024
        return _rows(elements // 2 if family == "tcgen05" else elements, d)
    if kernel == "rescore":
        # Fused or not, products of narrower rows are exact; those of float64 rows must round as on
        # other devices.
        return TileConfig(8 if dtype == torch.float64 else 16, num_warps=4, fuse=False)
    if kernel in ("group_bounds", "block_candidates"):
        # Bits of a bound as on other devices, so that the candidates are the same. Rows wide enough
        # for loads of 16 bytes a thread in the one, few terms to load in a loop in the other.
        tile = (8, 256) if kernel == "group_bounds" else (4, 512)
        return TileConfig(*tile, num_warps=4, fuse=False)
    if kernel == "recheck":
        return replace(_RECHECK[family][dtype != torch.int8], fuse=False)
    descriptors = descriptors and family in ("wgmma", "tcgen05")
    if kernel in ("block_max", "block_max_few"):
        config = _BLOCK_MAX[family][dtype != torch.int8]
        if kernel == "block_max_few":
            config = replace(config, block_n=16, block_m=128, num_warps=4, num_stages=4, swap=True)
        return replace(config, descriptors=descriptors)
    product = _product_precision(dtype, precision, arch)
    kind = _kind(dtype, product)
    if kernel == "pairwise_fwd":
        tiles = _PAIRWISE_FWD[family]
        tile = tiles.get(product, tiles[kind])
        return replace(tile, precision=product, descriptors=descriptors)
    if kernel == "pairwise_bwd":
        return replace(_PAIRWISE_BWD[family][kind], precision=product)
    raise ValueError(f"expected the name of a kernel, got {kernel!r}")
