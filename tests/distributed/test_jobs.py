"""Jobs without a cluster: the bits of the local functions, whatever the cuts and the order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cossim_fast
from cossim_fast import distributed
from cossim_fast.distributed import arguments, jobs, outputs
from cossim_fast.distributed.places import counting
from cossim_fast.retrieval import TooManyPairsError
from shards_on_disk import read, rows_of, write
from shuffled_engine import ShuffledEngine, StoppedError

KINDS = {
    "float16": "parquet", "bfloat16": "safetensors", "float32": "npy", "float64": "parquet",
}  # fmt: skip


def search(queries, corpus, output, engine=None, **options):
    job = arguments.search_of(queries, corpus, output=output, **options)
    return jobs.run(job, str(output), engine or ShuffledEngine())


def join(x, y, threshold, output, engine=None, **options):
    job = arguments.join_of(x, y, threshold, output=output, **options)
    return jobs.run(job, str(output), engine or ShuffledEngine())


def dedup(x, threshold, output, engine=None, **options):
    job = arguments.deduplication_of(x, threshold, output=output, **options)
    return jobs.run(job, str(output), engine or ShuffledEngine())


def assert_nearest(output, queries, corpus, k):
    """The parts say what the local function returns, to the bit."""
    scores, rows = (found.numpy() for found in cossim_fast.topk(queries, corpus, k))
    query, rank = np.nonzero(rows >= 0)
    found = read(output)
    assert found["score"].dtype == scores.dtype
    np.testing.assert_array_equal(found["query"], query)
    np.testing.assert_array_equal(found["rank"], rank + 1)
    np.testing.assert_array_equal(found["row"], rows[query, rank])
    np.testing.assert_array_equal(found["score"], scores[query, rank])
    return found


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("k", [1, 7, 120])
def test_topk_of_every_dtype(tmp_path, dtype, k):
    """k beyond a shard's rows, and beyond those that are finite."""
    corpus, queries = rows_of(300, 24, dtype), rows_of(70, 24, dtype, seed=1)
    c = write(tmp_path / "c", corpus, [1, 64, 64, 129, 260], KINDS[dtype])
    q = write(tmp_path / "q", queries, [33], KINDS[dtype])
    done = search(q, c, tmp_path / "out", k=k, queries_per_task=40, rows_per_task=77)
    found = assert_nearest(tmp_path / "out", queries, corpus, k)
    assert done.lines == len(found["row"])
    assert done.blocks == done.computed
    assert sum(done.unfit.values()) == 2
    assert not list((tmp_path / "out" / "_blocks").iterdir())
    assert (tmp_path / "out" / "_SUCCESS").exists()


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=5).map(sorted),
    rows_per_task=st.integers(40, 250),
    queries_per_task=st.integers(20, 60),
    seed=st.integers(0, 99),
)
def test_topk_whatever_the_cuts_and_the_order(
    tmp_path_factory, cuts, rows_per_task, queries_per_task, seed
):
    folder = tmp_path_factory.mktemp("cuts")
    corpus, queries = rows_of(200, 8, seed=seed), rows_of(45, 8, seed=seed + 1)
    c, q = write(folder / "c", corpus, cuts, "npy"), write(folder / "q", queries, [], "npy")
    search(
        q, c, folder / "out", ShuffledEngine(seed), k=5,
        queries_per_task=queries_per_task, rows_per_task=rows_per_task,
    )  # fmt: skip
    assert_nearest(folder / "out", queries, corpus, 5)


def test_ids_stand_beside_the_numbers_of_rows(tmp_path):
    corpus, queries = rows_of(160, 8), rows_of(50, 8, seed=1)
    ids = [f"row {n} é" for n in range(160)]
    c = write(tmp_path / "c", corpus, [40, 90], "parquet", id=ids)
    q = write(tmp_path / "q", queries, [20], "parquet", id=np.arange(50) * 3)
    search(q, c, tmp_path / "out", k=6, id_column="id", column="embedding", rows_per_task=30)
    found = assert_nearest(tmp_path / "out", queries, corpus, 6)
    assert list(found["id"]) == [ids[row] for row in found["row"]]
    np.testing.assert_array_equal(found["query_id"], 3 * found["query"])
    join(c, None, 0.7, tmp_path / "pairs", id_column="id", column="embedding", rows_per_task=70)
    found = read(tmp_path / "pairs")
    assert len(found["i"])
    for side in "ij":
        assert list(found[f"id_{side}"]) == [ids[row] for row in found[side]]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("two", [False, True])
