"""The example that trains an encoder, on fewer texts and for a short time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tqdm")
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_contrastive.py"


def run(*args: object) -> subprocess.CompletedProcess[str]:
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *safe, str(EXAMPLE), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_training_makes_neighbours_of_held_out_texts_better() -> None:
    done = run("--texts", 1600, "--epochs", 6)
    assert done.returncode == 0, done.stderr
    shares = re.findall(r"^  .* ([\d.]+)% +([\d.]+)%$", done.stdout, flags=re.MULTILINE)
    (own_before, own_after), (common_before, common_after) = (map(float, row) for row in shares)
    # Of 200 held-out texts chance finds one in 200 its own vector.
    assert own_before < 5
    assert own_after > 30
    assert common_after > common_before + 3
    assert "100%" in done.stderr  # the progress bar
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_is_asked_in_vain_is_one_line() -> None:
    done = run("--texts", 5)
    assert done.returncode == 1
    assert done.stderr == "train_contrastive: expected --texts between 88 and 4000, got 5\n"
