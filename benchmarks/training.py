"""What a CollapseMonitor costs a training step.

The time inside the monitor's own calls is added up during training: the difference between steps
with a monitor and without is smaller than the noise of the machine. Outside of its calls it costs
one hook that is looked up at each forward call, which is not counted.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Case
from contender import Call, Inside
from cossim_fast.diagnose import CollapseMonitor

STEPS = 100


class TimedMonitor(CollapseMonitor):
    """Adds up the time that its own calls take."""

    spent = 0.0

    def observe(self, output: object, labels: object = None) -> None:
        """Time one observation."""
        start = time.perf_counter()
        super().observe(output, labels)
        self.spent += time.perf_counter() - start

    def compare(self, v1: Tensor, v2: Tensor | None, *, dim: int | None = None) -> str | None:
        """Time one comparison."""
        start = time.perf_counter()
        found = super().compare(v1, v2, dim=dim)
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


def inside(case: Case, *inputs: Tensor) -> Inside:
    """Train with a monitor; what counts is the time inside of it, one record among the steps."""
    network, images = NETWORKS[case.shapes[0]]()
    monitor = TimedMonitor(network, every=STEPS, warn=False)

    def steps() -> float:
        before = monitor.spent
        block(network, images, STEPS, monitor)
        return monitor.spent - before

    return Inside(steps)


def alone(case: Case, *inputs: Tensor) -> Call:
    """Train without one."""
    network, images = NETWORKS[case.shapes[0]]()
    return lambda: block(network, images, STEPS, None)


# By the shape of a batch.
NETWORKS = {(256, 512): perceptron, (128, 1, 32, 32): convolutions}
