"""Searches neither follow nor rely on torch's default dtype and device, from the first one on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cossim_fast import _checks

SCRIPT = Path(__file__).parents[1] / "helpers" / "other_defaults.py"


@pytest.mark.parametrize(
    "options",
    [["float64"], ["bfloat16"], ["float16", "--watched"], ["meta"], ["meta", "--watched"]],
    ids=" ".join,
)
def test_searches_under_another_default(options):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.stdout == "right\n", done.stderr


@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_lists_of_floats_are_read_in_float32(default):
    torch.set_default_dtype(default)
    try:
        found = _checks.listed("a", [[0.1, 2]])
        whole = _checks.listed("a", [2**24 + 1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, torch.tensor([[0.1, 2.0]], dtype=torch.float32))
    assert whole.tolist() == [2**24 + 1]
