"""Offsets of tensors with more than 2^31 elements, without the memory to hold them."""

import pytest

from ladder import checks
from ladder.runtime import kernels, needs_interpreter

pytestmark = [pytest.mark.kernel_memory, needs_interpreter]


KERNELS = [
    "row_norm", "unit_rows", "rowwise", "pairwise", "pairwise_backward", "code_rows",
    "scan_rows", "topk", "thresholds", "candidates", "recheck", "softmax_sums",
    "softmax_weights", "gradient_panel", "planes",
]  # fmt: skip


@pytest.mark.parametrize("name", [*KERNELS, "topk_persistent"])
def test_offsets_are_64_bit(name):
    checks.check_offsets(kernels, name)
