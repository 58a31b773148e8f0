"""What is measured: one table of cases, each with the targets that it has to reach.

A case belongs to `make bench` where it is `quick`, and to `make bench-full` always. Cases that
differ in one size alone are points of a growth curve: report.py finds them by their sizes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch

import reasons
from data import Data, real_or_clustered, real_shape

Work = Literal[
    "rows",
    "rows gradient",
    "broadcast",
    "matrix",
    "matrix gradient",
    "self",
    "top-k",
    "one shot",
    "build",
    "mapped",
    "join",
    "mapped join",
    "report",
    "monitor",
]
Loss = Literal[
    "one-way loss",
    "symmetric loss",
    "SigLIP loss",
    "NT-Xent loss",
    "SupCon loss",
    "batch-hard loss",
    "cached loss",
]
Task = Work | Loss
LOSSES = get_args(Loss)
TITLES: dict[str, str] = {
    "rows": "paired rows",
    "rows gradient": "paired rows, forward + backward",
    "matrix gradient": "matrix, forward + backward",
    "self": "matrix of one input",
    "one shot": "top-k with nothing built before",
    "build": "index build",
    "mapped": "top-k from a memory map",
    "join": "pairs above a threshold",
    "mapped join": "pairs above a threshold from a memory map",
    "report": "diagnosis of embeddings",
    "monitor": "a monitor inside 100 training steps",
    "one-way loss": "contrastive loss, one direction, and gradients",
    "symmetric loss": "contrastive loss, both directions, and gradients",
    "SigLIP loss": "SigLIP loss and gradients",
    "NT-Xent loss": "NT-Xent loss and gradients",
    "SupCon loss": "SupCon loss and gradient",
    "batch-hard loss": "batch-hard triplet loss and gradient",
    "cached loss": "loss of a batch embedded in mini-batches, and gradients",
}


class Target(NamedTuple):
    """A bound on our time or memory.

    Kinds: 'speed', our speed over the other's at least; 'share', our time in that of the other at
    most; 'extra', microseconds more than the other's at most; 'rate', GB of input a second and
    thread at least; 'memory', MB beyond inputs and results at most; 'growth', our time over that
    of another case, whose name `against` is, times the power of the ratio of n, at most.
    """

    kind: Literal["speed", "share", "extra", "rate", "memory", "growth"]
    bound: float
    against: str = ""
    ours: str = "cossim_fast"  # which of our contenders
    power: int = 1  # of n, in growth

    def __str__(self) -> str:
        if self.kind == "memory":
            return f"at most {self.bound:g} MB beyond inputs and results"
        if self.kind == "rate":
            return f"at least {self.bound:g} GB of input a second and thread"
        if self.kind == "growth":
            kind = {1: "linear", 2: "quadratic"}[self.power]
            return f"at most {self.bound:g}× the time of {kind} growth from {self.against}"
        if self.kind == "share":
            return f"at most {self.bound:.0%} of the time of {self.against}"
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
    targets: tuple[Target, ...] = ()
    headline: bool = True  # the memory of its peers is measured too
    k: int = 0  # how many rows are wanted for each query
    threshold: float = 0.0  # of a join
    data: Data = "gaussian"
    quick: bool = True  # `make bench` measures it
    why: str = ""  # why another is faster, where one is
    device: str = "cpu"
    beside: bool = False  # another process keeps one of its processors busy
    batch: int = 0  # rows of a mini-batch

    @property
    def name(self) -> str:
        """A name that no other case has."""
        # Paired rows have one shape twice.
        shapes = self.shapes[:1] if self.task.startswith("rows") else self.shapes
        size = " with ".join(str(shape) for shape in shapes)
        words = [f"{TITLES.get(self.task, self.task)} {size}"]
        if self.k:
            words.append(f"k = {self.k}")
        if self.batch:
            words.append(f"mini-batches of {self.batch}")
        if self.threshold:
            words.append(f"above {self.threshold:g}")
        if self.data != "gaussian":
            words.append(self.data)
        words.append(str(self.dtype).removeprefix("torch."))
        if self.device == "cpu":
            words.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        else:
            words.append(self.device)
        if self.beside:
            words.append("beside one busy process")
        return ", ".join(words)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes along which time can grow; equal n and m of a matrix count as one."""
        d = self.shapes[0][-1]
        lengths = [max(shape[:-1]) for shape in self.shapes]
        if self.task.startswith("rows") or len(lengths) == 1:
            sizes = {"n": lengths[0], "d": d}
        elif self.task in ("top-k", "one shot", "mapped"):
            sizes = {"queries": lengths[0], "n": lengths[1], "d": d}
        elif lengths[0] == lengths[1]:
            sizes = {"n = m": lengths[0], "d": d}
        else:
            sizes = {"n": lengths[0], "m": lengths[1], "d": d}
        if self.batch:
            sizes["mini-batch"] = self.batch
        return sizes | ({"k": self.k} if self.k else {})


