"""An index on a GPU, on CPU tensors through the ops' CPU bodies: bit by bit that of the CPU."""

import pickle
import threading

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, _ops, topk
from cossim_fast.retrieval import FileError, VerificationError, device_engine, selection, tuning
from cossim_fast.retrieval.nearest.gpu import floors_of
from cossim_fast.retrieval.storage import device_parts
from device_index import assert_alike, assert_same, is_on_device, stand_in
from search_data import CORPORA, make

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    stand_in(monkeypatch)


def pair(rows, **options):
    """The same rows on a device and on CPU."""
    card, plain = (CosineIndex(rows, device=device, **options) for device in ("cuda", None))
    assert is_on_device(card)
    assert not is_on_device(plain)
    return card, plain


def both(pair, change):
    for index in pair:
        change(index)


@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 700, 24, 5, dtype)
    if kind == "holes":
        queries[1, 3] = torch.nan
    indexes = pair(corpus[:300])
    both(indexes, lambda index: index.add(corpus[300:400]))
    both(indexes, lambda index: index.add(corpus[400:]))
    both(indexes, lambda index: index.remove(range(0, 700, 9)))
    for threshold in (-1.0, 0.3, 1.0):
        assert_alike(*indexes, queries, k=10, threshold=threshold)
    assert_alike(*indexes, queries)


@pytest.mark.parametrize("asked", DTYPES)
@pytest.mark.parametrize("store", DTYPES)
def test_every_dtype_of_rows_and_queries(store, asked):
    queries, corpus = make("duplicates", 300, 40, 4, torch.float32)
    indexes = pair(corpus[:200], store=store)
    both(indexes, lambda index: index.add(corpus[200:] * 4))  # copies, scaled
    assert_alike(*indexes, queries.to(asked))
    assert indexes[0].search(queries[:0], 3).indices.shape == (0, 3)


@pytest.mark.parametrize("strings", [False, True])
def test_ids_arrays_and_what_is_missing(strings):
    queries, corpus = make("holes", 150, 10, 3, torch.float32)
    ids = [f"row {i}" for i in range(150)] if strings else list(range(1000, 1150))
    indexes = pair(corpus.numpy(), ids=ids)
    both(indexes, lambda index: index.add(corpus[:1], ids=["x"] if strings else [1]))
    assert_alike(*indexes, queries.numpy())
    assert_alike(*indexes, queries)
    for wrong, error in (([ids[0]], ValueError), ([0.5], TypeError)):
        with pytest.raises(error):
            indexes[0].add(corpus[:1], ids=wrong)
    with pytest.raises(KeyError):
        indexes[0].remove(["nobody" if strings else 7])
    assert_alike(*indexes, queries)


def test_an_index_without_rows():
    indexes = pair(torch.empty(0, 7))
    queries = torch.ones(2, 7)
    assert_alike(*indexes, queries)
    both(indexes, lambda index: index.add(torch.eye(7)))
    assert_alike(*indexes, queries)
    both(indexes, lambda index: index.remove(range(7)))
    assert_alike(*indexes, queries)
    both(indexes, lambda index: index.add(2 * torch.eye(7)))
    assert_alike(*indexes, queries)


def test_many_small_adds_lie_in_few_parts():
    queries, corpus = make("clustered", 300, 12, 4, torch.float32)
    indexes = pair(corpus[:1])
    for row in corpus[1:]:
        both(indexes, lambda index, row=row: index.add(row[None]))
    lengths, wanted = ([len(part) for part in index._snapshot.parts] for index in indexes)
    assert lengths == wanted
    assert_alike(*indexes, queries)
    assert_same(indexes[0].search(queries, 9), topk(queries, corpus, 9))


def test_what_one_part_found_spares_rows_of_the_next(monkeypatch):
    queries, corpus = make("gaussian", 3000, 32, 4, torch.float32)
    indexes = pair(corpus[:2000])
    both(indexes, lambda index: index.add(corpus[2000:]))
    card = indexes[0]
    assert len(card._snapshot.parts) == 2
    alone = CosineIndex(corpus[2000:], device="cuda").explain(queries, 5).rescored
    first = CosineIndex(corpus[:2000], device="cuda").explain(queries, 5).rescored
    said = card.explain(queries, 5)
    assert said.rescored.sum() < first.sum() + alone.sum()
    assert (said.segments, said.rows, said.screens) == (2, 3000, ("int8",))
    assert said.emitted == said.rescored.mean()
    assert "on a GPU" in str(said)


