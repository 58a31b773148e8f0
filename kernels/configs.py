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

from dataclasses import dataclass, replace
from functools import lru_cache

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


def _family(arch: str) -> str:
    """Group the architectures that take the same tiles.

    "mma" multiplies from registers: sm_80, sm_86 and sm_89, of which the last two have 99 KiB of
    shared memory a block, which bounds the family's tiles; so have sm_120 and sm_121.
    """
    if arch.startswith("gfx"):
        return "cdna"
    families = {"sm_90": "wgmma", "sm_100": "tcgen05", "sm_103": "tcgen05"}
    families |= {"sm_120": "sm_120", "sm_121": "sm_120"}
    return families.get(arch, "mma")


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
# By family: tiles for int8 codes and for bfloat16 rows.
_BLOCK_MAX = {
    "mma": (TileConfig(128, 128, 64, 8, 2, dots=2), TileConfig(128, 128, 32, 8, 3)),
    # 4096 x 2^20 codes of 384: 4.07; groups of 8 take 4.34, 128 columns 6.2, steps of 64 4.8.
    "wgmma": (TileConfig(128, 256, 128, 8, 3, 32), TileConfig(128, 128, 64, 8, 3)),
    "tcgen05": (TileConfig(128, 256, 128, 8, 3), TileConfig(128, 128, 64, 8, 3)),
    "cdna": (TileConfig(128, 128, 64, 8, 2), TileConfig(128, 128, 32, 8, 2)),
}


_BLOCK_MAX["sm_120"] = _BLOCK_MAX["mma"]
# Whether int8 block maxima on sm_90 take the first of persistent_tiles. No GPU has run these yet.
PERSISTENT_BLOCK_MAX = False
# Queries stay in shared memory; by family and by the longest row, the best by arithmetic first.
# At d = 384 the measured tiles ask L2 for 19.3 GB in 4.07 ms and, with 128 columns, 25.8 in 6.2:
# L2 binds. These ask for 12.9 with 128 queries and 6.4 with 256. At d = 128 the time between
# products binds: 384 instructions a warp after the last one, where these have 111.
# Issue slots over tensor clocks of a tile on sm_90, and registers. d = 128: 128 x 128 201 of 512,
# 159, three programs a multiprocessor, so that one multiplies while others write; 256 x 128 has
# 171, one program. d = 384: 128 x 128 493 of 1536, 166, two programs; 256 x 128 1168 of 3072, 171,
# one program, seven stages ahead. Three products a step instead leave room for 2 stages of 256 x
# 128 (734, 174), loads of which wait for the product, or for one program of 128 x 128 (524, 94) or
# 256 x 64 (604, 111). Tried as well: queries in registers spill; two accumulators in turns are
# waited for all the same; in a flat loop over tiles and d (165) the queries are loaded each time.
_PERSISTENT_BLOCK_MAX = {
    "wgmma": {
        128: (TileConfig(128, 128, 128, 4, 3, 32), TileConfig(256, 128, 128, 8, 4, 16)),
        384: (TileConfig(128, 128, 128, 4, 3, 32), TileConfig(256, 128, 128, 8, 7, 16)),
    },
    "tcgen05": {
        384: (
            TileConfig(128, 128, 128, 8, 3, 32, dots=3),
            TileConfig(128, 256, 128, 8, 2, 32, dots=3),
        )
    },
    # No better than the plain tile: 0.55 to issue on sm_80, where that takes 0.34.
    "mma": {384: (TileConfig(128, 64, 64, 8, 2, 32, dots=6),)},
    "cdna": {384: (TileConfig(128, 64, 64, 8, 2, 32, dots=6),)},
}
_PERSISTENT_BLOCK_MAX["sm_120"] = _PERSISTENT_BLOCK_MAX["mma"]
# Sixteen pairs a program, the fewest columns of a product. Reading the codes binds, so the stages
# hold at least 20 KiB in flight a multiprocessor.
_RECHECK = {
    "mma": (TileConfig(16, 0, 128, 4, 4), TileConfig(16, 0, 64, 4, 4)),
    "wgmma": (TileConfig(16, 0, 128, 4, 3), TileConfig(16, 0, 64, 4, 3)),
    "tcgen05": (TileConfig(16, 0, 128, 4, 3), TileConfig(16, 0, 64, 4, 3)),
    "cdna": (TileConfig(16, 0, 64, 4, 2), TileConfig(16, 0, 32, 4, 2)),
}
_RECHECK["sm_120"] = _RECHECK["mma"]


