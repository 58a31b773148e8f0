"""A file that an index appends to is that index's alone."""

import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cossim_fast import CosineIndex, topk
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.storage import growing_file
from index_data import QUERIES, assert_same, rows

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
QUIET = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors"


# One creates it.

BOTH = """
import sys, torch
from cossim_fast import CosineIndex
mine, held = float(sys.argv[1]), []
print("ready", flush=True)
for line in sys.stdin:
    try:
        held.append(CosineIndex(torch.full((500, 16), mine), path=line.strip()))
        for _ in range(3):
            held[-1].add(torch.full((100, 16), mine))
        print("made", flush=True)
    except FileExistsError:
        print("refused", flush=True)
"""


def test_of_two_processes_one_makes_the_file(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([sys.executable, "-c", BOTH, str(number)], **pipes) for number in (1, 2)
    ]
    try:
        assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
        for turn in range(20):
            for one in both[:: 1 if turn % 2 else -1]:
                one.stdin.write(f"{tmp_path / str(turn)}\n")
                one.stdin.flush()
            said = [one.stdout.readline().strip() for one in both]
            assert sorted(said) == ["made", "refused"]
            wanted = torch.full((800, 16), 1.0 + said.index("made"))
            assert torch.equal(load_file(tmp_path / str(turn))["rows"], wanted)
    finally:
        for one in both:
            one.communicate()


@pytest.mark.parametrize("there", [False, True])
def test_a_link_that_was_planted_is_not_followed(there, path, tmp_path):
    (tmp_path / "target").write_text("precious") if there else None
    path.symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError, match="delete it, or name another"):
        CosineIndex(rows(5), path=path)
    assert (tmp_path / "target").exists() == there
    assert not there or (tmp_path / "target").read_text() == "precious"


# One appends to it.


def test_who_appends_is_named(path):
    index = CosineIndex(rows(50), path=path)
    before = path.read_bytes()
    with pytest.raises(BlockingIOError, match=r"index in this process on .*, since .*;") as e:
        CosineIndex.reopen(path)
    assert e.value.filename == str(path)
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from cossim_fast import CosineIndex\n"
         "try: CosineIndex.reopen(sys.argv[1])\nexcept BlockingIOError as e: print(e)", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"an index in process {os.getpid()} on " in other.stdout
    assert path.read_bytes() == before
    index.add(rows(5, seed=2))


def test_another_name_of_the_same_file_is_locked_too(path, tmp_path):
    index = CosineIndex(rows(50), path=path)
    os.link(path, tmp_path / "other")
    (tmp_path / "link").symlink_to(path)
    for name in ("other", "link"):
        with pytest.raises(BlockingIOError):
            CosineIndex.reopen(tmp_path / name)
    del index
    assert len(CosineIndex.reopen(tmp_path / "link")) == 50


def test_an_index_goes_on_where_another_ended(path):
    x = rows(330)
    index = CosineIndex(x[:200], path=path, ids=[f"{n}" for n in range(200)])
    index.add(x[200:300], ids=[f"{n}" for n in range(200, 300)])
    index.remove(["7"])
    del index
    with pytest.raises(ValueError, match="ids"):
        CosineIndex.reopen(path, ids=["too few"])
    index = CosineIndex.reopen(path, ids=[f"{n}" for n in range(300)], screen="float32")
    assert (len(index), index.screen, index.dtype) == (300, "float32", torch.float32)
    index.add(x[300:], ids=[f"{n}" for n in range(300, 330)])
    found, wanted = index.search(QUERIES, 9), topk(QUERIES, x, 9)
    assert_same(found[:1], wanted[:1])
    assert found.indices.tolist() == wanted.indices.numpy().astype(str).tolist()
    assert torch.equal(load_file(path)["rows"], x)
    del index
    assert_same(CosineIndex.reopen(path).search(QUERIES, 9), wanted)


