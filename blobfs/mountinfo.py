"""What is mounted where, as the kernel says it (proc_pid_mountinfo(5)), without touching a mount:
a path in one whose daemon is stuck would be waited for."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

BLOBFS = "fuse.blobfs"

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """`device` is `MAJOR:MINOR`, of the whole file system: bind mounts have the same. `owner` is
    the uid that a FUSE mount belongs to, else 0."""

    path: str
    fstype: str
    source: str
    device: str
    owner: int


def mount_points() -> list[MountPoint]:
    """Every mount that this process sees, what lies on top last."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [_parse(line) for line in text.splitlines()]


def _parse(line: str) -> MountPoint:
    before, _, after = line.partition(" - ")
    _, _, device, _, path, *_ = before.split(" ")
    fstype, source, options = after.split(" ")
    owner = re.search(r"\buser_id=(\d+)", options)
    return MountPoint(
        _unescape(path), fstype, _unescape(source), device, int(owner[1]) if owner else 0
    )


def _unescape(text: str) -> str:
    """Blank, tab, newline and backslash are three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounts_at(path: Path) -> list[MountPoint]:
    """What is mounted on `path`, the topmost last. Its own symlinks are followed only above it."""
    absolute = Path(os.path.abspath(path))
    target = os.path.normpath(os.path.realpath(absolute.parent) + "/" + absolute.name)
    return [mount for mount in mount_points() if os.path.normpath(mount.path) == target]
