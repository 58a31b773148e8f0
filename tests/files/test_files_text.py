"""Vectors in `.csv`, `.tsv` and `.jsonl`, and in standard input: numbers strictly."""

import csv
import io
import json
import sys

import numpy as np
import pytest

from cli_run import run
from cossim_fast import files

X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
DEEP = X.astype(np.float64)


def write_csv(path, columns, header=True, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def floats(names=("x0", "x1", "x2", "x3")):
    return {name: DEEP[:, at].tolist() for at, name in enumerate(names)}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_columns_of_floats(suffix, delimiter, header, tmp_path):
    path = write_csv(tmp_path / f"x{suffix}", floats(), header, delimiter)
    loaded = files.load(path)
    np.testing.assert_array_equal(loaded, DEEP)
    assert loaded.dtype == np.float64
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes it
    np.testing.assert_array_equal(files.load(path), DEEP)
    if header:
        np.testing.assert_array_equal(files.load(path, key="x2,x0"), DEEP[:, [2, 0]])


@pytest.mark.parametrize(
    "beside",
    [
        {"id": range(10**6, 10**6 + 50)},
        {"": range(50)},  # as pandas writes the index of a frame
        {"id": [f"u{row}" for row in range(50)]},
        {"id": range(50), "text": ["a, \"b\"\nc"] * 50, "label": [0, 1] * 25},
        {"good": ["True", "False"] * 25},
        {"gap": [1, ""] * 25},
    ],
)  # fmt: skip
@pytest.mark.parametrize("names", [("a", "b", "c", "d"), ("0", "1", "2", "3")])
def test_what_is_no_float_is_left_out(beside, names, tmp_path):
    path = write_csv(tmp_path / "x.csv", {**beside, **floats(names)})
    said = []
    np.testing.assert_array_equal(files.load(path, note=said.append), DEEP)
    assert len(said) == 1
    assert all(name in said[0] for name in beside)


def test_a_first_line_of_numbers_is_names_where_they_count(tmp_path):
    path = write_csv(tmp_path / "x.csv", floats("0123"))
    np.testing.assert_array_equal(files.load(path), DEEP)
    whole = np.arange(100, 150)[:, None] + np.arange(4)
    np.savetxt(path, whole, "%d", ",")
    np.testing.assert_array_equal(files.load(path, key="*"), whole)
    path.write_text("0,1\n0.5,0.25\n")  # two columns that JavaScript wrote may be like that
    np.testing.assert_array_equal(files.load(path), [[0.5, 0.25]])
    path.write_text("0,1\n1,0.25\n")
    np.testing.assert_array_equal(files.load(path, key="*"), [[0, 1], [1, 0.25]])


def test_a_name_before_the_numbers_is_no_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("the,0.5,0.25\nof,1.5,2.5\n")
    np.testing.assert_array_equal(files.load(path), [[0.5, 0.25], [1.5, 2.5]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,x,y\n1,0.5,0.1\n2,oops,0.1\n", "line 3, column 'x': expected a number, got 'oops'"),
        ("x,y\n0.5,0.1\n0.5,\n", "line 3, column 'y': expected a number, got nothing"),
        ("x,y\n0.5,0.1\n0.5,1_0\n", "line 3, column 'y': expected a number, got '1_0'"),
        ("x,y\n0.5,0.1\n0.5,１\n", "line 3, column 'y': expected a number, got '１'"),
        ("x;y\n0,5;0,1\n0,5;0,2\n", "name with a key those that are coordinates"),
        ("x,y\n0.5,0.1\n0.5\n", "line 3 has 1 columns, and those before it have 2"),
        ("x,y\n0.5,0.1\n\n0.5,0.2\n", "line 3 is empty"),
        ("x,x\n0.5,0.1\n", "two of its columns have one name"),
        ('x,y\n0.5,"0.1\n', "line 2: unexpected end of data"),
        ("", "it is empty"),
        ("x,y\n1,2\n3,4\n", "no columns of floats, but x (whole numbers), y (whole numbers)"),
        ('id,v\n1,"[0.5, 1]"\n2,"[0.5]"\n', "line 3, column 'v' has 1 numbers, and line 2, column"),
        ('id,v\n1,"[0.5 1]"\n', "line 2, column 'v': expected a list of numbers as [0.1, 0.2]"),
        ('id,v\n1,"[0.5, true]"\n', "line 2, column 'v': expected a list of numbers, got [0.5, T"),
        ("x\n" + "0.5\n" * 9 + "é\n", "line 11, column 'x': expected a number, got 'é'"),
    ],
)
def test_errors_of_csv_name_the_line_and_the_column(content, said, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(files.BadFileError) as raised:
        files.load(path, ndim=1 if content.startswith("x\n") else 2)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_other_encodings_are_refused(tmp_path):
    for name in ("x.csv", "x.jsonl"):
        (tmp_path / name).write_bytes("[0.5, 0.1]\n".encode("utf-16"))
        with pytest.raises(files.BadFileError, match=r"is no UTF-8"):
            files.load(tmp_path / name)


def test_a_column_that_is_a_coordinate_after_all_is_noticed(tmp_path):
    path = write_csv(tmp_path / "x.csv", {"x": [0.5] * 1200, "y": [0] * 1100 + [0.5] * 100})
    with pytest.raises(files.BadFileError, match=r"line 1102, column 'y': expected a whole number"):
        files.load(path)
    assert files.load(path, key="x,y").shape == (1200, 2)


def test_lists_in_a_column(tmp_path):
    """As pandas writes a frame with a column of lists."""
    lists = [json.dumps(row) for row in DEEP.tolist()]
    path = write_csv(
        tmp_path / "x.csv",
        {"": range(50), "score": [0.5] * 50, "text": ["[a]"] + ["b"] * 49, "embedding": lists},
    )
    np.testing.assert_array_equal(files.load(path), DEEP)
    path = write_csv(tmp_path / "y.csv", {"a": lists, "b": lists})
    with pytest.raises(files.BadFileError, match=r"a \(\?, \?\), b \(\?, \?\); name one"):
        files.load(path)
    np.testing.assert_array_equal(files.load(path, key="b"), DEEP)
    path = write_csv(tmp_path / "z.csv", {"a": lists}, header=False)
    np.testing.assert_array_equal(files.load(path), DEEP)


def test_labels_of_csv(tmp_path):
    path = write_csv(
        tmp_path / "x.csv", {"n": range(50), "t": ["a", "b"] * 25, "zip": ["007"] * 50, **floats()}
    )
    assert files.load(path, key="n", ndim=1).tolist() == list(range(50))
    assert files.load(path, key="t", ndim=1).tolist() == ["a", "b"] * 25
    assert files.load(path, key="zip", ndim=1).tolist() == ["007"] * 50
    assert files.load_column(path, "n").dtype == np.int64
    with pytest.raises(files.BadFileError, match=r"expected 'no' in .*n, t, zip"):
        files.load_column(path, "no")


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_and_objects_in_jsonl(mark, tmp_path):
    path = lines(tmp_path / "x.jsonl", DEEP.tolist())
    path.write_bytes(mark + path.read_bytes())
    np.testing.assert_array_equal(files.load(path), DEEP)
    path = lines(
        tmp_path / "y.jsonl",
        [
            {"id": f"u{at}", "n": at, "vector": row, "more": {"a": [1]}}
            for at, row in enumerate(DEEP.tolist())
        ],
    )
    np.testing.assert_array_equal(files.load(path), DEEP)
    np.testing.assert_array_equal(files.load(path, key="vector"), DEEP)
    assert files.load(path, key="n", ndim=1).tolist() == list(range(50))
    assert files.load_column(path, "id").tolist() == [f"u{at}" for at in range(50)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[0.5, 1]\n[0.5]\n", "line 2 has 1 numbers, and line 1 has 2"),
        ("[0.5, 1]\n[0.5, null]\n", "line 2: expected a list of numbers, got [0.5, None]"),
        ('[0.5, 1]\n[0.5, "1"]\n', "line 2: expected a list of numbers, got [0.5, '1']"),
        ("[0.5, 1]\n[0.5, true]\n", "line 2: expected a list of numbers, got [0.5, True]"),
        ("[0.5, 1]\nnull\n", "line 2: expected a list of numbers, got None"),
        ("[[0.5, 1], [2, 3]]\n", "line 1: expected a list of numbers, got [[0.5, 1], [2, 3]]"),
        (f"[0.5, {10**400}]\n", "line 1: a number is too large for float64"),
        ("[0.5, 1]\n[0.5,\n", "line 2: expected one value of JSON, got '[0.5,'"),
        ("[0.5, 1]\n\n[0.5, 1]\n", "line 2 is empty"),
        ('{"v": [0.5]}\n{"w": [0.5]}\n', "line 2: expected an object with 'v', got {'w': [0.5]}"),
        ('{"v": [0.5]}\n{"v": [1, 2]}\n', "line 2, 'v' has 2 numbers, and line 1, 'v' has 1"),
        ('{"v": [0.5], "w": [0.5]}\n', "v (?, ?), w (?, ?); name one with its key"),
        ('{"v": [[0.5]], "w": null}\n', "v, which is a list of no numbers alone, w, which is null"),
    ],
)
def test_errors_of_jsonl_name_the_line(content, said, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(files.BadFileError) as raised:
        files.load(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_tables_of_text_beside_arrays_are_about_these(tmp_path):
    np.save(tmp_path / "part-0.npy", X)
    write_csv(tmp_path / "labels.csv", {"id": range(50)})
    np.testing.assert_array_equal(files.load(tmp_path), X)
    (tmp_path / "part-0.npy").unlink()
    write_csv(tmp_path / "labels.csv", floats())
    write_csv(tmp_path / "more.csv", floats())
    np.testing.assert_array_equal(files.load(tmp_path), np.concatenate([DEEP, DEEP]))


def fed(monkeypatch, raw):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("kind", ["npy", "csv", "jsonl", "tsv"])
def test_standard_input(kind, told, tmp_path, monkeypatch):
    if kind == "npy":
        raw = npy(np.asfortranarray(DEEP))
    elif kind == "jsonl":
        raw = lines(tmp_path / "x.jsonl", DEEP.tolist()).read_bytes()
    else:
        delimiter = "," if kind == "csv" else "\t"
        raw = write_csv(tmp_path / "x", floats(), delimiter=delimiter).read_bytes()
    fed(monkeypatch, raw)
    np.testing.assert_array_equal(files.load("-", format=kind if told else None), DEEP)


def test_standard_input_that_cannot_be_read(monkeypatch):
    for raw, said in [
        (b"", "is empty, or was read for another argument"),
        (b"PK\x03\x04", "got what is a zip archive, such as .npz or .pt; write it to a file first"),
        (b"PAR1", "got what is a .parquet"),
        (npy(X)[:-1], "standard input cannot be read as .npy: expected 928 bytes"),
        (b"x,y\n0.5,0.5\n0.5,a\n", "standard input cannot be read as .csv: line 3, column 'y'"),
    ]:
        fed(monkeypatch, raw)
        with pytest.raises(files.BadFileError) as raised:
            files.load("-")
        assert said in str(raised.value)
    fed(monkeypatch, npy(X))
    with pytest.raises(files.BadFileError, match=r"expected .npy, .csv, .tsv, .jsonl in standard"):
        files.load("-", format="parquet")
    with pytest.raises(files.BadFileError, match=r"expected format to be one of .npy"):
        files.load("-", format="xlsx")


def test_the_format_of_a_file_whose_name_does_not_tell_it(tmp_path):
    path = write_csv(tmp_path / "x.txt", floats())
    with pytest.raises(files.BadFileError, match=r"ending in .*, or its format"):
        files.load(path)
    np.testing.assert_array_equal(files.load(path, format="csv"), DEEP)


def test_the_command_reads_standard_input_and_text(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "x.csv", {"id": [f"u{row}" for row in range(50)], **floats()})
    fed(monkeypatch, npy(DEEP[:2]))
    status, out, err = run("topk", "-", path, "-k", "1", "--ids-key", "id")
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(line["query"], line["id"], line["score"]) for line in found] == [
        (0, "u0", 1.0), (1, "u1", 1.0),
    ]  # fmt: skip
    fed(monkeypatch, npy(DEEP[:2]))
    status, _, err = run("topk", "-", "-")
    assert (status, "was read for another argument" in err) == (2, True)
    fed(monkeypatch, path.read_bytes())
    status, out, err = run("diagnose", "-", "--format", "csv")
    assert (status, out.splitlines()[0]) == (0, "embeddings: healthy"), err
    path.write_text("x,y\n0.5,0.1\n0.5,oops\n")
    status, _, err = run("pairs", path)
    assert (status, err) == (
        2, f"cossim: {path} cannot be read as .csv: line 3, column 'y': expected a number, got "
        "'oops'\n",
    )  # fmt: skip
