"""What is mounted where, as the kernel says in /proc/self/mountinfo (proc(5)): asking a file system
itself could trigger an automount, or wait for a daemon that is gone."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.blobfs"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount. `device` is st_dev of what is in it; the options are those of this mount, then
    those of the file system."""

    path: str
    fstype: str
    device: int
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def user(self) -> int:
        """The uid that a FUSE file system was mounted by."""
        return next(
            (int(text[8:]) for text in self.super_options if text.startswith("user_id=")), 0
        )


def mounts_at(path: Path) -> list[Mounted]:
    """What is mounted on `path`, the topmost last. `path` itself is not looked at, only what it
    lies in."""
    target = os.path.normpath(os.path.join(os.path.realpath(path.parent), path.name))
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [mounted for mounted in map(_parse, lines) if mounted.path == target]


def _parse(line: str) -> Mounted:
    before, _, after = line.partition(" - ")
    fields, (fstype, *_, super_options) = before.split(" "), after.split(" ")
    major, minor = fields[2].split(":")
    # The kernel writes blank, tab, newline and backslash as three octal digits.
    path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
    return Mounted(
        path=path,
        fstype=fstype,
        device=os.makedev(int(major), int(minor)),
        options=tuple(fields[5].split(",")),
        super_options=tuple(super_options.split(",")),
    )


def blobfs_at(path: Path) -> Mounted | None:
    """The mount of blobfs on `path`. An autofs trigger below it does not count, nor does one of
    blobfs that another file system covers."""
    mounts = mounts_at(path)
    return mounts[-1] if mounts and mounts[-1].fstype == FSTYPE else None
