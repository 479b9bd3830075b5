"""Which files a process has open, as /proc tells it."""

import os
from itertools import islice

LOOKED_AT = 64
"""Descriptors at most, in their order: what a shell redirects has a low number, and a process may
have any number of them."""


def can_write(pid: int, ino: int, name: str) -> bool:
    """Whether the process, or thread, has a descriptor to write to the file of this inode number
    and this name, the last of its path.

    Also False when nobody may tell: the process is another user's, or gone, or has too many, or
    the kernel is older than 5.14.
    """
    try:
        with os.scandir(f"/proc/{pid}/fdinfo") as descriptors:
            return any(
                os.path.basename(os.readlink(f"/proc/{pid}/fd/{entry.name}")) == name
                and _writes_to(ino, entry.path)
                for entry in islice(descriptors, LOOKED_AT)
            )
    except OSError:
        return False


def _writes_to(ino: int, path: str) -> bool:
    """By the lines of an fdinfo file: proc_pid_fdinfo(5)."""
    with open(path, encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    access = int(lines["flags"], 8) & os.O_ACCMODE
    return access != os.O_RDONLY and int(lines.get("ino", -1)) == ino
