"""The cases for pytest-benchmark, a test for each contender: pytest benchmarks.

For a close look at one case (pytest benchmarks -k broadcast). The published figures come
from report.py, which lets the contenders take turns.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import timing
from cases import CASES, Case
from peers import Contender, contenders, installed

PAIRS = [(case, c) for case in CASES for c in contenders(case.task, case.dtype)]


@pytest.mark.parametrize(
    ("case", "contender"), PAIRS, ids=[f"{c.name}: {p.name}" for c, p in PAIRS]
)
def test_core(benchmark: BenchmarkFixture, case: Case, contender: Contender) -> None:
    if not installed(contender.module):
        pytest.skip(f"{contender.module} is not installed")
    torch.set_num_threads(case.threads)
    benchmark.group = case.name
    benchmark.name = contender.name
    benchmark(contender.prepare(*timing.make_inputs(case)))
