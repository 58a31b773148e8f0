"""Block maxima by programs that keep their queries while they go along the corpus."""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .architecture import TileConfig
from .launch import cost, element_size, multiprocessors
from .tiles import grouped_tile, load_tile

# Rows whose eligibility is looked up at once: 16 bytes for each of 256 threads.
CHECKED = tl.constexpr(4096)
# A strip of 64 tiles of 48 KiB, for each of the eight strips under way at 4096 queries, are 24 MiB:
# what one query tile reads still lies in L2 for the others.
LONGEST_RUN = 64


def maxima_cost(grid, kernel, args):
    """Launch metadata of a kernel that writes block maxima."""
    n, m, d = args["N"], args["M"], args["D"]
    size = element_size(args["query_ptr"])
    moved = (n + m) * d * size + 4 * n * (-(-m // args["BLOCK"]))
    return cost("block_max", moved, **{f"flops{8 * size}": 2 * n * m * d})


@triton.jit
def _all_eligible(eligible_ptr, first, stop):
    """Whether every row from first on and before stop is eligible."""
    left_out = tl.zeros((CHECKED,), dtype=tl.int8)
    for start in range(first, stop, CHECKED):
        row = tl.cast(start, tl.int64) + tl.arange(0, CHECKED)
        left_out |= tl.load(eligible_ptr + row, mask=row < stop, other=1).to(tl.int8) ^ 1
    return tl.max(left_out.to(tl.int32), axis=0) == 0


@triton.jit
def _store_maxima(
    acc, out_ptr, N, M, first_n, first_m, stride_on, stride_ob,
    BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Reduce each run of BLOCK columns and write the maxima."""
    maxima = tl.max(tl.reshape(acc, (BLOCK_N, BLOCK_M // BLOCK, BLOCK)), axis=2)
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    block = tl.cast(first_m // BLOCK, tl.int64) + tl.arange(0, BLOCK_M // BLOCK)
    mask = (row < N)[:, None] & (block < tl.cdiv(M, BLOCK))[None, :]
    tl.store(out_ptr + row[:, None] * stride_on + block[None, :] * stride_ob, maxima, mask=mask)


@triton.jit
def _write_tile(
    acc, whole, eligible_ptr, out_ptr, N, M, first_n, first_m, stride_on, stride_ob,
    BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write the maxima of a tile, masked unless its run is whole.

    Both ways lie in a branch, before which the compiler puts the loads of tiles to come.
    """
    lowest: tl.constexpr = -(2**31) if out_ptr.dtype.element_ty == tl.int32 else float("-inf")
    if whole:
        _store_maxima(
            acc, out_ptr, N, M, first_n, first_m, stride_on, stride_ob, BLOCK, BLOCK_N, BLOCK_M
        )
    else:
        column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
        keep = column < M
        if eligible_ptr is not None:
            keep &= tl.load(eligible_ptr + column, mask=keep, other=0).to(tl.int1)
        kept = tl.where(keep[None, :], acc, lowest)
        _store_maxima(
            kept, out_ptr, N, M, first_n, first_m, stride_on, stride_ob, BLOCK, BLOCK_N, BLOCK_M
        )


# A run of one tile would be compiled without a loop, as another kernel.
@triton.jit(launch_metadata=maxima_cost, do_not_specialize=["RUN"])
def _block_max_persistent_kernel(
    query_ptr,  # (1, N, D) int8 or bfloat16, or a descriptor of it
    corpus_ptr,  # (1, M, D) int8 or bfloat16, or a descriptor of it
    eligible_ptr,  # (M,) bool, contiguous, or None
    out_ptr,  # (N, cdiv(M, BLOCK)) int32 or float32
    N,
    M,
    D,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    stride_on,
    stride_ob,
    RUN,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    DOTS: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Write the largest inner product of each query with each block of BLOCK corpus rows.

    Owns every num_programs-th run: a tile of BLOCK_N queries with RUN tiles of BLOCK_M corpus rows,
    GROUP query tiles innermost. Keeps the queries of a run, all of D in STEPS parts of BLOCK_K, in
    shared memory. Loops over the tiles of the run, if DOTS products take all of D; otherwise over
    their parts, which STAGES buffers take in turns whatever tile they belong to. Padding and rows
    that are not eligible are masked in the tiles of runs that have any. Writes the maxima alone.
    Moves (N + M) D codes and 4 N M / BLOCK bytes; 2 N M D operations.
    """
    sums: tl.constexpr = out_ptr.dtype.element_ty
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    strips = tl.cdiv(tiles_m, RUN)
    for run in range(tl.program_id(0), tiles_n * strips, tl.num_programs(0)):
        tile_n, strip = grouped_tile(run, tiles_n, strips, GROUP)
        first_n = tile_n * BLOCK_N
        first_tile = strip * RUN
        last_tile = min(first_tile + RUN, tiles_m)
        whole = last_tile * BLOCK_M <= M
        if eligible_ptr is not None:
            stop = min(last_tile * BLOCK_M, M)
            whole &= _all_eligible(eligible_ptr, first_tile * BLOCK_M, stop)
        queries = ()
        for i in tl.static_range(STEPS):
            query = load_tile(
                query_ptr, 0, stride_qn, stride_qd, 0, first_n, i * BLOCK_K, N, D,
                BLOCK_N, BLOCK_K, DESCRIPTORS,
            )  # fmt: skip
            queries = queries + (query,)  # noqa: RUF005

        if DOTS >= STEPS:
            for tile_m in range(first_tile, last_tile):
                first_m = tile_m * BLOCK_M
                acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=sums)
                for i in tl.static_range(STEPS):
                    corpus = load_tile(
                        corpus_ptr, 0, stride_cm, stride_cd, 0, first_m, i * BLOCK_K, M, D,
                        BLOCK_M, BLOCK_K, DESCRIPTORS,
                    )  # fmt: skip
                    acc = tl.dot(queries[i], corpus.T, acc, out_dtype=sums)
                _write_tile(
                    acc, whole, eligible_ptr, out_ptr, N, M, first_n, first_m,
                    stride_on, stride_ob, BLOCK, BLOCK_N, BLOCK_M,
                )  # fmt: skip
        else:
            acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=sums)
            first_m = first_tile * BLOCK_M
            step = 0
            # Without its own number of stages the loop would not be pipelined: the products stand
            # in branches, since no other form picks a part of the queries at run time.
            for _ in tl.range(0, (last_tile - first_tile) * STEPS, num_stages=STAGES):
                part = load_tile(
                    corpus_ptr, 0, stride_cm, stride_cd, 0, first_m, step * BLOCK_K, M, D,
                    BLOCK_M, BLOCK_K, DESCRIPTORS,
                )  # fmt: skip
                for i in tl.static_range(STEPS):
                    if step == i:
                        acc = tl.dot(queries[i], part.T, acc, out_dtype=sums)
                step += 1
                if step == STEPS:
                    _write_tile(
                        acc, whole, eligible_ptr, out_ptr, N, M, first_n, first_m,
                        stride_on, stride_ob, BLOCK, BLOCK_N, BLOCK_M,
                    )  # fmt: skip
                    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=sums)
                    first_m += BLOCK_M
                    step = 0


@lru_cache
def run_length(tiles_n: int, tiles_m: int, programs: int) -> int:
    """Corpus tiles of a run: where the last program ends first.

    A run's queries are loaded, and its first tile, while nothing is multiplied: about as long as a
    tile takes.
    """

    def rounds(run: int) -> int:
        return triton.cdiv(tiles_n * triton.cdiv(tiles_m, run), programs)

    return min(range(1, min(tiles_m, LONGEST_RUN) + 1), key=lambda run: rounds(run) * (run + 1))


@lru_cache
def _shared_memory(device: int) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]


def programs_beside(config: TileConfig, steps: int, size: int) -> int:
    """How many programs share a multiprocessor: one writes while another multiplies.

    Registers are enough for three of four warps. Shared memory holds all queries, the stages and
    what maxima pass through on their way out.
    """
    parts = steps * config.block_n + max(config.num_stages, 2) * config.block_m * config.dots
    needed = parts * config.block_k * size + 2048
    room = _shared_memory(triton.runtime.driver.active.get_current_device())
    return max(1, min(12 // config.num_warps, room // needed))


def launch_persistent(
    query_source,
    corpus_source,
    eligible: torch.Tensor | None,
    out: torch.Tensor,
    shape: tuple[int, int, int],
    strides: tuple[int, ...],
    block: int,
    config: TileConfig,
) -> None:
    """Write the block maxima of sources of shape (n, m, d), whose strides come before out's."""
    n, m, d = shape
    steps = triton.cdiv(d, config.block_k)
    programs = multiprocessors() * programs_beside(config, steps, element_size(query_source))
    tiles_n, tiles_m = triton.cdiv(n, config.block_n), triton.cdiv(m, config.block_m)
    run = run_length(tiles_n, tiles_m, programs)
    _block_max_persistent_kernel[(min(programs, tiles_n * triton.cdiv(tiles_m, run)),)](
        query_source,
        corpus_source,
        eligible,
        out,
        n,
        m,
        d,
        *strides,
        run,
        BLOCK=block,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        STEPS=steps,
        DOTS=config.dots,
        STAGES=config.num_stages,
        GROUP=config.group,
        DESCRIPTORS=config.descriptors,
        **config.options(),
    )
