"""Files of an index: complete or refused, whatever is done to them or to who writes them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cossim_fast import CosineIndex, _replacing, topk
from cossim_fast._score import near as near_module
from cossim_fast._score.exact import score_pairs
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.nearest import batches as batches_module
from cossim_fast.retrieval.storage import tensor_file


def rows(n, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def assert_same(found, other):
    for mine, theirs in zip(found, other, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


QUERIES = rows(7, seed=1)


def changed_index(path=None, ids=None):
    """Of several parts, with rows that are gone and rows that are not finite."""
    x = rows(400)
    x[390] = torch.nan
    index = CosineIndex(x[:300], ids=None if ids is None else ids[:300], path=path)
    index.add(x[300:395], ids=None if ids is None else ids[300:395])
    index.add(x[395:], ids=None if ids is None else ids[395:])
    index.remove(index.ids[[2, 3, 310, 399]])
    return index


IDS = {
    "positions": None,
    "numbers": [(-1) ** n * (n * 10**9 + 5) for n in range(400)],
    "strings": [("ü€" * (n % 5)) + str(n) for n in range(399)] + [""],
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_loaded_is_what_was_saved(in_file, ids, mmap, tmp_path):
    index = changed_index(tmp_path / "vectors" if in_file else None, IDS[ids])
    index.save(tmp_path / "index")
    loaded = CosineIndex.load(tmp_path / "index", mmap=mmap)
    assert repr(loaded) == repr(index)
    assert loaded.ids.tolist() == index.ids.tolist()
    assert loaded.skipped == 1
    assert_same(loaded.search(QUERIES, 396), index.search(QUERIES, 396))
    for one in (index, loaded):  # numbering goes on, and what was removed stays free
        one.remove(one.ids[:1])
        if IDS[ids] is None:
            one.add(QUERIES)
        else:
            one.add(QUERIES, ids=IDS[ids][2:4] + [type(IDS[ids][0])(n) for n in range(5)])
    assert loaded.ids.tolist() == index.ids.tolist()
    assert_same(loaded.search(QUERIES, 8), index.search(QUERIES, 8))


@pytest.mark.parametrize("store", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("screen", ["auto", "float32"])
def test_every_dtype_and_screen(store, screen, tmp_path):
    index = CosineIndex(rows(100), store=store, screen=screen, path=tmp_path / "vectors")
    index.save(tmp_path / "index")
    loaded = CosineIndex.load(tmp_path / "index")
    assert (loaded.dtype, loaded.screen) == (store, screen)
    assert_same(loaded.search(QUERIES, 9), topk(QUERIES, rows(100).to(store), 9))


def test_an_index_may_be_saved_where_it_was_loaded_from(tmp_path):
    changed_index().save(tmp_path / "index")
    index = CosineIndex.load(tmp_path / "index")
    index.add(rows(200, seed=9))
    index.save(tmp_path / "index")
    assert_same(CosineIndex.load(tmp_path / "index").search(QUERIES, 20), index.search(QUERIES, 20))


def test_an_empty_index_is_saved_too(tmp_path):
    CosineIndex(rows(0)).save(tmp_path / "index")
    loaded = CosineIndex.load(tmp_path / "index")
    loaded.add(rows(5), ids=list("abcde"))
    assert loaded.search(rows(1), 1).indices.tolist() == [["a"]]


def test_the_files_are_those_of_safetensors(tmp_path):
    index = CosineIndex(rows(300), path=tmp_path / "vectors")
    assert torch.equal(load_file(tmp_path / "vectors")["rows"], rows(300))
    index.add(rows(70, seed=2))
    whole = torch.cat([rows(300), rows(70, seed=2)])
    assert torch.equal(load_file(tmp_path / "vectors")["rows"], whole)
    index.save(tmp_path / "index")
    assert torch.equal(load_file(tmp_path / "index")["0.rows"], rows(300))
    assert sorted(os.listdir(tmp_path)) == ["index", "vectors"]
    mask = os.umask(0o077)
    os.umask(mask)
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o666 & ~mask


# Vectors in a file.


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memory_map_stays_where_it_is(mode, tmp_path):
    np.save(tmp_path / "x.npy", rows(500).numpy())
    given = np.load(tmp_path / "x.npy", mmap_mode=mode)[100:]
    index = CosineIndex(given)
    assert index._snapshot.parts[0].rows.tensor.data_ptr() == given.ctypes.data
    for some in rows(900, seed=3).split(100):
        index.add(some)
    assert index._snapshot.parts[0].rows.tensor.data_ptr() == given.ctypes.data
    x = torch.cat([rows(500)[100:], rows(900, seed=3)])
    assert_same(index.search(QUERIES, 9), topk(QUERIES, x, 9))
    assert_same(pickle.loads(pickle.dumps(index)).search(QUERIES, 9), topk(QUERIES, x, 9))
    index.save(tmp_path / "index")
    assert_same(CosineIndex.load(tmp_path / "index").search(QUERIES, 9), topk(QUERIES, x, 9))


def test_what_was_written_to_a_private_map_is_searched(tmp_path):
    np.save(tmp_path / "x.npy", rows(500).numpy())
    given = np.load(tmp_path / "x.npy", mmap_mode="c")
    given[7] = QUERIES[0]
    assert CosineIndex(given).search(QUERIES[:1], 1).indices.tolist() == [[7]]


@pytest.mark.parametrize("form", ["other dtype", "other order of bytes", "every other row"])
def test_a_memory_map_of_another_form_is_read(form, tmp_path):
    x = rows(500).double().numpy()
    np.save(tmp_path / "x.npy", x.astype(">f4") if form == "other order of bytes" else x)
    given = np.load(tmp_path / "x.npy", mmap_mode="r")
    step = 2 if form == "every other row" else 1
    index = CosineIndex(given[::step], store=torch.float32)
    assert_same(index.search(QUERIES, 5), topk(QUERIES, rows(500)[::step], 5))


def test_a_file_of_vectors_is_never_written_over(tmp_path):
    (tmp_path / "vectors").write_text("precious")
    with pytest.raises(FileExistsError, match="delete it, or name another"):
        CosineIndex(rows(5), path=tmp_path / "vectors")
    assert (tmp_path / "vectors").read_text() == "precious"


def test_an_index_that_cannot_be_built_leaves_no_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="row 1 has"):
        CosineIndex(torch.tensor([[1.0], [1e9]]), store=torch.float16, path=tmp_path / "vectors")
    assert os.listdir(tmp_path) == []

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cossim_fast.retrieval.storage.snapshot.part_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CosineIndex(rows(5), path=tmp_path / "vectors")
    assert os.listdir(tmp_path) == []


# Files that are not whole.


@pytest.fixture
def saved(tmp_path):
    changed_index(ids=IDS["strings"]).save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_cut_anywhere_is_refused(saved, mmap):
    whole = saved.read_bytes()
    for length in [0, 5, 8, 9, 4000, 4096, 4097, *range(5000, len(whole), 1999), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(FileError, match=f"index is truncated.* {length} bytes"):
            CosineIndex.load(saved, mmap=mmap)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="index is damaged"):
        CosineIndex.load(saved)


def test_a_byte_changed_anywhere_is_noticed(saved):
    whole = np.fromfile(saved, np.uint8)
    wanted = CosineIndex.load(saved).search(QUERIES, 9)
    generator, refused = np.random.default_rng(0), 0
    for place in [*range(9), *generator.integers(0, len(whole), 300)]:
        changed = whole.copy()
        changed[place] ^= 1 << generator.integers(0, 8)
        changed.tofile(saved)
        try:
            found = CosineIndex.load(saved, mmap=False)
        except FileError:
            refused += 1
        else:  # blanks behind the header, or the gaps between checksums
            assert_same(found.search(QUERIES, 9), wanted)
    assert refused > 250


def test_vectors_that_stay_in_the_file_are_sampled(saved):
    with tensor_file.TensorFile(saved, "cossim_fast index") as file:
        offset, shape, _ = file.places["0.rows"]
    whole = bytearray(saved.read_bytes())
    size = 4 * shape[0] * shape[1]
    whole[offset : offset + size] = rows(shape[0], seed=8).numpy().tobytes()
    saved.write_bytes(whole)
    with pytest.raises(FileError, match="is damaged, or holds other vectors"):
        CosineIndex.load(saved)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"version": "2"', '"version": "3"', "has format version 3, .* reads up to 2; upgrade"),
        ('"version": "2"', '"version": "x"', "has format version x"),
        ("cossim_fast index", "cossim_fast indec", "to be a cossim_fast index, got cossim_fast in"),
        ('"I8"', '"I7"', "is damaged: its header makes no sense"),
        ('"count": "400"', '"count": "401"', "is damaged: its header makes no sense"),
        ('{"__m', '["__m', "is damaged: its header cannot be read"),
    ],
)
def test_a_header_that_was_changed_is_refused(saved, old, new, said):
    whole = saved.read_bytes()
    assert whole.count(old.encode()) >= 1
    saved.write_bytes(whole.replace(old.encode(), new.encode()))
    with pytest.raises(FileError, match=said):
        CosineIndex.load(saved)


def test_files_of_others_are_refused(tmp_path):
    save_file({"rows": rows(5)}, tmp_path / "x")
    with pytest.raises(FileError, match="to be a cossim_fast index, got a safetensors file of"):
        CosineIndex.load(tmp_path / "x")
    (tmp_path / "text").write_text("no index at all, just some words")
    with pytest.raises(FileError, match="truncated, or no safetensors file"):
        CosineIndex.load(tmp_path / "text")
    CosineIndex(rows(5), path=tmp_path / "vectors")
    with pytest.raises(FileError, match="to be a cossim_fast index, got cossim_fast vectors"):
        CosineIndex.load(tmp_path / "vectors")
    with pytest.raises(FileNotFoundError, match="nothing"):
        CosineIndex.load(tmp_path / "nothing")


# Interruptions.


def test_an_error_in_the_middle_of_saving_leaves_the_old_file(saved, monkeypatch):
    old, pieces = saved.read_bytes(), tensor_file.pieces

    def interrupted(tensor):
        for piece in pieces(tensor):
            if tensor.dtype == torch.bool:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(tensor_file, "pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CosineIndex(rows(50)).save(saved)
    assert saved.read_bytes() == old
    assert os.listdir(saved.parent) == ["index"]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from cossim_fast import CosineIndex
from cossim_fast.retrieval.storage import tensor_file as files
index = CosineIndex.load(sys.argv[1])
index.add(torch.ones(1000, 16), ids=[f"new {n}" for n in range(1000)])
write, left = files.pieces, int(sys.argv[2])
def pieces(tensor):
    global left
    for piece in write(tensor):
        yield piece
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
files.pieces = pieces
index.save(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("pieces", [1, 12])
def test_a_process_that_is_killed_while_it_saves_leaves_the_old_file(saved, pieces):
    old, wanted = saved.read_bytes(), CosineIndex.load(saved).search(QUERIES, 9)
    done = subprocess.run([sys.executable, "-c", KILLED, saved, str(pieces)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert saved.read_bytes() == old
    (left,) = set(os.listdir(saved.parent)) - {"index"}
    assert left.endswith(".part")  # what a killed process leaves behind disturbs nobody
    loaded = CosineIndex.load(saved)
    assert_same(loaded.search(QUERIES, 9), wanted)
    loaded.save(saved)
    assert_same(CosineIndex.load(saved).search(QUERIES, 9), wanted)


def test_an_index_saved_while_another_thread_adds_is_one_that_was(tmp_path):
    x, done = rows(800), threading.Event()
    index = CosineIndex(x[:100], path=tmp_path / "vectors")

    def add():
        for first in range(100, 800, 20):
            index.add(x[first : first + 20])
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    while True:
        last = done.is_set()
        index.save(tmp_path / "index")
        loaded = CosineIndex.load(tmp_path / "index")
        assert len(loaded) % 20 == 0
        assert_same(loaded.search(QUERIES, 5), topk(QUERIES, x[: len(loaded)], 5))
        if last:
            break
    thread.join()
    assert len(loaded) == 800


# What Windows does, which keeps a file that is mapped.


def test_a_file_that_cannot_be_replaced_is_said(tmp_path, monkeypatch):
    index = CosineIndex(rows(100))
    index.save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()

    def refuse(part, target):
        raise PermissionError(13, "Access is denied", str(part), 5, str(target))

    monkeypatch.setattr(_replacing, "_REPLACES_OPEN_FILES", False)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="loaded from it with mmap=True") as caught:
        CosineIndex(rows(50)).save(tmp_path / "index")
    assert caught.value.filename == str(tmp_path / "index")
    assert os.listdir(tmp_path) == ["index"]
    assert (tmp_path / "index").read_bytes() == before
    with pytest.raises(PermissionError, match="denied"):  # not for a file that is open
        CosineIndex(rows(50)).save(tmp_path / "new")


def test_rows_that_cannot_be_cut_off_are_written_over(tmp_path, monkeypatch):
    index = CosineIndex(rows(100), path=tmp_path / "vectors")
    opened = Path.open

    class Uncut:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def truncate(self, size):
            raise PermissionError(13, "a file with a mapped section")

    bad = rows(3000, seed=3).double()
    bad[2900, 0] = 1e300  # found once others are written
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, *how: Uncut(opened(self, *how)))
        with pytest.raises(ValueError, match="2900"):
            index.add(bad)
    assert len(index) == 100
    index.add(rows(60, seed=4))
    assert_same(
        index.search(QUERIES, 9), topk(QUERIES, torch.cat([rows(100), rows(60, seed=4)]), 9)
    )


# Memory.

MEASURE = """
import json, os, resource, sys
from pathlib import Path
import numpy as np, torch
from cossim_fast import CosineIndex, topk