def test_a_floor_is_no_higher_than_the_score():
    scores = torch.rand(1000, 3, dtype=torch.float64) * 2 - 1
    scores[0], scores[1, 2], scores[2] = 1.0, torch.nan, -1.0
    floors = floors_of(scores, 3)
    assert floors.dtype == torch.float32
    known = ~scores[:, 2].isnan()
    below = floors.double()[known] <= scores[:, 2][known]
    assert bool(below.all())
    assert bool((floors.double()[known] >= scores[:, 2][known] - 2.0**-23).all())
    assert bool(floors[1].isnan())
    assert floors_of(scores, 4) is None


@pytest.mark.parametrize("numbers", [1, 60, 1 << 20])
def test_queries_in_batches(numbers, monkeypatch):
    queries, corpus = make("clustered", 200, 24, 9, torch.float32)
    indexes = pair(corpus)
    monkeypatch.setattr(device_engine, "QUERY_NUMBERS", numbers)
    nearest = indexes[1].search(queries, 4).indices
    assert_alike(*indexes, queries, exclude=nearest)
    assert_alike(*indexes, queries)


EXCLUDED = {
    "for all": lambda best: best[:, :4].flatten(),
    "a set": lambda best: set(best[:, :4].flatten().tolist()),
    "for each": lambda best: best,
    "unlike numbers": lambda best: [some[:i].tolist() for i, some in enumerate(best)],
    "all rows": lambda best: [list(range(400))] * 2 + [[]] * (len(best) - 2),
    "nothing": lambda best: [],
}


@pytest.mark.parametrize("name", EXCLUDED)
def test_excluded_rows(name):
    queries, corpus = make("clustered", 400, 16, 6, torch.float32)
    indexes = pair(corpus[:250])
    both(indexes, lambda index: index.add(corpus[250:]))
    both(indexes, lambda index: index.remove([3, 251]))
    best = indexes[1].search(queries, 7).indices
    assert_alike(*indexes, queries, exclude=EXCLUDED[name](best))


@pytest.fixture(params=["pairs", "gathered", "masked"])
def way(request, monkeypatch):
    """The three ways of `selection`, each made to do all of the work."""
    monkeypatch.setattr(tuning, "SCORED_PAIRS", 1 << 30 if request.param == "pairs" else -1)
    gathered = request.param == "gathered"
    monkeypatch.setattr(selection.Selection, "is_small_share", lambda *_: gathered)


