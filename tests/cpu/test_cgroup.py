"""CPU quotas of containers, read from made-up folders of a system."""

import math
from pathlib import Path

import pytest

from cossim_fast._cgroup import processors_of_quota

V2 = "31 23 0:28 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,{controllers}\n"


@pytest.fixture
def system(tmp_path):
    """Return a function that makes a process of these files and says what its quota is worth."""

    def made(cgroup: str, mountinfo: str, files: dict[str, str]) -> float:
        process = tmp_path / "proc"
        process.mkdir()
        (process / "cgroup").write_text(cgroup)
        (process / "mountinfo").write_text(mountinfo)
        for name, text in files.items():
            place = tmp_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return processors_of_quota(process)

    return made


@pytest.mark.parametrize(
    ("text", "processors"),
    [
        ("250000 100000\n", 2.5),
        ("50000 100000\n", 0.5),
        ("max 100000\n", math.inf),
        ("", math.inf),
        ("nonsense\n", math.inf),
        ("1 0\n", math.inf),
    ],
)
def test_version_2(system, tmp_path, text, processors):
    mount = V2.format(root="/", mount=tmp_path / "fs")
    assert system("0::/app\n", mount, {"fs/app/cpu.max": text}) == processors


def test_the_least_on_the_way_to_the_root_counts(system, tmp_path):
    mount = V2.format(root="/", mount=tmp_path / "fs")
    files = {
        "fs/pod/app/cpu.max": "800000 100000\n",
        "fs/pod/cpu.max": "150000 100000\n",
        "fs/pod/other/cpu.max": "10000 100000\n",
    }
    assert system("0::/pod/app\n", mount, files) == 1.5


def test_version_1_beside_another_hierarchy(system, tmp_path):
    mount = V1.format(root="/", mount=tmp_path / "set", controllers="cpuset") + V1.format(
        root="/", mount=tmp_path / "cpu", controllers="cpu,cpuacct"
    )
    files = {
        "cpu/app/cpu.cfs_quota_us": "300000\n",
        "cpu/app/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "set/app/cpu.cfs_quota_us": "100000\n",
        "set/app/cpu.cfs_period_us": "100000\n",
    }
    assert system("4:cpuset:/app\n3:cpu,cpuacct:/app\n0::/\n", mount, files) == 3.0


def test_a_container_that_sees_its_own_group_as_the_root(system, tmp_path):
    # Without a namespace the process is told the host's path, and the mount shows its end alone.
    mount = V1.format(root="/docker/ab", mount=tmp_path / "cpu dir", controllers="cpu").replace(
        "cpu dir", "cpu\\040dir"
    )
    files = {
        "cpu dir/cpu.cfs_quota_us": "200000\n",
        "cpu dir/cpu.cfs_period_us": "50000\n",
        "cpu dir/inner/cpu.cfs_quota_us": "100000\n",
        "cpu dir/inner/cpu.cfs_period_us": "100000\n",
    }
    assert system("1:cpu:/docker/ab/inner\n", mount, files) == 1.0


def test_a_path_outside_the_mount_reads_the_mount(system, tmp_path):
    mount = V2.format(root="/elsewhere", mount=tmp_path / "fs")
    assert system("0::/app\n", mount, {"fs/cpu.max": "100000 100000\n"}) == 1.0


def test_a_system_without_cgroups(tmp_path):
    assert processors_of_quota(Path(tmp_path / "nothing")) == math.inf


def test_this_process_can_be_asked():
    assert processors_of_quota() > 0
