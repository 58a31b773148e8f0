"""One or two queries by projections of rows: the bits of brute force, and of a search without."""

import pickle
import threading

import numpy as np
import pytest
import torch

import arithmetic as models
import search_data
from cossim_fast import CosineIndex
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest import few_queries
from cossim_fast.retrieval.screening import projection, screens
from cossim_fast.retrieval.screening.codes import BLOCK, centre_of, encode
from cossim_fast.retrieval.screening.segment_projection import SegmentProjection

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WIDTH = 100


@pytest.fixture
def eager(monkeypatch):
    """Heads from the second search on, for short segments too, and kept whatever they cost."""
    for name, value in {
        "FEW_NUMBERS": 0,
        "FEW_SEARCHES": 1,
        "FEW_WORTH": float("inf"),
        "FEW_LOST": float("inf"),
        "FEW_CODE_NS": 1e9,
        "FEW_FIRST": 1,
        "FEW_FIRST_MORE": 2,
    }.items():
        monkeypatch.setattr(tuning, name, value)


@pytest.fixture(params=["one query in bfloat16", "codes"])
def multiplied(request, monkeypatch, processor):
    """Each product for projected codes, on each kind of processor."""
    works = request.param != "codes"
    monkeypatch.setattr(screens, "_few_queries_work", lambda: works)


def projections_of(index):
    return [part.segment.projection.coded for part in index._snapshot.parts]


def with_heads(x, like, **options):
    """An index whose parts have projections."""
    index = CosineIndex(x, **options)
    index.search(like[:1], 1)
    index.search(like[:1], 1)
    return index


def assert_brute(found, queries, x, k):
    scores, rows = search_data.brute_force(queries, x, k)
    same = found.scores.dtype
    np.testing.assert_array_equal(np.asarray(found.indices), rows.numpy())
    np.testing.assert_array_equal(np.asarray(found.scores), scores.to(same).numpy())


