"""Tiles of the kernels of a search; how they are chosen, and figures: see configs.py."""

from dataclasses import replace

import torch
import triton

from .architecture import TileConfig, family_of

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
    family = family_of(arch)
    descriptors = descriptors and family in ("wgmma", "tcgen05")
    for longest, tiles in _PERSISTENT_BLOCK_MAX[family].items():
        if d <= longest:
            return tuple(replace(t, persistent=True, descriptors=descriptors) for t in tiles)
    return ()


def search_tile(
    kernel: str, dtype: torch.dtype, d: int, arch: str, descriptors: bool
) -> TileConfig | None:
    """Tile of a kernel of a search, None if the kernel is another."""
    family = family_of(arch)
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
        # for loads of 16 bytes a thread in the one, few terms to load in a loop in the other.
        tile = (8, 256) if kernel == "group_bounds" else (4, 512)
        return TileConfig(*tile, num_warps=4, fuse=False)
    if kernel in ("recheck", "best_rows"):
        return replace(_RECHECK[family][dtype != torch.int8], fuse=False)
    if kernel not in ("block_max", "block_max_few"):
        return None
    config = _BLOCK_MAX[family][dtype != torch.int8]
    if kernel == "block_max_few":
        # No more stages than steps: memory that holds nothing keeps other programs out. On sm_90
        # six of 36 KiB share a multiprocessor for d <= 256, four of 54 for 384, where four stages
        # leave room for three of 72: at d = 128 96 KiB are in flight, not 48. By arithmetic 36 have
        # to be: 4.8 TB/s for a microsecond.
        steps = triton.cdiv(d, config.block_k * config.dots)
        stages = min(max(steps, 2), 4)
        config = replace(config, block_n=16, block_m=128, num_warps=4, num_stages=stages, swap=True)
    elif PERSISTENT_BLOCK_MAX and family == "wgmma" and dtype == torch.int8:
        config = next(iter(persistent_tiles(d, arch)), config)
    return replace(config, descriptors=descriptors)
