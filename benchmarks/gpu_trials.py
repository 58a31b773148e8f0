"""What `gpu_session` tries on a GPU, in the order of what it is worth."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from cossim_fast.kernels import (
    code_rows,
    configs,
    gradient_panel,
    half_rows,
    pairwise,
    pairwise_backward,
    planes,
    row_norm,
    rowwise,
    softmax_sums,
    softmax_weights,
    topk,
)
from torch import Tensor

import cossim_fast.losses
from cossim_fast import CosineIndex, _ops, pairwise_cosine
from cossim_fast._cpu import topk_ops
from cossim_fast.retrieval.device_engine import DeviceEngine
from gpu_machine import Found, Machine, Step, Trial
from gpu_scan_trials import scans_and_streams
from gpu_small import compiled_and_small

EPS = 1e-8
FORWARD, BACKWARD = pairwise.launch_pairwise_fwd, pairwise_backward.launch_pairwise_bwd
SELF = pairwise_backward.launch_pairwise_self_bwd


def ceilings(machine: Machine) -> Iterator[Trial]:
    """Bytes and operations a second that the card reaches."""
    n = max(8192 // machine.scale, 32)
    source = torch.randint(0, 255, (64 * n * n,), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)

    def rate(work: float, run: Callable[[], object]) -> Found:
        taken = machine.milliseconds(run)
        return taken | {"per_second": 1e3 * work / taken["ms"]}

    yield Trial("copy", lambda: rate(2 * source.numel(), lambda: target.copy_(source)))
    yield Trial("read", lambda: rate(source.numel(), lambda: source.view(torch.int32).amax()))
    for dtype in (torch.float16, torch.float32):
        x = machine.rows(n * machine.scale, n * machine.scale, dtype)
        work = 2 * x.shape[0] ** 2 * x.shape[1]
        yield Trial(f"product {dtype}", lambda x=x, w=work: rate(w, lambda: x @ x.mT))
    if machine.real:
        yield Trial("product tf32", lambda x=x, w=work: rate(w, lambda: _tf32(lambda: x @ x.mT)))
        codes = machine.codes(n, n)
        yield Trial("product int8", lambda: rate(2 * n**3, lambda: torch._int_mm(codes, codes.mT)))


def _tf32(run: Callable[[], Tensor]) -> Tensor:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return run()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def correctness(machine: Machine) -> Iterator[Trial]:
    """The kernels that no GPU has run yet, against float64 and their bounds."""

    def matrix(scale: float, bound: float, parts: int = 0) -> Found:
        x, y = machine.rows(700, 384) * scale, machine.rows(500, 384)
        tile = configs.choose_planes(parts, configs.current_arch()) if parts else None
        precision = "highest" if parts else "high"
        got = FORWARD(x[None], y[None], 0.0, precision, config=tile)[0].double()
        unit = [t.double() / torch.linalg.vector_norm(t.double(), dim=1)[:, None] for t in (x, y)]
        error = float((got - unit[0] @ unit[1].mT).abs().max())
        return {"error": error, "bound": bound, "right": error <= bound}

    def coded(dtype: torch.dtype) -> Found:
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

    def copies() -> Found:
        x = machine.rows(500, 384)
        index = torch.arange(len(x), device=machine.device)
        kernel = _ops.rescore._backend_fns["cuda"] if machine.real else _ops.rescore
        found = {float(c) for p in (1, 4, -2) for c in kernel(x, x * 2.0**p, index, index).unique()}
        return {"scores of copies": sorted(found), "right": found == {1.0}}

    def maxima(d: int, tile: configs.TileConfig) -> Found:
        queries, corpus = machine.codes(300, d), machine.codes(5001, d)
        eligible = torch.ones(len(corpus), dtype=torch.bool, device=machine.device)
        eligible[len(corpus) // 2] = False
        found = topk.launch_block_max(queries, corpus, 64, eligible, tile).cpu()
        wanted = topk_ops.block_max(queries.cpu(), corpus.cpu(), 64, eligible.cpu())
        return {"right": torch.equal(found, wanted)}

    def compiled() -> Found:
        x, y = machine.rows(300, 96, torch.float16), machine.rows(200, 96, torch.float16)
        run = torch.compile(pairwise_cosine, fullgraph=True, backend=machine.backend)
        found = torch.equal(run(x, y), pairwise_cosine(x, y))
        return {"right": found or not machine.real}

    def same_as_on_cpu() -> Found:
        queries, corpus = machine.rows(64, 384), machine.rows(20000, 384)
        got = cossim_fast.topk(queries, corpus, 2)
        wanted = cossim_fast.topk(queries.cpu(), corpus.cpu(), 2)
        return {"right": all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))}

    def persistent(dtype: torch.dtype) -> Found:
        """Bits of the kernel that was measured, for more tiles than programs."""
        x, y = (machine.rows(16400, 384, dtype)[None] for _ in range(2))
        right = []
        for tile in list(_persistent(machine))[:2]:
            alone = replace(tile, persistent=False)
            for a, b, out in ((x[:, 3:], y, None), (x, x, None), (y, y, torch.float32)):
                got = (FORWARD(a, b, EPS, "highest", out, t) for t in (tile, alone))
                right.append(torch.equal(*got))
        return {"right": all(right), "compared": len(right)}

    for dtype in (torch.float16, torch.bfloat16):
        yield Trial(f"persistent {dtype}", lambda dtype=dtype: persistent(dtype))
    for scale in (1.0, 1e30, 1e-30):
        yield Trial(
            f"precision high, rows times {scale:g}",
            lambda s=scale: matrix(s, 2.0**-10 + 2.0**-14),
        )
        for parts in (2, 3):
            yield Trial(
                f"{parts} planes, rows times {scale:g}",
                lambda s=scale, p=parts: matrix(s, 2.0**-20, p),
            )
    for scale in (1.0, 1e-9, 1e30):
        yield Trial(f"gradients of {scale:g}", lambda s=scale: _gradient(machine, s, torch.float32))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield Trial(
            f"gradients with itself {dtype}",
            lambda t=dtype: _gradient(machine, 1.0, t, itself=True),
        )
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield Trial(f"coding {dtype}", lambda dtype=dtype: coded(dtype))
    for d in (384, 256, 128):
        for tile in configs.persistent_tiles(d, configs.current_arch(), True):
            name = f"block maxima, d = {d}, {tile.block_n} x {tile.block_m}, persistent"
            yield Trial(name, lambda d=d, tile=tile: maxima(d, tile))
    yield Trial("copies score 1", copies)
    yield Trial("top-k as on the CPU", same_as_on_cpu)
    yield Trial("compiled is eager", compiled)


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
    arch = configs.current_arch()
    chosen = configs.choose_config("code_rows", x.dtype, x.shape[1], arch)
    for columns in (32, 64, 128):
        for warps in (4, 8):
            tile = replace(chosen, block_k=columns, num_warps=warps)
            yield _tile("coding", tile, machine, code_rows.launch_code_rows, x, centre)
    for d in (384, 128):
        queries, corpus = machine.codes(4096, d), machine.codes(1 << 20, d)
        chosen = configs.choose_config("block_max", torch.int8, d, arch, True)
        groups = [replace(chosen, group=group) for group in (8, 16, 64)]
        for tile in (chosen, *configs.persistent_tiles(d, arch, True), *groups):
            run = topk.launch_block_max
            yield _tile(f"block maxima, d = {d}", tile, machine, run, queries, corpus, 64, None)
        chosen = configs.choose_config("block_max_few", torch.int8, d, arch, True)
        for tile in (chosen, replace(chosen, num_stages=4)):
            few = f"block maxima of 16, d = {d}"
            yield _tile(few, tile, machine, run, queries[:16], corpus, 64, None)


def _tile(
    name: str, tile: configs.TileConfig, machine: Machine, launch: Callable[..., object],
    *arguments: object,
) -> Trial:  # fmt: skip
    """A trial of one tile."""
    words = (
        f"{tile.block_n} x {tile.block_m} x {tile.block_k}, {tile.num_warps} warps, "
        f"{tile.num_stages} stages, groups of {tile.group}"
    )
    if tile.persistent:
        words += ", persistent" + ("" if tile.flatten else ", loop in a loop")

    def once() -> object:
        return launch(*arguments, config=tile)

    return Trial(f"{name}: {words}", lambda: machine.milliseconds(once), once)


def _persistent(machine: Machine) -> Iterator[configs.TileConfig]:
    """Tiles of programs that go from tile to tile, where the device copies by descriptor."""
    arch = configs.current_arch() if machine.real else "sm_90"
    if configs.choose_config("pairwise_fwd", torch.float16, 64, arch, True).descriptors:
        tile = configs.choose_config("pairwise_fwd_persistent", torch.float16, 64, arch, True)
        yield from (tile, replace(tile, flatten=False), replace(tile, num_stages=4, flatten=False))


def matrices(machine: Machine) -> Iterator[Trial]:
    """The matrix and its gradient beside torch's product; the gradient of paired rows."""
    for dtype in (torch.float16, torch.bfloat16):
        x, y = machine.rows(16384, 768, dtype), machine.rows(16384, 768, dtype)
        grad = torch.randn(len(x), len(y), device=machine.device).to(dtype)
        yield Trial(
            f"normalize and matmul {dtype}",
            lambda x=x, y=y: machine.milliseconds(
                lambda: F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT
            ),
        )
        arch, descriptors = configs.current_arch(), x.shape[1] % 16 == 0
        chosen = configs.choose_config("pairwise_fwd", dtype, x.shape[1], arch, descriptors)
        for tile in (chosen, replace(chosen, group=8), replace(chosen, block_m=128)):
            yield _tile(
                f"matrix {dtype}", tile, machine, FORWARD, x[None], y[None], EPS, "highest", None
            )
        for other, itself in ((y, ""), (x, " with itself")):
            for tile in (chosen, *_persistent(machine)) if itself else _persistent(machine):
                name, arguments = f"matrix{itself} {dtype}", (x[None], other[None], EPS)
                yield _tile(name, tile, machine, FORWARD, *arguments, "highest", None)
        yield Trial(
            f"gradient {dtype}",
            lambda x=x, y=y, g=grad: machine.milliseconds(
                lambda: BACKWARD(g[None], x[None], y[None], EPS)
            ),
        )
        yield Trial(
            f"gradient with itself {dtype}",
            lambda x=x, g=grad: machine.milliseconds(lambda: SELF(g[None], x[None], EPS)),
        )
        norms = row_norm.launch_row_norm(y[None], EPS)
        unit = row_norm.launch_unit_rows(y[None], *norms, dtype)
        out = unit.new_empty((1, len(x), unit.shape[2]), dtype=torch.float32)
        yield Trial(
            f"gradient's product alone {dtype}",
            lambda g=grad[None], u=unit, out=out: machine.milliseconds(
                lambda: pairwise_backward.launch_weighted_sums(g, u, out)
            ),
        )
        if machine.real:
            yield Trial(
                f"gradient's product alone, torch {dtype}",
                lambda g=grad, u=unit[0]: machine.milliseconds(
                    lambda: torch.mm(g, u, out_dtype=torch.float32)
                ),
            )
    for dtype in (torch.float16, torch.float32):
        x, y = machine.rows(1 << 19, 768, dtype), machine.rows(1 << 19, 768, dtype)
        chosen = configs.choose_config("rowwise_bwd", dtype, x.shape[1], arch)
        whole = replace(chosen, block_n=1, block_k=1024)
        for tile in (chosen, whole, replace(whole, block_n=2, num_warps=8)):
            launch = rowwise.launch_rowwise_bwd
            yield _tile(f"paired rows' gradient {dtype}", tile, machine, launch, x[:, 0], x, y, EPS)


