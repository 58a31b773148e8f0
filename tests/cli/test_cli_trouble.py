"""What the command does when something is wrong: one line, a status, nothing half-written."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer

from cli_run import run, run_on_terminal
from cossim_fast import CosineIndex, topk
from cossim_fast.cli import outputs
from cossim_fast.cli.terminal import one_line_errors
from cossim_fast.retrieval import tuning

try:
    import resource
except ImportError:  # Windows
    resource = None

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)).numpy()


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "narrow.npy", X[:, :5])
    np.save(tmp_path / "whole.npy", np.ones((4, 8), int))
    np.save(tmp_path / "flat.npy", X[0])
    np.save(tmp_path / "halves.npy", np.arange(300) / 2)
    bad = X.copy()
    bad[7, 1] = np.inf
    np.save(tmp_path / "bad.npy", bad)
    (tmp_path / "x.xlsx").write_text("1,2\n")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:500])
    (tmp_path / "x.txt").write_text("".join(f"text {i}\n" for i in range(300)))
    (tmp_path / "same.txt").write_text("a\n" * 300)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    gaps = pa.array([None, *range(299)])
    pq.write_table(pa.table({"a": list(range(300)), "b": gaps}), tmp_path / "two.parquet")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n" * 300)
    CosineIndex(X).save(tmp_path / "x.index")
    (tmp_path / "folder.npz").mkdir()
    return tmp_path


TROUBLE = {
    "topk missing.npy x.npy": "expected a file at missing.npy, and there is none",
    "topk x.npy folder.npz": "in folder.npz, which is a folder",
    "topk x.npy x.xlsx": "expected a file ending in .npy",
    "topk x.npy cut.npy": "cut.npy cannot be read as .npy",
    "topk narrow.npy x.npy": "expected queries of shape (q, 8) to match the corpus, got (q, 5)",
    "topk x.npy whole.npy -k 1": "int64",
    "topk flat.npy x.npy": "expected one array of 2 axes in flat.npy",
    "topk x.npy bad.npy": "row 7 of bad.npy holds NaN or an infinity; --skip-nan",
    "topk bad.npy x.npy": "row 7 of bad.npy holds NaN or an infinity; --skip-nan",
    "topk x.npy x.npy --screen int4": "int4",
    "topk x.npy x.npy --texts three.txt": "expected 300 lines in three.txt, one a row, got 3",
    "topk x.npy x.npy --texts latin.txt": "expected UTF-8 text in latin.txt",
    "topk x.npy x.npy --texts none.txt": "none.txt: No such file or directory",
    "topk x.npy x.npy -o out.csv": "expected an output ending in .parquet, .npz, .jsonl",
    "topk x.npy x.npy -o folder.npz": "folder.npz: expected a file, and it is a folder",
    "topk x.npy x.npy -o nowhere/out.npz": "nowhere: expected a folder, and there is none",
    "pairs bad.npy": "row 7 of bad.npy",
    "pairs x.npy --threshold 2": "threshold",
    "pairs x.npy --threshold 0.5 --max-pairs 3": "more than 3 pairs reach 0.5; --threshold 0.9",
    "dedup x.npy --keep most": "keep",
    "index build bad.npy -o out.index": "row 7 of bad.npy",
    "index build x.npy -o nowhere/out.index": "nowhere: expected a folder",
    "index build x.npy -o out.index --ids three.txt": "expected ids of shape (300,), got (3,)",
    "index build x.npy -o out.index --ids latin.txt": "expected UTF-8 text in latin.txt",
    "index build x.npy -o out.index --ids none.txt": "none.txt: No such file or directory",
    "index build x.npy -o out.index --ids none.parquet": "expected a file at none.parquet",
    "index build x.npy -o out.index --ids cut.parquet": "cut.parquet cannot be read as .parquet",
    "index build x.npy -o out.index --ids two.parquet": "expected one column in two.parquet",
    "index build x.npy -o out.index --ids two.parquet --ids-key c": "expected 'c' in two.parquet",
    "index build x.npy -o out.index --ids two.parquet --ids-key b": "'b' of two.parquet without ga",
    "index build x.npy -o out.index --ids x.npy": "expected one array of 1 axes in x.npy",
    "index build x.npy -o out.index --ids halves.npy": "whole numbers or str, got float",
    "index build x.npy -o out.index --ids same.txt": "expected ids that are not taken",
    "index search x.npy x.npy": "x.npy is",
    "index search x.npy none.index": "none.index: No such file or directory",
    "index search narrow.npy x.index": "expected queries of shape (q, 8)",
    "bench missing.npy": "expected a file at missing.npy",
    "diagnose x.npy --html nowhere/page.html": "nowhere: expected a folder",
}


@pytest.mark.parametrize("command", TROUBLE)
def test_bad_input_is_one_line_and_leaves_nothing(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(os.listdir())
    status, out, err = run(*command.split())
    assert (status, out) == (2, "")
    assert err.startswith("cossim: ")
    assert err.count("\n") == 1
    assert TROUBLE[command] in err
    assert sorted(os.listdir()) == before


def test_an_input_is_not_overwritten(folder):
    np.savez(folder / "x.npz", X)
    held = (folder / "x.npz").read_bytes()
    status, _, err = run("pairs", folder / "x.npz", "-o", folder / "x.npz")
    assert status == 2
    assert "is one of them" in err
    assert (folder / "x.npz").read_bytes() == held


def test_a_wrong_option_is_a_usage_error(folder):
    for command in (["topk"], ["nothing"], ["pairs", "x.npy", "--threshold", "much"], []):
        assert run(*command)[0] == 2


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 2 kB, as on a disk with that much room.

    Around the command alone: the limit holds for the log that pytest writes to as well.
    """
    if resource is None:
        pytest.skip("Windows does not limit files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITES = [
    ("pairs", "--threshold=0", "-o", "out.parquet"),
    ("pairs", "--threshold=0", "-o", "out.npz"),
    ("pairs", "--threshold=0", "-o", "out.jsonl"),
    ("dedup", "-o", "out.npz"),
    ("index", "build", "-o", "out.npz"),
]


