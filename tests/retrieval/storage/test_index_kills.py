"""A file that an index appends to holds every row that was added, whatever ends the process."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cossim_fast import CosineIndex, topk
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.storage import growing_file
from index_data import QUERIES, assert_same, rows

KILLS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# A process that imports the package once, and is the parent of those that are killed.
HARNESS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from cossim_fast import CosineIndex
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.storage import growing_file as growing

torch.set_num_threads(1)
folder = Path(sys.argv[1])
x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
FIRST, STEP = 40, 30
bad, kept, seen = [], 0, {}

def look(path, told, name):
    # Opens what was left; every row that was told of has to be there, and the index goes on.
    global kept
    try:
        index = CosineIndex.reopen(path)
    except (FileError, FileNotFoundError) as error:
        if told:
            bad.append((name, told, str(error)))
        return
    count = len(index)
    kept += count > 0
    seen[count - told] = seen.get(count - told, 0) + 1
    allowed = {told, told + STEP} if told else {0, FIRST}
    held = index._file.rows(0).tensor
    if count not in allowed or not torch.equal(held, x[:count]):
        bad.append((name, told, count))
        return
    index.add(x[count : count + STEP])
    if not torch.equal(index._file.rows(0).tensor, x[: count + STEP]):
        bad.append((name, "goes on wrongly"))
    size = path.stat().st_size
    if size != growing._ROWS + (count + STEP) * 64:
        bad.append((name, "has the size", size))

def child(path, told, before=lambda: None):
    number = os.fork()
    if number:
        return number
    try:
        before()
        index = CosineIndex(x[:FIRST], path=path)
        os.write(told, b".")
        while True:
            index.add(x[len(index) : len(index) + STEP])
            os.write(told, b".")
            if len(index) > 1000:
                time.sleep(60)
    finally:
        os._exit(1)

def trial(name, before, wait):
    path = folder / name
    here, told = os.pipe()
    number = child(path, told, before)
    os.close(told)
    if wait is not None:
        time.sleep(wait)
        os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    adds = 0
    while some := os.read(here, 1000):
        adds += len(some)
    os.close(here)
    look(path, FIRST + STEP * (adds - 1) if adds else 0, name)
    path.unlink(missing_ok=True)
"""

AT_RANDOM = (
    HARNESS
    + """
generator = random.Random(int(sys.argv[2]))
for turn in range(40):
    trial(f"vectors{turn}", lambda: None, generator.uniform(0, 0.08))
print(json.dumps([bad, kept, seen]))
"""
)

AT_EACH_STEP = (
    HARNESS
    + """
def dying(step, share):
    # Kills itself in the middle of a write, or before a flush.
    def before():
        write, fsync = growing.VectorFile._write, os.fsync
        left = step

        def count():
            nonlocal left
            left -= 1
            return left < 0

        def writes(self, place, piece):
            if count():
                piece = bytes(piece)
                write(self, place, piece[: int(share * len(piece))])
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, place, piece)

        def flushes(number):
            if count():
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(number)

        growing.VectorFile._write, os.fsync = writes, flushes
    return before

for step in range(18):
    for share in (0, 0.002, 0.5, 1):
        trial(f"vectors{step}-{share}", dying(step, share), None)
print(json.dumps([bad, kept, seen]))
"""
)


