"""The demo, on fewer rows."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def run(script: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = (
        [sys.executable, "-P", script] if sys.version_info >= (3, 11) else [sys.executable, script]
    )
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, check=False)


def test_demo_checks_compares_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run(DEMO, "--rows", 100, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Nearest neighbours" in done.stdout
    *report, last = done.stdout.splitlines()
    assert max(map(len, report)) <= 80
    picture = Path(last.split(": ")[1])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(picture.parent.iterdir()) == [picture]


def test_demo_says_what_is_missing(tmp_path: Path) -> None:
    script = shutil.copy(DEMO, tmp_path)
    done = run(Path(script))
    assert done.returncode == 1
    assert "expected the embeddings that ship in examples/data" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_refuses_too_few_rows() -> None:
    done = run(DEMO, "--rows", 5)
    assert done.returncode == 1
    assert "expected --rows between 36 and 4000, got 5" in done.stderr
