"""`CosineIndex` against float64 brute force, and against its own bits in every other setting."""

import itertools
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arithmetic as models
from cossim_fast import CosineIndex, _threads, topk
from cossim_fast.retrieval import FileError, VerificationError, tuning
from cossim_fast.retrieval.screening import screens
from cossim_fast.retrieval.storage import host_parts
from index_data import search_in_child

SCREENS = ["int8", "bfloat16", "float32"]
pytestmark = pytest.mark.usefixtures("int8_product")


def rows(n, d=24, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, d, generator=generator)
    noise = torch.randn(n, d, generator=generator)
    which = torch.randint(0, 6, (n,), generator=generator)
    return (centres[which] + noise).to(dtype)


def cosines(queries, corpus):
    """In float64 by numpy: (q, n)."""
    q, x = np.asarray(queries.double()), np.asarray(corpus.double())
    with np.errstate(invalid="ignore"):
        below = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
        return (q @ x.T) / np.where(below == 0, 1.0, below)


def assert_best(found, wanted, k, rounding=2e-7):
    """Rows found by their place in ``wanted`` (q, n), where NaN marks what may not be returned."""
    scores, places = np.asarray(found.scores, np.float64), np.asarray(found.indices)
    assert scores.shape == places.shape == (len(wanted), k)
    for score, place, cosine in zip(scores, places, wanted, strict=True):
        there = min(k, int((~np.isnan(cosine)).sum()))
        assert (place[there:] == -1).all()
        assert np.isnan(score[there:]).all()
        found_cosines = cosine[place[:there]]
        assert len(set(place[:there].tolist())) == there
        np.testing.assert_allclose(score[:there], found_cosines, rtol=0, atol=rounding)
        best = np.sort(cosine[~np.isnan(cosine)])[::-1][:there]
        np.testing.assert_allclose(found_cosines, best, rtol=0, atol=1e-13)


