"""Why is my cosine similarity always 1? The whole story, on real images, on a CPU.

A VGG-style extractor with an 800-feature head looks at handwritten digits (scikit-learn's,
enlarged to 32 x 32), and the loop compares the features of each batch with those of the
batch before. The printed cosine is 1 for two reasons at once, one behind the other:

1. in the first iteration both names are one tensor;
2. the network maps every image to nearly one direction.

Run it with ``python examples/vgg_collapse.py``; ``--quick`` trains less, ``--html DIR``
writes a report of each stage.
"""

import argparse
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cossim_fast import cosine_similarity, diagnose

TRAINING = 1300
BATCH = 64


class Digits(NamedTuple):
    """Images (n, 1, 32, 32) in [0, 1] and their labels (n,), for training and held out."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


class Outcome(NamedTuple):
    """What the stages found, for whoever wants to check."""

    aliasing: str | None
    untrained: diagnose.CollapseReport
    attracted: diagnose.CollapseReport
    trained: diagnose.CollapseReport


def load() -> Digits:
    """Return the digits, enlarged from 8 x 8 to the smallest size four poolings leave whole."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=32, mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, classes = images[order], torch.tensor(labels)[order]
    return Digits(images[:TRAINING], classes[:TRAINING], images[TRAINING:], classes[TRAINING:])


def extractor(features: int = 800, *, normalised: bool = False) -> nn.Sequential:
    """Build a small VGG (Simonyan and Zisserman 2015): pairs of 3 x 3 convolutions, pooling."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (8, 16, 32, 32):
        for _ in range(2):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if normalised:
                layers.append(nn.BatchNorm2d(width, momentum=0.3))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(4 * channels, 128), nn.ReLU(), nn.Linear(128, features)]
    return nn.Sequential(*layers, *head)


def loop_as_people_write_it(network: nn.Module, digits: Digits, steps: int) -> str | None:
    """Compare each batch with the one before; return what the monitor found first."""
    found: list[str | None] = []
    with diagnose.CollapseMonitor(network, every=1) as monitor, torch.no_grad():
        for i in range(steps):
            vector1 = network(digits.images[i * BATCH : (i + 1) * BATCH])
            if i == 0:
                vector2 = vector1  # the mistake: a second name, not a copy
            found.append(monitor.compare(vector1, vector2))
            print(f"  step {i}: cosine {cosine_similarity(vector1, vector2).mean():.6f}")
            vector2 = vector1
    return found[0]


def loop_repaired(network: nn.Module, digits: Digits, steps: int) -> list[float]:
    """Keep a copy, and compare from the second batch on; return the cosines."""
    cosines = []
    previous: Tensor | None = None
    for i in range(steps):
        with torch.no_grad():
            features = network(digits.images[i * BATCH : (i + 1) * BATCH])
        if previous is not None:
            cosines.append(float(cosine_similarity(features, previous).mean()))
            print(f"  step {i}: cosine {cosines[-1]:.6f}")
        previous = features.detach().clone()
    return cosines


def train(network: nn.Module, digits: Digits, steps: int, *, repulsion: bool) -> None:
    """Pull two noisy views of each image together; with repulsion, all others apart.

    With it this is NT-Xent with the labels as positives, the supervised contrastive loss of
    Khosla et al. (2020).
    """
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(0, TRAINING, (BATCH,), generator=generator)
        batch, labels = digits.images[chosen], digits.labels[chosen]
        views = torch.cat([batch, batch])
        views = views + 0.1 * torch.randn(views.shape, generator=generator)
        first, second = network(views).chunk(2)
        if repulsion:
            loss = _contrastive(torch.cat([first, second]), torch.cat([labels, labels]))
        else:
            loss = (1 - cosine_similarity(first, second)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _contrastive(features: Tensor, labels: Tensor, temperature: float = 0.2) -> Tensor:
    unit = F.normalize(features)
    logits = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool)
    logits = logits.masked_fill(itself, float("-inf"))
    positive = (labels[:, None] == labels) & ~itself
    log_p = logits.log_softmax(1).masked_fill(~positive, 0)
    return -(log_p.sum(1) / positive.sum(1)).mean()


def look(
    network: nn.Module, digits: Digits, name: str, html: Path | None
) -> diagnose.CollapseReport:
    """Diagnose the features of the held-out images."""
    network.eval()
    with torch.no_grad():
        features = network(digits.held_out)
    report = diagnose.embeddings(features, digits.held_out_labels)
    print(f"\n{name}\n{report}\n")
    if html is not None:
        html.mkdir(parents=True, exist_ok=True)
        report.to_html(html / f"{name.replace(' ', '_')}.html", title=name)
    return report


def run(*, quick: bool = False, html: Path | None = None) -> Outcome:
    """Tell the story; ``quick`` trains for fewer steps."""
    torch.manual_seed(0)
    digits = load()
    steps = 40 if quick else 200

    print("The loop as people write it, with an untrained network:")
    network = extractor()
    aliasing = loop_as_people_write_it(network, digits, steps=3)
    print(f"  the monitor on the first comparison: {aliasing}")
    print("The loop repaired; the cosine is 1 still, since the network has collapsed:")
    loop_repaired(network, digits, steps=3)
    untrained = look(network, digits, "untrained", html)

    attracting = extractor()
    train(attracting, digits, steps, repulsion=False)
    attracted = look(attracting, digits, "trained without repulsion", html)

    contrasting = extractor(normalised=True)
    train(contrasting, digits, steps, repulsion=True)
    trained = look(contrasting, digits, "trained with a contrastive loss", html)
    print("The loop repaired, and the network trained:")
    loop_repaired(contrasting, digits, steps=3)
    return Outcome(aliasing, untrained, attracted, trained)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="train for fewer steps")
    parser.add_argument("--html", type=Path, help="folder for a report of each stage")
    arguments = parser.parse_args()
    warnings.simplefilter("always", diagnose.CollapseWarning)
    outcome = run(quick=arguments.quick, html=arguments.html)
    print("verdicts:", *(report.verdict for report in outcome[1:]), sep="\n  ")


if __name__ == "__main__":
    main()