# Names of contenders, as peers.py and search_peers.py have them.
OURS = "cossim_fast"
OURS_OUT = "cossim_fast, out="
OURS_FLOAT32 = "cossim_fast, screen='float32'"
# Beside a busy process: the same call while that one rests.
OURS_QUIET = "cossim_fast, nothing beside it"
TORCH = "F.cosine_similarity"
NORMALIZE = "F.normalize + mm"
SENTENCE = "sentence-transformers"
METRICS = "torchmetrics"
TORCH_TOPK = "torch.topk(q @ x.T)"
TRIANGLE = "triangular product"
FLAT = "FAISS flat"
KNN = "faiss.knn"
READ = "x1.sum() + x2.sum()"
PRODUCT = "torch.mm(x, y.T, out=...)"
INT8 = "int8 product"
HALF_PRODUCT = "half of torch.mm(x, x.T)"
NO_MONITOR = "the same steps, no monitor"
PLAIN = "plain loss"
OPEN_CLIP = "open_clip"
LINEAR_CROSS_ENTROPY = "F.linear_cross_entropy"
LIGHTLY = "lightly"
METRIC_LEARNING = "pytorch-metric-learning"
CACHED = "CachedMultipleNegativesRankingLoss"
PRODUCTS = {count: f"{count} products" for count in (2, 3, 4)}
HALF_A_PRODUCT = "half a product"
# The fastest contender that is neither ours, nor a floor, nor approximate.
FASTEST = "the fastest peer"

MEMORY = Target("memory", 64)
ACCURATE = Target("speed", 1, TORCH)
SIZES = (torch.float32, torch.float16, torch.bfloat16)


def _rows() -> list[Case]:
    f32 = torch.float32
    big, small = ((400000, 384),) * 2, ((1, 8),) * 2
    # 0.4 of the speed of the bare read: 40 % of its bandwidth.
    one = (Target("speed", 15, TORCH), Target("speed", 0.4, READ), MEMORY)
    few = (Target("extra", 15, TORCH), MEMORY)
    cases = [
        Case("rows", big, f32, 1, one, why=reasons.READ_ONCE),
        Case(
            "rows",
            big,
            f32,
            2,
            (Target("speed", 8, TORCH), MEMORY),
            quick=False,
            why=reasons.READ_ONCE,
        ),
        Case("rows", small, f32, 2, few, why=reasons.CHECKS),
        Case("rows", ((32, 128),) * 2, f32, 2, few, why=reasons.CHECKS),
    ]
    shapes = [(n, 384) for n in (1000, 10000, 100000)] + [(10000, d) for d in (64, 1536)]
    for dtype in SIZES:
        for shape in (*shapes, (100000, 1536)):
            for task in ("rows", "rows gradient"):
                middle = shape == (10000, 384)
                quick = dtype == f32 and (shape[1] == 384 or task == "rows")
                quick = (quick and shape != (100000, 1536)) or middle
                why = reasons.READ_ONCE if dtype == f32 and task == "rows" else ""
                if dtype != f32 and math.prod(shape) < 1_000_000:
                    why = reasons.SMALL_NARROW
                pair = (shape, shape)
                cases.append(
                    Case(task, pair, dtype, 2, (ACCURATE, MEMORY), middle, quick=quick, why=why)
                )
    return cases


