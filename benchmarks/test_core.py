"""The cases for pytest-benchmark, a test for each contender: pytest benchmarks.

For a close look at one case (pytest benchmarks -k broadcast). The published figures come
from report.py, which lets the contenders take turns.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import timing
from cases import CASES, Case
from contender import Contender, Part
from peers import contenders

PAIRS = [(case, c) for case in CASES if not case.beside for c in contenders(case)]


@pytest.mark.parametrize(
    ("case", "contender"), PAIRS, ids=[f"{c.name}: {p.name}" for c, p in PAIRS]
)
def test_core(
    benchmark: BenchmarkFixture, case: Case, contender: Contender, tmp_path: Path
) -> None:
    lacks = contender.missing()
    if lacks is not None:
        pytest.skip(lacks)
    timing.pin(case.threads)
    benchmark.group = case.name
    benchmark.name = contender.name
    call = contender.prepare(case, *timing.make_inputs(case, tmp_path))
    benchmark(call.call if isinstance(call, Part) else call)