def peak(call):
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as high:
        high.write("5")  # the peak starts anew
    result = call()
    with open("/proc/self/status") as status:
        (high,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    return (int(high) * 1024 - before) / 1e6, result

torch.set_num_threads(1)
folder, screen = Path(sys.argv[1]), sys.argv[2]
x = np.load(folder / "x.npy", mmap_mode="r")
queries = np.asarray(x[:16], np.float32)
warm = topk(queries, x[:4096], 10, screen=screen)
CosineIndex(x[:4096], screen=screen).search(queries, 10)
# What torch takes for products of this size, at first and each time.
rows = torch.ones(1 << 13, 384)
def plain():
    for x in (rows, rows.bfloat16()):
        torch.mm(x, x[:16].T)
plain()
said = {}
said["torch"], _ = peak(plain)
del rows
said["topk"], found = peak(lambda: topk(queries, x, 10, screen=screen))
said["build on a map"], index = peak(lambda: CosineIndex(x, screen=screen))
said["search on a map"], first = peak(lambda: index.search(queries, 10))
del index
said["build with a file"], index = peak(
    lambda: CosineIndex(x, screen=screen, path=folder / "vectors")
)
said["search with a file"], second = peak(lambda: index.search(queries, 10))
said["save"], _ = peak(lambda: index.save(folder / "index"))
del index
said["load"], index = peak(lambda: CosineIndex.load(folder / "index"))
third = index.search(queries, 10)
for other in (first, second, third):
    assert (other.indices == found.indices).all() and (other.scores == found.scores).all()
print(json.dumps(said))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize("screen", ["auto", "float32"])
def test_memory_holds_the_codes_alone(screen, tmp_path):
    n, d = 150_000, 384
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (n, d))
    some = np.random.default_rng(0).standard_normal((10_000, d), dtype=np.float32)
    for first in range(0, n, 10_000):
        x[first : first + 10_000] = some + first / n
    x.flush()
    del x
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, screen],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # Rows of a file are read in blocks of 2^24 numbers, released one by one; they hold the file's
    # pages, and in some steps the rows in float32.
    file, codes, pages = 2 * n * d / 1e6, n * d / 1e6 * (screen == "auto"), 2 * 2**24 / 1e6
    assert file > 3 * pages
    own = said.pop("torch")
    assert said["topk"] < 2.5 * pages + own, said
    for name in ("build on a map", "build with a file"):
        assert codes < said[name] < codes + 3 * pages + own, said
    for name in ("search on a map", "search with a file"):
        assert said[name] < 2.5 * pages + own, said
    assert said["save"] < 1.5 * pages, said
    assert codes < said["load"] < codes + 2 * pages, said


