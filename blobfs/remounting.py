"""`mount -o remount`: of a FUSE file system only what the kernel itself enforces can change."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from blobfs.errors import OptionError
from blobfs.mountinfo import blobfs_at

_REMOUNT = 32

# Option -> (flag of mount(2), whether it is set).
_FLAGS = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "diratime": (2048, False),
    "relatime": (1 << 21, True),
    "norelatime": (1 << 21, False),
}


def remount(path: Path, options: Iterable[str]) -> None:
    """Change the mount on `path` to what `options` ask for; those that a daemon reads are passed
    over, as mount(8) adds the ones in fstab. Raises OptionError, and OSError of mount(2): EBUSY
    when a file is open for writing and `ro` is asked for."""
    mounted = blobfs_at(path)
    if mounted is None:
        raise OptionError(f"{path} has no blobfs mount to be changed")
    flags = 0
    for option in (*mounted.options, *options):
        flag, is_set = _FLAGS.get(option, (0, True))
        flags = flags | flag if is_set else flags & ~flag
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(_REMOUNT | flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