@pytest.mark.parametrize("command", WRITES, ids=" ".join)
def test_no_room_leaves_the_old_file_and_nothing_else(command, folder):
    *words, _, name = command
    (folder / name).write_text("as before")
    before = sorted(os.listdir(folder))
    with full_disk():
        status, _, err = run(*words, folder / "x.npy", "-o", folder / name)
    assert status == 2
    assert err.splitlines()[-1].endswith(os.strerror(errno.EFBIG))
    assert "Traceback" not in err
    assert sorted(set(os.listdir(folder)) - {f"{name}.checkpoint"}) == before
    assert (folder / name).read_text() == "as before"


@pytest.mark.parametrize("command", WRITES, ids=" ".join)
def test_an_interrupted_or_failed_write_leaves_the_old_file(command, folder, monkeypatch):
    *words, _, name = command
    (folder / name).write_text("as before")
    before = sorted(os.listdir(folder))

    for failure, expected in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), (2, os.strerror(errno.ENOSPC))),
        (KeyboardInterrupt(), (130, "interrupted; nothing was written")),
    ):
        monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=failure))
        status, _, err = run(*words, folder / "x.npy", "-o", folder / name)
        assert (status, err.splitlines()[-1][-len(expected[1]) :]) == expected
        assert sorted(os.listdir(folder)) == before
        assert (folder / name).read_text() == "as before"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has /dev/full")
