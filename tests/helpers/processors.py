"""The numeric tests on lesser processors than this one: `make test-processors`.

    python tests/helpers/processors.py [--short] [--only TEXT]

torch and oneDNN each take the machine code for the best instruction set that they find, unless a
variable holds them to a lesser one. Under each of these settings the tests run in a process of
their own, with one thread, as many processes at a time as there are cores. Exit status 1 if one
test fails anywhere, or if a setting has no effect.
"""

import argparse
import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import torch

from cossim_fast.cli import processor

ROOT = Path(__file__).parents[2]
# A child that has not ended after so many seconds hangs: the slowest took 292, beside others.
LONGEST = 1800

AVX2 = {"avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
VNNI = AVX512 | {"avx512_vnni"}
BFLOAT16 = VNNI | {"avx512_bf16"}
# What oneDNN asks for before it uses tiles: all of AVX10.1 beside them.
AMX = BFLOAT16 | {"avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}

# What oneDNN calls the instruction set that it uses, in a line of ONEDNN_VERBOSE.
ONEDNN_SAYS = re.compile(r"^onednn_verbose,(?:v1,)?info,cpu,isa:(.*)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """A variable that holds a library to an instruction set, and what shows that it does."""

    variable: str = ""
    value: str = ""
    needs: frozenset[str] = frozenset()  # flags of /proc/cpuinfo
    torch_says: str = r"\w+"
    onednn_says: str = r".*"

    def __str__(self) -> str:
        return f"{self.variable}={self.value}" if self.variable else "as it is"

    def environment(self) -> dict[str, str]:
        """The environment of a child: this setting alone."""
        ours = {setting.variable for setting in SETTINGS}
        env = {name: value for name, value in os.environ.items() if name not in ours}
        env["OMP_NUM_THREADS"] = "1"
        if self.variable:
            env[self.variable] = self.value
        return env


def aten(value: str, needs: Iterable[str]) -> Setting:
    """Hold torch's own code."""
    return Setting("ATEN_CPU_CAPABILITY", value, frozenset(needs), torch_says=value.upper())


def onednn(value: str, needs: Iterable[str], says: str) -> Setting:
    """Hold oneDNN, which multiplies int8, bfloat16 and some float32."""
    return Setting("ONEDNN_MAX_CPU_ISA", value, frozenset(needs), onednn_says=says)


PLAIN = Setting()
# Names and flags are those of x86, so that another processor, and a system without /proc/cpuinfo,
# runs PLAIN alone.
SETTINGS = (
    PLAIN,
    aten("default", {"sse2"}),
    aten("avx2", AVX2),
    aten("avx512", AVX512),
    onednn("AVX2", AVX2, "Intel AVX2"),
    onednn("AVX2_VNNI", AVX2 | {"avx_vnni"}, "Intel AVX2 with Intel DL Boost"),
    onednn("AVX512_CORE", AVX512, "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions"),
    onednn("AVX512_CORE_VNNI", VNNI, "Intel AVX-512 with Intel DL Boost"),
    onednn("AVX512_CORE_BF16", BFLOAT16, "Intel AVX-512 with Intel DL Boost and bfloat16 support"),
    onednn("AVX10_1_512_AMX", AMX, ".*Intel AMX with bfloat16 and 8-bit integer support"),
)
# What a processor without vector instructions would run, and one without VNNI.
SHORT_SETTINGS = ("ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=AVX2")

# Rooms of tests whose results hang on instruction sets; and files of theirs that do not, or that
# run much machine code of others.
NUMERIC = ("cpu", "diagnose", "functional", "retrieval", "score")
NOT_NUMERIC = (
    "compile", "diagnose_cases", "diagnose_docs", "diagnose_example", "diagnose_pictures",
)  # fmt: skip
SHORT_FILES = (
    "coding", "conformance_behaviour", "dense", "filtered_product", "gradients", "index", "int8",
    "near", "ops", "pairs", "pairwise", "pairwise_gradients", "projection", "range", "screens",
    "topk",
)  # fmt: skip


def numeric_files(short: bool = False) -> list[str]:
    """The test files that run under each setting."""
    there = [path for room in NUMERIC for path in ROOT.glob(f"tests/{room}/**/test_*.py")]
    stems = {path.stem.removeprefix("test_"): path for path in there}
    chosen = SHORT_FILES if short else [x for x in sorted(stems) if x not in NOT_NUMERIC]
    return [str(stems[stem].relative_to(ROOT)) for stem in chosen]


def instructions() -> set[str]:
    """The flags of this processor; none where the system does not tell, or tells others."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return set(found[1].split()) if found else set()


@dataclass
class Outcome:
    """What became of the tests under a setting."""

    setting: Setting
    screens: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)  # test, first line of the reason
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)  # by reason
    seconds: float = 0.0
    trouble: str = ""  # why the counts do not tell all

    @property
    def right(self) -> bool:
        return not self.failed and not self.trouble


PROBE = """
import torch
from cossim_fast.retrieval.screening import screens
if torch.backends.mkldnn.is_available():
    torch.ones(8, 8).to_mkldnn()  # oneDNN says what it runs when it is first used
print("torch", torch.backends.cpu.get_cpu_capability())
for name, how in screens.available().items():
    print("screen", name, how)
"""


def probe(setting: Setting) -> tuple[dict[str, str], str]:
    """The screens under a setting, each with how it runs, and what is wrong, if anything."""
    env = setting.environment() | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=LONGEST,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        return {}, f"the screens cannot be listed: {ending(done.returncode)}, {last}"
    screens = dict(re.findall(r"^screen (\S+) (.*)$", done.stdout, flags=re.MULTILINE))
    torch_runs = re.search(r"^torch (.*)$", done.stdout, flags=re.MULTILINE)
    onednn_runs = ONEDNN_SAYS.search(done.stdout)
    for name, found, expected in (
        ("torch", torch_runs, setting.torch_says),
        ("oneDNN", onednn_runs, setting.onednn_says),
    ):
        runs = found[1] if found else ""
        if not re.fullmatch(expected, runs):
            return screens, f"no effect: expected {name} to run {expected!r}, found {runs!r}"
    return screens, ""


def ending(status: int) -> str:
    """An exit status in words."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def run_one(setting: Setting, targets: Sequence[str]) -> Outcome:
    """Run the targets, files or tests, under a setting."""
    began = time.perf_counter()
    outcome = Outcome(setting)
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            f"--basetemp={place}/tmp", "-o", "junit_family=xunit1", f"--junitxml={report}",
            *targets,
        ]  # fmt: skip
        try:
            outcome.screens, outcome.trouble = probe(setting)
            done = subprocess.run(
                command, cwd=ROOT, env=setting.environment(), capture_output=True, text=True,
                check=False, timeout=LONGEST,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            outcome.trouble = f"no end within {LONGEST} seconds"
        else:
            # 1 says that tests failed; the report names them.
            if done.returncode not in (0, 1) or not report.is_file():
                said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-60:])
                outcome.trouble = f"pytest did not end well: {ending(done.returncode)}\n{said}"
            if report.is_file():
                count(report, outcome)
            if done.returncode == 1 and not outcome.failed:
                outcome.trouble = outcome.trouble or "pytest failed, and no test did"
    if not outcome.passed and not outcome.failed:
        outcome.trouble = outcome.trouble or "no test ran"
    outcome.seconds = time.perf_counter() - began
    return outcome


def count(report: Path, outcome: Outcome) -> None:
    """Add what a report of pytest says."""
    failed: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = case.find("failure")
        wrong = case.find("error") if wrong is None else wrong
        skipped = case.find("skipped")
        if wrong is not None:
            # A test that fails and then cannot be torn down is there twice.
            failed.setdefault(test_of(case), reason_of(case, wrong))
        elif skipped is not None:
            outcome.skipped[skipped.get("message") or "no reason"] += 1
        else:
            outcome.passed += 1
    outcome.failed.extend(failed.items())


def test_of(case: ElementTree.Element) -> str:
    """A test as pytest takes it on its command line."""
    file, classes = case.get("file", ""), case.get("classname", "")
    if not classes:
        return file  # as a whole: it could not be read
    module = file.removesuffix(".py").replace("/", ".")
    inside = classes.removeprefix(module).strip(".").replace(".", "::")
    return "::".join(filter(None, (file, inside, case.get("name"))))


def reason_of(case: ElementTree.Element, wrong: ElementTree.Element) -> str:
    """One line on what went wrong; for a file that cannot be read, the last of its traceback."""
    if case.get("classname"):
        return wrong.get("message", "").partition("\n")[0]
    return (wrong.text or "").strip().rpartition("\n")[2]


def run(settings: Sequence[Setting], targets: Sequence[str], at_once: int) -> list[Outcome]:
    """Run the targets under every setting."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda setting: run_one(setting, targets), settings))


def table(outcomes: Sequence[Outcome], absent: Sequence[Setting], flags: set[str]) -> str:
    """What was found, a line a setting, and beneath it what needs more room."""
    rows = [("setting", "screens found", "passed", "failed", "skipped", "seconds")]
    for found in outcomes:
        rows.append((
            str(found.setting), ", ".join(found.screens) or "-", str(found.passed),
            str(len(found.failed)), str(found.skipped.total()), f"{found.seconds:.0f}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        lines.append("  ".join(cells))
    for setting in absent:
        lacks = " ".join(sorted(setting.needs - flags))
        lines.append(f"{str(setting).ljust(widths[0])}  not on this processor, which lacks {lacks}")
    return "\n".join([*lines, *_notes(outcomes)])


def _notes(outcomes: Sequence[Outcome]) -> Iterable[str]:
    how: dict[str, list[str]] = {}
    why: dict[str, list[str]] = {}
    for found in outcomes:
        for name, text in found.screens.items():
            how.setdefault(f"{name}: {text}", []).append(str(found.setting))
        for reason, times in found.skipped.items():
            why.setdefault(f"{times} skipped: {reason}", []).append(str(found.setting))
    for title, notes in (("Screens", how), ("Skipped", why)):
        if notes:
            yield f"\n{title}"
        for text, settings in sorted(notes.items()):
            where = ", ".join(settings) if len(settings) < len(outcomes) else "everywhere"
            yield f"  {text} ({where})"
    for found in outcomes:
        if not found.right:
            yield f"\nFAILED: {found.setting}"
        if found.trouble:
            yield textwrap.indent(found.trouble, "  ")
        for test, reason in found.failed:
            yield f"  {test}\n    {reason}"


def select(flags: set[str], short: bool, only: str) -> tuple[list[Setting], list[Setting]]:
    """The settings that are asked for: those of a processor with these flags, and the others."""
    wanted = [x for x in SETTINGS if only in str(x) and (not short or str(x) in SHORT_SETTINGS)]
    there = [x for x in wanted if x.needs <= flags]
    absent = [x for x in wanted if x not in there]
    return (there if there or only else [PLAIN]), absent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="two settings, some of the tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings named like this")
    parser.add_argument("targets", nargs="*", help="files or tests, in place of the numeric ones")
    asked = parser.parse_args(arguments)
    flags = instructions()
    there, absent = select(flags, asked.short, asked.only)
    at_once = max(min(cores(), len(there)), 1)
    print(
        f"{processor.name()}; torch {torch.__version__}; "
        f"1 thread in each process, processes at a time: {at_once}\n",
        flush=True,
    )
    outcomes = run(there, asked.targets or numeric_files(asked.short), at_once)
    print(table(outcomes, absent, flags))
    return int(not outcomes or not all(found.right for found in outcomes))


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
