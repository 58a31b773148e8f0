"""Pairs and sets whose cause is known, and the confusion matrix of the diagnosis on them.

Run it to print the matrix; ``--write PATH`` writes the page of the documentation.
"""

import argparse
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import diagnose_networks as networks
from cossim_fast import diagnose

ROOT = Path(__file__).parents[1]
PAIR_FINDINGS = (
    "none",
    "non_finite",
    "zero_rows",
    "same_object",
    "shared_storage",
    "equal_values",
    "positive_multiple",
    "opposite",
    "common_offset",
    "single_feature",
    "low_precision",
)
VERDICTS = (
    "healthy",
    "anisotropic",
    "dimensional_collapse",
    "point_collapse",
    "duplicated",
    "broken_numbers",
)


class Case(NamedTuple):
    """One input, built anew at each call, and the cause it was built with."""

    name: str
    expected: str
    build: Callable[[], tuple[Any, ...]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Draw from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Draw from a fixed seed, in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def wordnet() -> Tensor:
    """Return the real sentence embeddings that ship with the repository."""
    return torch.from_numpy(np.load(ROOT / "examples/data/wordnet_minilm_4k_f16.npy"))


def rotation(d: int, seed: int = 3) -> Tensor:
    """Draw a random orthogonal matrix."""
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def with_row(x: Tensor, value: float, row: int = 3) -> Tensor:
    """Fill one row."""
    x = x.clone()
    x[row] = value
    return x


# -- pairs ----------------------------------------------------------------------------------


def _same(x: Any) -> tuple[Any, Any]:
    return x, x


def _map(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Tensor, Tensor]:
    x = randn(*shape)
    return x, function(x)


def _two(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Tensor, Tensor]:
    return function(randn(*shape)), function(randn(*shape, seed=1))


def _refilled_buffer() -> tuple[Tensor, Tensor]:
    buffer = torch.empty(16, 64)
    before = buffer[:]
    buffer.copy_(randn(16, 64))
    return buffer, before


def _overlapping_slices() -> tuple[Tensor, Tensor]:
    x = randn(20, 8)
    return x[:12], x[8:]


def _halves() -> tuple[Tensor, Tensor]:
    first, second = randn(32, 64).chunk(2)
    return first, second


def _interleaved() -> tuple[Tensor, Tensor]:
    x = randn(32, 64)
    return x[::2], x[1::2]


def _numpy_view() -> tuple[Any, Any]:
    array = np.random.default_rng(0).standard_normal((8, 16))
    return array, torch.from_numpy(array)


def _parameter_data() -> tuple[Any, Any]:
    parameter = torch.nn.Parameter(randn(8, 16))
    return parameter, parameter.data


def _untrained_batches() -> tuple[Tensor, Tensor]:
    features = networks.features(networks.vgg(), 128)
    return features[:64].clone(), features[64:].clone()


def _network_twice() -> tuple[Tensor, Tensor]:
    network = networks.vgg()
    return networks.features(network, 32), networks.features(network, 32)


def _small_angle() -> tuple[Tensor, Tensor]:
    x = randn(16, 64)
    return x.bfloat16(), (x + 0.02 * randn(16, 64, seed=2)).bfloat16()


PAIRS = (
    Case("two random batches", "none", lambda: _two(lambda x: x, 16, 64)),
    Case("(1, 2, 3) and (3, 2, 1)", "none", lambda: ([1, 2, 3], [3, 2, 1])),
    Case("two random vectors, float64", "none", lambda: _two(torch.Tensor.double, 300)),
    Case("two random batches, bfloat16", "none", lambda: _two(torch.Tensor.bfloat16, 16, 64)),
    Case("two random batches, float16", "none", lambda: _two(torch.Tensor.half, 16, 64)),
    Case(
        "noisy views of one batch",
        "none",
        lambda: _map(lambda x: x + 0.3 * randn(16, 64, seed=2), 16, 64),
    ),
    Case("rectified random batches", "none", lambda: _two(torch.relu, 16, 256)),
    Case("random integers", "none", lambda: _two(lambda x: (9 * x).int(), 16, 64)),
    Case("two halves of one batch", "none", _halves),
    Case("interleaved rows of one batch", "none", _interleaved),
    Case("not contiguous", "none", lambda: _two(lambda x: x.T, 64, 16)),
    Case(
        "real embeddings, different rows",
        "none",
        lambda: (wordnet()[:500].clone(), wordnet()[500:1000].clone()),
    ),
    Case("three axes", "none", lambda: _two(lambda x: x, 2, 5, 32)),
    Case(
        "NaN in one row",
        "non_finite",
        lambda: (with_row(randn(16, 64), float("nan")), randn(16, 64, seed=1)),
    ),
    Case(
        "infinity in one element",
        "non_finite",
        lambda: (randn(64), F.pad(randn(63), (1, 0), value=float("inf"))),
    ),
    Case("float16 overflow", "non_finite", lambda: _two(lambda x: (1e6 * x).half(), 16, 64)),
    Case("all zeros", "zero_rows", lambda: (torch.zeros(4, 8), randn(4, 8))),
    Case(
        "one zero row of many",
        "zero_rows",
        lambda: (with_row(randn(16, 64), 0.0), randn(16, 64, seed=1)),
    ),
    Case("a dead ReLU layer", "zero_rows", lambda: _two(lambda x: torch.relu(x - 100), 16, 64)),
    Case("rows under eps", "zero_rows", lambda: _two(lambda x: 1e-12 * x, 16, 64)),
    Case("vector2 = vector1", "same_object", lambda: _same(randn(16, 800))),
    Case("one array", "same_object", lambda: _same(np.ones((3, 4)))),
    Case("detach()", "shared_storage", lambda: _map(torch.Tensor.detach, 16, 64)),
    Case(
        "view and back", "shared_storage", lambda: _map(lambda x: x.view(-1).view(16, 64), 16, 64)
    ),
    Case("expand()", "shared_storage", lambda: _map(lambda x: x[:1].expand(16, 64), 16, 64)),
    Case("a parameter and its .data", "shared_storage", _parameter_data),
    Case("a buffer that is refilled", "shared_storage", _refilled_buffer),
    Case("overlapping slices", "shared_storage", _overlapping_slices),
    Case("an array and torch.from_numpy of it", "shared_storage", _numpy_view),
    Case("clone()", "equal_values", lambda: _map(torch.Tensor.clone, 16, 64)),
    Case("float32 and its float16", "equal_values", lambda: _map(torch.Tensor.half, 16, 64)),
    Case("one network, one batch, twice", "equal_values", _network_twice),
    Case(
        "clamped to one value",
        "equal_values",
        lambda: _two(lambda x: (1e6 * x.abs() + 1e6).clamp(max=65504).half(), 16, 64),
    ),
    Case("(1, 2, 3) and (2, 4, 6)", "positive_multiple", lambda: ([1, 2, 3], [2, 4, 6])),
    Case(
        "another factor for each row",
        "positive_multiple",
        lambda: _map(lambda x: x * (rand(16, 1) + 0.1), 16, 64),
    ),
    Case("normalised on one side", "positive_multiple", lambda: _map(F.normalize, 16, 64)),
    Case(
        "normalised on one side, bfloat16",
        "positive_multiple",
        lambda: _map(lambda x: F.normalize(x).bfloat16(), 16, 64),
    ),
    Case("negated", "opposite", lambda: _map(torch.neg, 16, 64)),
    Case(
        "a negative multiple, float16",
        "opposite",
        lambda: _map(lambda x: (-0.3 * x).half(), 16, 64),
    ),
    Case("random + 10", "common_offset", lambda: _two(lambda x: x + 10, 16, 64)),
    Case("uniform in [0, 1)", "common_offset", lambda: (rand(16, 64), rand(16, 64, seed=1))),
    Case("two vectors with one large mean", "common_offset", lambda: _two(lambda x: x + 30, 200)),
    Case(
        "one direction and small noise",
        "common_offset",
        lambda: _two(lambda x: randn(64, seed=9) + 0.01 * x, 16, 64),
    ),
    Case(
        "1000 + random in bfloat16",
        "common_offset",
        lambda: _two(lambda x: (1000 + x).bfloat16(), 16, 64),
    ),
    Case("batches through an untrained VGG", "common_offset", _untrained_batches),
    Case("one feature", "single_feature", lambda: (rand(8, 1), rand(8, 1, seed=1))),
    Case("the wrong dim", "single_feature", lambda: (randn(1, 800).T, randn(1, 800, seed=1).T)),
    Case("two numbers", "single_feature", lambda: (torch.tensor(2.0), torch.tensor(4.0))),
    Case("a small angle in bfloat16", "low_precision", _small_angle),
    Case(
        "a small angle in float32",
        "low_precision",
        lambda: _map(lambda x: x + 1e-4 * randn(16, 64, seed=2), 16, 64),
    ),
    Case(
        "squares that overflow float32", "low_precision", lambda: _two(lambda x: 1e25 * x, 16, 64)
    ),
)


# -- sets -----------------------------------------------------------------------------------


def _decaying(rate: float) -> Tensor:
    return randn(600, 128) * rate ** torch.arange(128)


def _copies(jitter: float) -> Tensor:
    once = wordnet()[:800].float()
    return torch.cat([once, once + jitter * randn(800, 384) / 384**0.5])


def _low_rank(rank: int, noise: float = 0.0) -> Tensor:
    return randn(600, rank) @ randn(rank, 128, seed=1) + noise * randn(600, 128, seed=2)


def _bottleneck() -> Tensor:
    torch.manual_seed(0)
    narrow = torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 128, bias=False)
    return networks.features(torch.nn.Sequential(*narrow), training=True)


