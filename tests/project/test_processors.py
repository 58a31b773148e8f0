"""The matrix of processors: which settings run, what is counted, and what makes it fail."""

from pathlib import Path

import pytest

import processors
from processors import PLAIN, Outcome, Setting

X86 = {"sse2"}
ZEN3 = X86 | {"avx2", "fma"}
ALDER_LAKE = ZEN3 | {"avx_vnni"}
SKYLAKE = ZEN3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
ZEN4 = SKYLAKE | {"avx512_vnni", "avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"avx_vnni", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}

SOME = """
import os
import pytest

def test_right():
    pass

class TestSums:
    @pytest.mark.parametrize("dtype", ["float32", "float::16"])
    def test_order(self, dtype):
        held = os.environ.get("ATEN_CPU_CAPABILITY") == "default"
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert dtype == "float32" or not held, "sums differ\\nby much"

def test_skipped():
    pytest.skip("no such thing")

@pytest.fixture
def broken():
    yield
    if "ATEN_CPU_CAPABILITY" in os.environ:
        raise ValueError("left open")

def test_ends_badly(broken):
    assert "ATEN_CPU_CAPABILITY" not in os.environ, "at once"
"""
DEFAULT = processors.aten("default", X86)


@pytest.fixture
def no_probe(monkeypatch):
    """Children without torch and plugins, whose imports take longer than all else here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(processors, "probe", lambda _: ({"float32": "always available"}, ""))


@pytest.fixture
def some(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(SOME, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (set(), []),  # not x86, or a system that does not tell
        (X86, ["default"]),
        (ZEN3, ["default", "avx2", "AVX2"]),
        (ALDER_LAKE, ["default", "avx2", "AVX2", "AVX2_VNNI"]),
        (SKYLAKE, ["default", "avx2", "avx512", "AVX2", "AVX512_CORE"]),
        (ZEN4, ["default", "avx2", "avx512", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI",
                "AVX512_CORE_BF16"]),
        (SAPPHIRE_RAPIDS, [x.value for x in processors.SETTINGS[1:]]),
    ],
)  # fmt: skip
def test_settings_follow_the_processor(flags, settings):
    there, absent = processors.select(flags, short=False, only="")
    assert [x.value for x in there] == ["", *settings]
    assert {*there, *absent} == set(processors.SETTINGS)
    short, _ = processors.select(flags, short=True, only="")
    assert [x.value for x in short] == ([x for x in settings if x in {"default", "AVX2"}] or [""])


def test_an_instruction_set_that_is_asked_for_by_name_is_not_replaced():
    there, absent = processors.select(ZEN3, short=False, only="AMX")
    assert not there
    assert [x.value for x in absent] == ["AVX10_1_512_AMX"]


def test_files_are_those_with_numbers():
    files = processors.numeric_files()
    names = {Path(file).stem for file in files}
    assert {"test_ops", "test_pairwise", "test_gradients", "test_topk", "test_index", "test_pairs",
            "test_screens", "test_conformance_opinfo"} <= names  # fmt: skip
    assert set(processors.numeric_files(short=True)) < set(files)
    for name in processors.NOT_NUMERIC:
        assert list(processors.ROOT.glob(f"tests/**/test_{name}.py")), name


def named(failed):
    """Failed tests by name and reason, without the folder: where it begins is up to pytest."""
    return [(name[name.index("test_some.py") :], reason) for name, reason in failed]


@pytest.mark.usefixtures("no_probe")
def test_what_is_counted(some, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # of no account in another setting
    held, plain = processors.run([DEFAULT, PLAIN], [str(some)], 2)
    assert (plain.passed, plain.failed, plain.right) == (4, [], True)
    assert (held.passed, held.right) == (2, False)
    assert held.skipped == plain.skipped == {"no such thing": 1}
    failed = named(held.failed)
    assert failed == [
        ("test_some.py::TestSums::test_order[float::16]", "AssertionError: sums differ"),
        ("test_some.py::test_ends_badly", "AssertionError: at once"),
    ]
    # The same name, given to pytest, is the same test.
    again = processors.run_one(DEFAULT, [str(some.parent / failed[0][0])])
    assert (again.passed, named(again.failed)) == (0, failed[:1])


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\ndef test_crash(): os.abort()", "test_some.py"),
        ("def other(): pass", "exit status 5"),
    ],
    ids=["a crash", "no test"],
)
def test_a_child_that_does_not_report_has_failed(text, said, tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(text, encoding="utf-8")
    outcome = processors.run_one(PLAIN, [str(file)])
    assert not outcome.right
    assert said in outcome.trouble
    assert said in processors.table([outcome], [], set())


@pytest.mark.usefixtures("no_probe")
def test_a_child_that_hangs_has_failed(some, monkeypatch):
    monkeypatch.setattr(processors, "LONGEST", 0.1)  # a child that has just begun
    outcome = processors.run_one(PLAIN, [str(some)])
    assert outcome.trouble == "no end within 0.1 seconds"
    assert not outcome.right


@pytest.mark.usefixtures("no_probe")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text("import no_such_module", encoding="utf-8")
    outcome = processors.run_one(PLAIN, [str(file)])
    assert named(outcome.failed) == [
        ("test_some.py", "E   ModuleNotFoundError: No module named 'no_such_module'")
    ]


@pytest.mark.usefixtures("no_probe")
def test_status_and_table(some, capsys, monkeypatch):
    monkeypatch.setattr(processors, "instructions", lambda: X86)
    assert processors.main(["--only", "as it is", str(some)]) == 0
    said = capsys.readouterr().out
    assert f"{processors.processor.name()}; torch {processors.torch.__version__}; 1 thread" in said
    assert "FAILED" not in said
    assert processors.main(["--only", "CAPABILITY", str(some)]) == 1
    said = capsys.readouterr().out
    assert "not on this processor, which lacks avx2 fma\n" in said
    assert "test_some.py::test_ends_badly\n    AssertionError: at once" in said
    assert processors.main(["--only", "no such setting", str(some)]) == 1


def test_table_has_a_line_for_each_setting():
    fine = Outcome(PLAIN, {"int8": "VNNI", "float32": "always"}, passed=12, seconds=3.4)
    fine.skipped["no GPU"] = 2
    bad = Outcome(DEFAULT, {"float32": "always"}, passed=11, failed=[("test_a.py::b", "off by 1")])
    amx = processors.SETTINGS[-1]
    lines = processors.table([fine, bad], [amx], ZEN4 | {"avx_vnni", "avx512_fp16"}).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["setting", "screens", "found", "passed", "failed", "skipped", "seconds"],
        ["as", "it", "is", "int8,", "float32", "12", "0", "2", "3"],
        ["ATEN_CPU_CAPABILITY=default", "float32", "11", "1", "0", "0"],
    ]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3].split("  ") == [
        str(amx), "not on this processor, which lacks amx_bf16 amx_int8 amx_tile"
    ]  # fmt: skip
    assert "  int8: VNNI (as it is)" in lines
    assert "  float32: always (everywhere)" in lines
    assert "  2 skipped: no GPU (as it is)" in lines
    assert lines[-3:] == [f"FAILED: {DEFAULT}", "  test_a.py::b", "    off by 1"]


def test_a_setting_without_effect_is_noticed():
    screens, trouble = processors.probe(PLAIN)
    assert "float32" in screens
    assert not trouble
    ignored = Setting("ATEN_CPU_CAPABILITY", "no such set", torch_says="MMX")
    assert "expected torch to run 'MMX', found" in processors.probe(ignored)[1]
    ignored = Setting("ONEDNN_MAX_CPU_ISA", "NO_SUCH_SET", onednn_says="Intel MMX")
    assert "expected oneDNN to run 'Intel MMX', found" in processors.probe(ignored)[1]
