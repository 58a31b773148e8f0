"""A session on a GPU goes on in another process when one dies, hangs, or loses its device."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu_watch.py"
pytestmark = pytest.mark.kernel_contract

# Writes one more letter each time that it is started, then ends as the letter says.
CHILD = """
import os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
done = path.read_text() if path.exists() else ""
letter = sys.argv[2][len(done)]
path.write_text(done + letter)
if letter == "k":
    os.kill(os.getpid(), 9)
if letter == "h":
    time.sleep(60)
sys.exit({"a": 75, "f": 1}.get(letter, 0))
"""


@pytest.fixture(scope="module")
def watch():
    spec = importlib.util.spec_from_file_location("gpu_watch", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(watch, path, ends, **options):
    command = [sys.executable, "-S", "-c", CHILD, str(path), ends]
    return watch.watched(command, path, **options)


@pytest.mark.parametrize(
    ("ends", "status"), [("0", 0), ("f", 1), ("k0", 0), ("akf", 1), ("h0", 0)], ids=str
)
def test_it_goes_on_until_a_process_ends_by_itself(watch, tmp_path, ends, status):
    path = tmp_path / "found"
    assert run(watch, path, ends, patience=2.0 if "h" in ends else 60.0) == status
    assert path.read_text() == ends


def test_it_does_not_go_on_for_ever(watch, tmp_path):
    path = tmp_path / "found"
    assert run(watch, path, "kkkkk", most=3) == watch.AGAIN
    assert path.read_text() == "kkk"
