"""A checkpoint belongs to its rows, to one run at a time, and to nobody who plants files."""

import errno
import json
import os
import stat
import threading

import numpy as np
import pytest
import torch

from checkpoint_runs import ROWS, EndedError, ending_after, small_stretches
from cossim_fast import iter_pairs_above, pairs_above, topk
from cossim_fast.retrieval import FileError, InUseError
from cossim_fast.retrieval.storage import own_files, tensor_file
from cossim_fast.retrieval.storage.digest import Digest, digest_of

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(300, 8, generator=GENERATOR)
OTHER = torch.randn(300, 8, generator=GENERATOR)
SEEN = 2 * ROWS


def search(corpus, path):
    return topk(X[:5], corpus, 3, checkpoint=path)


def join(corpus, path):
    return pairs_above(corpus, threshold=0.5, checkpoint=path)


def begun(run, corpus, path):
    """Have a run end after two stretches."""
    with ending_after(2), pytest.raises(EndedError):
        run(corpus, path)
    return path.read_bytes()


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


GIVEN = {"array": lambda rows: rows, "iterator": lambda rows: iter(rows.split(50))}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("changed", ["all", "one bit", "first row"])
def test_a_search_does_not_go_on_with_other_rows(given, changed, tmp_path):
    path = tmp_path / "kept"
    kept = begun(search, given(X), path)
    other = OTHER.clone() if changed == "all" else X.clone()
    if changed == "one bit":
        other.view(torch.int32)[SEEN - 1, 7] ^= 1
    if changed == "first row":
        other[0] = -other[0]
    said = "differs in the values of rows searched before; delete it to begin anew"
    with small_stretches(), pytest.raises(ValueError, match=said):
        search(given(other), path)
    assert path.read_bytes() == kept
    with small_stretches():
        same(search(given(X), path), search(X, None))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_rows_that_are_still_to_be_searched_may_change(given, tmp_path):
    begun(search, given(X), tmp_path / "kept")
    other = torch.cat([X[:SEEN], OTHER[SEEN:]])
    with small_stretches():
        same(search(given(other), tmp_path / "kept"), search(other, None))


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_another_dtype_of_the_same_bits_is_refused(given, tmp_path):
    half = X.half()
    begun(search, given(half), tmp_path / "kept")
    said = r"dtype of corpus \(torch.float16 then, torch.bfloat16 now\)"
    with small_stretches(), pytest.raises(ValueError, match=said):
        search(given(half.view(torch.bfloat16)), tmp_path / "kept")


@pytest.mark.parametrize("row", [0, 1, 150, 299])
def test_a_join_does_not_go_on_with_one_row_changed(row, tmp_path):
    # Of 9000 rows a sample of 4096 would leave half out.
    x = torch.cat([X] * 30)
    begun(join, x, tmp_path / "kept")
    x[8700 + row, 3] += 1
    with small_stretches(), pytest.raises(ValueError, match="differs in the values of x"):
        join(x, tmp_path / "kept")


@pytest.mark.parametrize(("run", "key"), [(search, "search"), (join, "join")])
def test_a_checkpoint_of_an_earlier_version_is_refused(run, key, tmp_path):
    path = tmp_path / "kept"
    begun(run, X, path)
    kind = f"cossim_fast {key} checkpoint"
    held, said = tensor_file.read_tensors(path, kind)
    old = {key: said["of"], "seen": "128", "skipped": "0", "done": "128"}
    tensor_file.write_tensors(path, kind, held, old)
    with pytest.raises(FileError, match=r"a file of another.*delete it to begin anew"):
        run(X, path)
    # What is of this version and says nothing sensible.
    for text in ({**said, "said": "{}"}, {**said, "said": "["}, {"format": said["format"]}):
        tensor_file.write_tensors(path, kind, held, text)
        with pytest.raises(FileError, match=r"is damaged.*delete it to begin anew"):
            run(X, path)


@pytest.mark.parametrize(("run", "name"), [(search, "seen"), (join, "done")])
@pytest.mark.parametrize("count", [0, -64, 301])
def test_counts_that_cannot_be_are_refused(run, name, count, tmp_path):
    path = tmp_path / "kept"
    begun(run, X, path)
    kind = f"cossim_fast {run.__name__} checkpoint"
    held, text = tensor_file.read_tensors(path, kind)
    said = json.dumps({**json.loads(text["said"]), name: count})
    tensor_file.write_tensors(path, kind, held, {**text, "said": said})
    with pytest.raises(FileError, match="is damaged"):
        run(X, path)


# One run at a time.


def test_two_calls_with_one_checkpoint(tmp_path):
    path, inside, go_on = tmp_path / "kept", threading.Event(), threading.Event()

    def blocks():
        yield X[:200]
        inside.set()
        assert go_on.wait(60)
        yield X[200:]

    found = []
    thread = threading.Thread(target=lambda: found.append(search(blocks(), path)))
    thread.start()
    try:
        assert inside.wait(60)
        said = f"expected {path} for this run alone, and another call in this process has had it"
        for run in (search, join):
            with pytest.raises(InUseError, match=said):
                run(X, path)
        with pytest.raises(InUseError, match=said):
            iter_pairs_above(X, threshold=0.5, checkpoint=path)
    finally:
        go_on.set()
        thread.join()
    same(found[0], search(X, None))
    assert os.listdir(tmp_path) == []
    same(search(X, path), found[0])