def _biased() -> Tensor:
    network = networks.perceptron(64, 128, 128)
    with torch.no_grad():
        network[-1].bias += 100 * randn(128)
    return networks.features(network)


def _dead_output() -> Tensor:
    network = networks.perceptron(64, 128, 128)
    with torch.no_grad():
        network[-1].bias -= 100
    return torch.relu(networks.features(network))


def _dead_hidden() -> Tensor:
    network = networks.perceptron(64, 128, 128)
    with torch.no_grad():
        network[0].bias -= 100
    return networks.features(network)


@functools.cache
def _contrastive() -> Tensor:
    network = networks.perceptron(64, 256, 64, normalised=True)
    return networks.features(networks.train(network, repulsion=True, steps=150))


@functools.cache
def _attracted() -> Tensor:
    network = networks.perceptron(64, 256, 256, 256, 128)
    return networks.features(networks.train(network, repulsion=False, steps=60))


def _diverged() -> Tensor:
    network = networks.perceptron(64, 256, 256, 128)
    return networks.features(networks.train(network, repulsion=True, steps=20, lr=1e6))


def _labels() -> Tensor:
    return networks.digits()[1][:1000]


SETS = (
    Case("random", "healthy", lambda: (randn(600, 128),)),
    Case("random, few rows", "healthy", lambda: (randn(10, 384),)),
    Case("random, n = d", "healthy", lambda: (randn(128, 128),)),
    Case("random, three features", "healthy", lambda: (randn(600, 3),)),
    Case("random, two features", "healthy", lambda: (randn(100, 2),)),
    Case("random, bfloat16", "healthy", lambda: (randn(600, 128).bfloat16(),)),
    Case("random, rectified", "healthy", lambda: (torch.relu(randn(600, 128)),)),
    Case("real embeddings", "healthy", lambda: (wordnet(),)),
    Case("real, rotated", "healthy", lambda: (wordnet().float() @ rotation(384),)),
    Case("real, bfloat16", "healthy", lambda: (wordnet().bfloat16(),)),
    Case("real, 50 rows", "healthy", lambda: (wordnet()[:50],)),
    Case(
        "real, 50 rows, centred",
        "healthy",
        lambda: (wordnet()[:50].float() - wordnet()[:50].float().mean(0),),
    ),
    Case("real, 8 rows", "healthy", lambda: (wordnet()[:8],)),
    Case("real, centred", "healthy", lambda: (wordnet().float() - wordnet().float().mean(0),)),
    Case(
        "real, rows scaled at random",
        "healthy",
        lambda: (wordnet().float() * (rand(4000, 1) + 0.01),),
    ),
    Case(
        "real, 2 % of the rows doubled",
        "healthy",
        lambda: (torch.cat([wordnet()[:2000], wordnet()[:40]]),),
    ),
    Case("real, rectified", "healthy", lambda: (wordnet().clamp(min=0),)),
    Case("real, n = d", "healthy", lambda: (wordnet()[:384],)),
    Case("network trained with repulsion", "healthy", lambda: (_contrastive(),)),
    Case("the same with its labels", "healthy", lambda: (_contrastive(), _labels())),
    Case(
        "clusters",
        "healthy",
        lambda: (randn(10, 128)[torch.arange(600) % 10] + 0.2 * randn(600, 128, seed=1),),
    ),
    Case("random + 1.5", "anisotropic", lambda: (randn(600, 128) + 1.5,)),
    Case("random + 5", "anisotropic", lambda: (randn(600, 128) + 5,)),
    Case("uniform in [0, 1)", "anisotropic", lambda: (rand(600, 128),)),
    Case(
        "real, made positive by its minimum",
        "anisotropic",
        lambda: (wordnet().float() - wordnet().float().min(),),
    ),
    Case("real, made positive, 50 rows", "anisotropic", lambda: (wordnet()[:50].float() + 0.3,)),
    Case("real + 1", "anisotropic", lambda: (wordnet().float() + 1,)),
    Case("real + 10, whose ranking survives", "anisotropic", lambda: (wordnet().float() + 10,)),
    Case("real, absolute values", "anisotropic", lambda: (wordnet().abs(),)),
    Case("images as they are", "anisotropic", lambda: (networks.digits()[0],)),
    Case("rank 4 of 128", "dimensional_collapse", lambda: (_low_rank(4),)),
    Case("rank 16 of 128", "dimensional_collapse", lambda: (_low_rank(16),)),
    Case("rank 8 and noise", "dimensional_collapse", lambda: (_low_rank(8, 0.05),)),
    Case("spectrum that decays by 0.9", "dimensional_collapse", lambda: (_decaying(0.9),)),
    Case(
        "one feature outweighs all",
        "dimensional_collapse",
        lambda: (randn(600, 128) * F.pad(torch.tensor([100.0]), (0, 127), value=1.0),),
    ),
    Case(
        "nine tenths of the features dead",
        "dimensional_collapse",
        lambda: (randn(600, 128) * (torch.arange(128) < 12),),
    ),
    Case("eight features repeated", "dimensional_collapse", lambda: (randn(600, 8).repeat(1, 16),)),
    Case(
        "real, projected to 8 directions",
        "dimensional_collapse",
        lambda: (wordnet().float() @ rotation(384)[:, :8] @ rotation(384)[:, :8].T,),
    ),
    Case("network with a layer of 4", "dimensional_collapse", lambda: (_bottleneck(),)),
    Case("one feature of both signs", "dimensional_collapse", lambda: (randn(600, 1),)),
    Case("constant output", "point_collapse", lambda: (randn(128).expand(600, 128).clone(),)),
    Case(
        "constant output and rounding",
        "point_collapse",
        lambda: (randn(128) * (1 + 1e-7 * randn(600, 128, seed=1)),),
    ),
    Case(
        "one direction and small noise",
        "point_collapse",
        lambda: (randn(128) + 0.01 * randn(600, 128, seed=1),),
    ),
    Case(
        "the same in float16",
        "point_collapse",
        lambda: ((randn(128) + 0.01 * randn(600, 128, seed=1)).half(),),
    ),
    Case("random + 1000", "point_collapse", lambda: (randn(600, 128) + 1000,)),
    Case("untrained VGG", "point_collapse", lambda: (networks.features(networks.vgg()),)),
    Case(
        "untrained deep perceptron",
        "point_collapse",
        lambda: (networks.features(networks.perceptron(64, *[256] * 8, 128)),),
    ),
    Case("network trained without repulsion", "point_collapse", lambda: (_attracted(),)),
    Case("learning rate too high", "point_collapse", lambda: (_diverged(),)),
    Case("bias that swamps the input", "point_collapse", lambda: (_biased(),)),
    Case("dead hidden layer", "point_collapse", lambda: (_dead_hidden(),)),
    Case(
        "normalised over a batch of one",
        "point_collapse",
        lambda: (torch.stack([F.normalize(row[None], dim=0)[0] for row in rand(100, 64)]),),
    ),
    Case("one positive feature", "point_collapse", lambda: (rand(600, 1),)),
    Case("every row twice", "duplicated", lambda: (_copies(0.0),)),
    Case("every row twice, jittered", "duplicated", lambda: (_copies(1e-3),)),
    Case("thirty rows, forty times", "duplicated", lambda: (randn(30, 64).repeat(40, 1),)),
    Case(
        "a third of the rows are copies",
        "duplicated",
        lambda: (torch.cat([wordnet()[:1000], wordnet()[:250]]),),
    ),
    Case("NaN in one row", "broken_numbers", lambda: (with_row(randn(600, 128), float("nan")),)),
    Case("one zero row", "broken_numbers", lambda: (with_row(randn(600, 128), 0.0),)),
    Case("all zeros", "broken_numbers", lambda: (torch.zeros(600, 128),)),
    Case("rows under eps", "broken_numbers", lambda: (1e-12 * randn(600, 128),)),
    Case(
        "saturated float16",
        "broken_numbers",
        lambda: ((1e5 * randn(600, 128)).clamp(-65504, 65504).half(),),
    ),
    Case("float16 overflow", "broken_numbers", lambda: ((1e5 * randn(600, 128)).half(),)),
    Case("dead output layer", "broken_numbers", lambda: (_dead_output(),)),
)