def _matrices() -> list[Case]:
    f32, f16 = torch.float32, torch.float16
    product = Target("speed", 1 / 1.08, PRODUCT, OURS_OUT)
    peers = (Target("speed", 1, SENTENCE), Target("speed", 1, METRICS))
    cases = [
        Case(
            "broadcast",
            ((1000, 1, 128), (1, 1000, 128)),
            f32,
            2,
            (Target("speed", 100, TORCH), Target("memory", 10)),
        )
    ]
    for (n, d), quick in (((4096, 768), True), ((8192, 1024), False)):
        pair = ((n, d), (n, d))
        half = (Target("speed", 3, NORMALIZE), MEMORY)
        self = (Target("speed", 1 / 0.7, PRODUCT, OURS_OUT), MEMORY)
        product_bound = {"quick": quick, "why": reasons.PRODUCT_BOUND}
        cases += [
            Case("matrix", pair, f32, 2, (product, *peers, MEMORY), **product_bound),
            Case("matrix", pair, f16, 2, half, quick=quick, why=reasons.WIDENED),
            Case("matrix", pair, torch.bfloat16, 2, (), False, quick=False, why=reasons.WIDENED),
            Case("self", pair[:1], f32, 2, self, quick=quick, why=reasons.MIRROR),
        ]
    sizes = [((n, 384), (n, 384)) for n in (512, 1024, 2048)]
    sizes += [((1024, d), (1024, d)) for d in (64, 1536)]
    for task in ("matrix", "matrix gradient"):
        for pair in sizes:
            quick = task == "matrix" or pair[0][1] == 384
            rest = {"headline": False, "quick": quick, "why": reasons.PRODUCT_BOUND}
            cases.append(Case(task, pair, f32, 2, (MEMORY,), **rest))
    for m in (1000, 4000, 16000):
        shapes = ((256, 384), (m, 384))
        rest = {"headline": False, "quick": False, "why": reasons.PRODUCT_BOUND}
        cases.append(Case("matrix", shapes, f32, 2, **rest))
    return cases


