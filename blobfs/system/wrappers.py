"""The programs, where other programs look for them.

A helper of mount(8) runs without PATH or HOME, with any umask, and maybe as root for somebody
else: so each names its interpreter, and takes nothing from the environment (`python -I`).
"""

import sys
from pathlib import Path

from blobfs.system.files import MARK, File

# Path -> function of blobfs.cli. mount(8) looks nowhere else than in /sbin.
PROGRAMS = {
    "/sbin/mount.blobfs": "mount_helper",
    "/sbin/mount.fuse.blobfs": "mount_helper",
    "/sbin/umount.blobfs": "umount_helper",
    "/sbin/umount.fuse.blobfs": "umount_helper",
    "/usr/local/bin/blobfs": "main",
}

_LONGEST_INTERPRETER = 120  # execve(2) cuts the line after 127 bytes on old kernels


def wrappers(root: Path) -> list[File]:
    interpreter = _inside(root, Path(sys.executable))
    packages = _inside(root, Path(__file__).parents[2])
    return [
        File(path, _script(interpreter, packages, function), 0o755)
        for path, function in PROGRAMS.items()
    ]


def _script(interpreter: str, packages: str, function: str) -> str:
    if " " in interpreter or len(interpreter) > _LONGEST_INTERPRETER:
        # A string for Python; for sh a command that has Python run this file.
        start = f"#!/bin/sh\n'''exec' \"{interpreter}\" -I \"$0\" \"$@\"\n' '''"
    else:
        start = f"#!{interpreter} -I"
    return f"""{start}
# {MARK}
import sys
sys.path.append({packages!r})
from blobfs.cli import {function}
sys.exit({function}())
"""


def _inside(root: Path, path: Path) -> str:
    """`path` as it is called once `root` is the root. Links are kept: a virtual environment's
    interpreter is one."""
    path = path.absolute()
    if path.is_relative_to(root):
        return "/" + str(path.relative_to(root))
    return str(path)
