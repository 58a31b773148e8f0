"""What `gpu_session` tries of a search of many queries: its stages, coding, and block maxima."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from cossim_fast.kernels import code_rows, configs, topk
from cossim_fast.kernels.architecture import current_arch
from cossim_fast.kernels.search_configs import persistent_tiles
from torch import Tensor

import cossim_fast
from cossim_fast import CosineIndex, _ops
from cossim_fast.retrieval.device_engine import DeviceEngine
from gpu_machine import Found, Machine, Trial, trial_of_tile

STAGES = (
    "code_rows", "scan_rows", "block_max", "block_thresholds", "best_rows", "block_candidates",
    "recheck", "rescore",
)  # fmt: skip


@contextmanager
def timed_stages(machine: Machine, spent: dict[str, float]) -> Iterator[None]:
    """Within, each op of a search waits for the device, and its milliseconds are added up."""
    originals = {name: getattr(_ops, name) for name in STAGES}

    def timed(name: str) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            machine.wait()
            start = time.perf_counter()
            found = originals[name](*arguments)
            machine.wait()
            spent[name] = spent.get(name, 0.0) + 1e3 * (time.perf_counter() - start)
            return found

        return run

    try:
        for name in STAGES:
            setattr(_ops, name, timed(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(_ops, name, original)


def search_by_stage(machine: Machine) -> Iterator[Trial]:
    """Where a search's time goes, and how often it waits for the device by itself."""
    corpus = machine.rows(1 << 20, 384)
    k = 2 if machine.scale > 1 else 10
    search = cossim_fast.topk if machine.real else _search_by_ops

    def by_stage(q: int) -> Found:
        queries = machine.rows(q, 384)
        whole = machine.milliseconds(lambda: search(queries, corpus, k))
        stages: dict[str, float] = {}
        with timed_stages(machine, stages):
            search(queries, corpus, k)
        return whole | {"stages": stages, "waits": _waits(machine, search, queries, corpus, k)}

    for q in (4096, 64, 1):
        yield Trial(f"top-{k} of {q}", lambda q=q: by_stage(q))
    yield from _by_index(machine, corpus, k)


def _by_index(machine: Machine, corpus: Tensor, k: int) -> Iterator[Trial]:
    """The same by an index on the device, which codes the corpus once."""
    index = CosineIndex.__new__(CosineIndex)
    index._start(DeviceEngine(corpus.device), "auto", corpus.dtype, corpus.shape[1])
    index._create(corpus, len(corpus), None, None)
    for q in (4096, 64, 1):
        queries = machine.rows(q, 384)
        yield Trial(
            f"top-{k} of {q}, by an index",
            lambda x=queries: machine.milliseconds(lambda: index.search(x, k)),
        )


def _search_by_ops(queries: Tensor, corpus: Tensor, k: int) -> object:
    """The search of a GPU on CPU tensors, whose ops run their CPU bodies."""
    from cossim_fast.retrieval.nearest.gpu import search_on_device  # noqa: PLC0415

    return search_on_device(queries, corpus, k, certify=False)


def _waits(machine: Machine, search: Callable[..., object], *arguments: object) -> int:
    """How often a search makes the host wait for the device."""
    if not machine.real:
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            search(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return len(seen)


def coding_and_maxima(machine: Machine) -> Iterator[Trial]:
    """Tiles of the kernels that code the corpus and screen it."""
    x = machine.rows(1 << 20, 384)
    centre = torch.zeros_like(x[0])
    arch = current_arch()
    chosen = configs.choose_config("code_rows", x.dtype, x.shape[1], arch)
    for columns in (32, 64, 128):
        for warps in (4, 8):
            tile = replace(chosen, block_k=columns, num_warps=warps)
            yield trial_of_tile("coding", tile, machine, code_rows.launch_code_rows, x, centre)
    for d in (384, 128):
        queries, corpus = machine.codes(4096, d), machine.codes(1 << 20, d)
        chosen = configs.choose_config("block_max", torch.int8, d, arch, True)
        groups = [replace(chosen, group=group) for group in (8, 16, 64)]
        for tile in (chosen, *persistent_tiles(d, arch, True), *groups):
            run = topk.launch_block_max
            yield trial_of_tile(
                f"block maxima, d = {d}", tile, machine, run, queries, corpus, 64, None
            )
        chosen = configs.choose_config("block_max_few", torch.int8, d, arch, True)
        for tile in (chosen, replace(chosen, num_stages=4)):
            few = f"block maxima of 16, d = {d}"
            yield trial_of_tile(few, tile, machine, run, queries[:16], corpus, 64, None)
