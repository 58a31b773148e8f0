"""Peak memory of losses with their gradients: 64 MB beyond unit rows and gradients, whatever n."""

import json
import subprocess
import sys

import pytest

# One process imports torch, and each case runs in a fork of it, whose memory is its own.
MEASURE = """
import json, os, resource, sys, torch
import torch.nn.functional as F
from cossim_fast.losses import *

WIDTH = 64

def grown_by(n, call):
    rows = [torch.randn(n, WIDTH, requires_grad=True) for _ in range(2)]
    ids = torch.arange(n) // 2
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # the peak starts anew
    call(*rows, ids).backward()
    with open("/proc/self/status") as status:
        (high,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    return int(high) * 1024 - before - 4 * n * WIDTH * rows[0].element_size()

torch.set_num_threads(int(sys.argv[2]))
for name, (n, call) in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if os.fork() == 0:
        call = eval(call)
        grown_by(2000, call)  # loads libraries
        print(json.dumps([name, grown_by(n, call) / 2**20]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""

CALLS = {
    "info_nce": "lambda x, y, ids: info_nce(x, y)",
    "with ids and a margin": "lambda x, y, ids: info_nce(x, y, key_ids=ids, margin=0.1)",
    "for each row": "lambda x, y, ids: info_nce(x, y, reduction='none').sum()",
    "symmetric": "lambda x, y, ids: info_nce(x, y, symmetric=True)",
    "clip": "lambda x, y, ids: clip(x, y, 100.0, image_ids=ids)",
    "siglip": "lambda x, y, ids: siglip(x, y, 10.0, -10.0)",
    "nt_xent": "lambda x, y, ids: nt_xent(*x.chunk(2))",
    "sup_con": "lambda x, y, ids: sup_con(x, ids // 3)",
    "sup_con of others": "lambda x, y, ids: sup_con(x, ids, ref=y, ref_labels=ids)",
    "batch_hard_triplet": "lambda x, y, ids: batch_hard_triplet(x, ids, margin=0.5)",
}
PLAIN = "lambda x, y, ids: F.cross_entropy(F.normalize(x) @ F.normalize(y).T, torch.arange(len(x)))"
SIZES = (3000, 9000)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def measured(threads):
    """Peak beyond inputs, unit rows and gradients in MiB, of each case and number of rows."""
    programs = {f"{name}, {n}": (n, call) for name, call in CALLS.items() for n in SIZES}
    programs["plain"] = (3000, PLAIN)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(programs), str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_bounded_whatever_the_number_of_rows(threads):
    """The matrix of 9000 rows has 309 MiB."""
    found = measured(threads)
    assert all(found[f"{name}, {n}"] < 64 for name in CALLS for n in SIZES), found
    # The measure sees a matrix.
    assert found["plain"] > 64
