"""What calls on a GPU make the host do: launches and operations, counted without a GPU."""

import sys
from pathlib import Path

import pytest

from ladder.runtime import INTERPRETING

pytestmark = [
    pytest.mark.kernel_contract,
    pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET"),
]
NORM, MATRIX, SCALED = "row_norm", "pairwise_fwd", "_pairwise_fwd_scaled_kernel"
GRADIENT = ["unit_rows", "pairwise_bwd_product", "pairwise_bwd_project"]
VIEWS = 5  # of the two inputs, of their norms, of the result


@pytest.fixture(scope="module")
def found():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import gpu_host
    finally:
        sys.path.remove(folder)
    if words := gpu_host.host.missing():
        pytest.skip(f"needs {words}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_host, "microseconds", lambda run: 1.0)
        yield dict(gpu_host.measure("cos")) | dict(gpu_host.measure("a search"))


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        ("pairwise_cosine(x, y), float16", [NORM, MATRIX]),
        ("pairwise_cosine(x, y), float32", [NORM, MATRIX, SCALED]),
        ("pairwise_cosine(x), float16", [NORM, MATRIX]),
        ("pairwise_cosine(x, y), float16, with gradients", [NORM, MATRIX, *GRADIENT * 2]),
        ("cosine_similarity(x, y), float16", ["rowwise_fwd"]),
        (
            "cosine_similarity(x, y), float32, with gradients",
            ["rowwise_fwd", "rowwise_bwd"],
        ),
    ],
)
def test_the_kernels_of_a_call(found, call, kernels):
    assert found[call]["kernels"] == kernels


def test_little_else_is_done(found):
    matrix = found["pairwise_cosine(x, y), float16"]
    # Norms, exponents and the result; nothing is filled.
    assert (matrix["no_views"], matrix["launches"]) == (3, 0)
    assert sum(matrix["operations"].values()) == 3 + VIEWS
    wide = found["pairwise_cosine(x, y), float32"]
    assert (wide["no_views"], wide["launches"]) == (4, 1)
    assert found["cosine_similarity(x, y), float32"]["operations"] == {"new_empty": 1}


def test_torchs_own_launches_are_counted_too(found):
    peer = found["F.cosine_similarity(x, y), float32"]
    assert peer["kernels"] == []
    assert peer["launches"] > 5


def test_each_stage_of_a_search_is_one_launch(found):
    stages = {name: row for name, row in found.items() if name.startswith("a search's")}
    assert {name.removeprefix("a search's ") for name in stages} >= {
        "code_rows", "scan_rows", "block_max", "block_thresholds", "best_rows", "block_candidates",
        "recheck", "rescore",
    }  # fmt: skip
    assert all((len(row["kernels"]), row["launches"]) == (1, 0) for row in stages.values())
