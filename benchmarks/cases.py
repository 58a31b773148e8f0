"""What is measured: one table of cases, each with the targets that it has to reach."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Task = Literal["rows", "rows gradient", "broadcast", "matrix", "self"]


class Target(NamedTuple):
    """A bound on our time or memory.

    Kinds: 'speed', our speed over the other's at least; 'extra', microseconds more than the
    other's at most; 'memory', MB beyond inputs and results at most.
    """

    kind: Literal["speed", "extra", "memory"]
    bound: float
    against: str = ""
    ours: str = "cossim_fast"  # which of our contenders

    def __str__(self) -> str:
        if self.kind == "memory":
            return f"at most {self.bound:g} MB beyond inputs and results"
        if self.kind == "extra":
            return f"at most {self.bound:g} µs more than {self.against}"
        if self.bound < 1:
            return f"at most {1 / self.bound:.3g}× the time of {self.against}"
        if self.bound == 1:
            return f"faster than {self.against}"
        return f"at least {self.bound:.3g}× as fast as {self.against}"


class Case(NamedTuple):
    """One measurement: a task on inputs of given shapes and dtype, with so many threads."""

    task: Task
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    threads: int
    targets: tuple[Target, ...]
    headline: bool = True  # README shows it; other cases only where they miss a target

    @property
    def name(self) -> str:
        """A name that no other case has."""
        title = {
            "rows": "paired rows",
            "rows gradient": "paired rows, forward + backward",
            "broadcast": "broadcast",
            "matrix": "matrix",
            "self": "matrix of one input",
        }[self.task]
        # Paired rows have one shape twice.
        shapes = self.shapes[:1] if self.task.startswith("rows") else self.shapes
        size = " with ".join(str(shape) for shape in shapes)
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{title} {size}, {str(self.dtype).removeprefix('torch.')}, {threads}"


# Names of contenders, as peers.py has them.
OURS = "cossim_fast"
OURS_OUT = "cossim_fast, out="
TORCH = "F.cosine_similarity"
NORMALIZE = "F.normalize + mm"
SENTENCE = "sentence-transformers"
METRICS = "torchmetrics"
READ = "x1.sum() + x2.sum()"
PRODUCT = "torch.mm(x, y.T, out=...)"

MEMORY = Target("memory", 64)


def _rows(n: int, d: int, dtype: torch.dtype, threads: int, *targets: Target, **kw: bool) -> Case:
    return Case("rows", ((n, d), (n, d)), dtype, threads, (*targets, MEMORY), **kw)


def _sizes() -> list[Case]:
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((1000, 384), (10000, 384), (100000, 1536)):
            for task in ("rows", "rows gradient"):
                targets = (Target("speed", 1, TORCH), MEMORY)
                headline = shape[0] == 10000
                cases.append(Case(task, (shape, shape), dtype, 2, targets, headline))
    return cases


def _matrices() -> list[Case]:
    cases = []
    for n, d in ((4096, 768), (8192, 1024)):
        pair = ((n, d), (n, d))
        product = Target("speed", 1 / 1.08, PRODUCT, OURS_OUT)
        peers = (Target("speed", 1, SENTENCE), Target("speed", 1, METRICS))
        cases += [
            Case("matrix", pair, torch.float32, 2, (product, *peers, MEMORY)),
            Case("matrix", pair, torch.float16, 2, (Target("speed", 3, NORMALIZE), MEMORY)),
            Case("self", pair[:1], torch.float32, 2, (Target("speed", 1 / 0.7, PRODUCT), MEMORY)),
        ]
    return cases


CASES: list[Case] = [
    # 0.4 of the speed of the bare read: 40 % of its bandwidth.
    _rows(400000, 384, torch.float32, 1, Target("speed", 15, TORCH), Target("speed", 0.4, READ)),
    _rows(400000, 384, torch.float32, 2, Target("speed", 8, TORCH)),
    *_sizes(),
    _rows(1, 8, torch.float32, 2, Target("extra", 15, TORCH)),
    _rows(32, 128, torch.float32, 2, Target("extra", 15, TORCH)),
    Case(
        "broadcast",
        ((1000, 1, 128), (1, 1000, 128)),
        torch.float32,
        2,
        (Target("speed", 100, TORCH), Target("memory", 10)),
    ),
    *_matrices(),
]