@pytest.mark.parametrize("each", [False, True], ids=["for all", "each"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_some_of_the_rows(way, each, share):
    queries, corpus = make("holes", 300, 16, 5, torch.float32)
    indexes = pair(corpus[:200], ids=range(1000, 1200))
    both(indexes, lambda index: index.add(corpus[200:], ids=range(1200, 1300)))
    both(indexes, lambda index: index.remove(range(1000, 1300, 7)))
    mask = np.random.default_rng(0).random((5, len(indexes[1]))) < share
    best = indexes[1].search(queries, 3).indices
    where = mask if each else mask[0]
    assert_alike(*indexes, queries, where=where)
    assert_alike(*indexes, queries, where=where, exclude=best)
    if share:
        ids = indexes[1].ids
        named = [ids[some] for some in mask] if each else ids[mask[0]]
        assert_alike(*indexes, queries, where=named, k=7)


def test_a_wrong_residual_is_found_out():
    queries, corpus = make("clustered", 3000, 24, 5, torch.float32)
    card = CosineIndex(corpus, device="cuda")
    segment = card._snapshot.parts[0].segment
    segment.codes.neg_()
    segment.terms[1].zero_()
    found = card.search(queries, 5, certify=True)
    with pytest.raises(VerificationError):
        found.certificate.verify(None)


# Files and pickles.


def changed(indexes, corpus):
    both(indexes, lambda index: index.add(corpus[300:360], ids=[f"b{i}" for i in range(60)]))
    both(indexes, lambda index: index.remove(["a3", "a4", "b1"]))
    return indexes


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_does_not_depend_on_the_device(dtype, tmp_path):
    queries, corpus = make("holes", 400, 20, 5, torch.float32)
    rows, ids = corpus.to(dtype), [f"a{i}" for i in range(300)]
    card, plain = changed(pair(rows[:300], ids=ids), rows)
    card.save(tmp_path / "card")
    plain.save(tmp_path / "plain")
    for name in ("card", "plain"):
        for options in ({"mmap": True}, {"mmap": False}, {"device": "cuda"}):
            loaded = CosineIndex.load(tmp_path / name, **options)
            assert is_on_device(loaded) == ("device" in options)
            assert_alike(loaded, plain, queries)
            again = CosineIndex.load(tmp_path / "plain")
            both((loaded, again), lambda index: index.add(rows[360:], ids=range_of("c", 40)))
            both((loaded, again), lambda index: index.remove(["c7", "a5"]))
            assert_alike(loaded, again, queries)
    again.save(tmp_path / "again")
    CosineIndex.load(tmp_path / "again", device="cuda").save(tmp_path / "back")
    assert_alike(CosineIndex.load(tmp_path / "back"), again, queries)


def range_of(letter, n):
    return [f"{letter}{i}" for i in range(n)]


def test_a_file_of_no_rows(tmp_path):
    CosineIndex(torch.empty(0, 5), device="cuda").save(tmp_path / "empty")
    indexes = [CosineIndex.load(tmp_path / "empty", device=device) for device in ("cuda", None)]
    both(indexes, lambda index: index.add(torch.eye(5)))
    assert_alike(*indexes, torch.ones(1, 5))


def test_codes_of_equal_rows_are_searched_on_cpu(tmp_path):
    """A block that differs from the centre nowhere has a scale that no row needs."""
    rows = torch.ones(130, 16)
    CosineIndex(rows, device="cuda").save(tmp_path / "index")
    loaded = CosineIndex.load(tmp_path / "index")
    assert bool((loaded._snapshot.parts[0].segment.scale > 0).all())
    assert loaded.search(torch.ones(2, 16), 3).indices.tolist() == [[0, 1, 2]] * 2


def test_the_host_holds_no_more_than_a_block(monkeypatch, tmp_path):
    _, corpus = make("gaussian", 1000, 32, 1, torch.float32)
    card = CosineIndex(corpus, device="cuda")
    seen = []
    cpu = torch.Tensor.cpu

    def counting(tensor):
        seen.append(tensor.numel())
        return cpu(tensor)

    monkeypatch.setattr(device_parts, "block_rows", lambda d: 64)
    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    card.save(tmp_path / "index")
    assert max(seen) <= 64 * 32
    assert sum(seen) > 3 * 1000 * 32  # rows twice, for their norms and for the file, and codes
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    assert_alike(card, CosineIndex.load(tmp_path / "index"), corpus[:3])


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_file_is_refused_as_it_is_copied(verify, tmp_path):
    _, corpus = make("gaussian", 300, 32, 1, torch.float32)
    CosineIndex(corpus, device="cuda").save(tmp_path / "index")
    raw = bytearray((tmp_path / "index").read_bytes())
    at = raw.find(corpus[170].numpy().tobytes())
    raw[at + 3] ^= 1
    (tmp_path / "index").write_bytes(raw)
    if verify:
        with pytest.raises(FileError, match="checksum"):
            CosineIndex.load(tmp_path / "index", device="cuda")
    else:
        CosineIndex.load(tmp_path / "index", device="cuda", verify=False)


def test_pickled():
    queries, corpus = make("holes", 400, 20, 5, torch.float32)
    indexes = changed(pair(corpus[:300], ids=range_of("a", 300)), corpus)
    copies = [pickle.loads(pickle.dumps(index)) for index in indexes]
    assert is_on_device(copies[0])
    assert_alike(*copies, queries)
    both(copies, lambda index: index.add(corpus[360:], ids=range_of("c", 40)))
    assert_alike(*copies, queries)
    assert_alike(*indexes, queries)


def test_an_index_is_not_unpickled_where_its_gpu_is_not(monkeypatch):
    engine = device_engine.DeviceEngine(torch.device("cuda", 3))
    raw = pickle.dumps(engine)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="finds 2; save the index where it is, and load the file"):
        pickle.loads(raw)
    raw, seen = pickle.dumps(CosineIndex(torch.eye(3), device="cuda")), []
    monkeypatch.setattr(device_engine, "_unpickled", lambda device: seen.append(device) or 1 / 0)
    monkeypatch.setattr(device_parts, "_on_device", lambda rows, device: seen.append("rows"))
    with pytest.raises(ZeroDivisionError):
        pickle.loads(raw)
    assert seen == ["cpu"]  # before its rows


# Threads.


def test_a_search_sees_the_index_as_it_was_when_it_began():
    queries, corpus = make("clustered", 400, 24, 4, torch.float32)
    ends = range(100, 401, 50)
    allowed = {end: topk(queries, corpus[:end], 10).indices for end in ends}
    index, failures, done = CosineIndex(corpus[:100], device="cuda"), [], threading.Event()

    def search():
        while not done.is_set():
            found = index.search(queries, 10).indices
            if not any(torch.equal(found, allowed[end]) for end in ends):
                failures.append(found)

    threads = [threading.Thread(target=search) for _ in range(2)]
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
    assert torch.equal(index.search(queries, 10).indices, allowed[400])


# Refusals, with the real choice of an engine.


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one GPU, up to the first tensor on it."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_ops, "kernels_miss", lambda rows: "")
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, device, **named: empty(*shape, device="meta", **named)
    )
    return monkeypatch


X = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda", "screen": "float32"}, "'auto' or 'int8' for an index on a GPU"),
        ({"device": "cuda", "path": "vectors"}, "expected no path with a GPU"),
        ({"device": "cuda:1"}, r"a GPU for device='cuda:1', and torch .* finds 1; build"),
        ({"device": "xla"}, "None, 'cpu' or 'cuda', got 'xla'"),
        ({"device": "graphics"}, "None, 'cpu' or 'cuda', got 'graphics'"),
        ({"device": 2.5}, "None, 'cpu' or 'cuda', got 2.5"),
    ],
)
def test_what_a_gpu_does_not_do(gpu, options, message):
    with pytest.raises(ValueError, match=message):
        CosineIndex(X, **options)


def test_a_gpu_that_lacks_something_is_refused_before_anything_starts(gpu, tmp_path):
    gpu.setattr(_ops, "kernels_miss", lambda rows: "compute capability 7.5")
    CosineIndex(X).save(tmp_path / "index")
    for call in (
        lambda: CosineIndex(X, device="cuda"),
        lambda: CosineIndex.load(tmp_path / "index", device="cuda"),
    ):
        with pytest.raises(NotImplementedError, match=r"capability 7\.5; build the index on CPU"):
            call()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="finds 0; build the index on CPU, with device=None"):
        CosineIndex(X, device="cuda")
    CosineIndex(X, screen="float32").save(tmp_path / "index")
    with pytest.raises(ValueError, match="finds 0"):
        CosineIndex.load(tmp_path / "index", device=torch.device("cuda", 0))


def test_screens_of_a_file_are_refused_too(gpu, tmp_path):
    gpu.undo()
    CosineIndex(X, screen="float32").save(tmp_path / "index")
    gpu.setattr(torch.cuda, "device_count", lambda: 1)
    gpu.setattr(torch.cuda, "current_device", lambda: 0)
    gpu.setattr(_ops, "kernels_miss", lambda rows: "")
    empty = torch.empty
    gpu.setattr(torch, "empty", lambda *s, device, **n: empty(*s, device="meta", **n))
    with pytest.raises(ValueError, match="'auto' or 'int8' for an index on a GPU, got 'float32'"):
        CosineIndex.load(tmp_path / "index", device="cuda")


def test_an_index_says_where_it_is():
    card = CosineIndex(X, device="cuda")
    assert card.device == torch.device("cpu")  # that stands for the GPU here
    assert repr(CosineIndex(X)) == "CosineIndex(3 rows of 4, torch.float32, screen 'auto')"
    assert CosineIndex(X).device == torch.device("cpu")
