"""Two processes with one output or one checkpoint: the second is refused, and told by whom."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_run import run
from cossim_fast import topk
from cossim_fast.retrieval import InUseError

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)).numpy()
PAIRS = ("pairs", "x.npy", "--threshold=0.5")
TOPK = ("topk", "x.npy", "x.npy", "-k", "3")

# Writes its first checkpoint, says so, and waits until it is told to go on.
HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from checkpoint_runs import small_stretches
from cossim_fast import cli
from cossim_fast.retrieval.joins import checkpoint as join_checkpoint
from cossim_fast.retrieval.nearest import checkpoint as search_checkpoint
def waiting(save):
    left = [1]
    def save_and_wait(*arguments, **options):
        save(*arguments, **options)
        if left:
            left.pop()
            print("holding", flush=True)
            sys.stdin.readline()
    return save_and_wait
for kind in (join_checkpoint.JoinCheckpoint, search_checkpoint.SearchCheckpoint):
    kind.save = waiting(kind.save)
sys.argv[:2] = ["cossim"]
with small_stretches():
    cli.main()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    return tmp_path


@pytest.fixture
def holding(folder):
    """Start a process that holds its lock; it ends with the test."""
    started = []

    def start(*command):
        code = ["-c", HOLDER, str(Path(__file__).parents[1] / "helpers")]
        process = subprocess.Popen(
            [sys.executable, *code, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "holding\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refused(command, held, process):
    """The one line that a second process gets."""
    before = sorted(os.listdir())
    began = time.monotonic()
    status, out, err = run(*command)
    assert time.monotonic() - began < 5
    assert (status, out) == (2, "")
    found = re.fullmatch(
        rf"cossim: expected {re.escape(held)} for this run alone, and process (\d+) on (\S+) has "
        r"had it since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d); wait for its end, or name "
        r"another place\n",
        err,
    )
    assert found, err
    assert (int(found[1]), found[2]) == (process.pid, socket.gethostname())
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", [PAIRS, TOPK], ids=["pairs", "topk"])
def test_a_second_process_with_the_same_output_is_refused(command, holding):
    expected = run(*command)[1]
    command = (*command, "-o", "out.jsonl")
    first = holding(*command)
    kept = sorted(os.listdir())
    refused(command, "out.jsonl.checkpoint", first)
    refused((*command, "--checkpoint", "other"), "out.jsonl.checkpoint", first)
    refused((*command[:-2], "--checkpoint", "out.jsonl.checkpoint"), "out.jsonl.checkpoint", first)
    refused(
        (*command[:-1], "other.jsonl", "--checkpoint", "out.jsonl.checkpoint"),
        "out.jsonl.checkpoint",
        first,
    )
    with pytest.raises(InUseError, match=f"process {first.pid} on"):
        topk(X, X, 3, checkpoint="out.jsonl.checkpoint")
    assert sorted(os.listdir()) == kept
    # Beside another output there is room for another.
    assert run(*command[:-1], "another.jsonl")[0] == 0
    _, err = first.communicate("go on\n")
    assert first.returncode == 0, err
    for name in ("out.jsonl", "another.jsonl"):
        with open(name) as file:
            assert file.read() == expected
    assert sorted(os.listdir()) == ["another.jsonl", "out.jsonl", "x.npy"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("command", [PAIRS, TOPK], ids=["pairs", "topk"])
def test_a_killed_process_keeps_nobody_out(command, holding):
    expected = run(*command)[1]
    command = (*command, "-o", "out.jsonl")
    first = holding(*command)
    first.kill()
    first.communicate()
    assert os.path.exists(".out.jsonl.checkpoint.lock")
    status, _, err = run(*command)
    assert status == 0
    assert err.startswith("cossim: going on from out.jsonl.checkpoint\n")
    with open("out.jsonl") as file:
        assert file.read() == expected
    assert sorted(os.listdir()) == ["out.jsonl", "x.npy"]


def test_a_checkpoint_with_a_name_of_its_own_keeps_the_output_too(holding):
    named = (*PAIRS, "-o", "out.jsonl", "--checkpoint", "kept")
    first = holding(*named)
    refused(named, "kept", first)
    refused((*PAIRS, "-o", "out.jsonl"), "out.jsonl.checkpoint", first)
    refused((*TOPK, "--checkpoint", "kept"), "kept", first)
    _, err = first.communicate("go on\n")
    assert first.returncode == 0, err
    assert sorted(os.listdir()) == ["out.jsonl", "x.npy"]


def test_a_checkpoint_that_is_named_as_it_is_called_anyway(folder):
    named = (*PAIRS, "-o", "out.jsonl", "--checkpoint", folder / "out.jsonl.checkpoint")
    assert run(*named)[0] == 0
    assert sorted(os.listdir()) == ["out.jsonl", "x.npy"]


@pytest.mark.parametrize("command", [PAIRS, TOPK], ids=["pairs", "topk"])
def test_a_run_that_fails_leaves_no_lock(command, folder):
    before = sorted(os.listdir())
    bad = X.copy()
    bad[7, 3] = np.nan
    np.save("x.npy", bad)
    status, _, err = run(*command, "-o", "out.jsonl")
    assert (status, "row 7 of x.npy holds NaN" in err) == (2, True)
    assert sorted(os.listdir()) == before
