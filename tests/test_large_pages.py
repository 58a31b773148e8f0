"""Memory that is filled anew lies in large pages, where the system has them to give."""

from pathlib import Path

import pytest
import torch

from cossim_fast import _memory, pairwise_cosine

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_page_bytes(tensor):
    """How much of the mapping that holds a tensor's memory is advised, and in large pages."""
    inside = False
    found = {}
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(number, 16) for number in name.split("-"))
            inside = start <= tensor.data_ptr() + tensor.nbytes // 2 < end
        elif inside:
            found[name.rstrip(":")] = rest
    return "hg" in found["VmFlags"], int(found["AnonHugePages"][0]) << 10


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(encoding="ascii"),
    reason="no large pages here",
)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_matrix_is_advised(gradient):
    x, y = torch.ones(3000, 64, requires_grad=gradient), torch.ones(3000, 3000)
    result = pairwise_cosine(x, y[:, :64]).detach()
    advised, in_large = large_page_bytes(result)
    assert advised
    if in_large == 0:
        pytest.skip("the system has none to give")
    assert not large_page_bytes(y)[0] or "[always]" in SETTING.read_text(encoding="ascii")


def test_small_and_empty_memory_is_left_alone():
    for size in (0, 1, _memory.LARGE // 4 - 1):
        fresh = torch.zeros(size)
        assert _memory.in_large_pages(fresh) is fresh
    large = torch.arange(_memory.LARGE, dtype=torch.float32)
    assert torch.equal(_memory.in_large_pages(large), torch.arange(_memory.LARGE).float())
