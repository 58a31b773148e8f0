"""`topk` over streams: one pass, in any blocks, interrupted and resumed to the same bits."""

import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from cossim_fast import _reference, topk
from cossim_fast.retrieval import FileError, tuning
from cossim_fast.retrieval.nearest import topk as topk_module
from cossim_fast.retrieval.storage import corpus as corpus_module

D, STEP = 8, 640


def rows(n, seed=0, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


QUERIES, CORPUS = rows(5, seed=1), rows(5000)


@pytest.fixture(autouse=True)
def _small_stretches(monkeypatch):
    """Search 640 rows at a time, so that a checkpoint is written eight times."""
    monkeypatch.setattr(corpus_module, "NUMBERS", STEP * D)


def assert_same(found, other):
    for mine, theirs in zip(found[:2], other[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def interrupted(blocks, after, error=KeyboardInterrupt):
    """The blocks of ``after`` rows, and then an error."""
    given = 0
    for block in blocks:
        if given + len(block) > after:
            raise error
        yield block
        given += len(block)


# Any blocks.


@pytest.mark.parametrize("size", [1, 63, 64, 640, 641, 5000])
def test_an_iterator_of_any_blocks_gives_what_the_array_gives(size):
    assert_same(topk(QUERIES, iter(CORPUS.split(size)), 9), topk(QUERIES, CORPUS, 9))


def test_blocks_may_be_arrays_and_empty():
    blocks = [CORPUS[:0], CORPUS[:10], CORPUS[:0], CORPUS[10:]]
    found = topk(QUERIES.numpy(), iter([block.numpy() for block in blocks]), 9)
    assert isinstance(found.scores, np.ndarray)
    assert_same(found, topk(QUERIES, CORPUS, 9))


def test_a_stream_is_looked_at_once_and_kept_nowhere():
    given = []

    def blocks():
        for some in CORPUS.split(STEP):
            block = some.numpy().copy()
            given.append(weakref.ref(block))
            yield block
            del block
            assert sum(ref() is not None for ref in given) <= 2

    topk(QUERIES, blocks(), 9)
    assert len(given) == 8


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], "expected k <= n, got k = 9 and a corpus of n = 0 rows"),
        ([CORPUS[:8]], "expected k <= n, got k = 9 and a corpus of n = 8 rows"),
        ([CORPUS, CORPUS[:, :5]], r"expected block 1 of corpus of shape \(n, 8\) and dtype"),
        ([CORPUS, CORPUS.half()], r"got \(5000, 8\) and torch.float16"),
        ([CORPUS, CORPUS[0]], r"expected block 1 of corpus of shape \(n, d\), got \(8,\)"),
    ],
)
def test_streams_that_are_refused(blocks, said):
    with pytest.raises(ValueError, match=said):
        topk(QUERIES, iter(blocks), 9)


def test_a_certificate_of_a_stream_cannot_be_verified():
    found = topk(QUERIES, iter(CORPUS.split(99)), 9, certify=True)
    whole = topk(QUERIES, CORPUS, 9, certify=True)
    assert_same(found, whole)
    np.testing.assert_array_equal(found.certificate.kth_score, whole.certificate.kth_score)
    with pytest.raises(ValueError, match="expected a corpus that can be read again"):
        found.certificate.verify()


def assert_bounds_reach_the_tenth(certificate):
    scores = _reference.pairwise_cosine(QUERIES, CORPUS, eps=0.0)
    tenth = scores.sort(descending=True).values[:, 9].numpy()
    assert (certificate.excluded_bound >= tenth - 1e-12).all()


