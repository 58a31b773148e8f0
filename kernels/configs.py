"""Tile configurations, chosen by rule: no tuning at run time, nothing to break a graph capture.

A choice depends on the kernel, the dtype, d and the architecture alone, never on
the number of rows, so that a row's result does not change with its batch. The tiles come from
arithmetic and from compiling without spills, those of sm_90 from timing too; docs/kernels.md lists
what each compiles to.

Figures are medians in milliseconds on an H200, of 16384 rows of 768 against as many unless said.

The 16-bit products on sm_90 take 128 x 256 tiles, which ask a quarter less of L2 than 128 x 128, in
groups of 16. Forward: 0.76; 128 x 128 takes 0.77, in groups of 8 either 0.78; one block an SM has
its store overlap nothing, which only a persistent grid would change (_PERSISTENT; cuBLAS 0.61 for
the product alone). A matrix with itself 0.54 and 0.65, backward 0.61 to 0.64 and 0.64 to 0.69
(cuBLAS 0.52).
"""

from dataclasses import replace
from functools import lru_cache

import torch
import triton

from .architecture import TileConfig, family_of
from .search_configs import search_tile


def _rows(elements: int, d: int, longest: int = 512) -> TileConfig:
    """So many elements a step: few long rows or many short ones."""
    block_d = min(max(triton.next_power_of_2(d), 64), longest)
    return TileConfig(elements // block_d, block_k=block_d, num_warps=4)


_PAIRWISE_FWD = {
    "mma": {
        torch.float16: TileConfig(128, 128, 32, 8, 3),
        torch.bfloat16: TileConfig(128, 128, 32, 8, 3),
        torch.float32: TileConfig(128, 64, 32, 8, 2),
    },
    "wgmma": {
        torch.float16: TileConfig(128, 256, 64, 8, 3, 16),
        torch.bfloat16: TileConfig(128, 256, 64, 8, 3, 16),
        # 5.8, with launches 6.1; 2 stages take 6.5, steps of 32 6.8 to 7.8, 256 columns 8.7.
        torch.float32: TileConfig(128, 128, 64, 8, 3),
    },
    "tcgen05": {
        torch.float16: TileConfig(128, 128, 64, 8, 3),
        torch.bfloat16: TileConfig(128, 128, 64, 8, 3),
        torch.float32: TileConfig(128, 128, 32, 8, 2),
    },
    "cdna": {
        torch.float16: TileConfig(128, 128, 32, 8, 2),
        torch.bfloat16: TileConfig(128, 128, 32, 8, 2),
        torch.float32: TileConfig(128, 128, 32, 8, 2),
    },
}
# 16-bit rows, programs that go from tile to tile: not measured yet, so that no launch takes them
# before they stand in the table above. As compiled for sm_90, float16: 204 registers and 176 KiB,
# with itself 218 and 208; float32 results 205 and 208. In one loop over tiles and steps the next
# tile's first two loads are issued before the last is stored, and the norms of its first half
# before its last product ends (of both halves: 222, with itself 240, and spills on sm_100). What
# was left:
# - a loop in a loop: 177, with itself 219 and 176 KiB, those loads issued after the stores;
# - 4 stages: 224 KiB; with itself they fit a loop in a loop alone;
# - numbers of the tile worked out again after the product, as in Triton's tutorial: 172, float32
#   results 204, where that source without it took 180 and 176;
# - tiles at the diagonal stored by pointer: 244, and float32 results spill;
# - warp_specialize: no other instruction on sm_90; on sm_100 12 warps, and spills with itself;
# - 4 warps: spills on both;
# - 128 columns on sm_100: 0.66 of the tensor cores' clocks to issue, 256 columns 0.33.
# Mirrored halves go to shared memory in 16-byte pieces, on sm_100 in 2-byte ones.
_PERSISTENT = {
    "wgmma": TileConfig(128, 256, 64, 8, 3, 16, persistent=True),
    "tcgen05": TileConfig(128, 256, 64, 8, 3, persistent=True),
    "sm_120": TileConfig(64, 128, 64, 8, 3, persistent=True),
}
# Products of the gradient in float32; those in 16 bits take the forward's tiles.
_PAIRWISE_BWD = {
    "mma": TileConfig(64, 64, 32, 8, 2),
    # 6.7; 128 x 64 tiles and 2 stages take 8.5, with 8 warps 12.4.
    "wgmma": TileConfig(64, 128, 32, 4, 3),
    "tcgen05": TileConfig(128, 64, 32, 8, 2),
    "cdna": TileConfig(128, 64, 32, 8, 2),
    # The split products of sm_80 spill.
    "sm_120": TileConfig(64, 64, 32, 4, 2),
}
# sm_120 compiles the split products of sm_80 with spills.
_PAIRWISE_FWD["sm_120"] = _PAIRWISE_FWD["mma"] | {torch.float32: TileConfig(64, 64, 32, 8, 3)}
# Of float32 rows split into two float16 or three bfloat16 planes beforehand. Clocks to issue over
# those of the tensor cores, of two planes, three, and the split within the product: sm_90 0.30,
# 0.22, 0.59; sm_100 0.48, 0.38, 1.55; sm_80 0.47, 0.41, 1.17; gfx942 0.13, 0.10, 0.65; in 154,
# 154 and 245 registers; 146, 146, 166; 128, 125, 246; 152, 168, 177. Steps of 32 take 0.52 and
# 0.36 on sm_90, 0.80 and 0.60 on sm_100; 256 columns spill on both, and so do 128 of three planes
# on sm_80. At the rates measured on an H200 three products of 16384 x 16384 x 768 take 1.6 ms and
# six 3.1 at best, by arithmetic alone: no GPU has run them.
_PLANES = {
    "mma": {2: TileConfig(128, 128, 32, 8, 3), 3: TileConfig(128, 64, 32, 8, 3)},
    "wgmma": {2: TileConfig(128, 128, 64, 8, 3), 3: TileConfig(128, 128, 64, 8, 2)},
    "tcgen05": {2: TileConfig(128, 128, 64, 8, 3), 3: TileConfig(128, 128, 64, 8, 3)},
    "cdna": {2: TileConfig(128, 128, 32, 8, 2), 3: TileConfig(128, 128, 32, 8, 2)},
}
# 128 rows of two planes spill on sm_120.
_PLANES["sm_120"] = _PLANES["mma"] | {2: TileConfig(64, 128, 32, 8, 3)}
# By family: planes that "highest" multiplies where it does not split within the product, which is
# what was measured and takes no memory.
_PLANES_OF_HIGHEST: dict[str, int] = {}


def _pairwise_tile(kernel: str, dtype: torch.dtype, family: str, descriptors: bool) -> TileConfig:
    """Tile of one of the products of a matrix and its gradients."""
    if kernel.endswith("_mirrored"):
        tile = _pairwise_tile(kernel.removesuffix("_mirrored"), dtype, family, descriptors)
        if tile.persistent and kernel == "pairwise_fwd_mirrored":
            return tile
        # 256 columns spill on sm_90, by 260 accesses where float32 is written and 97 where rows are
        # scaled, 128 on sm_120 by 9.
        return replace(tile, block_m=min(tile.block_m, 64 if family == "sm_120" else 128))
    if kernel == "pairwise_fwd_scaled" and dtype == torch.float32:
        return TileConfig(64, 64, 32, 4, 2)  # scaling takes registers: larger tiles spill
    backward = kernel == "pairwise_bwd"
    if backward and dtype == torch.float32:
        return _PAIRWISE_BWD[family]
    if backward and family == "sm_120":
        return replace(_PAIRWISE_FWD[family][dtype], num_stages=2)  # the forward's would spill
    narrow_fwd = kernel in ("pairwise_fwd", "softmax_sums") and dtype != torch.float32
    # Two powers and a mask for each pair of the forward's tile would spill there; on sm_100 where
    # float32 is written.
    if kernel.startswith("softmax_weights") and family == "wgmma":
        return TileConfig(128, 64 if dtype == torch.float32 else 128, 64, 8, 3)
    if kernel == "softmax_weights_wide" and family == "tcgen05":
        return replace(_PAIRWISE_FWD[family][dtype], block_m=64)
    if family == "wgmma" and not descriptors and narrow_fwd:
        return TileConfig(128, 128, 64, 8, 3)  # loads by pointer take registers, too
    if kernel.startswith(("pairwise_fwd", "softmax_")) or backward:
        return _PAIRWISE_FWD[family][dtype]
    raise ValueError(f"expected the name of a kernel, got {kernel!r}")


def choose_planes(parts: int, arch: str) -> TileConfig:
    """Choose the tile of a product of float32 rows that are split into so many planes beforehand.

    A `launch_pairwise_fwd` that is given it multiplies so.
    """
    family = family_of(arch)
    descriptors = family in ("wgmma", "tcgen05")
    return replace(_PLANES[family][parts], planes=parts, descriptors=descriptors)


def _row_tile(kernel: str, dtype: torch.dtype, d: int, family: str) -> TileConfig | None:
    """Tile of a pass over rows, None if the kernel is another."""
    if kernel == "row_norm":
        # 2^20 rows of 768: float16 0.37, float32 0.72; 4 rows in steps of 512 take 0.51 and 0.92.
        return _rows(1024, d, 128)
    if kernel in ("unit_rows", "planes", "pairwise_bwd_project"):
        return _rows(2048, d)
    if kernel == "gradient_panel":
        # One step holds rows of up to 16384, 32 gradients a thread: they are read once.
        block = min(max(triton.next_power_of_2(d), 64), 16384)
        elements = max(block, 4096)
        return TileConfig(elements // block, block_k=block, num_warps=elements // 1024)
    if kernel == "gradient_panel_transposed":
        # 32 float32 gradients are a line of memory in the one direction, 128 in the other suffice
        # to keep 16 KiB in flight a program.
        return TileConfig(32, block_k=128, num_warps=8)
    if kernel in ("rowwise_fwd", "rowwise_bwd"):
        # More elements spill: in the backward, which holds twice the operands, and on sm_100.
        elements = 2048 if kernel == "rowwise_fwd" else 1024
        elements = elements // 2 if family == "tcgen05" else elements
        # 2^20 pairs of 768: forward, float16 0.78 (steps of 256: 0.84, 512: 1.40), float32 1.52
        # (1.45, 1.75), of 384: 0.51 (0.69, 1.09) and 0.82 (1.17, 1.18). Backward, float16 1.73 with
        # steps of 256 (512: 2.05), float32 3.58 with 512 (256: 4.29).
        # Where a step covers d, the backward keeps rows in registers: 59 on sm_90, where reading
        # them again took 72. A step of 1024 would do so for d = 768: 40, not measured.
        if kernel == "rowwise_fwd":
            return _rows(elements, d, 128)
        return _rows(elements, d, 512 if dtype == torch.float32 else 256)
    return None


@lru_cache(maxsize=512)
def choose_config(
    kernel: str,
    dtype: torch.dtype,
    d: int,
    arch: str,
    descriptors: bool = False,
) -> TileConfig:
    """Choose the tile of a kernel.

    ``descriptors`` says that the inputs could be loaded by descriptor, which is done from sm_90 on.
    """
    family = family_of(arch)
    if kernel == "pairwise_fwd_persistent":
        if family not in _PERSISTENT:
            raise ValueError(f"expected sm_90 or later, which copy by descriptor, got {arch}")
        return replace(_PERSISTENT[family], descriptors=True)
    descriptors = descriptors and family in ("wgmma", "tcgen05")
    tile = _row_tile(kernel, dtype, d, family) or search_tile(kernel, dtype, d, arch, descriptors)
    if tile:
        return tile
    if kernel == "pairwise_fwd" and dtype == torch.float32 and family in _PLANES_OF_HIGHEST:
        return choose_planes(_PLANES_OF_HIGHEST[family], arch)
    product = "bf16x6" if dtype == torch.float32 else "ieee"
    tile = _pairwise_tile(kernel, dtype, family, descriptors)
    return replace(tile, precision=product, descriptors=descriptors)
