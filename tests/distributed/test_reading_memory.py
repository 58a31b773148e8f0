"""Memory of reading: bounded, however large the row groups of a file are."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READ = """
import sys, pyarrow.parquet, torch
from cossim_fast.distributed import shards
from cossim_fast.files import parquet_ranges, ranges
# A quarter of what they are, for files of a quarter.
for module, name in [(ranges, "PIECE"), (parquet_ranges, "AT_ONCE")]:
    setattr(module, name, getattr(module, name) // 4)
for name in ("_BUFFER", "_DECODED"):
    setattr(parquet_ranges, name, getattr(parquet_ranges, name) // 4)
found = shards.find(sys.argv[1])
list(found.between(0, 10))  # loads what reading needs
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
def high():
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) << 10
before = high()
assert sum(len(piece) for _, piece in found.between(0, found.rows)) == found.rows
print(high() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_file_of_one_large_row_group_is_read_in_less_memory_than_it_takes(tmp_path, suffix):
    some = np.random.default_rng(0).standard_normal((1000, 256)).astype(np.float16)
    x = np.tile(some, (120, 1))
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, x)
    else:
        rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 256)
        table = pa.table({"e": rows})
        pq.write_table(table, path, len(x), compression="none", use_dictionary=False)
    command = [sys.executable, "-W", "ignore", "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 58 << 20
    assert int(done.stdout) < 45 << 20
