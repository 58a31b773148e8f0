"""The steps of `gpu_session`, in the order of what they are worth."""

from collections.abc import Callable, Iterator

import torch

from gpu_correctness import correctness
from gpu_machine import Found, Machine, Step, Trial, with_tf32
from gpu_matrix_trials import contrastive_loss, float32_products, matrices
from gpu_scan_trials import scans_and_streams
from gpu_search_trials import coding_and_maxima, search_by_stage
from gpu_small import compiled_and_small


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
        yield Trial(
            "product tf32", lambda x=x, w=work: rate(w, lambda: with_tf32(lambda: x @ x.mT))
        )
        codes = machine.codes(n, n)
        yield Trial("product int8", lambda: rate(2 * n**3, lambda: torch._int_mm(codes, codes.mT)))


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