def _scan_tile(kernel: str, family: str) -> TileConfig:
    """Tile of a scan: rows, queries and a step of the loop.

    Reading the rows has to bind, by arithmetic: 2^20 of 384 in float32 take 0.37 ms of an H200 at
    4.3 TB/s. Their products with 64 queries take 0.13 ms as tf32, 0.4 as bf16x6 and the splits, 1.5
    by FFMA at 68 % of its peak; the loop (sm_90: 135 instructions a warp, 128 registers) takes 0.12
    to issue. tf32 costs 2^-10 of accuracy, a tenth of what int8 codes do. 128 rows a tile read the
    64 queries from L2 at half the rows' bytes; for 16 queries 64 rows do (98 registers, 158 where
    rows are ragged; steps of 64 spill there), and there are more tiles to share. AMD's matrix cores
    multiply float32 as it is.
    """
    few = kernel == "scan_rows_few"
    tile = TileConfig(64, 16, 32, 4, 4) if few else TileConfig(128, 64, 32, 8, 3)
    if family == "cdna":
        return replace(tile, num_stages=2)
    return replace(tile, precision="tf32")


def persistent_tiles(d: int, arch: str, descriptors: bool = False) -> tuple[TileConfig, ...]:
    """Tiles of int8 block maxima whose queries stay in shared memory, () where d is too long.

    The best by arithmetic comes first.
    """
    family = _family(arch)
    descriptors = descriptors and family in ("wgmma", "tcgen05")
    for longest, tiles in _PERSISTENT_BLOCK_MAX[family].items():
        if d <= longest:
            return tuple(replace(t, persistent=True, descriptors=descriptors) for t in tiles)
    return ()


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
    family = _family(arch)
    descriptors = family in ("wgmma", "tcgen05")
    return replace(_PLANES[family][parts], planes=parts, descriptors=descriptors)


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
    family = _family(arch)
    if kernel == "row_norm":
        # 2^20 rows of 768: float16 0.37, float32 0.72; 4 rows in steps of 512 take 0.51 and 0.92.
        return _rows(1024, d, 128)
    if kernel in ("unit_rows", "half_rows", "planes", "pairwise_bwd_project"):
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
    if kernel == "code_rows":
        # 64 columns leave 24 to 32 warps resident on sm_90, 128 leave 8 to 16.
        return TileConfig(64, block_k=min(max(triton.next_power_of_2(d), 32), 64), num_warps=8)
    if kernel in ("scan_rows", "scan_rows_few"):
        return _scan_tile(kernel, family)
    if kernel == "rescore":
        # Fused or not, products of narrower rows are exact; those of float64 rows must round as on
        # other devices.
        return TileConfig(8 if dtype == torch.float64 else 16, num_warps=4, fuse=False)
    if kernel in ("group_bounds", "block_candidates"):
        # Bits of a bound as on other devices, so that the candidates are the same. Rows wide enough
        # for loads of 16 bytes a thread in the one, few terms to load in a loop in the other. The
        # one keeps blocks beside bounds: 116 registers on sm_90 (bounds alone 95), 16 warps, 32 KiB
        # of maxima in flight; the other 71 (66 with an atomic a hit), one atomic a tile of 2048.
        tile = (8, 256) if kernel == "group_bounds" else (4, 512)
        return TileConfig(*tile, num_warps=4, fuse=False)
    if kernel in ("recheck", "best_rows"):
        return replace(_RECHECK[family][dtype != torch.int8], fuse=False)
    if kernel == "pairwise_fwd_persistent":
        if family not in _PERSISTENT:
            raise ValueError(f"expected sm_90 or later, which copy by descriptor, got {arch}")
        return replace(_PERSISTENT[family], descriptors=True)
    descriptors = descriptors and family in ("wgmma", "tcgen05")
    if kernel in ("block_max", "block_max_few"):
        config = _BLOCK_MAX[family][dtype != torch.int8]
        if kernel == "block_max_few":
            # No more stages than steps: memory that holds nothing keeps other programs out. On
            # sm_90 six of 36 KiB share a multiprocessor for d <= 256, four of 54 for 384, where
            # four stages leave room for three of 72: at d = 128 96 KiB are in flight, not 48. By
            # arithmetic 36 have to be: 4.8 TB/s for a microsecond.
            steps = triton.cdiv(d, config.block_k * config.dots)
            stages = min(max(steps, 2), 4)
            config = replace(config, block_n=16, block_m=128, num_warps=4, num_stages=stages)
            return replace(config, swap=True, descriptors=descriptors)
        if PERSISTENT_BLOCK_MAX and family == "wgmma" and dtype == torch.int8:
            config = next(iter(persistent_tiles(d, arch)), config)
        return replace(config, descriptors=descriptors)
    if kernel == "pairwise_fwd" and dtype == torch.float32 and family in _PLANES_OF_HIGHEST:
        return choose_planes(_PLANES_OF_HIGHEST[family], arch)
    product = "bf16x6" if dtype == torch.float32 else "ieee"
    tile = _pairwise_tile(kernel, dtype, family, descriptors)
    return replace(tile, precision=product, descriptors=descriptors)
