"""The same command goes on with the same files, and says what differs in others."""

import os
import shutil

import numpy as np
import pytest
import torch

from checkpoint_runs import ending_after
from cli_run import run

DRAW = torch.Generator().manual_seed(3)
A, B = (torch.randn(300, 8, generator=DRAW) for _ in range(2))
COMMANDS = {
    "topk": ("topk", "q.npy", "a.npy", "-k", "5", "-o", "out.jsonl"),
    "pairs": ("pairs", "a.npy", "--threshold=0.5", "-o", "out.jsonl"),
}
NAMES = {"topk": "corpus", "pairs": "embeddings"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("q.npy", A[:70].numpy())
    np.save("a.npy", A.numpy())
    np.save("b.npy", B.numpy())


def begun(command):
    with ending_after(2, KeyboardInterrupt):
        assert run(*command)[0] == 130


def refused(command, said):
    kept = os.path.getsize("out.jsonl.checkpoint")
    status, _, err = run(*command)
    assert status == 2
    assert "expected out.jsonl.checkpoint to be the checkpoint of this " in err
    for each in said:
        assert each in err
    assert "delete it to begin anew, or name another file" in err
    assert not os.path.exists("out.jsonl")
    assert os.path.getsize("out.jsonl.checkpoint") == kept


def written(command):
    status, out, _ = run(*command[:-2])
    assert status == 0
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_another_file_of_the_same_shape(name):
    command = COMMANDS[name]
    begun(command)
    other = tuple("b.npy" if word == "a.npy" else word for word in command)
    refused(other, [f"path of {NAMES[name]} ({os.path.realpath('a.npy')} then, "])


@pytest.mark.parametrize("name", COMMANDS)
def test_another_file_in_its_place(name):
    command = COMMANDS[name]
    begun(command)
    shutil.move("b.npy", "a.npy")
    refused(command, [f"time of change of {NAMES[name]} (20"])


@pytest.mark.parametrize("name", COMMANDS)
def test_another_file_in_its_place_of_the_same_size_and_time(name):
    command = COMMANDS[name]
    begun(command)
    there = os.stat("a.npy")
    shutil.move("b.npy", "a.npy")
    os.utime("a.npy", ns=(there.st_atime_ns, there.st_mtime_ns))
    refused(command, ["the values of"])


@pytest.mark.parametrize("name", COMMANDS)
def test_another_array_of_the_same_file(name):
    np.savez("both.npz", a=A.numpy(), b=B.numpy())
    command = tuple("both.npz" if word == "a.npy" else word for word in COMMANDS[name])
    begun((*command, "--key", "a"))
    refused((*command, "--key", "b"), [f"key of {NAMES[name]} (a then, b now)"])
    assert run(*command, "--key", "a")[0] == 0
    with open("out.jsonl") as file:
        assert file.read() == written(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_another_dtype_of_the_same_bits(name):
    command = tuple("a.pt" if word == "a.npy" else word for word in COMMANDS[name])
    torch.save(A.half(), "a.pt")
    there = os.stat("a.pt")
    begun(command)
    torch.save(A.half().view(torch.bfloat16), "a.pt")
    os.utime("a.pt", ns=(there.st_atime_ns, there.st_mtime_ns))
    refused(command, ["(torch.float16 then, torch.bfloat16 now)"])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_file_by_another_name(name):
    command = COMMANDS[name]
    begun(command)
    other = tuple(os.path.realpath(word) if word == "a.npy" else word for word in command)
    assert run(*other)[0] == 0
    with open("out.jsonl") as file:
        assert file.read() == written(command)
