"""The main job on real embeddings: every text with every other, checked, timed and drawn.

Usage: python examples/demo.py [--rows N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cossim_fast import pairwise_cosine

DATA = Path(__file__).parent / "data"
EMBEDDINGS = DATA / "wordnet_minilm_4k_f16.npy"
TEXTS = DATA / "wordnet_glosses_4k.txt"

WIDTH = 80
ROUNDS = 3
# Rows that F.cosine_similarity compares with all others in one call, to show what that takes.
ONE_CALL = 50


class Job(NamedTuple):
    """One way to compute similarities, under the name that the table shows."""

    name: str
    run: Callable[[Tensor], Tensor]


def ours(x: Tensor) -> Tensor:
    """All similarities, by cossim_fast."""
    return pairwise_cosine(x)


def plain_product(x: Tensor) -> Tensor:
    """All similarities, by torch: unit rows and one product."""
    unit = F.normalize(x)
    return torch.mm(unit, unit.T)


def torch_by_rows(x: Tensor) -> Tensor:
    """All similarities, by torch: one row with all rows a call, which keeps in cache."""
    out = x.new_empty(len(x), len(x))
    for i, row in enumerate(x):
        out[i] = F.cosine_similarity(row[None], x)
    return out


def torch_one_call(x: Tensor) -> Tensor:
    """Similarities of the first rows with all rows, by torch in one broadcast call."""
    return F.cosine_similarity(x[:ONE_CALL, None], x[None], dim=-1)


JOBS = {
    "ours": Job("cossim_fast.pairwise_cosine", ours),
    "product": Job("F.normalize and torch.mm", plain_product),
    "rows": Job("F.cosine_similarity, a call a row", torch_by_rows),
    "one-call": Job(f"F.cosine_similarity, one call, {ONE_CALL} rows only", torch_one_call),
}


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=None, help="use the first N texts only")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture")
    parser.add_argument("--peak", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        x, texts = load(args.rows)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if args.peak:
        print(peak_beyond(JOBS[args.peak], x))
        return 0
    print(f"{len(x)} sentence embeddings of {x.shape[1]} numbers: WordNet entries, by")
    print(f"all-MiniLM-L6-v2. torch {torch.__version__}, {torch.get_num_threads()} threads.\n")
    matrix = compare(x)
    show_neighbours(matrix, texts)
    path = draw_groups(matrix, texts, args.out)
    print(f"Heatmap of the closest groups of texts: {path}")
    return 0


def load(rows: int | None) -> tuple[Tensor, list[str]]:
    """Return the embeddings in float32 and their texts, or raise with what is wrong."""
    for path in (EMBEDDINGS, TEXTS):
        if not path.is_file():
            raise FileNotFoundError(f"expected the embeddings that ship in examples/data: {path}")
    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    x = torch.from_numpy(np.load(EMBEDDINGS)).float()
    if len(x) != len(texts):
        raise ValueError(f"expected a text for each of {len(x)} embeddings, got {len(texts)}")
    fewest = GROUPS * GROUP_SIZE
    if rows is not None and not fewest <= rows <= len(x):
        raise ValueError(f"expected --rows between {fewest} and {len(x)}, got {rows}")
    return x[:rows], texts[:rows]


def compare(x: Tensor) -> Tensor:
    """Print time, memory and error of each job; return the matrix."""
    results = {key: job.run(x) for key, job in JOBS.items()}
    times: dict[str, list[float]] = {key: [] for key in JOBS}
    for _ in range(ROUNDS):
        for key, job in JOBS.items():
            start = time.perf_counter()
            job.run(x)
            times[key].append(time.perf_counter() - start)
    exact = in_float64(x)
    errors = {key: largest(result - exact[: len(result)]) for key, result in results.items()}
    check(errors, x.shape[1])
    print(f"{f'Every text with every text: {len(x)} x {len(x)}':45}    time    memory    error")
    for key, job in JOBS.items():
        seconds = statistics.median(times[key])
        print(f"  {job.name:43}{seconds:7.3f} s {memory(key, len(x)):>9}{errors[key]:9.0e}")
    apart = largest(results["ours"] - results["rows"])
    faster = statistics.median(times["rows"]) / statistics.median(times["ours"])
    broadcast = len(x) * x.numel() * x.element_size() / 1e9
    print(f"""
  time: median of {ROUNDS} alternating runs; {faster:.0f} times faster than a call a row.
  memory: peak above the inputs, the result included, in a process of its own.
  error: the largest difference from float64. Ours and a call a row differ by
  {apart:.0e}.
  One call of F.cosine_similarity for all rows makes temporaries of {broadcast:.1f} GB.