def float32_products(machine: Machine) -> Iterator[Trial]:
    """What the precisions of float32 rows cost, and their errors."""
    x, y = machine.rows(16384, 768), machine.rows(16384, 768)
    wide = [F.normalize(t.double(), dim=-1) for t in (x[:64], y)]

    def measured(run: Callable[[], Tensor]) -> Found:
        error = float((run()[:64].double() - wide[0] @ wide[1].mT).abs().max())
        return machine.milliseconds(run) | {"error": error}

    def plain() -> Tensor:
        return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT

    for precision in ("high", "highest"):
        yield Trial(
            f"matrix float32, {precision}",
            lambda p=precision: measured(lambda: FORWARD(x[None], y[None], EPS, p)[0]),
        )
    grad = torch.randn(1, len(x), len(y), device=machine.device)
    for precision in ("high", "highest"):
        runs = {
            "gradient": lambda p=precision: BACKWARD(grad, x[None], y[None], EPS, p),
            "gradient, transposed": lambda p=precision: BACKWARD(grad.mT, x[None], y[None], EPS, p),
            "gradient with itself": lambda p=precision: SELF(grad, x[None], EPS, p),
        }
        for name, run in runs.items():
            yield Trial(f"{name}, {precision}", lambda run=run: machine.milliseconds(run))
    exponent = torch.empty(1, len(x), dtype=torch.int32, device=machine.device)
    panel = gradient_panel.launch_gradient_panel
    for name, sides in {
        "along": (grad, None), "transposed": (grad.mT, None), "plus its mirror": (grad, grad.mT)
    }.items():  # fmt: skip
        yield Trial(
            f"gradient to float16, {name}",
            lambda s=sides: machine.milliseconds(lambda: panel(*s, torch.float16, exponent)),
        )
    yield Trial("rows to float16", lambda: machine.milliseconds(
        lambda: half_rows.launch_half_rows(x[None], EPS)
    ))  # fmt: skip
    for parts in (2, 3):
        yield Trial(f"rows to {parts} planes", lambda p=parts: machine.milliseconds(
            lambda: planes.launch_planes(x[None], y[None], EPS, p)
        ))  # fmt: skip
    arch = configs.current_arch()
    for parts in (2, 3):
        tile = configs.choose_planes(parts, arch)
        yield Trial(
            f"matrix float32, {parts} planes",
            lambda t=tile: measured(lambda: FORWARD(x[None], y[None], EPS, config=t)[0]),
        )
        yield Trial(
            f"matrix float32 with itself, {parts} planes",
            lambda t=tile: machine.milliseconds(lambda: FORWARD(x[None], x[None], EPS, config=t)),
        )
        short, both = replace(tile, block_k=32, num_stages=4), (x[None], y[None])
        yield _tile(f"{parts} planes", short, machine, FORWARD, *both, EPS, "highest", None)
    yield Trial("normalize and matmul, float32", lambda: measured(plain))
    if machine.real:
        yield Trial("normalize and matmul, tf32", lambda: measured(lambda: _tf32(plain)))