def found(case: Case) -> str:
    """Return what the diagnosis says of a case."""
    built = case.build()
    if case in PAIRS:
        return diagnose.pair(*built).finding
    return diagnose.embeddings(*built).verdict


def matrix(cases: tuple[Case, ...], names: tuple[str, ...]) -> str:
    """Render the confusion matrix of some cases as a Markdown table."""
    counts = Counter((case.expected, found(case)) for case in cases)
    lines = ["| built \\ found | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for expected in names:
        row = (str(counts[expected, name] or "·") for name in names)
        lines.append(f"| **{expected}** | " + " | ".join(row) + " |")
    return "\n".join(lines)


def page() -> str:
    """Render the page of the documentation."""
    cases = "\n".join(f"- {case.name}: `{case.expected}`" for case in PAIRS)
    sets = "\n".join(f"- {case.name}: `{case.expected}`" for case in SETS)
    return f"""# What the diagnosis gets right

{len(PAIRS)} pairs and {len(SETS)} sets whose cause is known, since they were built with it:
synthetic ones, real sentence embeddings, and small networks on real images. Rows say what
was built, columns what was found; `make confusion` computes this page anew, and the test
suite fails where a case is confused.

## Pairs

{matrix(PAIRS, PAIR_FINDINGS)}

## Sets

{matrix(SETS, VERDICTS)}

## The cases

Pairs:

{cases}

Sets:

{sets}
"""


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    text = page()
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