def test_a_full_pipe_of_lines_is_trouble(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from cossim_fast import cli; cli.main()",
             "pairs", folder / "x.npy", "--threshold=0"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "cossim: No space left on device\n"


@contextlib.contextmanager
def little_memory(megabytes):
    """No more than that beside what the process has."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    with open("/proc/self/status") as status:
        (held,) = [line.split()[1] for line in status if line.startswith("VmData")]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(held) << 10) + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_too_little_memory_is_one_line(folder):
    np.save(folder / "many.npy", np.ones((1 << 20, 16), "f"))
    # Threads are there by then: libgomp ends a process that has no room for another one.
    topk(torch.ones(2000, 64), torch.ones(4000, 64), 1)
    with little_memory(8):
        status, out, err = run("topk", folder / "many.npy", folder / "many.npy")
    assert (status, out) == (2, "")
    assert err == "cossim: there is not enough memory\n"


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you",
        "[enforce fail at alloc_cpu.cpp:1] data. DefaultCPUAllocator: not enough memory: you",
        "std::bad_alloc",
        "could not create a primitive",
        "could not create a memory object",
    ],
)
def test_every_library_s_words_for_it_are_one_line(words, capsys):
    with pytest.raises(typer.Exit) as stopped, one_line_errors():
        raise RuntimeError(words)
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err == "cossim: there is not enough memory\n"


def test_another_error_of_torch_is_not_taken_for_it(capsys):
    words = "could not create a primitive descriptor for the matmul primitive. Run workload with"
    with pytest.raises((RuntimeError, typer.Exit)), one_line_errors():
        raise RuntimeError(words)
    assert "not enough memory" not in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_pairs_need_no_memory_for_all_of_them(suffix, tmp_path, monkeypatch):
    for name, size in (("ROUND_PAIRS", 1 << 17), ("ROUND_BATCH", 128), ("FIRST_ROUND", 256)):
        monkeypatch.setattr(tuning, name, size)
    monkeypatch.setattr(outputs, "_GROUP", 1 << 17)
    n = 4000  # 160 MB of pairs
    rows = 1 + torch.rand(n, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "few.npy", rows[:500])
    for name, out in (("few", f"few{suffix}"), ("x", f"out{suffix}")):
        with little_memory(64 if name == "x" else 1000):
            status, _, err = run(
                "pairs", tmp_path / f"{name}.npy", "--threshold=0", "-o", tmp_path / out
            )
        assert status == 0, err
    assert f"{n * (n - 1) // 2} pairs of {n} rows" in err


def test_interruption_without_a_file_says_that_nothing_was_written(folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "write", stop)
    assert run("dedup", folder / "x.npy")[::2] == (
        130, "cossim: interrupted; nothing was written\n"
    )  # fmt: skip


def test_a_bar_on_a_terminal_and_none_in_a_pipe(folder):
    command = ("pairs", folder / "x.npy", "--threshold=0.99")
    assert "100%" in run_on_terminal(*command, bar=True)[1]
    assert "%" not in run(*command)[2]
    assert "100%" in run(*command, "--progress")[2]
    assert "%" not in run_on_terminal(*command, "--no-progress", bar=True)[1]


def test_lines_in_a_pipe_are_json(folder):
    _, out, _ = run("pairs", folder / "x.npy", "--threshold=0.5")
    for line in out.splitlines():
        found = json.loads(line)
        assert np.float32(found["score"]) >= np.float32(0.5)
        assert list(found) == ["i", "j", "score"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [("cossim di", "diagnose"), ("cossim index bu", "build"), ("cossim topk --scr", "--screen")],
)
def test_shells_complete(words, expected, monkeypatch):
    monkeypatch.setenv("_COSSIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    status, out, _ = run()
    assert (status, out.split()) == (0, [expected])


@pytest.mark.parametrize(
    "command",
    ["topk", "pairs", "dedup", "index build", "index search", "diagnose", "bench", "info"],
)
def test_help_has_an_example(command):
    status, out, _ = run_on_terminal(*command.split(), "--help")
    assert status == 0
    assert f"Example: cossim {command}" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_texts_beyond_the_code_page_of_a_pipe(encoding, folder):
    texts = ["日本語 – naïve 🙂", *(f"text {i}" for i in range(299))]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "日本.npy").write_bytes(b"nothing")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    program = [sys.executable, "-P", "-c", "from cossim_fast import cli; cli.main()"]

    def piped(*arguments):
        return subprocess.run(
            [*program, *arguments], capture_output=True, check=False, env=environment
        )

    done = piped(
        "topk", folder / "x.npy", folder / "x.npy", "-k", "1", "--texts", folder / "texts.txt"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    assert [line["text"] for line in lines] == texts
    done = piped("topk", folder / "日本.npy", folder / "x.npy")
    assert done.returncode == 2
    assert b"\\u65e5\\u672c.npy cannot be read" in done.stderr


def test_lines_in_utf8_keep_their_letters(folder):
    (folder / "texts.txt").write_text("日本語\n" * 300, encoding="utf-8")
    _, out, _ = run(
        "topk", folder / "x.npy", folder / "x.npy", "-k", 1, "--texts", folder / "texts.txt"
    )
    assert out.count("日本語") == 300
