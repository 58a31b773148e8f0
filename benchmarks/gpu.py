"""Benchmark the GPU kernels against torch, and write what was measured with the device's name.

    python benchmarks/gpu.py [WORD ...]    # the cases whose names hold one of the words

Every case runs its contenders in turn on inputs that rotate through buffers larger than the
second-level cache, timed with device events. The roofline is measured in the same run: a copy for
bandwidth, a matrix product for each dtype. ``share`` is the time that the roofline allows over the
median time taken. The result goes to benchmarks/results/DEVICE.json, after every case, a line for
each contender to the terminal, and at the end all results of all devices to docs/gpu.md.
"""

import importlib.metadata
import importlib.util
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import cossim_fast
import cossim_fast._ops  # registers the ops
from cossim_fast.functional import cosine_similarity, pairwise_cosine
from gpu_page import publish, write

REPEATS = 30
WARM_UP = 5
EPS = 1e-8
Run = Callable[[dict[str, Tensor]], Tensor]


# About a millisecond, in which the host gets ahead of the device.
AHEAD = 2_000_000


class DeviceClock:
    """Times calls with device events, so that the host's share does not count.

    What waits for the device by itself, as a search does, is timed with its waits.
    """

    def milliseconds(self, run: Callable[[], object]) -> float:
        """Time one call."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)


@dataclass(frozen=True)
class Case:
    """One task: its inputs, its contenders, and the bytes and operations it cannot do without."""

    name: str
    dtype: torch.dtype
    shapes: dict[str, tuple[int, ...]]
    contenders: dict[str, Run]
    moved: int
    operations: int = 0
    oracle: Run | None = None  # in float64, of the first rows

    def inputs(self, device: str, seed: int) -> dict[str, Tensor]:
        """Draw one set of inputs."""
        generator = torch.Generator(device).manual_seed(seed)
        drawn = {}
        for name, shape in self.shapes.items():
            if self.dtype == torch.int8:
                drawn[name] = torch.randint(
                    -127, 128, shape, generator=generator, device=device, dtype=torch.int8
                )
            else:
                drawn[name] = torch.randn(shape, generator=generator, device=device).to(self.dtype)
        return drawn


def rotating_inputs(case: Case, device: str, cache_bytes: int) -> list[dict[str, Tensor]]:
    """Enough sets of inputs that each is out of the cache when its turn comes again."""
    first = case.inputs(device, 0)
    size = sum(x.numel() * x.element_size() for x in first.values())
    count = 1 + -(-2 * cache_bytes // max(size, 1))
    return [first, *(case.inputs(device, seed) for seed in range(1, min(count, 64)))]


def measure(case: Case, device: str, clock, cache_bytes: int) -> dict[str, list[float]]:
    """Milliseconds of each contender, which take turns so that drift hits them alike."""
    buffers = rotating_inputs(case, device, cache_bytes)
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    for i in range(WARM_UP + REPEATS):
        for name, run in case.contenders.items():
            inputs = buffers[i % len(buffers)]
            taken = clock.milliseconds(lambda run=run, inputs=inputs: run(inputs))
            if i >= WARM_UP:
                times[name].append(taken)
    return times


def errors(case: Case, device: str) -> dict[str, float]:
    """Largest error of each contender in the rows that the oracle looks at."""
    if case.oracle is None:
        return {}
    inputs = case.inputs(device, 0)
    expected = case.oracle(inputs)
    rows = expected.shape[0]
    return {
        name: float((run(inputs)[:rows].double() - expected).abs().max())
        for name, run in case.contenders.items()
        if "alone" not in name  # a product of rows as they are
    }


def measured_roofline(device: str, clock, size: int) -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a matrix product for each dtype."""

    def best(run: Callable[[], object]) -> float:
        return min(clock.milliseconds(run) for _ in range(WARM_UP + REPEATS)) / 1e3

    # Never zeros: they draw less power, and run faster than data do.
    source = torch.randint(0, 255, (64 * size * size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy": 2 * source.numel() / best(lambda: target.copy_(source))}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(size, size, device=device).to(dtype)
        found[str(dtype)] = 2 * size**3 / best(lambda x=x: x @ x.mT)
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    found[str(torch.int8)] = 2 * size**3 / best(lambda: torch._int_mm(codes, codes.mT))
    return found


def summary(case: Case, times: dict[str, list[float]], roofline: dict[str, float]) -> dict:
    """Median and quartiles of each contender, and its share of the measured roofline."""
    floor = case.moved / roofline["copy"]
    if case.operations:
        floor = max(floor, case.operations / roofline[str(case.dtype)])
    rows = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        rows[name] = {
            "median_ms": median,
            "quartiles_ms": [low, high],
            "bytes_per_second": case.moved / median * 1e3,
            "operations_per_second": case.operations / median * 1e3,
            "share": floor * 1e3 / median,
        }
    return {"dtype": str(case.dtype), "shapes": case.shapes, "contenders": rows}


def _normalised_product(inputs: dict[str, Tensor]) -> Tensor:
    return F.normalize(inputs["x"], dim=-1) @ F.normalize(inputs["y"], dim=-1).mT


def _in_tf32(run: Run) -> Run:
    """The same with float32 products in TF32, as torch's setting "high" allows."""

    def allowed(inputs: dict[str, Tensor]) -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return run(inputs)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return allowed


def _rows_oracle(inputs: dict[str, Tensor]) -> Tensor:
    return F.cosine_similarity(inputs["x"][:64].double(), inputs["y"][:64].double(), eps=EPS)


def _pairs_oracle(inputs: dict[str, Tensor]) -> Tensor:
    return _normalised_product({"x": inputs["x"][:64].double(), "y": inputs["y"].double()})


def _with_gradients(function: Run) -> Run:
    """The forward and both gradients, from one of the result's shape that is drawn like inputs."""

    def run(inputs: dict[str, Tensor]) -> Tensor:
        leaves = {name: inputs[name].detach().requires_grad_() for name in "xy"}
        return torch.autograd.grad(function(leaves), list(leaves.values()), inputs["grad"])[0]

    return run


K = 10


def _topk_oracle(inputs: dict[str, Tensor]) -> Tensor:
    return _pairs_oracle(inputs).topk(K).values


def _topk_case(scale: int) -> Case:
    """Search by the product and torch's selection, ours, and those that are installed."""
    queries, corpus, d = 4096 // scale, 2**20 // scale, 384

    def selected(inputs: dict[str, Tensor]) -> Tensor:
        return _normalised_product({"x": inputs["x"], "y": inputs["y"]}).topk(K).values

    contenders: dict[str, Run] = {
        "cossim_fast": lambda inputs: cossim_fast.topk(inputs["x"], inputs["y"], K).scores,
        "torch.topk of the product": selected,
        "product and torch.topk alone": lambda inputs: (
            (inputs["x"] @ inputs["y"].mT).topk(K).values
        ),
    }
    for module, name, run in (("faiss", "FAISS GPU", _faiss_gpu), ("cuvs", "cuVS", _cuvs)):
        if importlib.util.find_spec(module) is not None and torch.cuda.is_available():
            contenders[name] = run
    shapes = {"x": (queries, d), "y": (corpus, d)}
    moved, operations = (queries + corpus) * d * 4, 2 * queries * corpus * d
    return Case("topk", torch.float32, shapes, contenders, moved, operations, _topk_oracle)


def _faiss_gpu(inputs: dict[str, Tensor]) -> Tensor:
    # https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU, knn_gpu on torch tensors
    import faiss  # noqa: PLC0415
    import faiss.contrib.torch_utils  # noqa: PLC0415

    unit = (F.normalize(inputs[name]) for name in "xy")
    resources = faiss.StandardGpuResources()
    return faiss.knn_gpu(resources, *unit, K, metric=faiss.METRIC_INNER_PRODUCT)[0]


def _cuvs(inputs: dict[str, Tensor]) -> Tensor:
    # https://docs.rapids.ai/api/cuvs/stable/python_api/neighbors_brute_force/
    from cuvs.neighbors import brute_force  # noqa: PLC0415

    queries, corpus = (F.normalize(inputs[name]) for name in "xy")
    found = brute_force.search(brute_force.build(corpus, metric="inner_product"), queries, K)
    return torch.as_tensor(found[0], device=queries.device)


def cases(compiled: Callable = torch.compile, scale: int = 1) -> list[Case]:
    """What is measured; ``scale`` divides the numbers of rows."""
    found = []
    rows, d = 2**19 // scale, 768
    for dtype in (torch.float16, torch.float32):
        size = dtype.itemsize
        shapes = {"x": (rows, d), "y": (rows, d)}

        def ours(inputs):
            return cosine_similarity(inputs["x"], inputs["y"], dim=-1)

        def theirs(inputs):
            return F.cosine_similarity(inputs["x"], inputs["y"], dim=-1)

        moved = 2 * rows * d * size + rows * size
        contenders = {
            "cossim_fast": ours,
            "cossim_fast, compiled": compiled(ours),
            "torch": theirs,
            "torch compiled": compiled(theirs),
        }
        found.append(Case("paired rows", dtype, shapes, contenders, moved, oracle=_rows_oracle))
        gradients = {name: _with_gradients(run) for name, run in contenders.items()}
        shapes = shapes | {"grad": (rows,)}
        found.append(Case("paired rows, with gradients", dtype, shapes, gradients, 3 * moved))
    n = 16384 // scale
    precisions = ("highest", "high", "medium")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        shapes = {"x": (n, d), "y": (n, d)}
        contenders = {
            f"cossim_fast, {p}": lambda inputs, p=p: pairwise_cosine(**inputs, precision=p)
            for p in (precisions if dtype == torch.float32 else precisions[:1])
        }
        contenders |= {
            "cossim_fast, compiled": compiled(lambda inputs: pairwise_cosine(**inputs)),
            "normalize and matmul": _normalised_product,
            "normalize and matmul, compiled": compiled(_normalised_product),
            "matmul alone": lambda inputs: inputs["x"] @ inputs["y"].mT,
        }
        tf32 = "normalize and matmul, tf32"
        if dtype == torch.float32:
            contenders[tf32] = _in_tf32(_normalised_product)
        moved = (2 * n * d + n * n) * dtype.itemsize
        found.append(
            Case("pairwise", dtype, shapes, contenders, moved, 2 * n * n * d, _pairs_oracle)
        )
        gradients = {
            name: _with_gradients(run) for name, run in contenders.items() if "alone" not in name
        }
        if dtype == torch.float32:
            gradients[tf32] = _in_tf32(_with_gradients(_normalised_product))
        shapes = shapes | {"grad": (n, n)}
        found.append(
            Case("pairwise, with gradients", dtype, shapes, gradients, 3 * moved, 6 * n * n * d)
        )
        itself = {
            "cossim_fast": lambda inputs: pairwise_cosine(inputs["x"]),
            "normalize and matmul": lambda inputs: _normalised_product(inputs | {"y": inputs["x"]}),
        }
        found.append(
            Case(
                "pairwise with itself",
                dtype,
                {"x": (n, d)},
                itself,
                (n * d + n * n) * dtype.itemsize,
                n * n * d,
                lambda inputs: _pairs_oracle(inputs | {"y": inputs["x"]}),
            )
        )
    found.append(_topk_case(scale))
    rows, width = 2**20 // scale, 384
    found.append(
        Case(
            "coding",
            torch.float32,
            {"rows": (rows, width), "centre": (width,)},
            {"cossim_fast": lambda inputs: torch.ops.cossim_fast.code_rows(**inputs)[1]},
            rows * (5 * width + 1),
        )
    )
    queries, corpus, width = 4096 // scale, 2**20 // scale, 128
    found.append(
        Case(
            "block maxima",
            torch.int8,
            {"queries": (queries, width), "corpus": (corpus, width)},
            {
                "cossim_fast": lambda inputs: torch.ops.cossim_fast.block_max(
                    **inputs, block=64, eligible=None
                ),
            },
            (queries + corpus) * width + 4 * queries * corpus // 64,
            2 * queries * corpus * width,
        )
    )
    return found


def run(
    chosen: list[Case],
    device: str,
    device_name: str,
    clock,
    cache_bytes: int,
    size: int,
    done: Callable[[str, dict], None] = lambda name, report: None,
) -> dict:
    """Measure everything; return what is written, and hand it to ``done`` after every case."""
    report = {
        "device": device_name,
        "driver": driver_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "python": platform.python_version(),
        "repeats": REPEATS,
        "roofline_per_second": measured_roofline(device, clock, size),
        "cases": {},
    }
    for case in chosen:
        row = summary(
            case, measure(case, device, clock, cache_bytes), report["roofline_per_second"]
        )
        for name, error in errors(case, device).items():
            row["contenders"][name]["largest_error"] = error
        name = f"{case.name}, {str(case.dtype).removeprefix('torch.')}"
        report["cases"][name] = row
        done(name, report)
    return report


def driver_version() -> str:
    """What nvidia-smi says; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def lines(name: str, row: dict) -> list[str]:
    """What was measured of a case, to read while the next one runs."""
    return [
        f"{name:38} {contender:31} {x['median_ms']:9.3f} ms "
        f"{x['bytes_per_second'] / 1e9:7.0f} GB/s {x['operations_per_second'] / 1e12:7.1f} T/s "
        f"share {x['share']:5.2f} error {x.get('largest_error', float('nan')):.1e}"
        for contender, x in row["contenders"].items()
    ]


def main() -> int:
    """Run on the current CUDA device."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU; torch sees none", file=sys.stderr)
        return 1
    properties = torch.cuda.get_device_properties(0)
    words = sys.argv[1:]
    chosen = [case for case in cases() if not words or any(word in case.name for word in words)]

    def done(name: str, report: dict) -> None:
        write(report)
        print(*lines(name, report["cases"][name]), sep="\n", flush=True)

    size = properties.L2_cache_size
    report = run(chosen, "cuda", properties.name, DeviceClock(), size, 8192, done)
    print({name: f"{rate / 1e12:.3g} T/s" for name, rate in report["roofline_per_second"].items()})
    print(write(report))
    publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
