"""Sets whose cause is known: synthetic, real, and from small networks on real images."""

import functools
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

import diagnose_networks as networks
from diagnose_inputs import ROOT, Case, rand, randn, rotation, with_row, wordnet


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


def _many_lengths() -> Tensor:
    return randn(600, 128).double() * torch.exp(3 * randn(600, 1, seed=4))


def _clusters(count: int, noise: float) -> Tensor:
    centres = randn(count, 128)
    return centres[torch.arange(600) % count] + noise * randn(600, 128, seed=1)


def _two_groups(noise: float, share: float = 0.5) -> Tensor:
    group = (torch.arange(300) >= 300 * share).long()
    return randn(2, 64)[group] + noise * randn(300, 64, seed=1)


def _modality_gap() -> Tensor:
    images = randn(150, 64) + 2 * randn(64, seed=3)
    return torch.cat([images, randn(150, 64, seed=1) + 2 * randn(64, seed=4)])


def _narrow_groups() -> Tensor:
    return _two_groups(0.0) + 0.3 * randn(300, 2, seed=7) @ randn(2, 64, seed=8)


@functools.cache
def _binary_classifier(layer: int, steps: int) -> Tensor:
    """Return what a layer makes of two classes that it tells apart without an error."""
    network = networks.perceptron(20, 64, 64, 2)
    centres = 2 * randn(2, 20, seed=9)
    classes = torch.arange(128) % 2
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        x = centres[classes] + 0.5 * randn(128, 20, seed=100 + step)
        optimiser.zero_grad()
        F.cross_entropy(network(x), classes).backward()
        optimiser.step()
    with torch.no_grad():
        x = centres[classes] + 0.5 * randn(128, 20, seed=99)
        if steps and not bool((network(x).argmax(1) == classes).all()):
            raise RuntimeError("expected a classifier that tells all apart")
        return network[: layer + 1](x)


def _both_signs() -> Tensor:
    signs = torch.where(torch.arange(600) % 2 == 0, 1.0, -1.0)
    return signs[:, None] * randn(128) + 0.01 * randn(600, 128, seed=1)


def _noisy(noise: float) -> Tensor:
    return randn(128) + noise * randn(600, 128, seed=1)


def _crowd(rows: int, noise: float) -> Tensor:
    x = randn(600, 128)
    x[:rows] = x[0] + noise * randn(rows, 128, seed=1)
    return x


def _large_feature() -> Tensor:
    x = randn(600, 128)
    x[:, 7] = 50.0
    return x


