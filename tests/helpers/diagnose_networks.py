"""Small networks on real images, brought into states whose cause is known."""

import functools
import itertools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits: (1797, 64) in [0, 1], and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)


def perceptron(*widths: int, normalised: bool = False) -> nn.Sequential:
    """Build Linear and ReLU layers of these widths, the last one linear."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        if normalised:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def vgg(features: int = 800) -> nn.Sequential:
    """Build an untrained VGG-style extractor for 8 x 8 images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    channels = 1
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, features)]
    return nn.Sequential(*layers, *head)


@torch.no_grad()
def features(network: nn.Module, rows: int = 1000, *, training: bool = False) -> Tensor:
    """Return the network's output on some digits; in training mode, BatchNorm's batch counts."""
    return network.train(training)(digits()[0][:rows])


def train(network: nn.Module, *, repulsion: bool, steps: int, lr: float = 1e-3) -> nn.Module:
    """Pull noisy views of a digit together; with repulsion, digits of other classes apart."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (64,), generator=generator)
        views = images[chosen].repeat(2, 1)
        views = views + 0.1 * torch.randn(views.shape, generator=generator)
        unit = F.normalize(network(views))
        if repulsion:
            itself = torch.eye(len(unit), dtype=torch.bool)
            labels = classes[chosen].repeat(2)
            positive = (labels[:, None] == labels) & ~itself
            log_p = (unit @ unit.T / 0.2).masked_fill(itself, float("-inf")).log_softmax(1)
            loss = -(log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()
        else:
            loss = (1 - (unit[:64] * unit[64:]).sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network