# Interruption and resumption.


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("after", [0, 639, 640, 3000, 4999])
def test_what_is_interrupted_goes_on_to_the_same_bits(after, certify, tmp_path):
    wanted = topk(QUERIES, CORPUS, 9, certify=certify)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        topk(
            QUERIES,
            interrupted(CORPUS.split(1), after),
            9,
            certify=certify,
            checkpoint=path,
        )
    assert path.exists() == (after >= STEP)
    found = topk(QUERIES, iter(CORPUS.split(77)), 9, certify=certify, checkpoint=path)
    assert_same(found, wanted)
    assert os.listdir(tmp_path) == []
    if certify:
        mine, theirs = found.certificate, wanted.certificate
        np.testing.assert_array_equal(mine.kth_score, theirs.kth_score)
        np.testing.assert_array_equal(mine.tie, theirs.tie)
        assert mine.rows == theirs.rows == 5000
        assert_bounds_reach_the_tenth(mine)


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("threads", [(1, 2), (2, 1), (3, 2)], ids=str)
def test_what_is_interrupted_goes_on_with_other_threads(threads, certify, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "THREAD_QUERIES", 1)
    path, before = tmp_path / "checkpoint", torch.get_num_threads()
    try:
        torch.set_num_threads(threads[0])
        wanted = topk(QUERIES, CORPUS, 9, certify=certify)
        stream = interrupted(CORPUS.split(1), 3000)
        with pytest.raises(KeyboardInterrupt):
            topk(QUERIES, stream, 9, certify=certify, checkpoint=path)
        torch.set_num_threads(threads[1])
        found = topk(QUERIES, iter(CORPUS.split(77)), 9, certify=certify, checkpoint=path)
    finally:
        torch.set_num_threads(before)
    assert_same(found, wanted)
    if certify:
        assert_bounds_reach_the_tenth(found.certificate)


