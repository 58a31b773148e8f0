"""The pairs beside a checkpoint: what is missing or changed is refused, what is surplus cut off."""

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint_runs import ROWS, ending_after
from cli_run import run

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)).numpy()
COMMAND = ("pairs", "x.npy", "--threshold=0.5", "-o", "out.jsonl")
CHECKPOINT, SPOOL = "out.jsonl.checkpoint", "out.jsonl.checkpoint.pairs"
HEADER, RECORD = 16, 20


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """What the command writes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    status, out, _ = run(*COMMAND[:-2])
    assert status == 0
    return out


@pytest.fixture
def begun(expected):
    """The pairs of the first two rounds, as a process left them that was killed."""
    interrupt()
    with open(SPOOL, "rb") as file:
        return file.read()


def interrupt():
    with ending_after(2, KeyboardInterrupt):
        assert run(*COMMAND)[0] == 130


def write(data):
    with open(SPOOL, "wb") as file:
        file.write(data)


def test_the_pairs_of_finished_rows_and_no_others(begun):
    held = np.frombuffer(begun[HEADER:], [("i", "<i8"), ("j", "<i8"), ("score", "<f4")])
    assert len(held) > 500
    assert held["i"].max() < 2 * ROWS


def test_truncated_pairs_are_refused(begun, expected):
    for length in (0, 7, HEADER, HEADER + RECORD, len(begun) // 2, len(begun) - 1):
        write(begun[:length])
        status, _, err = run(*COMMAND)
        assert status == 2
        assert f"{SPOOL} is truncated: {length} bytes, and {len(begun)} expected for" in err
        assert "delete out.jsonl.checkpoint to begin anew" in err
        assert not os.path.exists("out.jsonl")
    write(begun)
    assert run(*COMMAND)[0] == 0
    with open("out.jsonl") as file:
        assert file.read() == expected


def test_flipped_bits_are_refused(begun):
    places = random.Random(0).sample(range(len(begun)), 20)
    for place in (0, HEADER, len(begun) - 1, *places):
        changed = bytearray(begun)
        changed[place] ^= 1 << place % 8
        write(changed)
        status, _, err = run(*COMMAND)
        assert status == 2
        assert f"{SPOOL} is damaged: its pairs were changed; delete {CHECKPOINT} to begin" in err
        with open(SPOOL, "rb") as file:
            assert file.read() == changed


@pytest.mark.parametrize("surplus", [1, RECORD, 1 << 20])
def test_surplus_bytes_are_cut_off(surplus, begun, expected):
    write(begun + random.Random(surplus).randbytes(surplus))
    with ending_after(1, KeyboardInterrupt):
        assert run(*COMMAND)[0] == 130
    assert os.path.getsize(SPOOL) <= HEADER + RECORD * expected.count("\n")
    assert run(*COMMAND)[0] == 0
    with open("out.jsonl") as file:
        assert file.read() == expected
    assert sorted(os.listdir()) == ["out.jsonl", "x.npy"]


def test_pairs_of_another_run_are_refused(begun, expected):
    os.unlink(CHECKPOINT)
    np.save("x.npy", X[::-1])
    interrupt()
    write(begun)
    status, _, err = run(*COMMAND)
    assert status == 2
    assert f"{SPOOL} is" in err


def test_what_is_left_without_a_checkpoint_is_begun_anew(begun, expected):
    for left in (begun, begun[:HEADER], begun[:5], b""):
        if os.path.exists(CHECKPOINT):
            os.unlink(CHECKPOINT)
        write(left)
        assert run(*COMMAND)[0] == 0
        with open("out.jsonl") as file:
            assert file.read() == expected


def test_a_file_of_somebody_else_is_left_alone(expected):
    write(b"precious words of a name that is like ours")
    status, _, err = run(*COMMAND)
    assert status == 2
    assert f"expected {SPOOL} not to be there, or to hold pairs of cossim" in err
    with open(SPOOL, "rb") as file:
        assert file.read().startswith(b"precious")
    assert sorted(os.listdir()) == [SPOOL, "x.npy"]


PLANTED = {
    "a symbolic link": lambda: os.symlink("target", SPOOL),
    "a folder": lambda: os.mkdir(SPOOL),
    "a pipe": lambda: os.mkfifo(SPOOL),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("when", ["before", "between"])
def test_what_is_planted_is_refused(kind, when, expected):
    if when == "between":
        interrupt()
        os.rename(SPOOL, "target")
    else:
        with open("target", "wb") as file:
            file.write(b"precious")
    with open("target", "rb") as file:
        before = file.read()
    PLANTED[kind]()
    status, _, err = run(*COMMAND)
    assert status == 2
    assert f"expected {SPOOL} to be a regular file or not to be there, got {kind}" in err
    with open("target", "rb") as file:
        assert file.read() == before


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="Windows has no such links")
def test_what_is_planted_in_the_last_moment_is_not_followed(expected, monkeypatch):
    from cossim_fast.retrieval import resumable

    with open("target", "wb") as file:
        file.write(b"precious")
    create = resumable.create

    def late(path):
        os.symlink("target", path)
        return create(path)

    monkeypatch.setattr(resumable, "create", late)
    status, _, err = run(*COMMAND)
    assert (status, err.count("\n")) == (2, 1)
    with open("target", "rb") as file:
        assert file.read() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_its_owner_alone_reads_it(begun):
    for name in (CHECKPOINT, SPOOL):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


# Children are forked from a process that has everything loaded and no threads, and killed before
# some line of the code that keeps what was found: the line is drawn.
KILLED = """
import json, os, random, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import numpy, pyarrow, filelock
from checkpoint_runs import small_stretches
from cli_run import run
from cossim_fast.cli import checkpoints, join, outputs, spool
from cossim_fast.retrieval.storage import checkpoint, tensor_file as files, own_files
from cossim_fast.retrieval.joins import checkpoint as join_checkpoint

