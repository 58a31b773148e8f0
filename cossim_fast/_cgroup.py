"""How many processors a container's CPU quota is worth: cgroups of Linux, version 1 and 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


@functools.cache
def processors_of_quota(process: Path = Path("/proc/self")) -> float:
    """The processors that this process may keep busy, inf without a quota; read once a process.

    A quota binds a group and all below it, so the least on the way to the root counts.

    Args:
        process: the folder in which the system describes this process.
    """
    return min((_quota(group) for group in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[Path]:
    """The folders of this process's CPU groups and of all above them, as far as they are seen."""
    groups = {}  # path of the group by its controller; "" in version 2
    for line in _lines(process / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "cpu" in controllers.split(","):
            groups["cpu" if controllers else ""] = PurePosixPath(path)
    for line in _lines(process / "mountinfo"):
        mount, _, kind = line.partition(" - ")
        fields, kinds = mount.split(), kind.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kinds[0])
        if controller == "cpu" and "cpu" not in kinds[2].split(","):
            continue
        if controller is None or controller not in groups:
            continue
        # Where a container sees its own part alone, the mount's root is that of the container.
        top, below = PurePosixPath(fields[3]), groups[controller]
        inside = below.relative_to(top) if top in (below, *below.parents) else PurePosixPath()
        place = Path(fields[4].replace("\\040", " "))
        yield from (place / part for part in (inside, *inside.parents))


def _quota(group: Path) -> float:
    """What one group may use, in processors."""
    both = " ".join(_lines(group / "cpu.max")) or " ".join(
        [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    )
    quota, _, period = both.partition(" ")
    # "max" and -1 stand for none.
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return math.inf
    return int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # another system, or a group without the file