def assert_same(found, other):
    for mine, theirs in zip(found, other, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.fixture(scope="module")
def corpus():
    return rows(700)


@pytest.fixture(scope="module")
def queries():
    return rows(9, seed=1)


@models.every_processor
@pytest.mark.parametrize("screen", ["auto", *SCREENS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finds_what_brute_force_finds(dtype, screen, queries, processor):
    x = rows(700, dtype=dtype)
    found = CosineIndex(x, screen=screen).search(queries, 11)
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.indices.dtype == torch.int64
    assert_best(found, cosines(queries, x), 11)


@pytest.mark.parametrize("store", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_exact_in_what_is_stored(store, corpus, queries):
    index = CosineIndex(corpus, store=store)
    index.add(rows(30, seed=5, dtype=torch.float64))
    kept = torch.cat([corpus, rows(30, seed=5)]).to(store)
    assert_best(index.search(queries, 11), cosines(queries, kept), 11)


def grown(corpus):
    index = CosineIndex(corpus[:5])
    for row in range(5, 60):
        index.add(corpus[row : row + 1])
    for some in corpus[60:].split(97):
        index.add(some)
    return index


MADE = {
    "as it is": CosineIndex,
    "grown": grown,
    "of a list": lambda x: CosineIndex(x.tolist(), store=torch.float32),
    "of columns": lambda x: CosineIndex(x.t().contiguous().t()),
    **{f"screened by {name}": lambda x, n=name: CosineIndex(x, screen=n) for name in SCREENS},
    "pickled": lambda x: pickle.loads(pickle.dumps(grown(x))),
}


@models.every_processor
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("k", [1, 10, 700])
def test_the_same_bits_however_it_is_made(made, k, corpus, queries, processor):
    assert_same(MADE[made](corpus).search(queries, k), topk(queries, corpus, k))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_alone_in_a_batch_and_with_any_number_of_threads(threads, corpus):
    queries = rows(1100, seed=2)  # more than go through together
    index, before = CosineIndex(corpus), torch.get_num_threads()
    whole = index.search(queries, 5)
    torch.set_num_threads(threads)
    try:
        assert_same(index.search(queries, 5), whole)
        for some in (slice(7, 8), slice(1020, 1030)):
            alone = index.search(queries[some], 5)
            assert_same(alone, (whole.scores[some], whole.indices[some]))
    finally:
        torch.set_num_threads(before)


def test_arrays_for_arrays(corpus, queries):
    found = CosineIndex(corpus.numpy()).search(queries.numpy(), 3)
    assert isinstance(found.scores, np.ndarray)
    assert isinstance(found.indices, np.ndarray)
    assert_same(found, topk(queries, corpus, 3))


def test_no_queries_and_no_rows(corpus):
    assert CosineIndex(corpus).search(corpus[:0], 3).indices.shape == (0, 3)
    index = CosineIndex(corpus[:0])
    assert len(index) == 0
    with pytest.raises(ValueError, match="k = 1 and a corpus of n = 0 rows"):
        index.search(corpus, 1)
    index.add(corpus, ids=[f"row {row}" for row in range(700)])
    assert index.search(corpus[:2], 1).indices.tolist() == [["row 0"], ["row 1"]]


# Ids.

GIVEN = {
    "list": [5, 7, 2**62, -9],
    "int32": np.array([5, 7, 9, 11], np.int32),
    "tensor": torch.tensor([4, 3, 2, 1]),
    "strings": ["a", "ü€", "", "a\0"],
    "array of strings": np.array(["x", "yy", "zzz", ""]),
    "objects": np.array(["x", "yy", "zzz", "1"], dtype=object),
}


@pytest.mark.parametrize("name", GIVEN)
def test_results_carry_the_ids(name):
    ids = GIVEN[name]
    index = CosineIndex(torch.eye(4), ids=ids)
    found = index.search(torch.eye(4), 1).indices
    assert found[:, 0].tolist() == list(ids.tolist() if hasattr(ids, "tolist") else ids)
    assert index.ids.tolist() == found[:, 0].tolist()
    strings = isinstance(found[0, 0], str)
    assert isinstance(found, np.ndarray if strings else torch.Tensor)
    assert found.dtype == (np.dtype(object) if strings else torch.int64)


REFUSED_IDS = {
    "twice": ([1, 2, 1], ValueError, "not taken, got 1 that are, 1 for"),
    "strings twice": (["a", "b", "b"], ValueError, "not taken, got 1 that are, 'b'"),
    "too few": ([1, 2], ValueError, r"expected ids of shape (3,), got (2,)"),
    "two axes": (np.ones((3, 1), np.int64), ValueError, "expected ids of shape (3,), got (3, 1)"),
    "minus one": ([0, -1, 1], ValueError, "other than -1"),
    "floats": ([0.0, 1.0, 2.0], TypeError, "whole numbers or str, got float"),
    "booleans": ([True, False, True], TypeError, "whole numbers or str, got bool"),
    "mixed": ([1, "a", 2], TypeError, "whole numbers or str, got int, str"),
    "bytes": ([b"a", b"b", b"c"], TypeError, "whole numbers or str, got bytes"),
    "one string": ("abc", TypeError, "expected ids to be a sequence, got str"),
    "a set": ({1, 2, 3}, TypeError, "expected ids to be a sequence, got set"),
    "too large": (np.array([1, 2, 2**63], np.uint64), ValueError, "below 2**63"),
}


@pytest.mark.parametrize("name", REFUSED_IDS)
def test_ids_that_are_refused(name):
    ids, kind, said = REFUSED_IDS[name]
    with pytest.raises(kind) as caught:
        CosineIndex(torch.eye(3), ids=ids)
    assert said in str(caught.value)


def test_ids_are_taken_until_they_are_removed():
    index = CosineIndex(torch.eye(3), ids=["a", "b", "c"])
    with pytest.raises(ValueError, match="'b'"):
        index.add(torch.eye(3)[:2], ids=["d", "b"])
    assert len(index) == 3
    index.remove(["b"])
    index.add(-torch.eye(3)[:1], ids=["b"])
    assert index.ids.tolist() == ["a", "c", "b"]
    assert index.search(-torch.eye(3)[:1], 1).indices.tolist() == [["b"]]
    with pytest.raises(KeyError, match="got 1 that are not, 'x' for instance"):
        index.remove(["a", "x"])
    assert index.ids.tolist() == ["a", "c", "b"]


def test_ids_of_one_index_are_of_one_kind():
    with pytest.raises(TypeError, match=r"expected ids to be positions.*build the index with ids"):
        CosineIndex(torch.eye(2)).add(torch.eye(2), ids=[7, 8])
    with pytest.raises(TypeError, match=r"expected ids to be whole numbers, .* got none"):
        CosineIndex(torch.eye(2), ids=[7, 8]).add(torch.eye(2))
    with pytest.raises(TypeError, match=r"expected ids to be strings, .* got whole numbers"):
        CosineIndex(torch.eye(2), ids=["a", "b"]).remove([1])
    with pytest.raises(TypeError, match=r"expected ids to be positions, .* got strings"):
        CosineIndex(torch.eye(2)).search(torch.eye(2), 1, exclude=["a"])


def test_a_number_is_never_given_twice(corpus, queries):
    index = CosineIndex(corpus[:100])
    index.remove(torch.arange(90, 100))
    index.add(corpus[100:200])
    index.remove(list(range(20, 80)))  # more than half: what is left is coded anew
    assert index.ids.tolist() == [*range(20), *range(80, 90), *range(100, 200)]
    wanted = cosines(queries, corpus[:200])
    wanted[:, [*range(20, 80), *range(90, 100)]] = np.nan
    assert_best(index.search(queries, 130), wanted, 130)
    with pytest.raises(KeyError, match="got 1 that are not"):
        index.remove([5, 95])


# Rows that may not be returned.


@pytest.mark.parametrize("k", [1, 5, 40])
def test_removed_rows_take_no_part_in_thresholds(k, corpus, queries):
    index = grown(corpus)
    wanted = cosines(queries, corpus)
    gone = np.unique(np.argsort(-wanted, axis=1)[:, :60])
    index.remove(gone)
    wanted[:, gone] = np.nan
    assert len(index) == 700 - len(gone)
    assert_best(index.search(queries, k), wanted, k)


def test_memory_of_removed_rows_is_given_back(corpus):
    index = CosineIndex(corpus)
    index.remove(range(349))
    assert [len(part) for part in index._snapshot.parts] == [700]
    index.remove(range(349, 352))
    assert [len(part) for part in index._snapshot.parts] == [348]
    index.remove(range(352, 700))
    assert index._snapshot.parts == ()
    index.add(corpus[:1])
    assert index.ids.tolist() == [700]


EXCLUDED = {
    "list": lambda best: best[:, :4].ravel().tolist(),
    "set": lambda best: set(best[:, :4].ravel().tolist()),
    "tensor": lambda best: torch.from_numpy(best[:, :4]).reshape(-1),
    "with strangers": lambda best: [*best[:, :4].ravel(), -1, 10**9],
}


@pytest.mark.parametrize("name", EXCLUDED)
def test_ids_excluded_for_all_queries(name, corpus, queries):
    wanted = cosines(queries, corpus)
    best = np.argsort(-wanted, axis=1)
    found = grown(corpus).search(queries, 6, exclude=EXCLUDED[name](best))
    wanted[:, best[:, :4].ravel()] = np.nan
    assert_best(found, wanted, 6)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, list, lambda x: x.tolist()])
def test_ids_excluded_query_by_query(form, corpus, queries):
    if form is np.asarray:
        queries = queries.repeat(150, 1)  # more than go through together
    wanted = cosines(queries, corpus)
    best = np.argsort(-wanted, axis=1)[:, :4].copy()
    best[1::2, 1:] = -1
    found = grown(corpus).search(queries, 6, exclude=form(best))
    for query, gone in enumerate(best):
        wanted[query, gone[gone >= 0]] = np.nan
    assert_best(found, wanted, 6)


def test_pages_of_results(corpus, queries):
    index = CosineIndex(corpus, ids=[str(row) for row in range(700)])
    whole, seen = index.search(queries, 30), None
    for page in range(3):
        found = index.search(queries, 10, exclude=seen)
        assert_same(found.indices, whole.indices[:, 10 * page : 10 * page + 10])
        seen = found.indices if seen is None else np.concatenate([seen, found.indices], axis=1)


def test_lists_of_excluded_ids_may_differ_in_length_and_be_empty(corpus, queries):
    index = CosineIndex(corpus)
    best = index.search(queries[:3], 3).indices.tolist()
    found = index.search(queries[:3], 1, exclude=[best[0][:1], [], best[2][:2]])
    assert found.indices.tolist() == [[best[0][1]], [best[1][0]], [best[2][2]]]
    for nothing in ([], [[], [], []], np.empty((3, 0), np.int64)):
        assert_same(index.search(queries[:3], 3, exclude=nothing).indices, best)
    with pytest.raises(ValueError, match=r"one list of ids for each of 3 queries.* got 2 lists"):
        index.search(queries[:3], 1, exclude=[[1], [2]])


@pytest.mark.parametrize("strings", [False, True])
def test_where_fewer_rows_are_left_the_rest_is_missing(strings):
    ids = ["a", "b", "c", "d"] if strings else [10, 11, 12, 13]
    x = torch.eye(4)
    x[3, 0] = torch.nan
    index = CosineIndex(x, ids=ids)
    assert index.skipped == 1
    assert len(index) == 4
    queries = torch.tensor([[3.0, 2.0, 1.0, 0.0], [torch.nan, 0.0, 0.0, 0.0]])
    found = index.search(queries, 4, exclude=[ids[1]], certify=True)
    nothing = None if strings else -1
    assert found.indices.tolist() == [[ids[0], ids[2], nothing, nothing], [nothing] * 4]
    assert found.scores.isnan().tolist() == [[False, False, True, True], [True] * 4]
    assert found.certificate.skipped == 1
    index.remove([ids[3]])
    assert index.skipped == 0


def test_zero_rows_score_nothing_and_ties_go_by_insertion():
    index = CosineIndex(torch.zeros(3, 5))
    for _ in range(70):
        index.add(torch.ones(2, 5))
    index.add(-torch.ones(2, 5))
    index.remove([4, 5, 100])
    found = index.search(torch.ones(1, 5), 142)
    order = [row for row in range(3, 143) if row not in (4, 5, 100)]
    assert found.indices.tolist() == [[*order, 0, 1, 2, 143, 144]]
    assert found.scores[0, -6:].tolist() == [1.0, 0.0, 0.0, 0.0, -1.0, -1.0]


def test_thousands_of_duplicates_come_in_the_order_of_insertion():
    x = rows(40)[torch.arange(3000) % 40]
    index = CosineIndex(x[:1000])
    index.add(x[1000:])
    found = index.search(x[:2], 75).indices
    assert found.tolist() == [list(range(0, 3000, 40)), list(range(1, 3000, 40))]


# Growing.


def test_many_small_adds_lie_in_few_parts_and_are_coded_few_times(corpus, monkeypatch):
    coded, encode = [], host_parts.encode

    def counting(some, *args, **kwargs):
        coded.append(len(some))
        return encode(some, *args, **kwargs)

    monkeypatch.setattr(host_parts, "encode", counting)
    index = CosineIndex(corpus[:1])
    for row in corpus[1:]:
        index.add(row[None])
    lengths = [len(part) for part in index._snapshot.parts]
    assert all(later * 2 <= earlier for earlier, later in itertools.pairwise(lengths))
    assert sum(coded) < 700 * 12


def test_rows_that_cannot_be_stored_are_refused_and_change_nothing(corpus, tmp_path):
    big = torch.full((3, 24), 1e5)
    with pytest.raises(ValueError, match=r"row 2 has 100000; store them in torch\.float32"):
        CosineIndex(torch.cat([corpus[:2], big]), store=torch.float16)
    for index in (
        CosineIndex(corpus, store=torch.float16),
        CosineIndex(corpus, store=torch.float16, path=tmp_path / "vectors"),
    ):
        with pytest.raises(ValueError, match="row 1 has 100000"):
            index.add(torch.cat([corpus[:1], big]))
        assert len(index) == 700
        index.add(corpus[:1])
        assert index.search(corpus[:1], 2).indices.tolist() == [[0, 700]]


REFUSED = {
    "device": (lambda x: CosineIndex(x, device="mps"), "to be None, 'cpu' or 'cuda', got 'mps'"),
    "store": (lambda x: CosineIndex(x, store=torch.int8), "expected store to be torch.float16"),
    "screen": (lambda x: CosineIndex(x, screen="int4"), "expected screen to be one of"),
    "axes": (lambda x: CosineIndex(x[0]), "expected embeddings of shape (n, d), got (24,)"),
    "width": (
        lambda x: CosineIndex(x).add(x[:, :5]),
        "expected embeddings of shape (n, 24), as in the index, got (n, 5)",
    ),
    "query": (
        lambda x: CosineIndex(x).search(x[:, :5], 1),
        "expected queries of shape (q, 24) to match the corpus, got (q, 5)",
    ),
    "k": (lambda x: CosineIndex(x).search(x, 701), "k = 701 and a corpus of n = 700 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_are_refused(name, corpus):
    call, said = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        call(corpus)
    assert said in str(caught.value)


@given(st.data())
def test_any_sequence_of_changes(data):
    """Against a dictionary and brute force."""
    index, model, d = CosineIndex(torch.empty(0, 3), ids=[]), {}, 3
    numbers = st.integers(-2, 2).map(float)
    for step in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()) or not model:
            n = data.draw(st.integers(0, 20))
            values = data.draw(
                st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=n, max_size=n)
            )
            new = {1000 * step + i: row for i, row in enumerate(values)}
            index.add(torch.tensor(values).view(-1, d), ids=list(new))
            model |= new
        else:
            gone = data.draw(st.lists(st.sampled_from(sorted(model)), unique=True))
            index.remove(gone)
            model = {key: row for key, row in model.items() if key not in gone}
        assert index.ids.tolist() == list(model)
    if model:
        query = torch.tensor([data.draw(st.lists(numbers, min_size=d, max_size=d))])
        k = data.draw(st.integers(1, len(model)))
        exact = topk(query, torch.tensor(list(model.values())), k)
        found = index.search(query, k)
        assert_same(found, (exact.scores, torch.tensor(list(model))[exact.indices]))
        assert_best(exact, cosines(query, torch.tensor(list(model.values()))), k)


# Certificate and explanation.


@models.every_processor
def test_the_certificate_holds_and_knows_what_may_not_be_returned(corpus, queries, processor):
    index = grown(torch.cat([corpus, torch.full((2, 24), torch.nan)]))
    index.remove(list(range(0, 700, 7)))
    best = index.search(queries, 3).indices
    for exclude in (None, best[:, 0], best):
        found = index.search(queries, 5, certify=True, exclude=exclude)
        assert_same(found[:2], index.search(queries, 5, exclude=exclude))
        assert found.certificate.skipped == 2
        assert found.certificate.verify(None) == 9 * (702 + 5)


@models.every_processor
def test_verify_catches_a_corrupted_residual(queries, processor):
    x = rows(3000)
    index = CosineIndex(x, screen="int8")
    right = index.search(queries, 5)
    segment = index._snapshot.parts[0].segment
    segment.codes.neg_()  # as if every row lay on the other side, and nothing were lost by it
    segment.residual.zero_()
    found = index.search(queries, 5, certify=True)
    assert not torch.equal(found.indices, right.indices)
    with pytest.raises(VerificationError):
        found.certificate.verify(None)


def test_explain_says_what_a_search_did(corpus, queries):
    index = grown(corpus)
    said = index.explain(queries, 4)
    assert (said.queries, said.k, said.rows) == (9, 4, 700)
    assert said.segments == len(index._snapshot.parts)
    assert said.emitted >= said.rescored.mean() >= 4
    assert said.seconds > 0
    assert f"rescored  {said.rescored.mean():.1f} rows a query" in str(said)
    wide = CosineIndex(corpus, screen="float32")
    asked = wide.explain(queries, 4)
    certified = wide.search(queries, 4, certify=True)
    np.testing.assert_array_equal(asked.rescored, certified.certificate.rescored)
    assert asked.screens == ("float32",)
    assert "as requested" in str(asked)


def test_explain_names_every_screen_that_was_tried(monkeypatch):
    monkeypatch.setattr(tuning, "CANDIDATE_NS", 1e9)  # no screen is narrow enough
    said = CosineIndex(rows(4000)).explain(rows(3, seed=4), 10)
    assert said.screens == tuple(screens.available())
    assert "int8 let too many rows through" in str(said)


def test_a_progress_bar_counts_queries(corpus, capsys):
    queries = rows(1500, seed=7)
    found = CosineIndex(corpus).search(queries, 2, progress=True)
    said = capsys.readouterr().err
    assert "search" in said
    assert "1.50k/1.50k" in said
    assert_same(found, CosineIndex(corpus).search(queries, 2))
    assert capsys.readouterr().err == ""


# Threads and processes.


def test_a_search_sees_the_index_as_it_was_when_it_began(corpus, queries):
    index, ends = CosineIndex(corpus[:100]), range(100, 701, 50)
    allowed = {end: topk(queries, corpus[:end], 10).indices for end in ends}
    failures, seen, done = [], set(), threading.Event()

    def search():
        while not done.is_set():
            found = index.search(queries, 10).indices
            fitting = [end for end in ends if torch.equal(found, allowed[end])]
            seen.update(fitting[:1])
            if not fitting:
                failures.append(found)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for begin in ends[:-1]:
            index.add(corpus[begin : begin + 50])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert seen
    assert_same(index.search(queries, 10).indices, allowed[700])


def test_threads_that_add_and_remove_at_once_lose_nothing(corpus):
    index = CosineIndex(corpus[:0])

    def work(first):
        for row in range(first, 700, 4):
            index.add(corpus[row : row + 1], ids=[row])
            if row % 3 == 0:
                index.remove([row])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index.ids.tolist()) == [row for row in range(700) if row % 3]
    kept = index.ids
    found = index.search(corpus[kept[:20]], 1)
    assert_same(found.indices[:, 0], kept[:20])


@pytest.mark.parametrize("held", [False, True], ids=["at rest", "while a thread adds"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_search(held, tmp_path):
    x, queries = rows(20_000, 64), rows(300, 64, seed=3)
    index = CosineIndex(x, path=tmp_path / "vectors")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = index.search(queries, 5, exclude=[0])  # the threads of OpenMP are there now
        context = multiprocessing.get_context("fork")
        receive, answer = context.Pipe(duplex=False)
        child = context.Process(target=search_in_child, args=(index, queries, answer))
        if held:
            with index._lock:
                child.start()
        else:
            child.start()
        there = receive.poll(30)
        child.kill() if not there else None
        child.join()
        assert there, "the child hangs"
        scores, indices, length = receive.recv()
    finally:
        torch.set_num_threads(before)
    assert_same((scores, indices), wanted)
    assert length == 20_300
    assert len(index) == 20_000
    index.add(queries)  # the file has room for them: the child left it alone
    assert_same(
        index.search(queries, 5, exclude=[0]),
        CosineIndex(torch.cat([x, queries])).search(queries, 5, exclude=[0]),
    )


def test_a_forked_child_may_set_its_threads_again(monkeypatch, corpus, queries):
    index, before = CosineIndex(corpus), torch.get_num_threads()
    monkeypatch.setattr(_threads, "_forked", True)  # as it is found in a child
    try:
        index.search(queries, 5)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        index.search(queries, 5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_spawned_child_gets_an_index(corpus, queries):
    context = multiprocessing.get_context("spawn")
    receive, answer = context.Pipe(duplex=False)
    index = CosineIndex(corpus)
    child = context.Process(target=search_in_child, args=(index, queries, answer))
    child.start()
    assert receive.poll(60)
    scores, indices, _ = receive.recv()
    child.join()
    assert_same((scores, indices), index.search(queries, 5, exclude=[0]))


def test_pickling_names_the_file_that_the_vectors_are_in(corpus, queries, tmp_path):
    index = CosineIndex(corpus, path=tmp_path / "vectors", ids=[f"{row:05}" for row in range(700)])
    wanted = index.search(queries, 5)
    pickled = pickle.dumps(index)
    assert corpus[5].numpy().tobytes() not in pickled
    assert corpus[5].numpy().tobytes() in pickle.dumps(CosineIndex(corpus))
    copy = pickle.loads(pickled)
    assert_same(copy.search(queries, 5), wanted)
    size = (tmp_path / "vectors").stat().st_size
    copy.add(queries, ids=list("abcdefghi"))
    assert copy.search(queries[:1], 1).indices.tolist() == [["a"]]
    assert (tmp_path / "vectors").stat().st_size == size
    assert_same(index.search(queries, 5), wanted)
    del index, copy
    CosineIndex(corpus.flip(0), path=tmp_path / "others")
    (tmp_path / "others").replace(tmp_path / "vectors")
    with pytest.raises(FileError, match="holds other vectors than those that were coded"):
        pickle.loads(pickled)
    (tmp_path / "vectors").write_bytes(b"short")
    with pytest.raises(FileError, match="is truncated: 5 bytes"):
        pickle.loads(pickled)
    (tmp_path / "vectors").unlink()
    with pytest.raises(FileNotFoundError, match="vectors"):
        pickle.loads(pickled)