def varied(n, seed=0, d=WIDTH):
    """Rows that vary in few directions."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw) * 0.95 ** torch.arange(d) + 0.1


@models.every_processor
@pytest.mark.usefixtures("multiplied", "eager")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", search_data.CORPORA)
def test_finds_what_brute_force_finds(kind, dtype, processor):
    queries, x = search_data.make(kind, 700, WIDTH, 6, dtype)
    index = with_heads(x, queries[-1:])
    assert projections_of(index)[0] is not None
    for k in (1, 3):
        for some in (queries[:1], queries[2:4], queries[5:6]):
            assert index.explain(some, k).reason.startswith("one or two queries")
            assert_brute(index.search(some, k), some, x, k)


@models.every_processor
@pytest.mark.usefixtures("multiplied", "eager")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_cosine_is_above_its_bound(dtype, processor):
    x, queries = varied(300).to(dtype), varied(2, seed=1).to(dtype)
    queries[1] = x[7]
    centre = centre_of(x)
    segment = encode(x, centre)
    segment.projection = SegmentProjection()
    wide = widen(queries)
    few_queries.note(segment, wide, torch.tensor([0.5, 0.5]).double())
    made = few_queries.projection_of(segment, centre)
    tile = few_queries._tile(made, segment, wide, None)
    by_row = [x.repeat_interleave(BLOCK, 0)[:300].mT for x in (tile.scale, tile.margin)]
    bare = tile.values[:300].mT.double() * by_row[0] + tile.offset[:, None]
    upper = bare + by_row[1]
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(300))
    scores = score_pairs(wide, x, *pairs.mT).view(2, 300)
    assert (upper >= scores).all()
    assert (upper - scores).mean() < 0.35  # and it says something
    # Nothing but the margin makes it so.
    assert (bare < scores).any()


@pytest.mark.usefixtures("int8_product", "eager")
def test_without_the_margin_rows_are_missed(monkeypatch):
    x = varied(4000)
    queries = x[:40] + 0.3 * varied(40, seed=3)
    index = with_heads(x, queries)

    def missed():
        return sum(
            not torch.equal(
                index.search(q[None], 20).indices, search_data.brute_force(q[None], x, 20)[1]
            )
            for q in queries
        )

    assert missed() == 0

    class Narrow(few_queries.Tile):
        def __init__(self, *args):
            super().__init__(*args)
            self.margin -= 0.25

    monkeypatch.setattr(few_queries, "Tile", Narrow)
    assert missed() > 0


@pytest.mark.usefixtures("int8_product", "eager")
@pytest.mark.parametrize("k", [1, 2, 7, 30, 31, 63, 700, 2000])
def test_any_number_of_neighbours(k):
    x = varied(2000)
    x[100:400] = x[5]  # ties
    x[9], x[11] = torch.nan, 0
    index = with_heads(x, x)
    for query in (x[5:6], x[9:11], x[11:12], varied(2, seed=4)):
        assert_brute(index.search(query, k), query, x, k)


@pytest.mark.usefixtures("int8_product", "eager")
def test_many_shapes():
    draw = np.random.default_rng(0)
    for trial in range(100):
        n, d = int(draw.integers(200, 900)), int(draw.integers(65, 260))
        kind = list(search_data.CORPORA)[trial % len(search_data.CORPORA)]
        dtype = DTYPES[trial % 4]
        queries, x = search_data.make(kind, n, d, 8, dtype)
        index = with_heads(x, queries[-1:])
        for _ in range(4):
            at, count = int(draw.integers(7)), int(draw.integers(1, 3))
            some, k = queries[at : at + count], int(draw.integers(1, n // 64))
            assert_brute(index.search(some, k), some, x, k)


@pytest.mark.usefixtures("int8_product", "eager")
def test_rows_that_may_not_be_returned():
    x, queries = varied(1500), varied(2, seed=1)
    index = with_heads(x, queries)
    (made,) = projections_of(index)
    index.add(varied(400, seed=2))
    index.search(queries, 1)
    assert projections_of(index)[0] is made  # it is another part
    everything = torch.cat([x, varied(400, seed=2)])
    index.search(queries, 1)
    assert projections_of(index)[1] is not None
    assert_brute(index.search(queries, 5), queries, everything, 5)

    best = search_data.brute_force(queries, everything, 3)[1]
    index.remove(best[:, 0].unique())
    assert projections_of(index)[0] is made
    left = everything.clone()
    left[best[:, 0]] = torch.nan
    assert_brute(index.search(queries, 5), queries, left, 5)

    for_all = left.clone()
    for_all[best[:, 1]] = torch.nan
    assert_brute(index.search(queries, 5, exclude=best[:, 1].unique()), queries, for_all, 5)
    found = index.search(queries, 5, exclude=best)
    for i in range(2):
        own = left.clone()
        own[best[i]] = torch.nan
        wanted = search_data.brute_force(queries[i : i + 1], own, 5)[1]
        assert torch.equal(found.indices[i : i + 1], wanted)


@pytest.mark.usefixtures("int8_product", "eager")
def test_goes_on_with_whole_codes_where_too_many_pass(monkeypatch):
    x = varied(1500)
    queries = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(1))
    index = with_heads(x, queries)
    monkeypatch.setattr(tuning, "FEW_CODE_NS", 0.0)  # nothing may be scored beyond the first
    monkeypatch.setattr(tuning, "FEW_LOST", 8)
    for number in range(9):
        assert projections_of(index)[0] is not None
        some = queries[number : number + 2]
        assert_brute(index.search(some, 5), some, x, 5)
    (part,) = index._snapshot.parts
    assert part.segment.projection.given_up
    assert_brute(index.search(queries[:1], 5), queries[:1], x, 5)
    assert "one or two queries" not in index.explain(queries[:1], 5).reason


def test_chosen_where_it_pays_alone(monkeypatch, int8_product):
    monkeypatch.setattr(tuning, "FEW_NUMBERS", 0)
    monkeypatch.setattr(tuning, "FEW_FIRST_MORE", 2)
    x = torch.nn.functional.normalize(varied(6000, d=384) * 0.97 ** torch.arange(384))
    alike = torch.randn(6000, 384, generator=torch.Generator().manual_seed(0))
    for rows, pays in ((x, True), (alike, False)):
        index = CosineIndex(rows)
        for number in range(tuning.FEW_SEARCHES + 1):
            assert projections_of(index) == [None]
            index.search(rows[number][None], 3)
        assert (projections_of(index)[0] is not None) == pays
        assert index._snapshot.parts[0].segment.projection.given_up != pays
    index = CosineIndex(x)
    for number in range(2 * tuning.FEW_SEARCHES):
        index.search(x[:3], 3)
        index.search(x[number][None], 3, certify=True)
        index.search(x[number][None], 50)
    assert projections_of(index) == [None]
    monkeypatch.setattr(tuning, "FEW_NUMBERS", x.numel() + 1)
    for number in range(2 * tuning.FEW_SEARCHES):
        index.search(x[number][None], 3)
    assert projections_of(index) == [None]


@pytest.mark.usefixtures("int8_product", "eager")
def test_neither_pickled_nor_saved_nor_made_of_a_file(tmp_path):
    x, queries = varied(1500), varied(2, seed=1)
    index = with_heads(x, queries)
    plain = CosineIndex(x)
    plain._snapshot.parts[0].segment.projection.given_up = True
    plain.search(queries, 1)
    held = pickle.dumps(index)
    assert len(held) == len(pickle.dumps(plain))
    index.save(tmp_path / "index")
    CosineIndex(x).save(tmp_path / "new")
    assert (tmp_path / "index").read_bytes() == (tmp_path / "new").read_bytes()
    for copy in (pickle.loads(held), CosineIndex.load(tmp_path / "index", mmap=False)):
        assert projections_of(copy) == [None]
        for _ in range(3):
            assert_brute(copy.search(queries, 5), queries, x, 5)
        assert projections_of(copy)[0] is not None
    mapped = CosineIndex.load(tmp_path / "index")
    for _ in range(3):
        assert_brute(mapped.search(queries, 5), queries, x, 5)
    assert mapped._snapshot.parts[0].segment.projection is None


@pytest.mark.usefixtures("int8_product", "eager")
def test_threads_search_while_heads_are_coded(monkeypatch):
    monkeypatch.setattr(tuning, "FEW_SEARCHES", 6)
    x, queries = varied(4000), varied(8, seed=1)
    index = CosineIndex(x)
    wanted = search_data.brute_force(queries, x, 5)[1]
    coding, others, coded = threading.Event(), threading.Event(), []
    split = projection.ProjectionScreen.split

    def slow(*args):
        coded.append(threading.get_ident())
        coding.set()
        assert others.wait(60)
        return split(*args)

    monkeypatch.setattr(projection.ProjectionScreen, "split", slow)
    wrong = []

    def work():
        for number in range(40):
            i = number % 8
            found = index.search(queries[i : i + 1], 5)
            if not torch.equal(found.indices, wanted[i : i + 1]):
                wrong.append(number)
            if coding.is_set() and coded != [threading.get_ident()]:
                others.set()  # this one was not held up

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(coded) == 1
    assert projections_of(index)[0] is not None
