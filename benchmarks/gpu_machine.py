"""The GPU that `gpu_session` has for minutes, or what stands in for it in a dry run."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from cossim_fast.kernels import configs
from cossim_fast.kernels.architecture import TileConfig, current_arch
from torch import Tensor

Found = dict[str, object]


@dataclass(frozen=True)
class Trial:
    """One thing to find out; ``run`` returns what is written down."""

    name: str
    run: Callable[[], Found]
    kernels: Callable[[], object] | None = None  # compiles what the trial launches


@dataclass(frozen=True)
class Step:
    """Trials that share a budget of seconds."""

    name: str
    seconds: float
    trials: Callable[["Machine"], Iterator[Trial]]


@dataclass
class Machine:
    """Where the session runs: device, clock, and by how much its inputs are smaller."""

    device: str
    scale: int = 1
    repeats: int = 20
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(0)

    @property
    def real(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    @property
    def backend(self) -> str:
        """What compiles graphs: without a GPU, nothing that needs one."""
        return "inductor" if self.real else "aot_eager"

    @property
    def is_broken(self) -> bool:
        """Whether a kernel has left the device unusable for this process."""
        try:
            self.wait()
        except RuntimeError:
            return True
        return False

    def rows(self, n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal rows, fewer and shorter by the scale."""
        shape = (max(n // self.scale, 5), max(d // self.scale, 20) if self.scale > 1 else d)
        drawn = torch.randn(shape, generator=self.generator, device=self.device)
        return drawn.to(dtype)

    def codes(self, n: int, d: int) -> Tensor:
        """Codes of such rows."""
        return (self.rows(n, d) * 40).clamp(-127, 127).to(torch.int8)

    def milliseconds(self, run: Callable[[], object]) -> Found:
        """Median and quartiles of calls, timed by events of the device if there is one."""
        run()
        taken = sorted(self._once(run) for _ in range(self.repeats if self.real else 2))
        low, median, high = statistics.quantiles(taken, n=4)
        return {"ms": median, "quartiles": [low, high]}

    def _once(self, run: Callable[[], object]) -> float:
        if not self.real:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(2_000_000)  # the host gets ahead of the device
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    def host_microseconds(self, run: Callable[[], object]) -> float:
        """What a call costs the host, while the device has nothing to do.

        Of a few batches the fastest, since whatever else the host does only adds.
        """
        run()
        taken = []
        for _ in range(5 if self.real else 1):
            self.wait()
            start = time.perf_counter()
            for _ in range(self.repeats):
                run()
            taken.append(time.perf_counter() - start)
        self.wait()
        return 1e6 * min(taken) / self.repeats

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """The same as a graph of the device's, which one call of the host starts."""
        if not self.real:
            return run
        # As torch asks: once on another stream before it is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()
        return lambda: (graph.replay(), kept)

    def wait(self) -> None:
        """Wait for the device."""
        if self.real:
            torch.cuda.synchronize()


def trial_of_tile(
    name: str, tile: TileConfig, machine: Machine, launch: Callable[..., object],
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


def persistent_tiles_of(machine: Machine) -> Iterator[TileConfig]:
    """Tiles of programs that go from tile to tile, where the device copies by descriptor."""
    arch = current_arch() if machine.real else "sm_90"
    if configs.choose_config("pairwise_fwd", torch.float16, 64, arch, True).descriptors:
        tile = configs.choose_config("pairwise_fwd_persistent", torch.float16, 64, arch, True)
        yield from (tile, replace(tile, flatten=False), replace(tile, num_stages=4, flatten=False))


def with_tf32(run: Callable[[], Tensor]) -> Tensor:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return run()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
