"""What is mounted where, as the kernel says in /proc/self/mountinfo (proc(5)): asking a file system
itself could trigger an automount, or wait for a daemon that is gone."""

import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.blobfs"

_NOTE_TIME = 10.0

_PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"  # mount(8) may have been called without a PATH


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


def is_automount(path: Path) -> bool:
    """Whether an access of `path` would have autofs mount something there."""
    mounts = mounts_at(path)
    return bool(mounts) and mounts[-1].fstype == "autofs"


def is_dead(path: Path) -> bool:
    """Whether the daemon of the FUSE mount on `path` has ended without an unmount."""
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def unmount(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Unmount by what may: umount(8) for root, else fusermount3, which knows `-l` as `-z`."""
    if os.geteuid() == 0:
        command = [_program("umount"), "-i", *flags]
    else:
        command = [_program("fusermount3"), "-u", *("-z" for flag in flags if flag == "-l")]
    return subprocess.run(
        [*command, str(path)], capture_output=True, text=True, errors="replace", check=False
    )


def note_network(source: str, path: Path) -> None:
    """Tell mount(8), and through it systemd, that this mount needs the network, as `_netdev` in
    fstab does: so that it is unmounted before the network is, and umount(8), which looks for a
    helper of the kernel's type for a mount that it has noted nothing of, finds ours. Only root can.
    Raises subprocess.TimeoutExpired.
    """
    command = [_program("mount"), "--no-canonicalize", "--internal-only", "--fake"]
    subprocess.run(
        [*command, "-t", FSTYPE, "-o", "_netdev", source, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_NOTE_TIME,
        check=False,
    )


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path=_PROGRAMS) or name