def test_pairs_of_every_dtype(tmp_path, dtype, two):
    x, y = rows_of(230, 16, dtype), rows_of(90, 16, dtype, seed=1) if two else None
    a = write(tmp_path / "x", x, [64, 64, 150], KINDS[dtype])
    b = write(tmp_path / "y", y, [7], KINDS[dtype]) if two else None
    done = join(a, b, 0.6, tmp_path / "out", rows_per_task=50)
    i, j, scores = (found.numpy() for found in cossim_fast.pairs_above(x, y, 0.6))
    found = read(tmp_path / "out")
    order = np.lexsort((found["j"], found["i"]))
    assert done.lines == len(order) > 50
    assert found["score"].dtype == scores.dtype
    for ours, theirs in (("i", i), ("j", j), ("score", scores)):
        np.testing.assert_array_equal(found[ours][order], theirs)
    assert sum(done.unfit.values()) == (4 if two else 2)


def test_too_many_pairs_of_a_block_and_of_all(tmp_path):
    x = rows_of(230, 16)
    a = write(tmp_path / "x", x, [64], "npy")
    count = len(cossim_fast.pairs_above(x, threshold=0.6).i)
    options = {"rows_per_task": 100}
    assert join(a, None, 0.6, tmp_path / "all", max_pairs=count, **options).lines == count
    engine = ShuffledEngine(flying=3)
    with pytest.raises(TooManyPairsError, match=f"at most max_pairs={count - 1}") as caught:
        join(a, None, 0.6, tmp_path / "less", engine, max_pairs=count - 1, **options)
    assert caught.value.found == count
    # While the error is still held: the rest was cancelled.
    assert engine.cancelled == 6 - len(engine.computed)
    # What was found is used with another bound.
    done = join(a, None, 0.6, tmp_path / "less", max_pairs=count, **options)
    assert done.lines == count
    assert done.computed < done.blocks
    with pytest.raises(TooManyPairsError, match="in one block of the join"):
        join(a, None, 0.6, tmp_path / "block", max_pairs=1, **options)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("keep", ["first", "last"])
def test_deduplication_of_every_dtype(tmp_path, dtype, keep):
    x = rows_of(260, 16, dtype)
    a = write(tmp_path / "x", x, [10, 64, 64, 200], KINDS[dtype])
    done = dedup(a, 0.7, tmp_path / "out", keep=keep, rows_per_task=60)
    expected = cossim_fast.deduplicate(x, 0.7, keep=keep)
    found = read(tmp_path / "out")
    dropped = found["kept_row"] != found["row"]
    assert done.lines == 260
    assert 20 < dropped.sum() < 240
    np.testing.assert_array_equal(found["row"], np.arange(260))
    np.testing.assert_array_equal(found["row"][dropped], expected.dropped)
    np.testing.assert_array_equal(found["kept_row"][dropped], expected.representatives)
    np.testing.assert_array_equal(found["score"][dropped], expected.scores)
    assert found["score"].dtype == expected.scores.numpy().dtype
    assert np.isnan(found["score"][~dropped]).all()


def test_deduplication_by_a_column_with_ids(tmp_path):
    x = rows_of(260, 16)
    lengths = np.random.default_rng(0).integers(0, 40, 260)
    a = write(tmp_path / "x", x, [100], "parquet", length=lengths, id=np.arange(260) * 7)
    options = {"column": "embedding", "id_column": "id", "rows_per_task": 60}
    dedup(a, 0.7, tmp_path / "out", keep="column:length", **options)
    expected = cossim_fast.deduplicate(x, 0.7, keep=lengths)
    found = read(tmp_path / "out")
    dropped = found["kept_row"] != found["row"]
    np.testing.assert_array_equal(found["row"][dropped], expected.dropped)
    np.testing.assert_array_equal(found["kept_row"][dropped], expected.representatives)
    np.testing.assert_array_equal(found["id"], 7 * found["row"])
    np.testing.assert_array_equal(found["kept_id"], 7 * found["kept_row"])
    with pytest.raises(ValueError, match="width"):  # before any work begins
        jobs.plan("deduplicate", a, threshold=0.7, keep="column:width", column="embedding")


def test_many_copies_make_no_pairs(tmp_path):
    x = torch.ones(5000, 8)
    x[17], x[4000] = 2, -1
    a = write(tmp_path / "x", x, [1000], "npy")
    done = dedup(a, 0.9, tmp_path / "out", max_pairs=10)
    found = read(tmp_path / "out")
    assert done.lines == 5000
    assert set(np.flatnonzero(found["kept_row"] == found["row"])) == {0, 4000}


