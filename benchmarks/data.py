"""The rows that are measured: Gaussian, real, clustered like real ones, and hard to screen.

All are made from a seed and are the same at each call. Real rows come from the embeddings that
the repository ships, or from a larger file that REAL_ROWS names: a .npy matrix of embeddings.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Data = Literal[
    "gaussian", "real", "clustered", "spiky", "cone", "duplicates", "copies", "equal", "views"
]

SHIPPED = Path(__file__).parent.parent / "examples" / "data" / "wordnet_minilm_4k_f16.npy"
# Names the file; an environment variable, since child processes have to see it too.
REAL_ROWS = "COSSIM_FAST_REAL_ROWS"


def real_file() -> Path:
    """The file that real rows come from."""
    return Path(os.environ.get(REAL_ROWS) or SHIPPED)


def real_shape() -> tuple[int, int]:
    """How many real rows there are, and their length."""
    n, d = np.load(real_file(), mmap_mode="r").shape
    return n, d


def describe_real() -> dict[str, object]:
    """What a reader has to know of the real rows: name, shape and a digest of the file."""
    path = real_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return {"file": path.name, "shape": list(real_shape()), "sha256": digest}


def real_or_clustered(rows: int, d: int) -> Data:
    """Real rows where there are enough of them, of that length; clustered ones where not."""
    n, length = real_shape()
    return "real" if n >= rows and length == d else "clustered"


def gaussian(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Independent entries: directions are uniform, and nothing is near anything."""
    return torch.empty(n, d).normal_(generator=generator)


def real(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Embeddings of sentences, in the file's order, which is shuffled; the generator is unused."""
    rows = np.load(real_file(), mmap_mode="r")
    if rows.shape[0] < n or rows.shape[1] != d:
        raise ValueError(f"expected {n} real rows of {d}, {real_file().name} holds {rows.shape}")
    return torch.from_numpy(rows[:n].astype(np.float32))


def clustered(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Stand in for real rows of any number and length.

    Principal variances fall as exp(-4.5 j/d), and a row adds its own direction to that of one of
    n/150 clusters, which add theirs to one of 50 topics, in parts that vary from row to row. Made
    to have what the shipped kind of embeddings has among 20 000 rows: a tenth of the dimensions
    holds 0.4 of the variance, half of them 0.9, and the nearest neighbour has a cosine of about
    0.6, the tenth of 0.5 (here 0.56) and the hundredth of 0.35.
    """
    falling = (-2.25 * torch.arange(d) / d).exp()
    topics = gaussian(50, d, generator) * falling
    clusters = gaussian(max(1, n // 150), d, generator) * falling
    topic = torch.randint(len(topics), (len(clusters),), generator=generator)
    clusters = 0.8 * clusters + 0.6 * topics[topic]
    cluster = torch.randint(len(clusters), (n,), generator=generator)
    share = torch.rand(n, 1, generator=generator).mul_(0.45).add_(0.4)
    own = gaussian(n, d, generator) * falling
    return own.mul_((1 - share * share).sqrt()).addcmul_(share, clusters[cluster])


def spiky(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Gaussian rows with four coordinates 50 times as large as the rest."""
    x = gaussian(n, d, generator)
    x[:, : min(4, d)] *= 50
    return x


def cone(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Rows within a tight cone, as collapsed embeddings: all cosines are above 0.99."""
    axis = torch.full((d,), 1.0)
    return axis + 0.05 * gaussian(n, d, generator)


def duplicates(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Rows of which each occurs in ten equal copies, in random places."""
    few = gaussian(max(1, n // 10), d, generator)
    return few[torch.randint(len(few), (n,), generator=generator)]


def copies(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Clustered rows of which a tenth are others with noise: 0.89 to 0.98 in cosine."""
    x = clustered(n, d, generator)
    count = n // 10
    noise = torch.rand(count, 1, generator=generator).mul_(0.3).add_(0.2)
    noise = noise * x[:count].norm(dim=1, keepdim=True) / d**0.5
    x[n - count :] = x[:count] + noise * gaussian(count, d, generator)
    return x[torch.randperm(n, generator=generator)]


def equal(n: int, d: int, generator: torch.Generator) -> Tensor:
    """One row, n times."""
    return gaussian(1, d, generator).repeat(n, 1)


def views(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Gaussian rows, and the same again with noise: row n/2 + i has a cosine of 0.7 with row i."""
    first = gaussian(-(-n // 2), d, generator)
    return torch.cat([first, (first + gaussian(len(first), d, generator))[: n // 2]])


MAKERS = {
    "gaussian": gaussian,
    "real": real,
    "clustered": clustered,
    "spiky": spiky,
    "cone": cone,
    "duplicates": duplicates,
    "copies": copies,
    "equal": equal,
    "views": views,
}


def make(
    kind: Data, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """Inputs of these shapes: Gaussian ones drawn one by one, others parts of one set of rows."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return [torch.empty(s, dtype=dtype).normal_(generator=generator) for s in shapes]
    counts = [shape[0] for shape in shapes]
    rows = MAKERS[kind](sum(counts), shapes[0][-1], generator).to(dtype)
    return list(rows.split(counts))