""")
    return results["ours"]


def check(errors: dict[str, float], width: int) -> None:
    """Raise AssertionError unless ours is about as near to float64 as torch is on this processor.

    How far a sum of products is off depends on the order in which the processor adds them up.
    """
    # What pairwise_cosine states for any order.
    bound = 2 * (width + 4) * 2.0**-24
    unit = torch.finfo(torch.float32).eps
    limit = min(2 * max(errors["product"], errors["rows"], unit), bound)
    if not errors["ours"] <= limit:
        raise AssertionError(
            f"expected an error of at most {limit:.1e}, twice that of torch and within the stated "
            f"bound, found {errors['ours']:.1e}"
        )


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return difference.abs().max().item()


def in_float64(x: Tensor) -> Tensor:
    """The same similarities by the definition, in float64."""
    wide = x.double()
    unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return unit @ unit.T


def memory(key: str, rows: int) -> str:
    """Measure the peak memory of a job in a child process."""
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), __file__]
    child = subprocess.run(
        [*command, "--peak", key, "--rows", str(rows)], check=True, capture_output=True, text=True
    )
    found = int(child.stdout)
    return f"{found / 1e6:.0f} MB" if found >= 0 else "-"


def peak_beyond(job: Job, x: Tensor) -> int:
    """Bytes by which the job raises this process's peak memory; -1 where none is known."""
    job.run(x[: 2 * ONE_CALL])  # loads code and starts threads
    before = peak_memory()
    job.run(x)
    return peak_memory() - before if before else -1


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; 0 where none is known."""
    if sys.platform == "linux":
        # Not ru_maxrss, which a child inherits from its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415 - does not exist on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0


def show_neighbours(matrix: Tensor, texts: list[str], asked: int = 3, k: int = 3) -> None:
    """Print the nearest neighbours of a few texts, none of them the text itself."""
    print("Nearest neighbours")
    for i in range(0, len(texts), -(-len(texts) // asked)):
        others = matrix[i].clone()
        others[i] = -1.0
        print(shortened(f"  {texts[i]}"))
        for score, j in zip(*(found.tolist() for found in others.topk(k)), strict=True):
            print(shortened(f"    {score:.3f}  {texts[j]}"))
    print()


def shortened(line: str, width: int = WIDTH) -> str:
    """Cut a line that is too long, and show that it was cut."""
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


GROUPS = 6
GROUP_SIZE = 6


def closest_groups(matrix: Tensor) -> list[int]:
    """Rows of the tightest groups, none in two: texts with their nearest neighbours."""
    free = torch.ones(len(matrix), dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(GROUPS):
        near = matrix.masked_fill(~free, -1.0).topk(GROUP_SIZE, dim=1)
        # A group is as tight as its farthest member is near.
        tightness = near.values[:, -1].masked_fill(~free, -1.0)
        group = near.indices[tightness.argmax()]
        chosen += group.tolist()
        # The next group is about something else.
        free &= matrix[group].amax(0) < matrix[group[0], group].min()
        free[group] = False
    return chosen


def draw_groups(matrix: Tensor, texts: list[str], folder: Path) -> Path:
    """Draw the similarities of a few dozen texts; return the path of the picture."""
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    chosen = closest_groups(matrix)
    labels = [shortened(texts[i].split(":")[0], 24) for i in chosen]
    figure, axes = plt.subplots(figsize=(10, 9), layout="constrained")
    image = axes.imshow(matrix[chosen][:, chosen], cmap="viridis", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(chosen)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(chosen)), labels, fontsize=8)
    axes.set_title(f"Cosine similarity of {len(chosen)} of {len(texts)} WordNet entries")
    figure.colorbar(image, label="cosine similarity", shrink=0.8, extend="min")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "similarities.png"
    unfinished = folder / f".similarities.{os.getpid()}.png"
    figure.savefig(unfinished, dpi=150)
    plt.close(figure)
    unfinished.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