def test_connected_components_of_pairs(tmp_path):
    x = rows_of(200, 8)
    a = write(tmp_path / "x", x, [77], "npy")
    join(a, None, 0.8, tmp_path / "pairs", rows_per_task=50)
    job = jobs.Components(str(tmp_path / "out"), str(tmp_path / "pairs"))
    done = jobs.run(job, str(tmp_path / "out"), ShuffledEngine())
    label = list(range(200))
    i, j, _ = cossim_fast.pairs_above(x, threshold=0.8)
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        one, other = sorted((label[a], label[b]))
        label = [one if here == other else here for here in label]
    assert done.lines == 200
    assert read(tmp_path / "out")["component"].tolist() == label
    assert job.components == len(set(label)) < 200
    with pytest.raises(ValueError, match="expected the output of pairs_above in"):
        jobs.Components(str(tmp_path / "two"), str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="got the output of connected_components of x"):
        jobs.Components(str(tmp_path / "two"), str(tmp_path / "out"))


@pytest.mark.parametrize("stopped", [0, 1, 5, 11, 15])
def test_a_rerun_computes_what_is_missing_and_no_more(tmp_path, stopped):
    corpus, queries = rows_of(300, 8), rows_of(70, 8, seed=1)
    c, q = write(tmp_path / "c", corpus, [100], "npy"), write(tmp_path / "q", queries, [], "npy")
    out, options = tmp_path / "out", {"k": 4, "queries_per_task": 20, "rows_per_task": 100}
    first, second = ShuffledEngine(most=stopped), ShuffledEngine(1)
    with pytest.raises(StoppedError):
        search(q, c, out, first, **options)
    done = search(q, c, out, second, **options)
    assert_nearest(out, queries, corpus, 4)
    assert len(first.computed) == stopped
    assert done.computed == len(second.computed)
    assert not set(first.computed) & set(second.computed)
    assert len(first.computed) + len(second.computed) == done.blocks
    assert sum(done.unfit.values()) == 2
    again = search(q, c, out, ShuffledEngine(most=0), **options)
    assert (again.lines, again.unfit, again.computed) == (done.lines, done.unfit, 0)


def test_a_part_that_was_damaged_is_made_again(tmp_path):
    corpus, queries = rows_of(300, 8), rows_of(70, 8, seed=1)
    c, q = write(tmp_path / "c", corpus, [100], "npy"), write(tmp_path / "q", queries, [], "npy")
    out, options = tmp_path / "out", {"k": 4, "queries_per_task": 20, "rows_per_task": 100}
    search(q, c, out, **options)
    part = out / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    done = search(q, c, out, **options)
    assert_nearest(out, queries, corpus, 4)
    assert done.computed == 4  # three runs of rows of one group, and their merge


@pytest.mark.parametrize("stopped", range(0, 13, 3))
def test_a_deduplication_that_was_interrupted_goes_on(tmp_path, stopped):
    x = rows_of(260, 8)
    a, out = write(tmp_path / "x", x, [77], "npy"), tmp_path / "out"
    first, second = ShuffledEngine(most=stopped), ShuffledEngine(1)
    with pytest.raises(StoppedError):
        dedup(a, 0.8, out, first, rows_per_task=80)
    done = dedup(a, 0.8, out, second, rows_per_task=80)
    assert not set(first.computed) & set(second.computed)
    assert len(first.computed) + len(second.computed) == done.blocks
    expected = cossim_fast.deduplicate(x, 0.8)
    found = read(out)
    dropped = found["kept_row"] != found["row"]
    np.testing.assert_array_equal(found["row"][dropped], expected.dropped)
    np.testing.assert_array_equal(found["kept_row"][dropped], expected.representatives)


def test_other_parameters_and_inputs_are_refused_with_what_differs(tmp_path):
    corpus, queries = rows_of(60, 8), rows_of(10, 8, seed=1)
    c, q = write(tmp_path / "c", corpus, [30], "npy"), write(tmp_path / "q", queries, [], "npy")
    search(q, c, tmp_path / "out", k=4)
    with pytest.raises(ValueError, match="parameters k: 4 then, 5 now"):
        search(q, c, tmp_path / "out", k=5)
    write(tmp_path / "c", corpus[:59], [30], "npy")
    with pytest.raises(
        ValueError, match=r"corpus shards 1 size \(.*part-1.npy\): 1088 then, 1056 now"
    ):
        search(q, c, tmp_path / "out", k=4)


def test_files_of_few_and_of_no_rows(tmp_path):
    corpus = rows_of(200, 8)
    c = write(tmp_path / "c", corpus, [0, 0, 1, 64, 128, 193, 200], "parquet")
    q = write(tmp_path / "q", corpus[:0], [], "parquet")
    done = search(q, c, tmp_path / "out", k=4, column="embedding")
    assert (done.lines, done.blocks) == (0, 0)
    search(c, c, tmp_path / "itself", k=4, column="embedding")
    assert_nearest(tmp_path / "itself", corpus, corpus, 4)
    with pytest.raises(ValueError, match="expected k <= n, got k = 4 and a corpus of n = 0 rows"):
        search(c, q, tmp_path / "none", k=4, column="embedding")
    assert join(q, None, 0.5, tmp_path / "pairs", column="embedding").lines == 0
    assert dedup(q, 0.5, tmp_path / "dedup", column="embedding").lines == 0


