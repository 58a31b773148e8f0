"""The confusion matrix of the diagnosis, on pairs and sets whose cause is known.

Run it to print the matrix; ``--write PATH`` writes the page of the documentation.
"""

import argparse
from collections import Counter
from pathlib import Path

from cossim_fast import diagnose
from diagnose_inputs import ROOT, Case
from diagnose_pairs import PAIRS
from diagnose_sets import SETS

__all__ = ["PAIRS", "PAIR_FINDINGS", "ROOT", "SETS", "VERDICTS", "found", "page"]

PAIR_FINDINGS = (
    "none",
    "non_finite",
    "zero_rows",
    "broadcast",
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
    "single_feature",
    "broken_numbers",
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
