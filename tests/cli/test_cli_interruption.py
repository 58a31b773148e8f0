"""Ctrl-C and failed writes of long runs: what was found is kept, and gone on from."""

import errno
import os
import signal
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cli_run import run
from cossim_fast.cli import outputs
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins import checkpoint as join_checkpoint
from cossim_fast.retrieval.joins import sweep
from cossim_fast.retrieval.nearest import batches as batches_module
from cossim_fast.retrieval.nearest import checkpoint
from cossim_fast.retrieval.storage import corpus as corpus_module

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)).numpy()


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.txt").write_text("".join(f"text {i}\n" for i in range(300)))
    return tmp_path


@pytest.fixture
def interrupted(monkeypatch):
    """Press Ctrl-C when a checkpoint was written for the second time."""
    # A process that a shell started in the background ignores the signal, as do its children.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(corpus_module, "NUMBERS", 64 * 8)  # 64 rows at a time
    monkeypatch.setattr(tuning, "FIRST_ROUND", 64)
    monkeypatch.setattr(tuning, "LONGEST_ROUND", 64)
    monkeypatch.setattr(join_checkpoint, "_WAIT", 0)
    saved = []

    def pressing(save):
        def save_and_press(self, *arguments, **options):
            save(self, *arguments, **options)
            if self.path is not None:
                saved.append(self)
            if self.path is not None and len(saved) == 2:
                signal.raise_signal(signal.SIGINT)

        return save_and_press

    for kind in (checkpoint.SearchCheckpoint, join_checkpoint.JoinCheckpoint):
        monkeypatch.setattr(kind, "save", pressing(kind.save))
    yield saved
    signal.signal(signal.SIGINT, handler)


LONG = [
    ("topk", "x.npy", "x.npy", "-k", "3"),
    ("pairs", "x.npy", "--threshold=0.5"),
    ("pairs", "x.npy", "--threshold=0.5", "--texts", "x.txt"),
]
SUFFIXES = (".jsonl", ".parquet", ".npz")


def rows_of(path):
    """What was written, as text."""
    if path.suffix == ".jsonl":
        return path.read_text()
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pydict())
    with np.load(path) as held:
        return str({name: held[name].tolist() for name in held.files})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("command", LONG, ids=" ".join)
def test_interruption_leaves_a_checkpoint_that_the_same_command_goes_on_from(
    command, suffix, folder, monkeypatch, interrupted
):
    monkeypatch.chdir(folder)
    (folder / "whole").mkdir()
    interrupted.extend([None] * 9)  # too late to be pressed
    assert run(*command, "-o", f"whole/out{suffix}")[0] == 0
    interrupted.clear()
    before = sorted(os.listdir())
    out, command = folder / f"out{suffix}", (*command, "-o", f"out{suffix}")
    status, _, err = run(*command)
    assert (status, len(interrupted)) == (130, 2)
    assert err == (
        f"cossim: interrupted; {out.name}.checkpoint has what was found: "
        "the same command goes on from it\n"
    )
    assert not out.exists()
    status, _, err = run(*command)
    assert status == 0
    assert err.startswith(f"cossim: going on from {out.name}.checkpoint\n")
    assert len(interrupted) == 5  # of 300 rows by 64: nothing was done twice
    assert rows_of(out) == rows_of(folder / "whole" / out.name)
    assert sorted(os.listdir()) == sorted([*before, out.name])


def test_pairs_after_the_checkpoint_are_neither_lost_nor_there_twice(
    folder, monkeypatch, interrupted
):
    monkeypatch.chdir(folder)
    command = ("pairs", "x.npy", "--threshold=0.5")
    expected = run(*command)[1]
    command = (*command, "-o", "out.jsonl")
    assert run(*command)[0] == 130
    # As if the process had ended while it wrote pairs of the next rows.
    kind = [("i", "<i8"), ("j", "<i8"), ("score", "<f4")]
    with open("out.jsonl.checkpoint.pairs", "ab") as spool:
        spool.write(np.array([(128, 130, 0.9), (140, 299, 0.8)], kind).tobytes()[:-7])
    assert run(*command)[0] == 0
    assert (folder / "out.jsonl").read_text() == expected
    # Without them the checkpoint says too much.
    interrupted.clear()
    assert run(*command)[0] == 130
    os.unlink("out.jsonl.checkpoint.pairs")
    status, _, err = run(*command)
    assert status == 2
    assert "expected out.jsonl.checkpoint.pairs beside out.jsonl.checkpoint" in err


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("command", LONG, ids=" ".join)
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_what_was_found_is_kept_until_it_is_written(command, suffix, failure, folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected = run(*command)[1]
    before = sorted(os.listdir())
    out, command = folder / f"out{suffix}", (*command, "-o", f"out{suffix}")

    def written_in_part(file, columns):
        file.write(b"some")
        raise failure

    with monkeypatch.context() as patch:
        patch.setitem(outputs._WRITERS, suffix, written_in_part)
        status, _, err = run(*command)
    assert status == (2 if isinstance(failure, OSError) else 130)
    assert f"{out.name}.checkpoint has what was found: the same command goes on" in err
    assert not out.exists()
    # The same command writes it, and searches for nothing.
    for kind in (sweep.Sweep, batches_module.Batches):
        monkeypatch.setattr(kind, "through", mock.Mock(side_effect=AssertionError))
    assert run(*command)[0] == 0
    assert sorted(os.listdir()) == sorted([*before, out.name])
    if suffix == ".jsonl":
        assert out.read_text() == expected


def test_a_checkpoint_of_other_rows_is_not_gone_on_from(folder, monkeypatch, interrupted):
    monkeypatch.chdir(folder)
    command = ("topk", "x.npy", "x.npy", "-k", "3", "-o", "out.npz")
    assert run(*command)[0] == 130
    status, _, err = run(*command[:4], "2", "-o", "out.npz")
    assert status == 2
    assert "it differs in k (3 then, 2 now)" in err
    np.save("x.npy", X[::-1])
    status, _, err = run(*command)
    assert status == 2
    assert "it differs in time of change of queries" in err