COMMAND = sys.argv[2].split()
TRACED = {module.__file__ for module in (
    checkpoints, outputs, spool, checkpoint, files, join_checkpoint, own_files)}

def traced(kill_at):
    lines = [0]
    def line(frame, event, argument):
        if event == "line":
            lines[0] += 1
            if lines[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line
    sys.settrace(lambda frame, *_: line if frame.f_code.co_filename in TRACED else None)
    with small_stretches():
        status = run(*COMMAND)[0]
    sys.settrace(None)
    return status, lines[0]

def forked(kill_at):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(traced(kill_at)).encode())
        os._exit(0)
    os.close(write)
    code = os.waitpid(child, 0)[1]
    with os.fdopen(read) as pipe:
        return json.loads(pipe.read()) if code == 0 else None

status, lines = forked(0)
assert status == 0
with open("out.jsonl") as file:
    expected = file.read()
draw, kills, resumed, wrong = random.Random(int(sys.argv[3])), 0, 0, []
while kills < int(sys.argv[4]):
    if os.path.exists("out.jsonl"):
        os.unlink("out.jsonl")
    for attempt in range(9):
        at = draw.randint(1, lines) if attempt < 3 else 0
        there = os.path.exists("out.jsonl.checkpoint")
        ended = forked(at)
        kills += ended is None
        resumed += there
        if ended is not None:
            break
    with open("out.jsonl") as file:
        if ended[0] != 0 or file.read() != expected:
            wrong.append(at)
    left = sorted(os.listdir())
    if [name for name in left if not name.endswith(".part")] != ["out.jsonl", "x.npy"]:
        wrong.append(left)
print(json.dumps({"kills": kills, "resumed": resumed, "wrong": wrong, "lines": lines}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_process_may_be_killed_at_any_moment(expected):
    here = str(Path(__file__).parents[1] / "helpers")
    command = [sys.executable, "-c", KILLED, here, " ".join(COMMAND), "0", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    assert said["kills"] >= 16
    assert said["resumed"] >= 8
