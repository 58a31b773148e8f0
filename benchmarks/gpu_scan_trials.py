"""What `gpu_session` tries of the search of few queries, and of a corpus that stays on the host."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from cossim_fast.kernels import configs, scan_rows
from cossim_fast.kernels.architecture import TileConfig, current_arch
from torch import Tensor

import cossim_fast
from cossim_fast._cpu import topk_ops
from cossim_fast.retrieval.nearest.gpu import search_on_device
from cossim_fast.retrieval.nearest.scanned_topk import scan_factors
from cossim_fast.retrieval.nearest.topk import _topk_of_stream
from gpu_machine import Found, Machine, Trial


def scans_and_streams(machine: Machine) -> Iterator[Trial]:
    """Estimates within their bound, searches as on the CPU; then tiles and whole searches."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for size in (1.0,) if dtype == torch.float16 else (1.0, 1e36, 1e-40):
            name = f"scan {dtype}, rows times {size:g}"
            yield Trial(name, lambda d=dtype, s=size: _within_bound(machine, d, s))
    for screen, streamed in (("auto", False), ("auto", True), ("int8", True)):
        name = f"top-k as on the CPU, {screen}" + (", streamed" if streamed else "")
        yield Trial(name, lambda c=screen, s=streamed: _same_as_on_cpu(machine, c, s))
    yield from _tiles(machine)

    corpus = machine.rows(1 << 20, 384)
    k = 2 if machine.scale > 1 else 10
    for q in (1, 16, 64, 128):
        for screen in ("auto", "int8"):
            x = machine.rows(q, 384)
            yield Trial(
                f"top-{k} of {q}, {screen}",
                lambda x=x, c=screen: machine.milliseconds(
                    lambda: _found(machine, x, corpus, k, c)
                ),
            )
    on_host = corpus.cpu()
    for q in (64, 4096):
        x = machine.rows(q, 384)
        yield Trial(
            f"top-{k} of {q}, streamed",
            lambda x=x: machine.milliseconds(lambda: _found(machine, x, on_host, k, "auto", True)),
        )


def _within_bound(machine: Machine, dtype: torch.dtype, size: float) -> Found:
    x, queries = machine.rows(1000, 384, dtype), machine.rows(64, 384, dtype)
    x[1], x[2], x[3, 5], x[64:128] = 0, x[2] * size, torch.nan, x[64:128] * size
    factors = scan_factors(queries, dtype)[0]
    maxima, eligible = (t.cpu() for t in scan_rows.launch_scan_rows(factors, x))
    wanted, finite = topk_ops.scan_rows(factors.cpu(), x.cpu())
    norms = torch.linalg.vector_norm(factors.double(), dim=1).cpu()[:, None]
    error = float(((maxima.double() - wanted.double()).abs() / norms).max())
    bound = topk_ops.scan_error(x.shape[1], dtype) + 2.0**-23
    return {"error": error, "bound": bound, "right": error <= bound and eligible.equal(finite)}


def _same_as_on_cpu(machine: Machine, screen: str, streamed: bool) -> Found:
    queries, corpus = machine.rows(64, 384), machine.rows(20000, 384)
    there = corpus.cpu() if streamed else corpus
    got = _found(machine, queries, there, 2, screen, streamed)
    wanted = cossim_fast.topk(queries.cpu(), corpus.cpu(), 2)
    return {"right": all(a.cpu().equal(b) for a, b in zip(got, wanted, strict=True))}


def _found(
    machine: Machine, queries: Tensor, corpus: Tensor, k: int, screen: str, streamed: bool = False
) -> tuple[Tensor, Tensor]:
    """A search of a GPU; in a dry run of CPU tensors, whose ops run their CPU bodies."""
    if machine.real:
        return cossim_fast.topk(queries, corpus, k, screen=screen)
    if streamed:
        return _topk_of_stream(queries, corpus, k, screen, False, False)
    best = search_on_device(queries, corpus, k, certify=False, screen=screen)
    return best.scores.float(), best.positions


def _tiles(machine: Machine) -> Iterator[Trial]:
    """Tiles of the scan, and its products by other instructions."""
    arch = current_arch()
    for dtype in (torch.float32, torch.float16):
        x = machine.rows(1 << 20, 384, dtype)
        for q, name in ((64, "scan_rows"), (1, "scan_rows_few")):
            z = scan_factors(machine.rows(q, 384), dtype)[0]
            chosen = configs.choose_config(name, dtype, x.shape[1], arch)
            tiles = [
                chosen,
                replace(chosen, block_n=64, num_warps=4),
                replace(chosen, num_stages=2),
            ]
            tiles += [replace(chosen, block_k=96 - chosen.block_k)]  # 32 for 64, and 64 for 32
            tiles += [replace(chosen, precision="bf16x6")] if dtype == torch.float32 else []
            for tile in tiles:
                words = f"{tile.block_n} x {tile.block_m} x {tile.block_k}, {tile.num_warps} warps"
                words += f", {tile.num_stages} stages, {tile.precision}"

                def once(z: Tensor = z, x: Tensor = x, tile: TileConfig = tile) -> object:
                    return scan_rows.launch_scan_rows(z, x, tile)

                yield Trial(
                    f"scan of {q} queries, {dtype}: {words}",
                    lambda once=once: machine.milliseconds(once),
                    once,
                )
