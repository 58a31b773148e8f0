"""Tile configurations, chosen by rule: no tuning at run time, nothing to break a graph capture."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class TileConfig:
    """How a kernel is tiled and compiled."""

    block_n: int
    block_m: int = 0
    block_k: int = 0
    num_warps: int = 4
    num_stages: int = 2
    group: int = 8
    precision: str = "ieee"
    descriptors: bool = False

    def options(self) -> dict:
        """Compiler options of a launch; fusion is named because its default is about to change."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }


def current_arch() -> str:
    """Name the architecture that Triton compiles for: ``sm_90``, ``gfx942``."""
    target = triton.runtime.driver.active.get_current_target()
    return target.arch if target.backend == "hip" else f"sm_{target.arch}"


def choose_config(kernel, dtype, d, arch, precision="highest", descriptors=False):
    if kernel in ("row_norm", "rowwise_fwd", "rowwise_bwd"):
        return TileConfig(4, block_k=512, num_warps=4)
    return TileConfig(128, 128, 64, 8, 3, descriptors=descriptors and arch >= "sm_90")