def test_pages_that_scoring_read_are_let_go_by_stretches(tmp_path, monkeypatch):
    x = rows(5000)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = CosineIndex(np.load(tmp_path / "x.npy", mmap_mode="r"))
    expected = CosineIndex(x).search(QUERIES, 9)
    done = []
    score, release_pages = score_pairs, batches_module.release_pages

    def scoring(queries, rows, query, row, norms):
        done.append(("scored", int(row.min()) // 64, int(row.max()) // 64))
        return score(queries, rows, query, row, norms)

    def releasing(whole, rows):
        first = (rows.data_ptr() - whole.ctypes.data) // (16 * 4)
        done.append(("released", first // 64, (first + len(rows) - 1) // 64))
        release_pages(whole, rows)

    monkeypatch.setattr(batches_module, "block_rows", lambda d: 64)
    monkeypatch.setattr(near_module, "score_pairs", scoring)
    monkeypatch.setattr(batches_module, "release_pages", releasing)
    for index in (mapped, pickle.loads(pickle.dumps(mapped))):
        done.clear()
        assert_same(index.search(QUERIES, 9), expected)
        assert len(done) > 10
        for (what, *scored), (then, *gone) in zip(done[::2], done[1::2], strict=True):
            assert (what, then) == ("scored", "released")
            assert scored == gone
            assert gone[0] == gone[1]
