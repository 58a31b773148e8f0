"""Train a small text encoder with a contrastive loss, and see its nearest neighbours get better.

A text becomes the mean of learned vectors of its words and of their character n-grams, 128 numbers.
It is trained to find, among the texts of its batch, the vector that all-MiniLM-L6-v2 gave to the
same text, brought to 128 numbers by a learned matrix. Texts and vectors are those of examples/data;
500 of them are held out, and what is printed is measured on these alone.

Usage: python examples/train_contrastive.py [--epochs N] [--texts N]
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cossim_fast import topk
from cossim_fast.losses import info_nce

DATA = Path(__file__).parent / "data"
EMBEDDINGS = DATA / "wordnet_minilm_4k_f16.npy"
TEXTS = DATA / "wordnet_glosses_4k.txt"

# Of this seed are the held-out texts, the first weights and the order of the batches.
SEED = 0
# Of eight texts one is held out.
HELD_OUT = 8
BUCKETS = 1 << 15
WIDTH = 128
BATCH = 500
TEMPERATURE = 0.2
LEARNING_RATE = 0.02
# The share of a text's n-grams that a training step does not see: the others have to do.
UNSEEN = 0.5
NEIGHBOURS = 10
LINE = 80


class Encoder(nn.Module):
    """Texts, and the vectors that another model gave them, to vectors of WIDTH numbers."""

    def __init__(self, width_of_vectors: int) -> None:
        super().__init__()
        self.of_grams = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.of_vectors = nn.Linear(width_of_vectors, WIDTH)

    def texts(self, grams: list[Tensor]) -> Tensor:
        """Return a vector for each text, (n, WIDTH), from its n-grams' buckets."""
        lengths = torch.tensor([0, *map(len, grams[:-1])])
        return self.of_grams(torch.cat(grams), lengths.cumsum(0))


class Measured(NamedTuple):
    """How good neighbours are, as shares of 1."""

    own: float  # texts whose nearest vector is their own
    common: float  # of a text's nearest texts, those that are nearest by the other model too
    neighbours: Tensor  # (n, NEIGHBOURS): rows of the nearest other texts


def main() -> int:
    """Train, and print what it did to neighbours; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--texts", type=int, default=None, help="use the first N texts only")
    args = parser.parse_args()
    try:
        texts, vectors = load(args.texts)
        if args.epochs < 1:
            raise ValueError(f"expected --epochs of at least 1, got {args.epochs}")
    except (OSError, ValueError) as error:
        print(f"train_contrastive: {error}", file=sys.stderr)
        return 1
    torch.manual_seed(SEED)
    order = torch.randperm(len(texts)).tolist()
    held, used = order[: len(texts) // HELD_OUT], order[len(texts) // HELD_OUT :]
    grams = [buckets(text) for text in texts]
    encoder = Encoder(vectors.shape[1])
    print(f"{len(used)} texts to learn from, {len(held)} held out.")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads.\n")
    before = measure(encoder, [grams[i] for i in held], vectors[held])
    start = time.perf_counter()
    train(encoder, [grams[i] for i in used], vectors[used], args.epochs)
    seconds = time.perf_counter() - start
    after = measure(encoder, [grams[i] for i in held], vectors[held])
    heading = f"{len(held)} held-out texts, trained in {seconds:.0f} s"
    print(f"\n{heading:60}{'before':>10}{'after':>10}")
    for title, share in (
        ("nearest to their own vector, of all vectors", "own"),
        (f"share of MiniLM's {NEIGHBOURS} nearest texts among ours", "common"),
    ):
        print(f"  {title:58}{getattr(before, share):10.1%}{getattr(after, share):10.1%}")
    print()
    show([texts[i] for i in held], before.neighbours, after.neighbours)
    return 0


def load(count: int | None) -> tuple[list[str], Tensor]:
    """Return the texts and their vectors (n, 384) in float32, or raise with what is wrong."""
    for path in (EMBEDDINGS, TEXTS):
        if not path.is_file():
            raise FileNotFoundError(f"expected the embeddings that ship in examples/data: {path}")
    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    vectors = torch.from_numpy(np.load(EMBEDDINGS)).float()
    fewest = HELD_OUT * (NEIGHBOURS + 1)
    if count is not None and not fewest <= count <= len(texts):
        raise ValueError(f"expected --texts between {fewest} and {len(texts)}, got {count}")
    return texts[:count], vectors[:count]


def buckets(text: str) -> Tensor:
    """Hash the words of a text, and their pieces of three to five characters, to buckets."""
    found = []
    for word in re.findall(r"\w+", text.lower()):
        marked = f"<{word}>"
        found.append(marked)
        for size in (3, 4, 5):
            found += [marked[i : i + size] for i in range(len(marked) - size + 1)]
    # Not hash(), which differs from process to process.
    return torch.tensor([zlib.crc32(piece.encode()) % BUCKETS for piece in found or [text]])


def train(encoder: Encoder, grams: list[Tensor], vectors: Tensor, epochs: int) -> None:
    """Train in place: each text against all vectors of its batch, and each vector likewise."""
    optimiser = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    progress = tqdm(range(epochs), desc="training", unit="epoch", dynamic_ncols=True)
    for _ in progress:
        for rows in torch.randperm(len(grams)).split(BATCH):
            queries = encoder.texts([some_of(grams[i]) for i in rows])
            keys = encoder.of_vectors(vectors[rows])
            loss = info_nce(queries, keys, temperature=TEMPERATURE, symmetric=True)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def some_of(grams: Tensor) -> Tensor:
    """Leave out a share of a text's n-grams, but not all."""
    kept = grams[torch.rand(len(grams)) >= UNSEEN]
    return kept if len(kept) else grams[:1]


@torch.no_grad()
def measure(encoder: Encoder, grams: list[Tensor], vectors: Tensor) -> Measured:
    """Compare the neighbours that the encoder finds with those of the other model's vectors."""
    encoded = encoder.texts(grams)
    rows = torch.arange(len(grams))
    _, nearest = topk(encoded, encoder.of_vectors(vectors), 1)
    ours, theirs = other_rows(encoded), other_rows(vectors)
    common = (ours[:, :, None] == theirs[:, None]).sum() / ours.numel()
    return Measured((nearest[:, 0] == rows).float().mean().item(), common.item(), ours)


def other_rows(x: Tensor) -> Tensor:
    """Each row's nearest other rows, (n, NEIGHBOURS)."""
    _, found = topk(x, x, NEIGHBOURS + 1)
    # A row stands before all others, but for earlier copies of it: then one too many is left.
    others = [[j for j in row if j != i][:NEIGHBOURS] for i, row in enumerate(found.tolist())]
    return torch.tensor(others)


def show(texts: list[str], before: Tensor, after: Tensor, asked: int = 4) -> None:
    """Print the nearest texts of a few, before and after."""
    print("Nearest among the held-out texts")
    for i in range(0, len(texts), -(-len(texts) // asked)):
        print(shortened(f"  {texts[i]}"))
        print(shortened(f"    before  {texts[before[i, 0]]}"))
        print(shortened(f"    after   {texts[after[i, 0]]}"))


def shortened(line: str) -> str:
    """Cut a line that is too long, and show that it was cut."""
    return line if len(line) <= LINE else line[: LINE - 1].rstrip() + "…"


if __name__ == "__main__":
    sys.exit(main())
