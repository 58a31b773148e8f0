"""What a call on a GPU costs the host, measured on a machine without one.

    make gpu-host
    PYTHONPATH=tests/helpers python benchmarks/gpu_host.py [--only WORDS] [--before OLD] [--to NEW]

Tensors lie in host memory and say that they are CUDA's; Triton's own launcher runs, on a driver
whose functions do nothing (tests/helpers/ladder/host.py). So all that Python and torch do above the
driver is timed: checks, choice of the executor, autograd, allocations, descriptors, specialisation
and arguments of each launch. What the driver takes for a launch is not, of ours or of torch's own
operations, whose arithmetic here is of a few small rows; so launches are counted. ``--before`` puts
the figures of an earlier file beside the new ones; with ``--to``, `gpu_page` shows both.
"""

import argparse
import contextlib
import functools
import gc
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cossim_fast import _autograd, _dispatch, _ops, cosine_similarity, functional, pairwise_cosine
from environment import processor
from ladder import host, reach, screening

Call = Callable[[Tensor, Tensor], Tensor]
Run = Callable[[], object]
ROWS, WIDTH = 16, 64
BATCH, BATCHES = 100, 10


def normalized_product(x: Tensor, y: Tensor) -> Tensor:
    """What one would write with torch alone."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


CALLS: dict[str, Call] = {
    "pairwise_cosine(x, y)": pairwise_cosine,
    "F.normalize and matmul": normalized_product,
    "pairwise_cosine(x)": lambda x, y: pairwise_cosine(x),
    "cosine_similarity(x, y)": lambda x, y: cosine_similarity(x, y, dim=-1),
    "F.cosine_similarity(x, y)": lambda x, y: F.cosine_similarity(x, y, dim=-1),
}


def with_gradients(call: Call) -> Call:
    """The same, and the derivatives by both inputs of its sum of weights."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        result = call(x, y)
        return torch.autograd.grad(result, (x, y), torch.empty_like(result), allow_unused=True)[0]

    return run


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within, CPU tensors take the road of CUDA tensors, down to a driver that does nothing."""
    with pytest.MonkeyPatch.context() as patch, host.on_no_device():
        reach.take_for_cuda(patch)
        yield


def microseconds(run: Run) -> float:
    """Host time of a call: the fastest of several batches, since other work only adds."""
    for _ in range(BATCH):
        run()
    taken = []
    gc.disable()
    try:
        for _ in range(BATCHES):
            start = time.perf_counter()
            for _ in range(BATCH):
                run()
            taken.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return 1e6 * min(taken) / BATCH


class Operations(TorchDispatchMode):
    """Counts what reaches torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def counted(run: Run) -> tuple[Counter[str], list[str]]:
    """The operations of torch's that a call makes, and the kernels of ours that it launches."""
    launched: list[str] = []
    launcher = triton.runtime.driver.active.launcher_cls

    def recorded(self, *arguments):
        launched.append(arguments[6].get()["name"])
        return original(self, *arguments)

    original = launcher.__call__
    executor = getattr(_dispatch.Executor, "KERNELS", None) or _dispatch.Executor.REGISTERED_OP
    with (
        mock.patch.object(launcher, "__call__", recorded),
        mock.patch.object(functional, "choose_executor", return_value=(executor, "")),
        mock.patch.object(_autograd, "choose_executor", return_value=(executor, "")),
        Operations() as operations,
    ):
        run()
    return operations.seen, launched


# Operations of torch's that make a tensor, or another view of one, and launch nothing.
MAKES = ("empty", "new_empty", "empty_like", "empty_strided")
VIEWS = (
    "view", "unsqueeze", "expand", "t", "transpose", "slice", "select", "detach", "permute",
    "alias", "as_strided", "_unsafe_view", "split", "squeeze", "squeeze_", "promote_types",
)  # fmt: skip


def pairs() -> Iterator[tuple[str, Run]]:
    """Each call in both dtypes, forward and with gradients."""
    for dtype in (torch.float16, torch.float32):
        x, y = (torch.randn(ROWS, WIDTH, device="cpu").to(dtype) for _ in range(2))
        for name, call in CALLS.items():
            words = f"{name}, {str(dtype).removeprefix('torch.')}"
            yield words, functools.partial(call, x, y)
            yield f"{words}, with gradients", functools.partial(with_gradients(call), x, y)


def stages() -> Iterator[tuple[str, Run]]:
    """The ops of a search, which go through torch's dispatcher."""
    s = screening.example()
    codes, bounds = (s.query_codes, s.corpus_codes), (s.query_terms, s.block_terms)
    reach = torch.zeros(len(s.queries), device="cpu")
    index, centre = torch.arange(3, device="cpu"), torch.zeros(s.corpus.shape[1], device="cpu")
    found = index.int()  # pairs of a query and the first block
    for name, arguments in {
        "code_rows": (s.corpus, centre),
        "block_max": (*codes, 64, s.eligible),
        "block_thresholds": (s.maxima, *bounds, 3, 16),
        "block_candidates": (s.maxima, *bounds, reach, 5),
        "best_rows": (*codes, found, 64, s.eligible),
        "recheck": (*codes, *bounds, reach, found, 64, s.eligible, 8),
        "rescore": (s.queries, s.corpus, index, index),
        "scan_rows": (s.queries.float(), s.corpus),
    }.items():
        yield f"a search's {name}", functools.partial(getattr(_ops, name), *arguments)


def measure(only: str = "") -> Iterator[tuple[str, dict]]:
    """The calls whose names hold these words."""
    calls = [*pairs(), *stages()]
    with pretended_gpu():
        for name, run in calls:
            if only not in name:
                continue
            run()
            seen, kernels = counted(run)
            made = sum(
                count for op, count in seen.items() if op not in VIEWS and "cossim_fast" not in op
            )
            found = {
                "host_us": microseconds(run),
                "kernels": kernels,
                "launches": made - sum(seen[op] for op in MAKES),
                "no_views": made,
                "operations": dict(seen),
            }
            yield name, found


def main() -> int:
    """Measure, print, and write a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="calls whose names hold these words")
    parser.add_argument("--before", type=Path, help="an earlier file, to compare with")
    parser.add_argument("--to", type=Path, help="the file to write")
    arguments = parser.parse_args()
    if words := host.missing():
        parser.error(f"needs {words}")
    torch.set_num_threads(1)
    report = {
        "device": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "calls": {},
    }
    if arguments.before:
        report["before"] = json.loads(arguments.before.read_text(encoding="utf-8"))["calls"]
    for name, found in measure(arguments.only):
        report["calls"][name] = found
        before = report.get("before", {}).get(name, {}).get("host_us", float("nan"))
        print(
            f"{name:58} {found['host_us']:7.1f} us, before {before:7.1f}; "
            f"{found['launches'] + len(found['kernels']):3} launches, {found['operations']}",
            flush=True,
        )
    if arguments.to:
        arguments.to.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
