"""Peak memory, measured in a process of its own: 64 MB at most beyond inputs, output and what
torch takes for the product itself.
"""

import json
import subprocess
import sys

import pytest

# One process imports torch, and each case runs in a fork of it, whose memory is its own.
MEASURE = """
import json, os, resource, sys, torch
import torch.nn.functional as F
from cossim_fast import cosine_similarity, pairwise_cosine

def grown_by(size, make, call):
    call(*make(40))  # starts threads and libraries
    inputs = make(size)
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # the peak starts anew
    result = call(*inputs)
    if result.requires_grad:
        result.sum().backward()
    with open("/proc/self/status") as status:
        (high,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    kept = [result, *(t.grad for t in inputs if t.grad is not None)]
    return int(high) * 1024 - before - sum(t.numel() * t.element_size() for t in kept)

for name, (size, make, call) in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if os.fork() == 0:
        print(json.dumps([name, grown_by(size, eval(make), eval(call)) / 1e6]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""

CASES = {
    "paired rows": (
        200_000,
        "lambda n: (torch.randn(n, 128), torch.randn(n, 128))",
        "cosine_similarity",
        16,
    ),
    "paired rows in float16": (
        200_000,
        "lambda n: (torch.randn(n, 128).half(), torch.randn(n, 128).half())",
        "cosine_similarity",
        24,
    ),
    "a broadcast that is a matrix": (
        1000,
        "lambda n: (torch.randn(n, 1, 128), torch.randn(1, n, 128))",
        "lambda x, y: cosine_similarity(x, y, -1)",
        16,  # padded tiles; 10 to 13 with what the C library keeps
    ),
    "a matrix": (
        4000,
        "lambda n: (torch.randn(n, 512), torch.randn(n, 512))",
        "pairwise_cosine",
        64,
    ),
    "a matrix in float16": (
        4000,
        "lambda n: (torch.randn(n, 512).half(), torch.randn(n, 512).half())",
        "pairwise_cosine",
        64,
    ),
    "a symmetric matrix": (4000, "lambda n: (torch.randn(n, 512),)", "pairwise_cosine", 64),
    "gradients of a matrix": (
        4000,
        "lambda n: (torch.randn(n, 256, requires_grad=True), torch.randn(n, 256))",
        "pairwise_cosine",
        64,
    ),
}


BY_TORCH = {
    "a broadcast that is a matrix": "lambda x, y: F.cosine_similarity(x, y, -1)",
    "paired rows": "F.cosine_similarity",
}
# The product alone: what it takes beyond its operands and its result is torch's and the
# processor's.
PRODUCT = "lambda x, y=None: x.detach().squeeze() @ (x if y is None else y).detach().squeeze().T"
MATRICES = [name for name in CASES if "matrix" in name]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def megabytes():
    """Peak beyond the inputs and what is kept, of each case; those of torch under `torch: name`."""
    programs = {name: (size, make, call) for name, (size, make, call, _) in CASES.items()}
    for name, call in BY_TORCH.items():
        programs[f"torch: {name}"] = (*programs[name][:2], call)
    for name in MATRICES:
        size, make, _ = programs[name]
        # A narrow matrix is formed in float32.
        programs[f"product: {name}"] = (size, make.replace(".half()", ""), PRODUCT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(programs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("case", CASES)
def test_extra_memory_is_bounded(case, megabytes):
    own = max(megabytes.get(f"product: {case}", 0.0), 0.0)
    assert megabytes[case] <= CASES[case][3] + own


def test_the_measure_sees_the_temporaries_of_torch(megabytes):
    assert megabytes["torch: a broadcast that is a matrix"] > 400
    assert megabytes["torch: paired rows"] > 90