def _searches() -> list[Case]:
    f32 = torch.float32
    fastest = Target("speed", 3, FASTEST)
    # 0.6 of the ratio of both products, of which the float32 one cancels.
    of_int8 = Target("speed", 0.6, INT8)
    kind = real_or_clustered(40000, 384)
    large = ((1024, 384), (38976, 384))
    once = (Target("speed", 1.5, KNN),)
    cases = [
        Case("top-k", large, f32, 2, (fastest, of_int8), k=10, data=kind),
        Case("top-k", large, f32, 1, (fastest, of_int8), k=10, data=kind, quick=False),
        Case(
            "top-k", large, f32, 2, (Target("speed", 2.5, FASTEST),), k=100, data=kind, quick=False
        ),
        Case(
            "top-k", large, f32, 2, (Target("speed", 1.5, FASTEST),), k=1000, data=kind, quick=False
        ),
        Case("one shot", large, f32, 2, once, k=10, data=kind),
        Case("one shot", large, f32, 1, once, False, 10, data=kind, quick=False),
        Case(
            "top-k",
            ((1, 384), (200000, 384)),
            f32,
            2,
            (Target("speed", 1.3, FLAT),),
            k=10,
            data="clustered",
        ),
        Case(
            "top-k",
            ((256, 384), (200000, 384)),
            f32,
            2,
            (Target("speed", 2.5, FASTEST),),
            k=10,
            quick=False,
        ),
    ]
    if kind == "clustered":
        # The real rows that there are, though they are few.
        n, d = real_shape()
        shapes = ((n // 4, d), (n - n // 4, d))
        cases.append(Case("top-k", shapes, f32, 2, k=10, data="real", headline=False))
    # Growth with n, d, k and the number of queries.
    base = {"q": 256, "n": 12000, "d": 384, "k": 10}
    points = [base]
    for size, values in {
        "n": (4000, 36000),
        "d": (128, 1024),
        "k": (1, 100, 1000),
        "q": (1, 32, 1024),
    }.items():
        points += [base | {size: value} for value in values]
    bounds = {100: 2.5, 1000: 1.5}
    for p in points:
        shapes = ((p["q"], p["d"]), (p["n"], p["d"]))
        targets = (Target("speed", bounds[p["k"]], FASTEST),) if p["k"] in bounds else ()
        quick = p["q"] == 256
        cases.append(
            Case(
                "top-k",
                shapes,
                f32,
                2,
                targets,
                bool(targets),
                p["k"],
                data="clustered",
                quick=quick,
            )
        )
    for d in (768, 1024):
        for data, bound in (("clustered", 3), ("gaussian", 2)):
            targets = (Target("speed", bound, FASTEST),)
            shapes = ((1024, d), (100000, d))
            cases.append(Case("top-k", shapes, f32, 2, targets, k=10, data=data, quick=False))
    for dtype in (torch.float16, torch.bfloat16):
        shapes = ((256, 384), (12000, 384))
        quick = dtype == torch.float16
        rest = {"headline": False, "quick": quick}
        cases.append(Case("top-k", shapes, dtype, 2, k=10, data="clustered", **rest))
    for data in ("spiky", "cone", "duplicates"):
        targets = (Target("speed", 1 / 1.2, OURS_FLOAT32),)
        shapes = ((256, 384), (12000, 384))
        cases.append(Case("top-k", shapes, f32, 2, targets, k=10, data=data))
    return cases


def _indexes() -> list[Case]:
    built = (Target("rate", 1.0), MEMORY)
    cases = [
        Case("build", ((n, 384),), torch.float32, 2, built, n == 200000, data="clustered")
        for n in (12500, 50000, 200000)
    ]
    for n in (10000, 30000, 90000):
        shapes = ((64, 384), (n, 384))
        cases.append(Case("mapped", shapes, torch.float16, 2, (), False, k=10, data="clustered"))
    memory = Target("memory", 3000)
    # Gaussian: to cluster five million rows would take longer than to search them.
    mapped = [
        Case("mapped", ((64, 384), (n, 384)), torch.float16, 2, (memory,), k=10, quick=False)
        for n in (500000, 5000000)
    ]
    linear = Target("growth", 1.1, mapped[0].name)
    return [*cases, mapped[0], mapped[1]._replace(targets=(memory, linear))]


def _joins() -> list[Case]:
    n, d = real_shape()
    bound = (Target("speed", 4, FASTEST), Target("speed", 3, HALF_PRODUCT))
    cases = [
        Case("join", ((n, d),), torch.float32, 1, bound, threshold=0.8, data="real", quick=n < 9000)
    ]
    for rows in (5000, 10000, 20000, 50000):
        cases.append(
            Case(
                "join",
                ((rows, 384),),
                torch.float32,
                1,
                headline=False,
                threshold=0.65,
                data="clustered",
                quick=rows < 9000,
            )
        )
    # Most pairs pass, or all do.
    plain = (Target("speed", 1 / 1.2, OURS_FLOAT32),)
    for data, threshold in (("gaussian", -0.05), ("cone", 0.9), ("equal", 0.9)):
        rest = {"threshold": threshold, "data": data, "why": reasons.EVERY_PAIR, "quick": False}
        cases.append(Case("join", ((3000, 384),), torch.float32, 1, plain, **rest))
    memory = Target("memory", 3000)
    mapped = [
        Case(
            "mapped join",
            ((rows, 384),),
            torch.float16,
            2,
            (memory,),
            rows > 5000,
            threshold=0.9,
            data="copies",
            quick=rows == 5000,
        )
        for rows in (5000, 50000, 500000)
    ]
    quadratic = Target("growth", 1.1, mapped[1].name, power=2)
    return [*cases, *mapped[:2], mapped[2]._replace(targets=(memory, quadratic))]


def _beside() -> list[Case]:
    """Cases beside one busy process: of two processors it takes at most one, and half of the speed.

    Only what the targets name takes part.
    """
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    kind = real_or_clustered(40000, 384)
    rows, large = ((10000, 384),) * 2, ((100000, 384),) * 2
    square = ((4096, 768),) * 2
    listed: list[tuple[Task, tuple[tuple[int, ...], ...], torch.dtype, str, dict[str, Any]]] = [
        ("rows", rows, f32, TORCH, {}),
        ("rows", rows, f16, TORCH, {}),
        ("rows", rows, bf16, TORCH, {}),
        ("rows", large, f32, TORCH, {}),
        ("rows gradient", rows, f32, TORCH, {}),
        ("rows gradient", rows, f16, TORCH, {}),
        ("matrix", square, f32, NORMALIZE, {}),
        ("matrix", square, f16, NORMALIZE, {}),
        ("matrix gradient", ((1024, 384),) * 2, f32, NORMALIZE, {}),
        ("self", square[:1], f32, NORMALIZE, {}),
        ("top-k", ((1024, 384), (38976, 384)), f32, TORCH_TOPK, {"k": 10, "data": kind}),
        ("top-k", ((1, 384), (200000, 384)), f32, TORCH_TOPK, {"k": 10, "data": "clustered"}),
        ("join", ((5000, 384),), f32, TRIANGLE, {"threshold": 0.65, "data": "clustered"}),
        ("build", ((50000, 384),), f32, "", {"data": "clustered"}),
    ]
    cases = []
    for task, shapes, dtype, peer, rest in listed:
        targets = [Target("speed", 0.5, OURS_QUIET)]
        if peer:
            targets.append(Target("speed", 1, peer))
        cases.append(Case(task, shapes, dtype, 2, tuple(targets), beside=True, **rest))
    return cases


def _diagnosis() -> list[Case]:
    cases = [
        Case("report", ((n, 384),), torch.float32, 2, (MEMORY,), n == 40000, data="clustered")
        for n in (2500, 10000, 40000)
    ]
    monitored = (Target("share", 0.02, NO_MONITOR),)
    for batch in ((256, 512), (128, 1, 32, 32)):
        quick = len(batch) == 2
        cases.append(Case("monitor", (batch,), torch.float32, 2, monitored, quick=quick))
    return cases


def _losses() -> list[Case]:
    """Losses with their gradients, on one core."""
    # Of each: how many products it is compared with, in their time at most, and other targets.
    listed: dict[Task, tuple[int, float, tuple[Target, ...]]] = {
        "one-way loss": (3, 1.15, (Target("speed", 1.15, LINEAR_CROSS_ENTROPY),)),
        "symmetric loss": (4, 1.15, (Target("speed", 1.4, PLAIN), Target("speed", 1.8, OPEN_CLIP))),
        "SigLIP loss": (3, 1.25, ()),
        "NT-Xent loss": (2, 1.25, (Target("speed", 2, PLAIN),)),
    }
    cases = []
    for task, (count, most, targets) in listed.items():
        floor = Target("speed", 1 / most, PRODUCTS[count])
        for rows in (1024, 4096, 8192):
            n = rows // 2 if task == "NT-Xent loss" else rows  # each of two views
            some = (floor, *targets, _loss_memory(n, 768))
            # Below, what is fixed counts.
            some = some if rows > 1024 else ()
            quick = rows == 1024
            cases.append(_loss(task, n, 768, some, headline=not quick, quick=quick))
    for task in ("SupCon loss", "batch-hard loss"):
        for rows in (1024, 4096):
            some = (Target("speed", 1, FASTEST), _loss_memory(rows // 2, 768))
            quick = rows == 1024
            cases.append(
                Case(
                    task,
                    ((rows, 768),),
                    torch.float32,
                    1,
                    () if quick else some,
                    data="views",
                    headline=not quick,
                    quick=quick,
                )
            )
    for batch, times in ((32, 6), (256, 2)):
        some = (Target("speed", times, CACHED), _loss_memory(4096, 768))
        cases.append(_loss("cached loss", 4096, 768, some, batch=batch, quick=False))
    cases.append(_loss("cached loss", 1024, 768, (), batch=256, headline=False))
    return cases


def _loss(task: Task, n: int, d: int, targets: tuple[Target, ...], **rest: Any) -> Case:
    return Case(task, ((n, d), (n, d)), torch.float32, 1, targets, data="views", **rest)


def _loss_memory(n: int, d: int) -> Target:
    """64 MB beyond inputs, gradients and the unit rows of both inputs."""
    return Target("memory", 64 + round(2 * n * d * 4 / 1e6))


CASES: list[Case] = [
    *_rows(),
    *_matrices(),
    *_searches(),
    *_indexes(),
    *_joins(),
    *_diagnosis(),
    *_losses(),
    *_beside(),
]
