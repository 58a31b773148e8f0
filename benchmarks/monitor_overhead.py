"""What a CollapseMonitor costs a training step; run it from anywhere, on an idle machine.

Two copies of a network train, one of them with a monitor; blocks of their steps alternate.
Two figures are printed for each network: the share of the steps' time that is spent inside
the monitor, measured around its calls, and the difference of the medians of the blocks, which
holds the noise of the machine.
"""

import copy
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cossim_fast.diagnose import CollapseMonitor

BLOCKS = 6


class TimedMonitor(CollapseMonitor):
    """Adds up the time that its own calls take."""

    spent = 0.0

    def observe(self, output: object) -> None:
        """Time one observation."""
        start = time.perf_counter()
        super().observe(output)
        self.spent += time.perf_counter() - start

    def compare(self, v1: Tensor, v2: Tensor | None) -> str | None:
        """Time one comparison."""
        start = time.perf_counter()
        found = super().compare(v1, v2)
        self.spent += time.perf_counter() - start
        return found


def perceptron() -> tuple[nn.Module, Tensor]:
    """Build a small network: 256 rows of 512 features through 512, 512 and 256."""
    layers = (nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256))
    return nn.Sequential(*layers), torch.randn(256, 512)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Build a small VGG with an 800-feature head for 128 images of 32 x 32."""
    layers: list[nn.Module] = []
    before = 1
    for after in (8, 16, 32, 32):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 800)), torch.randn(128, 1, 32, 32)


def block(network: nn.Module, images: Tensor, steps: int, monitor: TimedMonitor | None) -> float:
    """Train for some steps with a contrastive loss; return the seconds it took."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(steps):
        features = network(images + 0.1 * torch.randn_like(images))
        first, second = features.chunk(2)
        if monitor is not None:
            monitor.compare(first, second)
        logits = F.normalize(first) @ F.normalize(second).T / 0.1
        loss = F.cross_entropy(logits, torch.arange(len(logits)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - start


def main() -> None:
    """Measure both networks and print a table."""
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}")
    print(f"{'network':<14}{'step':>10}{'inside':>10}{'blocks':>10}   (every = 100)")
    for build, steps in ((perceptron, 200), (convolutions, 100)):
        torch.manual_seed(0)
        network, images = build()
        block(network, images, 20, None)
        plain, watched = [], []
        alone = copy.deepcopy(network)
        with TimedMonitor(network, every=100, warn=False) as monitor:
            for _ in range(BLOCKS):
                plain.append(block(alone, images, steps, None))
                watched.append(block(network, images, steps, monitor))
        step = statistics.median(plain) / steps
        inside = monitor.spent / sum(watched)
        difference = statistics.median(watched) / statistics.median(plain) - 1
        print(f"{build.__name__:<14}{1e3 * step:>7.2f} ms{inside:>10.2%}{difference:>10.2%}")


if __name__ == "__main__":
    main()