def test_rows_that_were_searched_are_not_searched_again(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        topk(QUERIES, interrupted(CORPUS.split(1), 3000), 9, checkpoint=path)
    seen, encode = [], topk_module.encode

    def counting(some, *args, **kwargs):
        seen.append(kwargs["first"])
        return encode(some, *args, **kwargs)

    monkeypatch.setattr(topk_module, "encode", counting)
    topk(QUERIES, iter(CORPUS.split(1)), 9, checkpoint=path)
    assert seen == list(range(4 * STEP, 5000, STEP))


def test_an_array_goes_on_too_and_skipped_rows_are_counted_once(tmp_path, monkeypatch):
    x = CORPUS.clone()
    x[[5, 2000, 4900]] = torch.nan
    encode, path = topk_module.encode, tmp_path / "checkpoint"

    def stopping(some, *args, **kwargs):
        if kwargs["first"] >= 3 * STEP:
            raise KeyboardInterrupt
        return encode(some, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(topk_module, "encode", stopping)
        with pytest.raises(KeyboardInterrupt):
            topk(QUERIES, x, 9, certify=True, checkpoint=path)
    found = topk(QUERIES, x, 9, certify=True, checkpoint=path)
    assert_same(found, topk(QUERIES, x, 9))
    assert found.certificate.skipped == 3
    assert found.certificate.verify(None) == 5 * (5000 + 9)


def test_an_iterator_that_gives_too_little_when_it_goes_on(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        topk(QUERIES, interrupted(CORPUS.split(1), 3000), 9, checkpoint=path)
    said = "again from the first, at least 2560 of them, got 1000; start it anew, or delete the"
    with pytest.raises(ValueError, match=said):
        topk(QUERIES, iter(CORPUS[2560:3560].split(100)), 9, checkpoint=path)
    # Nothing is lost by that.
    assert_same(
        topk(QUERIES, iter(CORPUS.split(100)), 9, checkpoint=path), topk(QUERIES, CORPUS, 9)
    )


KILLED = """
import os, signal, sys
import numpy as np
from cossim_fast import topk
from cossim_fast.retrieval.storage import tensor_file as files, corpus as sources
sources.NUMBERS = 640 * 8
folder, when = sys.argv[1], sys.argv[2]
queries, corpus = np.load(folder + "/q.npy"), np.load(folder + "/x.npy")
def blocks():
    for first in range(0, 5000, 100):
        if when == "between" and first == 3000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield corpus[first : first + 100]
if when == "while it writes":
    write, left = files.pieces, [40]
    def pieces(tensor):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from write(tensor)
    files.pieces = pieces
topk(queries, blocks(), 9, checkpoint=folder + "/checkpoint")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("when", ["between", "while it writes"])
def test_a_process_that_is_killed_leaves_a_checkpoint_to_go_on_from(when, tmp_path):
    np.save(tmp_path / "q.npy", QUERIES.numpy())
    np.save(tmp_path / "x.npy", CORPUS.numpy())
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, when], check=False)
    assert done.returncode == -signal.SIGKILL
    given = []

    def blocks():
        for first in range(0, 5000, 33):
            given.append(first)
            yield CORPUS[first : first + 33].numpy()

    path = tmp_path / "checkpoint"
    assert path.exists()
    found = topk(QUERIES.numpy(), blocks(), 9, checkpoint=path)
    assert_same(found, topk(QUERIES, CORPUS, 9))
    assert given[0] == 0
    assert not path.exists()


# Checkpoints that do not fit.

OTHER = {
    "k": ({"k": 8}, r"k \(9 then, 8 now\)"),
    "queries": ({"queries": rows(5, seed=2)}, "the values of queries"),
    "query dtype": (
        {"queries": QUERIES.double()},
        r"dtype of queries \(torch.float32 then, torch.float64 now\), the values of queries",
    ),
    "certify": ({"certify": True}, r"certify \(False then, True now\)"),
    "rows": ({"corpus": CORPUS}, r"rows of corpus \(none then, 5000 now\)"),
    "width": (
        {"queries": QUERIES[:, :4], "corpus": iter([CORPUS[:, :4]])},
        r"width \(8 then, 4 now\), the values of queries",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_the_checkpoint_of_another_search_is_refused(name, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        topk(QUERIES, interrupted(CORPUS.split(1), 3000), 9, checkpoint=path)
    kept = path.read_bytes()
    other, differ = OTHER[name]
    arguments = {"queries": QUERIES, "corpus": iter([CORPUS]), "k": 9, **other}
    with pytest.raises(ValueError, match=f"it differs in {differ}; delete it to begin anew"):
        topk(**arguments, checkpoint=path)
    assert path.read_bytes() == kept


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        topk(QUERIES, interrupted(CORPUS.split(1), 3000), 9, checkpoint=path)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for length in (0, 7, 100, 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="checkpoint is truncated"):
            topk(QUERIES, iter([CORPUS]), 9, checkpoint=path)
    blanks = whole.index(b"    ")
    places = [*range(blanks), *range(4096, len(whole))]
    for place in generator.choice(places, 60, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FileError, match="checkpoint"):
            topk(QUERIES, iter([CORPUS]), 9, checkpoint=path)
    path.write_bytes(whole)
    assert_same(topk(QUERIES, iter([CORPUS]), 9, checkpoint=path), topk(QUERIES, CORPUS, 9))


def test_a_file_that_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("precious words that fill a few bytes")
    with pytest.raises(FileError, match="notes is truncated, or no safetensors file"):
        topk(QUERIES, CORPUS, 9, checkpoint=tmp_path / "notes")
    assert (tmp_path / "notes").read_text().startswith("precious")


# The progress bar.


@pytest.mark.parametrize("corpus", ["array", "iterator"])
def test_a_progress_bar_counts_rows(corpus, capsys):
    given = CORPUS if corpus == "array" else iter(CORPUS.split(100))
    found = topk(QUERIES, given, 9, progress=True)
    said = capsys.readouterr().err
    assert "topk" in said
    assert ("5.00k/5.00k" if corpus == "array" else "5.00k rows") in said
    assert_same(found, topk(QUERIES, CORPUS, 9))
    assert capsys.readouterr().err == ""


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cossim_fast\[retrieval\]'"):
        topk(QUERIES, CORPUS, 9, progress=True)
    topk(QUERIES, CORPUS, 9)


def test_a_checkpoint_needs_torch_and_numpy_alone(tmp_path):
    code = """
import sys
for name in ("safetensors", "tqdm", "scipy"):
    sys.modules[name] = None
import torch
from cossim_fast import CosineIndex, topk
x = torch.eye(9)
topk(x, x, 2, checkpoint=sys.argv[1] + "/checkpoint")
CosineIndex(x, path=sys.argv[1] + "/vectors").save(sys.argv[1] + "/index")
CosineIndex.load(sys.argv[1] + "/index").search(x, 2)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