def run(script, *more):
    done = subprocess.run(
        [sys.executable, "-c", script, *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@KILLS
def test_a_kill_at_any_moment_loses_no_row(tmp_path):
    bad, kept, _ = run(AT_RANDOM, tmp_path, "0")
    assert bad == []
    assert kept >= 10


@KILLS
def test_a_kill_within_any_write_loses_no_row(tmp_path):
    bad, kept, seen = run(AT_EACH_STEP, tmp_path)
    assert bad == []
    assert kept >= 40
    assert seen.keys() >= {"0", "30", "40"}  # nothing more than was told of, or what was under way


# What a kill leaves.


def test_what_stands_behind_the_rows_is_ignored_and_then_cut_off(tmp_path):
    path = tmp_path / "vectors"
    index = CosineIndex(rows(50), path=path)
    index.add(rows(20, seed=3))
    wanted, pickled = index.search(QUERIES, 9), pickle.dumps(index)
    del index
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(1000))
    assert_same(pickle.loads(pickled).search(QUERIES, 9), wanted)
    assert path.read_bytes() == whole + bytes(1000)
    index = CosineIndex.reopen(path)
    assert path.stat().st_size == len(whole)
    assert_same(index.search(QUERIES, 9), wanted)
    assert torch.equal(load_file(path)["rows"], torch.cat([rows(50), rows(20, seed=3)]))


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_page_of_the_head_that_was_half_written_is_made_anew(page, tmp_path):
    path = tmp_path / "vectors"
    index = CosineIndex(rows(50), path=path)
    index.add(rows(20, seed=3))
    last = 1 + index._file._commit.turn % 2
    del index
    raw = bytearray(path.read_bytes())
    raw[4096 * page + 7 : 4096 * page + 60] = bytes(53)
    path.write_bytes(raw)
    # Where it was the newest record, the rows before it are those that were committed.
    x = rows(50) if page == last else torch.cat([rows(50), rows(20, seed=3)])
    index = CosineIndex.reopen(path)
    assert_same(index.search(QUERIES, 9), topk(QUERIES, x, 9))
    assert torch.equal(load_file(path)["rows"], x)


# Interruptions and full disks, after which the process goes on.


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_add_does_not_disturb_the_next(step, share, again, tmp_path, monkeypatch):
    path = tmp_path / "vectors"
    index = CosineIndex(rows(50), path=path)
    write, left = growing_file.VectorFile._write, step

    def interrupted(self, place, piece):
        nonlocal left
        left -= 1
        if left == -1 or (again and left < 0):
            write(self, place, piece[: int(share * len(piece))])
            raise KeyboardInterrupt
        write(self, place, piece)

    with monkeypatch.context() as patched:
        patched.setattr(growing_file.VectorFile, "_write", interrupted)
        if step < 3:  # rows, record, header
            with pytest.raises(KeyboardInterrupt):
                index.add(rows(20, seed=3))
        else:
            index.add(rows(20, seed=3))
    x = rows(50) if step < 3 else torch.cat([rows(50), rows(20, seed=3)])
    assert again or torch.equal(load_file(path)["rows"], x)
    index.add(rows(30, seed=4))
    x = torch.cat([x, rows(30, seed=4)])
    assert_same(index.search(QUERIES, 9), topk(QUERIES, x, 9))
    del index
    assert torch.equal(CosineIndex.reopen(path)._file.rows(0).tensor, x)


def test_rows_that_could_not_be_coded_are_not_in_the_file(tmp_path, monkeypatch):
    path = tmp_path / "vectors"
    index = CosineIndex(rows(50), path=path)
    with monkeypatch.context() as patched:
        patched.setattr("cossim_fast.retrieval.storage.snapshot.part_of", lambda *_, **__: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                index.add(rows(20, seed=3))
            assert torch.equal(load_file(path)["rows"], rows(50))
    index.add(rows(30, seed=4))
    assert_same(index.search(QUERIES, 9), topk(QUERIES, torch.cat([rows(50), rows(30, seed=4)]), 9))


@pytest.fixture
def limited(tmp_path):
    """Files of this process are no longer than 100 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, held)


def test_a_file_that_grows_too_large_is_named(limited):
    path = limited / "vectors"
    index = CosineIndex(rows(500), path=path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"File too large: '.*vectors'") as caught:
            index.add(rows(2000))
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert len(index) == 500
    index.add(rows(20, seed=3))
    assert torch.equal(load_file(path)["rows"], torch.cat([rows(500), rows(20, seed=3)]))
    with pytest.raises(OSError, match=r"File too large: '.*others'"):
        CosineIndex(rows(2000), path=limited / "others")
    assert os.listdir(limited) == ["vectors"]


def test_an_index_that_is_too_large_is_named(limited):
    with pytest.raises(OSError, match=r"File too large: '.*index'"):
        CosineIndex(rows(3000)).save(limited / "index")
    assert os.listdir(limited) == []


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    index = CosineIndex(rows(50), path=tmp_path / "vectors")

    def full(self, place, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(growing_file.VectorFile, "_write", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*vectors'"):
        index.add(rows(5))


def test_a_file_whose_first_rows_were_never_written_is_refused(tmp_path):
    (tmp_path / "vectors").write_bytes(b"")
    with pytest.raises(FileError, match="it has no record of its rows"):
        CosineIndex.reopen(tmp_path / "vectors")