def contrastive_loss(machine: Machine) -> Iterator[Trial]:
    """Both passes over a loss's logits beside the form that CUDA tensors get."""
    x, y = (machine.rows(16384, 768, torch.bfloat16) for _ in range(2))
    scale = torch.tensor(20.0, device=machine.device)
    rows = [t for side in (x, y) for t in softmax_sums.launch_scaled_rows(side, EPS)]
    own = torch.arange(len(x), device=machine.device)
    sums, weights = softmax_sums.launch_softmax_sums, softmax_weights.launch_softmax_weights

    def right() -> Found:
        part = sums(*rows, scale, own)[0]
        got = softmax_sums.log2_sums(part, scale, torch.zeros_like(rows[1]), 1)[:64]
        unit = [F.normalize(t.double(), dim=1) for t in (x[:64], y)]
        logits = scale.double() * (unit[0] @ unit[1].mT)
        logits.diagonal().fill_(-torch.inf)
        error = float((got - logits.logsumexp(1) * softmax_sums.BITS).abs().max())
        return {"error": error, "right": error <= 2.0**-14}

    yield Trial("sums of negatives", right)
    arch = configs.current_arch()
    chosen = configs.choose_config("softmax_sums", x.dtype, x.shape[1], arch, True)
    for tile in (chosen, replace(chosen, block_m=128)):
        yield _tile("sums", tile, machine, sums, *rows, scale, own, None, True)

    of_rows, of_keys = (torch.ones(k, len(x), device=machine.device) for k in (3, 2))

    def weigh(panel: int) -> None:
        for first in range(0, len(x), panel):
            at = slice(first, first + panel)
            terms = of_rows[:, at].contiguous(), of_keys
            weights(rows[0][at], rows[1][at], *rows[2:], scale, own[at], *terms)

    for panel in (1024, 4096):
        step = max(panel // machine.scale, 4)
        yield Trial(
            f"weights, {panel} rows a panel",
            lambda s=step: machine.milliseconds(lambda: weigh(s)),
            lambda s=step: weigh(s),
        )

    def composite() -> None:
        sides = [t.detach().requires_grad_() for t in (x, y)]
        cossim_fast.losses.clip(*sides, scale).backward()

    yield Trial("clip and its gradients", lambda: machine.milliseconds(composite))


STEPS = (
    Step("ceilings", 15, ceilings),
    Step("correctness", 40, correctness),
    Step("search by stage", 50, search_by_stage),
    Step("coding and maxima", 70, coding_and_maxima),
    Step("scans and streams", 40, scans_and_streams),
    Step("matrices", 60, matrices),
    Step("float32 products", 40, float32_products),
    Step("compiled and small", 30, compiled_and_small),
    Step("contrastive loss", 30, contrastive_loss),
)
