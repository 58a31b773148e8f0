"""What stands where a regular file is expected, in words."""

import stat

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """Say what has this `os.stat_result.st_mode`, if it is no regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")