def test_an_iterator_of_pairs_has_its_checkpoint_until_it_is_closed(tmp_path):
    path = tmp_path / "kept"
    with small_stretches():
        first = iter_pairs_above(X, threshold=0.5, checkpoint=path)
        next(first)
        with pytest.raises(InUseError):
            iter_pairs_above(X, threshold=0.5, checkpoint=path)
        first.close()
        with pytest.raises(ValueError, match="expected threshold"):
            iter_pairs_above(X, threshold=2, checkpoint=path)
        blocks = list(iter_pairs_above(X, threshold=0.5, checkpoint=path))
    same([torch.cat(column) for column in zip(*blocks, strict=True)], join(X, None))
    assert os.listdir(tmp_path) == []


def test_an_error_lets_others_have_it(tmp_path):
    path = tmp_path / "kept"
    for run in (search, join):
        begun(run, X, path)
        assert os.listdir(tmp_path) == ["kept"]
        same(run(X, path), run(X, None))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    lock = own_files.Lock(tmp_path / "kept")
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(tmp_path) == [".kept.lock"]
    with pytest.raises(InUseError):
        own_files.Lock(tmp_path / "kept")
    lock.release()
    assert os.listdir(tmp_path) == []


def test_locks_that_come_and_go_keep_each_other_out(tmp_path):
    """Each removes its file, while others are about to take it."""
    inside, worst, taken = [0], [0], [0]
    counting = threading.Lock()

    def work():
        for _ in range(300):
            try:
                lock = own_files.Lock(tmp_path / "kept")
            except InUseError:
                continue
            with counting:
                inside[0] += 1
                taken[0] += 1
                worst[0] = max(worst[0], inside[0])
            with counting:
                inside[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst[0] == 1
    assert taken[0] > 100
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.warns(UserWarning, match="flock not supported"):
        lock = own_files.Lock(tmp_path / "kept")
    # What filelock wrote is not written over: it is the lock.
    assert b"since" not in (tmp_path / ".kept.lock").read_bytes()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_holder_that_says_nothing_sensible(tmp_path):
    with own_files.Lock(tmp_path / "kept"):
        for said in (b"", b"\0{}", b'\0{"pid": 1, "host": "\\u001b]0;x", "since": ""}', b"\0\xff"):
            (tmp_path / ".kept.lock").write_bytes(said)
            with pytest.raises(InUseError, match=r"and (another run|process 1) has it; wait"):
                own_files.Lock(tmp_path / "kept")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder, and there is none"):
        search(X, tmp_path / "none" / "kept")
    assert os.listdir(tmp_path) == []


# What is planted.

PLANTED = {
    "a symbolic link": lambda place, target: place.symlink_to(target),
    "a folder": lambda place, _: place.mkdir(),
    "a pipe": lambda place, _: os.mkfifo(place),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("run", [search, join])
@pytest.mark.parametrize("name", ["kept", ".kept.lock"])
@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_no_regular_file_is_refused(kind, name, run, tmp_path):
    (tmp_path / "target").write_text("precious")
    PLANTED[kind](tmp_path / name, tmp_path / "target")
    with pytest.raises(ValueError, match=f"{name} to be a regular file.*got {kind}; remove it"):
        run(X, tmp_path / "kept")
    assert (tmp_path / "target").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "target"])


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o177, 0o600)])
def test_its_owner_alone_reads_it(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        begun(search, X, tmp_path / "kept")
        with own_files.create(tmp_path / "beside"):
            pass
    finally:
        os.umask(before)
    for name in ("kept", "beside"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    with own_files.Lock(tmp_path / "other"):
        assert stat.S_IMODE((tmp_path / ".other.lock").stat().st_mode) == 0o600


# Digests.


def test_a_digest_does_not_depend_on_pieces():
    data = np.random.default_rng(0).integers(0, 256, 5 << 20, dtype=np.uint8)
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 77, 5 << 20):
        whole = Digest()
        whole.add(data[:size])
        for step in (100_003, 1 << 20, 3 << 20):
            pieces = Digest()
            for at in range(0, size, step):
                pieces.add(data[at : min(at + step, size)])
            assert pieces.text() == whole.text()
        changed = data[:size].copy()
        for at in {0, size // 2, size - 1} if size else ():
            changed[at] ^= 1
            other = Digest()
            other.add(changed)
            assert other.text() != whole.text()
            changed[at] ^= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_digest_of_rows_is_of_their_values_in_order(dtype):
    x = torch.randn(70, 5).to(dtype)
    assert digest_of(x) == digest_of(x.T.contiguous().T) == digest_of(x.clone())
    assert digest_of(x) != digest_of(x.flip(0))
    assert digest_of(x[:0]) == digest_of(torch.empty(0, 9))