@pytest.mark.parametrize("store", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_taken_up(store, path):
    CosineIndex(rows(50), store=store, path=path)
    index = CosineIndex.reopen(path)
    assert (index.dtype, index.d, len(index)) == (store, 16, 50)


def test_a_file_of_no_rows_is_taken_up(path):
    CosineIndex(rows(0), path=path)
    index = CosineIndex.reopen(path)
    index.add(rows(60))
    assert_same(index.search(QUERIES, 9), topk(QUERIES, rows(60), 9))
    del index
    assert len(CosineIndex.reopen(path)) == 60


def test_rows_that_changed_are_not_taken_up(path):
    CosineIndex(rows(50), path=path)
    raw = bytearray(path.read_bytes())
    for place in (growing_file._ROWS, len(raw) - 1):
        raw[place] ^= 64
        path.write_bytes(raw)
        with pytest.raises(FileError, match="vectors is damaged: the checksum of its rows"):
            CosineIndex.reopen(path)
        assert path.read_bytes() == bytes(raw)
        raw[place] ^= 64


# And to no other.


def replaced(path):
    path.unlink()
    return CosineIndex(rows(400, seed=5), path=path)


def extended(path):
    with path.open("ab") as file:
        file.write(b"x")


OTHERS = {
    "deleted": (os.unlink, "was deleted or moved"),
    "moved": (lambda path: path.rename(path.with_name("there")), "was deleted or moved"),
    "built anew": (replaced, "was replaced by another file"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "was changed: .* bytes"),
    "extended": (extended, "was changed: .* bytes"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_index_writes_to_no_file_but_its_own(other, path, tmp_path):
    index = CosineIndex(rows(400), path=path)
    wanted = index.search(QUERIES, 9)
    do, said = OTHERS[other]
    rebuilt = do(path)
    there = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    for _ in range(2):
        with pytest.raises(FileError, match=f"{said}.*build an index with another path"):
            index.add(rows(50, seed=3))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == there
    assert len(index) == 400
    if other != "cut":
        assert_same(index.search(QUERIES, 9), wanted)
        index.save(tmp_path / "index")
        assert_same(CosineIndex.load(tmp_path / "index").search(QUERIES, 9), wanted)
    if other == "built anew":
        rebuilt.add(rows(3))
        assert_same(
            rebuilt.search(QUERIES, 9), topk(QUERIES, torch.cat([rows(400, seed=5), rows(3)]), 9)
        )


def test_a_file_that_cannot_be_built_is_deleted_unless_it_is_anothers(path, monkeypatch):
    def interrupted(*_, **__):
        path.unlink()
        path.write_text("another's")
        raise KeyboardInterrupt

    monkeypatch.setattr("cossim_fast.retrieval.storage.snapshot.part_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CosineIndex(rows(5), path=path)
    assert path.read_text() == "another's"


# Processes.


def _append(file, answer):
    try:
        file.append(rows(3))
    except FileError as error:
        answer.send(str(error))
    answer.recv()


@FORK
@QUIET
def test_a_child_appends_nothing_and_keeps_nobody_out(path):
    index = CosineIndex(rows(50), path=path)
    before = path.read_bytes()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_append, args=(index._file, there))
    child.start()
    try:
        assert here.poll(30)
        said = here.recv()
        assert f"expected process {os.getpid()}, which opened {path}, to append to it" in said
        assert path.read_bytes() == before
        index.add(rows(5))
        del index
        assert len(CosineIndex.reopen(path)) == 55  # while the child lives
    finally:
        here.send("end")
        child.join()


def test_a_copy_leaves_the_file_alone(path):
    index = CosineIndex(rows(50), path=path)
    copy = pickle.loads(pickle.dumps(index))
    before = path.read_bytes()
    copy.add(rows(5))
    assert path.read_bytes() == before
    index.add(rows(7, seed=3))
    assert (len(copy), len(index)) == (55, 57)