def test_plan_counts_what_is_read_and_written(tmp_path):
    """The bytes of tasks are those that the plan says, and no row is read for it."""
    corpus, queries = torch.rand(300, 8), torch.rand(70, 8)
    c = write(tmp_path / "c", corpus, [100], "parquet")
    q = write(tmp_path / "q", queries, [], "npy")
    options = {"k": 4, "queries_per_task": 20, "rows_per_task": 100}
    with counting() as traffic:
        planned = jobs.plan("topk", q, c, **options)
    assert traffic.read < 20_000
    out = str(tmp_path / "out")
    read_of = written = 0
    for stage in arguments.search_of(q, c, output=out, **options).stages():
        for block in stage.blocks():
            with counting() as traffic:
                block.function(*block.arguments)
            table = outputs.read_block(out, block.name)
            if stage.title == "search":
                assert traffic.read == block.reads
                read_of += traffic.read
            # Floors are not passed on here, so every block finds as much as it may.
            numbers = sum(len(table) * kind.bit_width // 8 for kind in table.schema.types)
            assert numbers == block.writes
            assert numbers < traffic.written < numbers + 3000
            written += numbers
    assert (planned.bytes_read, planned.bytes_written) == (read_of, written)
    assert planned.tasks == 4 * 3 + 4
    assert planned.core_hours == pytest.approx(2 * 8 * 300 * 70 / 400e9 / 3600)
    assert "search" in str(planned)
    for operation, more in (("pairs_above", {}), ("deduplicate", {"keep": "last"})):
        assert jobs.plan(operation, c, threshold=0.9, rows_per_task=100, **more).tasks >= 6
    with pytest.raises(ValueError, match="expected operation to be one of topk, pairs_above"):
        jobs.plan("search", q, c)


def test_results_are_one_dataset(tmp_path):
    """Other readers find the parts in the folder, and nothing else."""
    import pyarrow.dataset

    corpus = rows_of(60, 8)
    c = write(tmp_path / "c", corpus, [30], "npy")
    done = search(c, c, tmp_path / "out", k=4, queries_per_task=20)
    assert pyarrow.dataset.dataset(str(tmp_path / "out")).count_rows() == done.lines
    assert outputs.read_summary(str(tmp_path / "out"), "part-00000.parquet")["lines"] > 0


def test_arguments_are_checked_before_any_work(tmp_path):
    c = write(tmp_path / "c", rows_of(60, 8), [], "npy")
    for name, value, said in (
        ("queries_per_task", 65537, "expected queries_per_task <= 65536, got 65537"),
        ("rows_per_task", 0, "expected rows_per_task >= 1, got 0"),
        ("k", 61, "expected k <= n, got k = 61"),
        ("screen", "none", "expected screen to be one of"),
        ("cpus_per_task", 0, "expected cpus_per_task >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            distributed.topk(c, c, output=tmp_path / "out", **{name: value})
    with pytest.raises(ValueError, match=r"expected threshold in \[-1, 1\]"):
        distributed.pairs_above(c, threshold=2, output=tmp_path / "out")
    with pytest.raises(ValueError, match="'first', 'last' or 'column:NAME', got 'best'"):
        distributed.deduplicate(c, 0.9, keep="best", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gpu_is_refused():
    with pytest.raises(ValueError, match="expected gpus_per_task=0, got 1"):
        jobs.topk("q", "c", output="out", gpus_per_task=1)


def test_files_and_results_in_an_object_store(tmp_path):
    """Interrupted there too; the store's names are what tasks are told."""
    import fsspec

    corpus, queries = rows_of(300, 8), rows_of(70, 8, seed=1)
    write(tmp_path / "c", corpus, [100], "parquet")
    q = write(tmp_path / "q", queries, [], "npy")
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/c/", "/jobs/c/", recursive=True)
    out, options = "memory://jobs/out", {"k": 4, "queries_per_task": 20, "rows_per_task": 100}
    with pytest.raises(StoppedError):
        search(q, "memory://jobs/c", out, ShuffledEngine(most=5), **options)
    done = search(q, "memory://jobs/c/*.parquet", out, **options)
    assert done.computed == done.blocks - 5
    store.get("/jobs/out/", f"{tmp_path}/out/", recursive=True)
    assert_nearest(tmp_path / "out", queries, corpus, 4)
    assert search(q, "memory://jobs/c", out, ShuffledEngine(most=0), **options).computed == 0
