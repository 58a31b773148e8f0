"""Memory of a block of work: within what is said of it, however many rows stream past."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, resource, torch
from dataclasses import dataclass
from cossim_fast.distributed import neighbours, pairs
from cossim_fast.distributed.rows import row_bytes
torch.set_num_threads(1)

@dataclass
class Repeated:
    "As many rows as are asked for, of which one piece is in memory."
    piece: torch.Tensor
    rows: int

    @property
    def width(self):
        return self.piece.shape[1]

    @property
    def dtype(self):
        return str(self.piece.dtype).removeprefix("torch.")

    def between(self, start, stop):
        for at in range(start, stop, len(self.piece)):
            yield at, self.piece[: stop - at].clone()

def peak(call):
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    found = call()
    with open("/proc/self/status") as status:
        (high,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    return int(high) * 1024 - before, found

d, said = 96, {}
corpus = Repeated(torch.randn((1 << 24) // (2 * d), d).half(), 1 << 30)
asked = Repeated(torch.randn(128, d).half(), 128)
side = Repeated(torch.randn(1000, d).half(), 1000)
neighbours.search_block(asked, (0, 100), corpus, (0, 2000), 10)
pairs.join_block(corpus, (0, 2000), side, (0, 1000), 0.9, False)
for rows in (100_000, 1_000_000):
    said["search", rows] = (
        peak(lambda: neighbours.search_block(asked, (0, 128), corpus, (0, rows), 10))[0],
        neighbours.memory_of(128, 10, row_bytes(asked), d, row_bytes(corpus)),
    )
    said["join", rows] = (
        peak(lambda: pairs.join_block(corpus, (0, rows), side, (0, 1000), 0.9, False))[0],
        pairs.memory_of(1000, 0, d, row_bytes(corpus), row_bytes(side)),
    )
near = Repeated(1 + 0.1 * torch.randn(2000, d).half(), 2000)
found, joined = peak(lambda: pairs.join_block(near, (0, 2000), near, (0, 2000), 0.5, True))
assert len(joined.i) == 2000 * 1999 // 2
said["dense join", 2000] = found, pairs.memory_of(2000, len(joined.i), d, 2 * d, 2 * d)
print(json.dumps([[*name, *sizes] for name, sizes in said.items()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows_that_stream_past():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    took = {}
    for kind, rows, bytes_taken, said in json.loads(done.stdout):
        assert bytes_taken < said, kind
        took[kind, rows] = bytes_taken
    for kind in ("search", "join"):
        # Of the larger, all 192 MB of rows would not fit.
        assert took[kind, 1_000_000] - took[kind, 100_000] < 100 << 20
