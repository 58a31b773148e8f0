"""The commands: their results against float64, in every format that they write."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import device_index
from cli_run import npz_columns, run, run_on_terminal
from cossim_fast import CosineIndex
from cossim_fast.retrieval.screening.screens import offer

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(70, 5, generator=GENERATOR).numpy()
Q = torch.randn(6, 5, generator=GENERATOR).numpy()


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "q.npy", Q)
    (tmp_path / "x.txt").write_text("".join(f"text {i} é\n" for i in range(70)), encoding="utf-8")
    (tmp_path / "q.txt").write_text("\n".join(f"question {i}" for i in range(6)))
    return tmp_path


def read(path):
    """What was written, as columns."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    if path.suffix == ".npz":
        with np.load(path) as held:
            return npz_columns(held)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMATS = (".parquet", ".npz", ".jsonl")


@pytest.mark.parametrize("suffix", FORMATS)
def test_topk(suffix, folder):
    out = folder / f"out{suffix}"
    status, printed, said = run(
        "topk", folder / "q.npy", folder / "x.npy", "-k", 4, "-o", out,
        "--texts", folder / "x.txt", "--query-texts", folder / "q.txt",
    )  # fmt: skip
    assert (status, printed) == (0, "")
    assert said == f"cossim: wrote {out}: 24 rows for 6 queries\n"
    found, exact = read(out), cosines(Q, X)
    best = np.argsort(-exact, axis=1)[:, :4]
    assert found["query"] == np.repeat(np.arange(6), 4).tolist()
    assert found["rank"] == [1, 2, 3, 4] * 6
    assert found["row"] == best.reshape(-1).tolist()
    np.testing.assert_allclose(
        found["score"], np.take_along_axis(exact, best, 1).reshape(-1), atol=1e-7
    )
    assert found["text"] == [f"text {row} é" for row in found["row"]]
    assert found["query_text"] == [f"question {query}" for query in found["query"]]
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".txt") == sorted(
        ["x.npy", "q.npy", out.name]
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_pairs(suffix, folder):
    out = folder / f"out{suffix}"
    status, _, said = run("pairs", folder / "x.npy", "--threshold", 0.9, "-o", out)
    found, exact = read(out), cosines(X, X)
    i, j = np.nonzero(np.triu(exact >= 0.9, 1))
    assert status == 0
    assert f"{len(i)} pairs of 70 rows reach 0.9" in said
    assert len(i) > 5
    assert (found["i"], found["j"]) == (i.tolist(), j.tolist())
    np.testing.assert_allclose(found["score"], exact[i, j], atol=1e-7)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_dedup(keep, folder):
    out = folder / "out.npz"
    arguments = ["dedup", folder / "x.npy", "--threshold", 0.9, "--keep", keep]
    status, _, said = run(*arguments, "-o", out)
    assert status == 0
    exact, kept = cosines(X, X), []
    for row in range(70) if keep == "first" else range(69, -1, -1):
        if not any(exact[row, other] >= 0.9 for other in kept):
            kept.append(row)
    found = {name: np.array(column) for name, column in read(out).items()}
    itself = found["kept_row"] == found["row"]
    assert found["row"][itself].tolist() == sorted(kept)
    assert np.isnan(found["score"][itself]).all()
    for row, by, score in zip(*(column[~itself] for column in found.values()), strict=True):
        before = [other for other in kept if (other < row) == (keep == "first")]
        assert by == before[int(np.argmax([exact[row, other] for other in before]))]
        assert score == pytest.approx(exact[row, by], abs=1e-7)
    assert f"{len(kept)} of 70 rows kept, {70 - len(kept)} dropped" in said
    # Without a file: the dropped rows alone.
    lines = [json.loads(line) for line in run(*arguments)[1].splitlines()]
    assert [line["row"] for line in lines] == found["row"][~itself].tolist()


def test_an_index_finds_what_topk_finds(folder):
    assert run("index", "build", folder / "x.npy", "-o", folder / "x.index")[0] == 0
    by_index = run("index", "search", folder / "q.npy", folder / "x.index", "-k", 3)
    assert by_index == run("topk", folder / "q.npy", folder / "x.npy", "-k", 3)
    assert by_index[0] == 0
    assert len(by_index[1].splitlines()) == 18


def ids_files(folder, kind):
    """Files of the same ids, and the options that read them."""
    names = [f"gloss {i}é" for i in range(70)] if kind == "strings" else list(range(500, 570))
    np.save(folder / "ids.npy", np.array(names))
    columns = {"id": names, "other": list(range(70))}
    pq.write_table(pa.table(columns), folder / "two.parquet")
    pq.write_table(pa.table({"id": names}), folder / "one.parquet")
    files = [("ids.npy",), ("two.parquet", "--ids-key", "id"), ("one.parquet",)]
    if kind == "strings":
        (folder / "ids.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        files.append(("ids.txt",))
    return names, files


@pytest.mark.parametrize("kind", ["strings", "whole numbers"])
def test_an_index_with_ids_finds_ids(kind, folder):
    names, files = ids_files(folder, kind)
    exact = cosines(Q, X)
    best = np.argsort(-exact, axis=1)[:, :3].reshape(-1)
    for name, *options in files:
        status, _, said = run(
            "index", "build", folder / "x.npy", "-o", folder / "x.index",
            "--ids", folder / name, *options,
        )  # fmt: skip
        assert status == 0, said
        for suffix in FORMATS:
            out = folder / f"out{suffix}"
            status, _, said = run(
                "index", "search", folder / "q.npy", folder / "x.index", "-k", 3, "-o", out,
                "--texts", folder / "x.txt",
            )  # fmt: skip
            assert status == 0, said
            found = read(out)
            assert list(found) == ["query", "rank", "id", "score", "text"]
            assert found["id"] == [names[row] for row in best]
            assert found["text"] == [f"text {row} é" for row in best]
    _, out, _ = run_on_terminal("index", "search", folder / "q.npy", folder / "x.index")
    assert str(names[best[0]]) in out


def test_texts_stand_beside_their_rows_after_some_were_removed(folder):
    index = CosineIndex(X)
    index.remove([0, 5])
    index.save(folder / "x.index")
    left = [i for i in range(70) if i not in (0, 5)]
    (folder / "left.txt").write_text("".join(f"text {i}\n" for i in left))
    command = ["index", "search", folder / "q.npy", folder / "x.index", "-k", 68]
    _, out, _ = run(*command, "--texts", folder / "left.txt")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 6 * 68
    assert all(line["text"] == f"text {line['id']}" for line in lines)


def test_a_terminal_gets_a_table_of_its_width(folder):
    status, out, _ = run_on_terminal(
        "topk", folder / "q.npy", folder / "x.npy", "--texts", folder / "x.txt", "--show", 2
    )
    head, first, second, more = out.splitlines()
    assert status == 0
    assert head.split() == ["query", "rank", "row", "score", "text"]
    exact = cosines(Q, X)[0]
    for rank, line in enumerate((first, second)):
        row = int(np.argsort(-exact)[rank])
        assert line.split() == f"0 {rank + 1} {row} {exact[row]:.6f} text {row} é".split()
    assert more == "... 58 more; -o FILE keeps all"
    assert max(map(len, out.splitlines())) <= 80


def test_long_texts_are_cut_and_numbers_are_not(folder):
    (folder / "long.txt").write_text("long words " * 20 + "\n" + "x\n" * 69)
    arguments = ["pairs", folder / "x.npy", "--threshold=-1", "--texts", folder / "long.txt"]
    _, out, _ = run_on_terminal(*arguments, "--show", 3)
    head, *lines, _ = out.splitlines()
    assert head.split() == ["i", "j", "score", "text_i", "text_j"]
    exact = cosines(X, X)
    expected = [["0", str(j), f"{exact[0, j]:.6f}"] for j in (1, 2, 3)]
    assert [line.split()[:3] for line in lines] == expected
    assert all("…" in line and len(line) <= 80 for line in lines)


def test_rows_with_nan_can_be_left_out(folder):
    bad = X.copy()
    bad[3, 2] = np.nan
    np.save(folder / "bad.npy", bad)
    status, out, _ = run("topk", folder / "q.npy", folder / "bad.npy", "-k", 70, "--skip-nan")
    rows = [json.loads(line)["row"] for line in out.splitlines()]
    assert status == 0
    assert len(rows) == 6 * 69
    assert 3 not in rows


def test_bench_times_what_agrees(folder):
    status, out, err = run("bench", folder / "x.npy", "--rounds", 2)
    assert (status, err) == (0, "")
    assert out.startswith("70 rows of 5, 2 rounds")
    apart = [line.split()[-1] for line in out.splitlines() if "rows  " in line or "quer" in line]
    assert len(apart) == 3
    assert float(apart[0]) < 1e-6
    assert out.count("0 pairs") == 1


def test_info_names_the_screens(folder):
    status, out, _ = run("info")
    assert status == 0
    assert f"torch            {torch.__version__}" in out
    assert "screen float32   yes: always available" in out
    for name in ("int8", "bfloat16"):
        found = offer(name)  # measured once
        assert f"screen {name}".ljust(17) + ("yes: " if found.fast else "no: ") + found.words in out
    assert out.splitlines()[-1].startswith(("GPU", "kernels"))


def test_a_threshold_is_shown_as_it_was_given_and_copies_reach_one(tmp_path):
    x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([x, x]))
    _, _, err = run("pairs", tmp_path / "x.npy", "--threshold", "0.9999999")
    assert err == "cossim: 1000 pairs of 2000 rows reach 0.9999999\n"
    _, _, err = run("pairs", tmp_path / "x.npy", "--threshold", "1.0")
    assert err == "cossim: 1000 pairs of 2000 rows reach 1\n"
    _, _, err = run("dedup", tmp_path / "x.npy", "--threshold", "1.0")
    assert err == "cossim: 1000 of 2000 rows kept, 1000 dropped\n"


def test_more_rows_than_there_are_are_all_rows(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "q.npy", Q)
    status, out, err = run("topk", tmp_path / "q.npy", tmp_path / "x.npy", "-k", "100")
    assert (status, len(out.splitlines())) == (0, len(Q) * len(X))
    assert err == "cossim: there are 70 rows, fewer than -k 100: all of them are ranked\n"
    run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x.index")
    found = run("index", "search", tmp_path / "q.npy", tmp_path / "x.index", "-k", "100")
    assert found == (0, out, err)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_whole_numbers_of_8_bits(dtype, tmp_path):
    x = np.random.default_rng(0).integers(0, 128, (60, 9)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "wide.npy", x.astype(np.float32))
    for command in (["pairs", "--threshold", "0.8"], ["dedup", "--threshold", "0.8"], ["diagnose"]):
        narrow, wide = (run(*command, tmp_path / name) for name in ("x.npy", "wide.npy"))
        assert narrow[0] == wide[0] != 2
        if command[0] != "diagnose":
            assert narrow == wide
    found = [
        run("topk", tmp_path / name, tmp_path / name, "-k", "3") for name in ("x.npy", "wide.npy")
    ]
    assert found[0] == found[1]


def test_a_long_text_does_not_widen_the_others(folder):
    texts = ["short"] * 69 + ["long " * 200_000]
    (folder / "long.txt").write_text("\n".join(texts), encoding="utf-8")
    run("topk", folder / "q.npy", folder / "x.npy", "-k", "69", "--texts", folder / "long.txt",
        "-o", folder / "out.npz")  # fmt: skip
    found = read(folder / "out.npz")
    assert found["text"] == [texts[row] for row in found["row"]]
    assert (folder / "out.npz").stat().st_size < 7e6


def test_a_byte_order_mark_is_no_part_of_the_first_text(folder):
    lines = [f"text {row}" for row in range(70)]
    for name, encoding in (("marked.txt", "utf-8-sig"), ("plain.txt", "utf-8")):
        (folder / name).write_text("\n".join(lines), encoding=encoding)
    marked, plain = (
        run("topk", folder / "x.npy", folder / "x.npy", "-k", "1", "--texts", folder / name)
        for name in ("marked.txt", "plain.txt")
    )
    assert marked == plain
    run("index", "build", folder / "x.npy", "--ids", folder / "marked.txt", "-o", folder / "i")
    assert CosineIndex.load(folder / "i").ids.tolist() == lines


def test_an_index_is_searched_on_a_gpu(folder, monkeypatch):
    run("index", "build", folder / "x.npy", "-o", folder / "x.index")
    command = ["index", "search", folder / "q.npy", folder / "x.index", "-k", 3]
    wanted = run(*command)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    status, out, err = run(*command, "--device", "cuda")
    assert (status, out) == (2, "")
    assert "expected a GPU for device='cuda', and torch" in err
    device_index.stand_in(monkeypatch)
    assert run(*command, "--device", "cuda") == wanted

    def refuse(*_, **__):
        raise NotImplementedError("expected a GPU that can")

    monkeypatch.setattr("cossim_fast.retrieval.index.engine_on", refuse)
    assert run(*command, "--device", "cuda") == (2, "", "cossim: expected a GPU that can\n")


def test_rows_are_added_to_an_index(folder):
    lines = [f"doc {row}" for row in range(70)]
    np.save(folder / "a.npy", X[:50])
    np.save(folder / "b.npy", X[50:])
    for name, some in (("a.txt", lines[:50]), ("b.txt", lines[50:])):
        (folder / name).write_text("\n".join(some), encoding="utf-8")
    for ids in ([], ["--ids"]):
        given = [[*ids, folder / f"{name}.txt"] if ids else [] for name in "ab"]
        run("index", "build", folder / "a.npy", *given[0], "-o", folder / "x.index")
        status, out, err = run("index", "add", folder / "x.index", folder / "b.npy", *given[1])
        assert (status, out) == (0, "")
        assert err == f"cossim: wrote {folder / 'x.index'}: 70 rows of 5, 20 of them new\n"
        held = CosineIndex.load(folder / "x.index")
        assert held.ids.tolist() == (lines if ids else list(range(70)))
        best = np.argsort(-cosines(Q, X), axis=1)[:, :3]
        names = np.array(lines, dtype=object) if ids else np.arange(70)
        assert held.search(Q, 3).indices.tolist() == names[best].tolist()


def test_rows_that_do_not_fit_an_index_leave_it_as_it_is(folder):
    run("index", "build", folder / "x.npy", "-o", folder / "x.index")
    before = (folder / "x.index").read_bytes()
    np.save(folder / "wide.npy", np.ones((3, 9), np.float32))
    for more in ([folder / "wide.npy"], [folder / "x.npy", "--ids", folder / "x.txt"]):
        status, out, err = run("index", "add", folder / "x.index", *more)
        assert (status, out, err.count("\n")) == (2, "", 1)
    assert (folder / "x.index").read_bytes() == before


def ids_file(folder, kind):
    """Ids of 70 rows in a file, as they are to be found in what is written, and the options."""
    names = [f"u{row} é" for row in range(70)]
    numbers = list(range(7000, 7070))
    if kind == "text":
        (folder / "ids.txt").write_text("\n".join(names), encoding="utf-8")
        return names, ["--ids", folder / "ids.txt"]
    if kind == ".npy":
        np.save(folder / "ids.npy", numbers)
        return numbers, ["--ids", folder / "ids.npy"]
    if kind == ".parquet":
        pq.write_table(pa.table({"id": numbers, "name": names}), folder / "ids.parquet")
        return names, ["--ids", folder / "ids.parquet", "--ids-key", "name"]
    lines = [json.dumps({"id": name}) for name in numbers]
    (folder / "ids.jsonl").write_text("\n".join(lines))
    return numbers, ["--ids", folder / "ids.jsonl"]


IDS = ("text", ".npy", ".parquet", ".jsonl")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", IDS)
def test_ids_stand_in_place_of_rows(kind, suffix, folder):
    names, options = ids_file(folder, kind)
    texts = ["--texts", folder / "x.txt"]
    for command in (
        ("topk", folder / "q.npy", folder / "x.npy", "-k", 4),
        ("pairs", folder / "x.npy", "--threshold", 0.8),
        ("dedup", folder / "x.npy", "--threshold", 0.8),
    ):
        plain, with_ids = folder / f"a{suffix}", folder / f"b{suffix}"
        assert run(*command, *texts, "-o", plain)[0] == 0
        assert run(*command, *texts, *options, "-o", with_ids)[0] == 0
        before, after = read(plain), read(with_ids)
        new = {"row": "id", "i": "id_i", "j": "id_j", "kept_row": "kept_id"}
        expected = {
            new.get(name, name): [names[row] for row in column] if name in new else column
            for name, column in before.items()
        }
        assert list(after) == list(expected)
        for name, column in after.items():
            np.testing.assert_array_equal(column, expected[name], err_msg=name)
        piped = run(*command, *options)[1].splitlines()
        assert json.loads(piped[0])[next(name for name in after if "id" in name)] in names
        assert run_on_terminal(*command, *options)[0] == 0


def test_ids_of_the_table_that_holds_the_rows(folder):
    table = pa.table({"id": [f"u{row}" for row in range(70)], "vector": X.tolist()})
    pq.write_table(table, folder / "x.parquet")
    status, out, _ = run("pairs", folder / "x.parquet", "--ids-key", "id", "--threshold", 0.9)
    assert status == 0
    assert json.loads(out.splitlines()[0]).keys() == {"id_i", "id_j", "score"}
    status, _, err = run("pairs", folder / "x.npy", "--ids-key", "id")
    assert status == 2
    assert "expected a file of ids, or embeddings in .parquet, .csv, .tsv, .jsonl, of which" in err


def test_ids_that_do_not_fit(folder):
    (folder / "ids.txt").write_text("a\nb\n")
    np.save(folder / "ids.npy", np.linspace(0, 1, 70))
    for name, said in (
        ("ids.txt", "ids.txt of shape (70,), got (2,)"),
        ("ids.npy", "to be whole numbers or str, got float"),
        ("x.npy", "expected one array of 1 axes"),
    ):
        status, _, err = run("pairs", folder / "x.npy", "--ids", folder / name)
        assert (status, said in err) == (2, True), err
    status, _, err = run("pairs", folder / "x.npy", "--ids", folder / "ids.txt",
                         "-o", folder / "ids.txt")  # fmt: skip
    assert status == 2
