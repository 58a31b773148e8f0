"""Nothing that a terminal obeys reaches stdout or stderr, whatever texts and names hold."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.cells import cell_len

from cli_run import npz_columns, run, run_on_terminal
from cossim_fast import CosineIndex
from cossim_fast._escaped import OBEYED, escaped, escaped_json
from cossim_fast.cli import processor

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).numpy()
# A title of the window, a cleared screen in C0 and in C1, a bell, a rubout, overrides of direction
# and their marks, separators, and what stands for a byte that is no UTF-8.
EVIL = "a\x1b]0;t\x07\x1b[2J\x9b2J\x7f\x85\u202eb\u2066\u200e\u061c\u2028\u2029c"
EVIL_NAME = f"{EVIL}\t\n\udcff"
SHOWN = r"a\x1b]0;t\x07\x1b[2J\x9b2J\x7f\x85\u202eb\u2066\u200e\u061c\u2028\u2029c"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows takes no such names")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save(f"{EVIL_NAME}.npy", X)
    np.savez(f"{EVIL_NAME}.npz", **{EVIL: X, f"{EVIL}2": X})
    (tmp_path / "texts.txt").write_text(f"{EVIL}\n" * 40, encoding="utf-8")
    ids = "".join(f"{EVIL}{row}\n" for row in range(40))
    (tmp_path / "ids.txt").write_text(ids, encoding="utf-8")
    np.save("labels.npy", np.array([EVIL, "b"] * 20))
    pq.write_table(pa.table({EVIL: list(range(40)), "b": list(range(40))}), "two.parquet")
    CosineIndex(X, [f"{EVIL}{row}" for row in range(40)]).save("x.index")
    for field in ("kind", "version"):
        forge("x.index", f"{field}.index", field)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"model name: {EVIL}\nflags: {EVIL}\n", encoding="utf-8")
    return tmp_path


def forge(source, name, field):
    """Another value for a field of an index's header."""
    with open(source, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header, rest = json.loads(file.read(length)), file.read()
    header["__metadata__"][field] = EVIL
    coded = json.dumps(header).encode()
    with open(name, "wb") as file:
        file.write(len(coded).to_bytes(8, "little") + coded + rest)


def harmless(text):
    """Whether a terminal shows it as it stands; our own lines end."""
    return OBEYED.search(text.replace("\n", "")) is None


E = EVIL_NAME
# Arguments, the status, and what is seen of the hostile word.
COMMANDS = {
    "topk": (["topk", "x.npy", f"{E}.npy", "--texts=texts.txt", "--query-texts=texts.txt"], 0),
    "pairs": (["pairs", f"{E}.npy", "--threshold=0", "--texts=texts.txt"], 0),
    "dedup": (["dedup", f"{E}.npy", "--threshold=0.3", "--texts=texts.txt"], 0),
    "build": (["index", "build", f"{E}.npy", "--ids=ids.txt", "-o", f"{E}.index"], 0),
    "search": (["index", "search", f"{E}.npy", "x.index", "--texts=texts.txt"], 0),
    "diagnose": (["diagnose", f"{E}.npy", "--labels=labels.npy", "--html", f"{E}.html"], 0),
    "bench": (["bench", f"{E}.npy", "--rounds=1"], 0),
    "info": (["info"], 0),
    "topk to a file": (["topk", "x.npy", "x.npy", "-o", f"{E}.npz"], 0),
    "pairs to a file": (["pairs", "x.npy", "-o", f"{E}.npz"], 0),
    "dedup to a file": (["dedup", "x.npy", "-o", f"{E}.npz"], 0),
    "search to a file": (["index", "search", "x.npy", "x.index", "-o", f"{E}.jsonl"], 0),
    "no file": (["topk", "x.npy", f"{E}2.npy"], 2),
    "no texts": (["topk", "x.npy", "x.npy", "--texts", E], 2),
    "no index": (["index", "search", "x.npy", E], 2),
    "no index but an array": (["index", "search", "x.npy", f"{E}.npy"], 2),
    "no ids": (["index", "build", "x.npy", "--ids", E, "-o", "y.index"], 2),
    "no labels": (["diagnose", "x.npy", "--labels", E], 2),
    "no matrix": (["bench", f"{E}2.npy"], 2),
    "several arrays": (["pairs", f"{E}.npz"], 2),
    "no such array": (["pairs", f"{E}.npz", "--key", f"{EVIL}3"], 2),
    "no such column": (
        ["index", "build", "x.npy", "-o", "y.index", "--ids=two.parquet", f"--ids-key={E}"], 2,
    ),
    "several columns": (["index", "build", "x.npy", "-o", "y.index", "--ids=two.parquet"], 2),
    "another format": (["dedup", "x.npy", "-o", E], 2),
    "no folder": (["dedup", "x.npy", "-o", f"{E}/out.npz"], 2),
    "no screen": (["topk", "x.npy", "x.npy", "--screen", EVIL], 2),
    "keep neither": (["dedup", "x.npy", "--keep", EVIL], 2),
    "a forged kind": (["index", "search", "x.npy", "kind.index"], 2),
    "a forged version": (["index", "search", "x.npy", "version.index"], 2),
    "no command": ([E], 2),
    "no command of an index": (["index", E], 2),
    "no option": (["topk", f"--{E}"], 2),
    "no number": (["topk", "x.npy", "x.npy", "-k", EVIL], 2),
    "too many words": (["pairs", "x.npy", E], 2),
}  # fmt: skip


@pytest.mark.parametrize("seen", [run, run_on_terminal], ids=["pipe", "terminal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_obeyed(name, seen, folder):
    command, expected = COMMANDS[name]
    status, out, err = seen(*command)
    assert status == expected or (status, expected, name) == (1, 0, "diagnose")
    assert harmless(out), ascii(out)
    assert harmless(err), ascii(err)
    if expected == 2:
        assert out == ""
        if name != "no number":  # not every typer repeats it
            assert r"\x1b]0;t" in err
        if not err.startswith("Usage"):
            assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["topk", "pairs", "search"])
def test_lines_of_json_keep_their_values(name, folder):
    _, out, _ = run(*COMMANDS[name][0])
    held = [json.loads(line) for line in out.split("\n")[:-1]]
    texts = {value for row in held for key, value in row.items() if "text" in key}
    assert texts == {EVIL}
    if name == "search":
        assert {row["id"] for row in held} == {f"{EVIL}{row}" for row in range(40)}


def test_a_file_of_json_lines_can_be_looked_at_too(folder):
    assert run("index", "search", "x.npy", "x.index", "-o", "out.jsonl")[0] == 0
    text = (folder / "out.jsonl").read_text(encoding="utf-8")
    assert harmless(text)
    assert json.loads(text.split("\n")[0])["id"].startswith(EVIL)


def test_a_table_counts_what_is_shown(folder):
    _, out, _ = run_on_terminal(*COMMANDS["pairs"][0], "--show=3")
    head, *rows, _ = out.splitlines()
    assert len(rows) == 3
    begin = head.index("text_i"), head.index("text_j")
    for row in rows:
        assert cell_len(row) <= 80
        for column in begin:
            assert row[column:].startswith(SHOWN[:20])


def test_texts_are_shown_letter_for_letter(folder):
    text = ":smile: [bold]b[/bold] naïve 日本 👩\u200d👩"  # joiners make one picture of two
    (folder / "texts.txt").write_text(f"{text}\n" * 40, encoding="utf-8")
    _, out, _ = run_on_terminal("dedup", "x.npy", "--threshold=0.3", "--texts=texts.txt")
    assert ":smile: [bold]b[/bold" in out.splitlines()[1]
    assert escaped(text) == text
    assert run("topk", "x.npy", "x.npy", "--texts=texts.txt")[1].count(text) == 400


def test_ids_with_half_a_pair_can_be_written(folder):
    CosineIndex(X[:2], ["a\ud800", "b"]).save("half.index")
    search = ("index", "search", "x.npy", "half.index", "-k", "2")
    assert harmless(run(*search)[1])
    assert harmless(run_on_terminal(*search)[1])
    for suffix in (".jsonl", ".npz"):
        assert run(*search, "-o", f"out{suffix}")[0] == 0
    with np.load("out.npz") as held:
        assert set(npz_columns(held)["id"]) == {"a\ud800", "b"}
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"a\ud800", "b"}
    status, _, err = run(*search, "-o", "out.parquet")
    assert status == 2
    assert err == (
        r"cossim: expected texts of whole characters, got 'a\ud800': .parquet is in UTF-8; "
        "write .jsonl or .npz\n"
    )


def test_bytes_of_a_real_process(folder):
    program = [sys.executable, "-P", "-c", "from cossim_fast import cli; cli.main()"]
    done = subprocess.run([*program, "pairs", os.fsencode(E)], capture_output=True, check=False)
    assert done.returncode == 2
    assert harmless(done.stderr.decode("utf-8"))
    assert rb"\udcff" in done.stderr


@pytest.mark.parametrize(
    "number",
    [
        *range(32),
        *range(0x7F, 0xA0),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        0xD800,
        0xDFFF,
    ],
)
def test_each_of_them_is_escaped(number):
    shown = escaped(f"a{chr(number)}b")
    assert re.fullmatch(r"a\\x[0-9a-f]{2}b|a\\u[0-9a-f]{4}b", shown)
    assert shown.encode().decode("unicode_escape") == f"a{chr(number)}b"
    coded = escaped_json(json.dumps(f"a{chr(number)}b", ensure_ascii=False))
    assert coded.isprintable()
    assert json.loads(coded) == f"a{chr(number)}b"


@pytest.mark.parametrize(
    "text", ["", "naïve", "日本語", "👩\u200d👩", "a\u00a0b\u00ad", "\\x1b", "עברית"]
)
def test_letters_are_left_alone(text):
    assert escaped(text) == text
    assert escaped_json(json.dumps(text, ensure_ascii=False)) == json.dumps(
        text, ensure_ascii=False
    )
