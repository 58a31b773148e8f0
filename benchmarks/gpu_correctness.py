"""Whether the kernels that no GPU has run yet are right on one."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from cossim_fast.kernels import code_rows, configs, pairwise, pairwise_backward, topk
from cossim_fast.kernels.architecture import TileConfig, current_arch
from cossim_fast.kernels.search_configs import persistent_tiles

import cossim_fast
from cossim_fast import _ops, pairwise_cosine
from cossim_fast._cpu import topk_ops
from gpu_machine import Found, Machine, Trial, persistent_tiles_of

EPS = 1e-8
FORWARD, BACKWARD = pairwise.launch_pairwise_fwd, pairwise_backward.launch_pairwise_bwd
SELF = pairwise_backward.launch_pairwise_self_bwd


def correctness(machine: Machine) -> Iterator[Trial]:
    """The kernels that no GPU has run yet, against float64 and their bounds."""
    for dtype in (torch.float16, torch.bfloat16):
        yield Trial(f"persistent {dtype}", lambda dtype=dtype: _persistent(machine, dtype))
    for scale in (1.0, 1e30, 1e-30):
        yield Trial(
            f"precision high, rows times {scale:g}",
            lambda s=scale: _matrix(machine, s, 2.0**-10 + 2.0**-14),
        )
        for parts in (2, 3):
            yield Trial(
                f"{parts} planes, rows times {scale:g}",
                lambda s=scale, p=parts: _matrix(machine, s, 2.0**-20, p),
            )
    for scale in (1.0, 1e-9, 1e30):
        yield Trial(f"gradients of {scale:g}", lambda s=scale: _gradient(machine, s, torch.float32))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield Trial(
            f"gradients with itself {dtype}",
            lambda t=dtype: _gradient(machine, 1.0, t, itself=True),
        )
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield Trial(f"coding {dtype}", lambda dtype=dtype: _coded(machine, dtype))
    for d in (384, 256, 128):
        for tile in persistent_tiles(d, current_arch(), True):
            name = f"block maxima, d = {d}, {tile.block_n} x {tile.block_m}, persistent"
            yield Trial(name, lambda d=d, tile=tile: _maxima(machine, d, tile))
    yield Trial("copies score 1", lambda: _copies(machine))
    yield Trial("top-k as on the CPU", lambda: _same_as_on_cpu(machine))
    yield Trial("compiled is eager", lambda: _compiled(machine))


def _matrix(machine: Machine, scale: float, bound: float, parts: int = 0) -> Found:
    x, y = machine.rows(700, 384) * scale, machine.rows(500, 384)
    tile = configs.choose_planes(parts, current_arch()) if parts else None
    precision = "highest" if parts else "high"
    got = FORWARD(x[None], y[None], 0.0, precision, config=tile)[0].double()
    unit = [t.double() / torch.linalg.vector_norm(t.double(), dim=1)[:, None] for t in (x, y)]
    error = float((got - unit[0] @ unit[1].mT).abs().max())
    return {"error": error, "bound": bound, "right": error <= bound}


def _coded(machine: Machine, dtype: torch.dtype) -> Found:
    x = machine.rows(1000, 384, dtype)
    x[1], x[2], x[3, 5] = 0, x[2] * 100, torch.nan
    centre = torch.full_like(x[0], 0.01, dtype=torch.float32)
    codes, terms, eligible = (t.cpu() for t in code_rows.launch_code_rows(x, centre))
    x, centre = x.cpu(), centre.cpu()
    wanted = topk_ops.code_rows(x, centre)
    wide = x.double()
    norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    y = wide / norms.masked_fill(norms == 0, 1.0) - centre.double()
    y = F.pad(y.masked_fill(~eligible[:, None], 0.0), (0, 0, 0, -len(y) % 64))
    scale = terms[0].double().repeat_interleave(64)[:, None]
    missed = torch.linalg.vector_norm(y - scale * codes[:, : x.shape[1]].double(), dim=1)
    held = bool((missed.view(-1, 64).amax(1) <= terms[1].double()).all())
    return {
        "right": held and torch.equal(eligible, wanted[2]),
        "residual over float64's": float((terms[1] / wanted[1][1]).max()),
    }


def _copies(machine: Machine) -> Found:
    x = machine.rows(500, 384)
    index = torch.arange(len(x), device=machine.device)
    kernel = _ops.rescore._backend_fns["cuda"] if machine.real else _ops.rescore
    found = {float(c) for p in (1, 4, -2) for c in kernel(x, x * 2.0**p, index, index).unique()}
    return {"scores of copies": sorted(found), "right": found == {1.0}}


def _maxima(machine: Machine, d: int, tile: TileConfig) -> Found:
    queries, corpus = machine.codes(300, d), machine.codes(5001, d)
    eligible = torch.ones(len(corpus), dtype=torch.bool, device=machine.device)
    eligible[len(corpus) // 2] = False
    found = topk.launch_block_max(queries, corpus, 64, eligible, tile).cpu()
    wanted = topk_ops.block_max(queries.cpu(), corpus.cpu(), 64, eligible.cpu())
    return {"right": torch.equal(found, wanted)}


def _compiled(machine: Machine) -> Found:
    x, y = machine.rows(300, 96, torch.float16), machine.rows(200, 96, torch.float16)
    run = torch.compile(pairwise_cosine, fullgraph=True, backend=machine.backend)
    found = torch.equal(run(x, y), pairwise_cosine(x, y))
    return {"right": found or not machine.real}


def _same_as_on_cpu(machine: Machine) -> Found:
    queries, corpus = machine.rows(64, 384), machine.rows(20000, 384)
    got = cossim_fast.topk(queries, corpus, 2)
    wanted = cossim_fast.topk(queries.cpu(), corpus.cpu(), 2)
    return {"right": all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))}


def _persistent(machine: Machine, dtype: torch.dtype) -> Found:
    """Bits of the kernel that was measured, for more tiles than programs."""
    x, y = (machine.rows(16400, 384, dtype)[None] for _ in range(2))
    right = []
    for tile in list(persistent_tiles_of(machine))[:2]:
        alone = replace(tile, persistent=False)
        for a, b, out in ((x[:, 3:], y, None), (x, x, None), (y, y, torch.float32)):
            got = (FORWARD(a, b, EPS, "highest", out, t) for t in (tile, alone))
            right.append(torch.equal(*got))
    return {"right": all(right), "compared": len(right)}


def _gradient(machine: Machine, scale: float, dtype: torch.dtype, *, itself: bool = False) -> Found:
    """Gradient for y, or for an x that stands on both sides, from gradients of a magnitude."""
    x, y = machine.rows(700, 384, dtype), machine.rows(500, 384, dtype)
    y = x if itself else y
    grad = scale * torch.randn(1, len(x), len(y), device=machine.device)
    grad = grad.to(dtype)
    if itself:
        got, wide = SELF(grad, x[None], 0.0, "high")[0], (grad.double() + grad.double().mT)[0]
    else:
        got, wide = BACKWARD(grad.mT, y[None], x[None], 0.0, "high")[0], grad[0].double().mT
    norms = torch.linalg.vector_norm(y.double(), dim=1, keepdim=True)
    unit, sums = y.double() / norms, wide @ F.normalize(x.double(), dim=-1)
    exact = (sums - unit * (unit * sums).sum(1, keepdim=True)) / norms
    error = float(((got.double() - exact).abs() * norms / wide.abs().sum(1, keepdim=True)).max())
    bound = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10 + 2.0**-14
    return {"error": error, "bound": bound, "right": error <= bound}
