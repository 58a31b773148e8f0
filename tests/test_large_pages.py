"""Memory that is filled anew lies in large pages, where the system has them to give."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cossim_fast import _memory

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


# In a process of its own: the C library hands out again what was advised before.
CHILD = """
import sys
from pathlib import Path

import torch

from cossim_fast import pairwise_cosine


def advised(tensor):
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(number, 16) for number in name.split("-"))
            inside = start <= tensor.data_ptr() + tensor.nbytes // 2 < end
        elif inside and name == "VmFlags:":
            return "hg" in rest


x = torch.ones(3000, 64, requires_grad=sys.argv[1] == "gradient")
y = torch.ones(3000, 3000)
print(advised(pairwise_cosine(x, y[:, :64]).detach()), advised(y))
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(encoding="ascii"),
    reason="no large pages here",
)
@pytest.mark.parametrize("kind", ["gradient", "no gradient"])
def test_a_matrix_is_advised(kind):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]


def test_small_and_empty_memory_is_left_alone():
    for size in (0, 1, _memory.LARGE // 4 - 1):
        fresh = torch.zeros(size)
        assert _memory.in_large_pages(fresh) is fresh
    large = torch.arange(_memory.LARGE, dtype=torch.float32)
    assert torch.equal(_memory.in_large_pages(large), torch.arange(_memory.LARGE).float())