def _word_counts() -> Tensor:
    """Count the 500 most frequent words of real glosses, by the rarity of each word."""
    path = ROOT / "examples/data/wordnet_glosses_4k.txt"
    texts = [line.lower().split() for line in path.read_text("utf-8").splitlines()[:1000]]
    frequency = Counter(word for text in texts for word in set(text))
    words = {word: k for k, (word, _) in enumerate(frequency.most_common(500))}
    counts = torch.zeros(len(texts), len(words))
    for row, text in zip(counts, texts, strict=True):
        for word in text:
            if word in words:
                row[words[word]] += 1
    rarity = torch.tensor([len(texts) / frequency[word] for word in words]).log()
    return (counts * rarity)[counts.any(1)]


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
    Case("random, four rows of three features", "healthy", lambda: (randn(4, 3),)),
    Case("random, eight rows of seven features", "healthy", lambda: (randn(8, 7),)),
    Case("random, twenty rows of two features", "healthy", lambda: (randn(20, 2, seed=2),)),
    Case("random, 2048 features", "healthy", lambda: (randn(50, 2048),)),
    Case("random, float64, lengths over many decades", "healthy", lambda: (_many_lengths(),)),
    Case("random, an array that is not contiguous", "healthy", lambda: (randn(64, 300).numpy().T,)),
    Case("random codes of 8 bits", "healthy", lambda: ((40 * randn(600, 64)).to(torch.int8),)),
    Case("random signs", "healthy", lambda: (randn(600, 64).sign(),)),
    Case(
        "random, nine tenths zeros", "healthy", lambda: (randn(600, 128) * (rand(600, 128) < 0.1),)
    ),
    Case("one-hot rows", "healthy", lambda: (torch.eye(64),)),
    Case("word counts, weighted", "healthy", lambda: (_word_counts(),)),
    Case("real, signs", "healthy", lambda: (wordnet()[:1000].sign(),)),
    Case(
        "images, centred", "healthy", lambda: (networks.digits()[0] - networks.digits()[0].mean(0),)
    ),
    Case(
        "two tight classes, with labels",
        "healthy",
        lambda: (_clusters(2, 0.1), torch.arange(600) % 2),
    ),
    Case(
        "ten classes of nearly equal rows, with labels",
        "healthy",
        lambda: (_clusters(10, 0.005), torch.arange(600) % 10),
    ),
    Case("two directions with noise", "healthy", lambda: (_two_groups(0.4),)),
    Case("two directions with little noise", "healthy", lambda: (_two_groups(0.1),)),
    Case(
        "two directions with noise, seven rows to three",
        "healthy",
        lambda: (_two_groups(0.2, 0.7),),
    ),
    Case(
        "two directions with noise, of any length",
        "healthy",
        lambda: (_two_groups(0.3) * randn(300, 1, seed=5).exp(),),
    ),
    Case(
        "two directions with noise, centred",
        "healthy",
        lambda: (_two_groups(0.3) - _two_groups(0.3).mean(0),),
    ),
    Case("two towers with a modality gap", "healthy", lambda: (_modality_gap(),)),
    Case("features of a binary classifier", "healthy", lambda: (_binary_classifier(2, 60),)),
    Case("rectified features of it", "healthy", lambda: (_binary_classifier(3, 60),)),
    Case("logits of a binary classifier", "healthy", lambda: (_binary_classifier(4, 60),)),
    Case(
        "features of a binary classifier, with labels",
        "healthy",
        lambda: (_binary_classifier(2, 60), torch.arange(128) % 2),
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
    Case("random bytes", "anisotropic", lambda: ((255 * rand(600, 64)).to(torch.uint8),)),
    Case("one feature large and constant", "anisotropic", lambda: (_large_feature(),)),
    Case("real + 1, bfloat16", "anisotropic", lambda: ((wordnet()[:1000] + 1).bfloat16(),)),
    Case("real + 1, 30 rows", "anisotropic", lambda: (wordnet()[:30].float() + 1,)),
    Case("real, through a softmax", "anisotropic", lambda: (wordnet()[:1000].float().softmax(1),)),
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
    Case("a plane in three dimensions", "dimensional_collapse", lambda: (_low_rank(2)[:, :3],)),
    Case("rank 2, twelve rows", "dimensional_collapse", lambda: (_low_rank(2)[:12],)),
    Case("two directions", "dimensional_collapse", lambda: (_clusters(2, 0.01),)),
    Case("two directions, of rank 2 within", "dimensional_collapse", lambda: (_narrow_groups(),)),
    Case(
        "one feature outweighs all by far",
        "dimensional_collapse",
        lambda: (randn(600, 128) * F.pad(torch.tensor([1e3]), (0, 127), value=1.0),),
    ),
    Case("a direction and its opposite", "dimensional_collapse", lambda: (_both_signs(),)),
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
    Case(
        "constant and small noise, bfloat16", "point_collapse", lambda: (_noisy(0.003).bfloat16(),)
    ),
    Case("constant and small noise, float64", "point_collapse", lambda: (_noisy(1e-5).double(),)),
    Case(
        "constant and small noise, two features", "point_collapse", lambda: (_noisy(1e-3)[:, :2],)
    ),
    Case(
        "constant and rare noise",
        "point_collapse",
        lambda: (randn(128) + 0.02 * randn(600, 128, seed=1) * (rand(600, 128) < 0.05),),
    ),
    Case("seven rows in ten at one point", "point_collapse", lambda: (_crowd(420, 0.03),)),
    Case(
        "constant and small noise, one row zero",
        "point_collapse",
        lambda: (with_row(_noisy(0.01), 0.0),),
    ),
    Case(
        "constant output, one row NaN",
        "point_collapse",
        lambda: (with_row(_noisy(0.0), float("nan")),),
    ),
    Case(
        "rank 4 of 128, one row zero",
        "dimensional_collapse",
        lambda: (with_row(_low_rank(4), 0.0),),
    ),
    Case("every row twice", "duplicated", lambda: (_copies(0.0),)),
    Case("every row twice, jittered", "duplicated", lambda: (_copies(1e-3),)),
    Case("thirty rows, forty times", "duplicated", lambda: (randn(30, 64).repeat(40, 1),)),
    Case(
        "a third of the rows are copies",
        "duplicated",
        lambda: (torch.cat([wordnet()[:1000], wordnet()[:250]]),),
    ),
    Case("half of the rows are one", "duplicated", lambda: (_crowd(300, 0.0),)),
    Case("half of the rows are nearly one", "duplicated", lambda: (_crowd(300, 0.005),)),
    Case("classes as one-hot rows", "duplicated", lambda: (torch.eye(10)[torch.arange(600) % 10],)),
    Case(
        "every row and its double",
        "duplicated",
        lambda: (torch.cat([wordnet()[:500], 2 * wordnet()[:500]]),),
    ),
    Case("one feature of both signs", "single_feature", lambda: (randn(600, 1),)),
    Case("one feature, few rows", "single_feature", lambda: (randn(3, 1),)),
    Case("one positive feature", "single_feature", lambda: (rand(600, 1),)),
    Case("one rectified feature", "single_feature", lambda: (torch.relu(randn(600, 1)),)),
    Case("one feature, few values", "single_feature", lambda: (randn(600, 1).round(),)),
    Case("one feature, all zeros", "single_feature", lambda: (torch.zeros(600, 1),)),
    Case(
        "one feature with labels",
        "single_feature",
        lambda: (randn(600, 1), torch.arange(600) % 2),
    ),
    Case(
        "most rows zero, the others one direction",
        "broken_numbers",
        lambda: (_noisy(0.01) * (torch.arange(600) < 200)[:, None],),
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
    Case(
        "float16 below its normal range",
        "broken_numbers",
        lambda: ((1e-6 * randn(600, 128)).half(),),
    ),
    Case(
        "infinity in one feature",
        "broken_numbers",
        lambda: (randn(600, 128).index_fill(1, torch.tensor(5), float("inf")),),
    ),
)
