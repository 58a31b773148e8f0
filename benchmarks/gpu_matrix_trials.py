"""What `gpu_session` tries of matrices, their gradients, and the losses that are made of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from cossim_fast.kernels import (
    configs,
    gradient_panel,
    pairwise,
    pairwise_backward,
    planes,
    row_norm,
    rowwise,
    softmax_sums,
    softmax_weights,
)
from cossim_fast.kernels.architecture import current_arch
from torch import Tensor

import cossim_fast.losses
from gpu_machine import Found, Machine, Trial, persistent_tiles_of, trial_of_tile, with_tf32

EPS = 1e-8
FORWARD, BACKWARD = pairwise.launch_pairwise_fwd, pairwise_backward.launch_pairwise_bwd
SELF = pairwise_backward.launch_pairwise_self_bwd


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
        arch, descriptors = current_arch(), x.shape[1] % 16 == 0
        chosen = configs.choose_config("pairwise_fwd", dtype, x.shape[1], arch, descriptors)
        for tile in (chosen, replace(chosen, group=8), replace(chosen, block_m=128)):
            yield trial_of_tile(
                f"matrix {dtype}", tile, machine, FORWARD, x[None], y[None], EPS, "highest", None
            )
        for other, itself in ((y, ""), (x, " with itself")):
            for tile in (
                (chosen, *persistent_tiles_of(machine)) if itself else persistent_tiles_of(machine)
            ):
                name, arguments = f"matrix{itself} {dtype}", (x[None], other[None], EPS)
                yield trial_of_tile(name, tile, machine, FORWARD, *arguments, "highest", None)
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
            yield trial_of_tile(
                f"paired rows' gradient {dtype}", tile, machine, launch, x[:, 0], x, y, EPS
            )


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
    for parts in (1, 2, 3):
        yield Trial(f"rows to {parts} planes", lambda p=parts: machine.milliseconds(
            lambda: planes.launch_planes(x[None], y[None], EPS, p)
        ))  # fmt: skip
    arch = current_arch()
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
        yield trial_of_tile(f"{parts} planes", short, machine, FORWARD, *both, EPS, "highest", None)
    yield Trial("normalize and matmul, float32", lambda: measured(plain))
    if machine.real:
        yield Trial("normalize and matmul, tf32", lambda: measured(lambda: with_tf32(plain)))


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
    arch = current_arch()
    chosen = configs.choose_config("softmax_sums", x.dtype, x.shape[1], arch, True)
    for tile in (chosen, replace(chosen, block_m=128)):
        yield trial_of_tile("sums", tile, machine, sums, *rows, scale, own, None, True)

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
