"""One file system seen through its system calls, so that two can be asked the same and compared.

An operation gives what a program would see: a value, or the errno as an exception. Open files
are known by a number that is the same on both sides.
"""

import ctypes
import errno
import mmap
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.mounts import PLAINTEXT_MARKER

RENAME_NOREPLACE = 1

_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

Xattrs = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Look:
    """What a stat and its like say. `mtime_ns` is None when only the clock decides about it."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int | None
    target: str
    xattrs: Xattrs


@dataclass(frozen=True)
class Failure:
    """An operation refused with this errno."""

    name: str


def outcome(operation: Callable[[], object]) -> object:
    """What the operation gives, or its failure."""
    try:
        return operation()
    except OSError as exc:
        return Failure(errno.errorcode.get(exc.errno or 0, repr(exc)))


def content(seed: int, size: int) -> bytes:
    """Bytes that differ by seed, with the marker that must never be found outside of a mount."""
    return (PLAINTEXT_MARKER + random.Random(seed).randbytes(size))[:size]


class Side:
    """A directory, and the system calls on what is below it."""

    def __init__(self, root: Path, started_ns: int) -> None:
        self.root = root
        self._started_ns = started_ns  # tests set times long before this
        self.files: dict[int, int] = {}

    def _at(self, path: str) -> Path:
        return self.root / path

    # Names

    def paths(self) -> list[str]:
        """All that exists, sorted; not what symlinks lead to."""
        found = []
        for directory, directories, files in os.walk(self.root, onerror=_raise):
            found += [Path(directory, name) for name in directories + files]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def directories(self) -> list[str]:
        return [path for path in self.paths() if stat.S_ISDIR(self._at(path).lstat().st_mode)]

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str, flags: int) -> None:
        names = os.fsencode(self._at(old)), os.fsencode(self._at(new))
        if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    # Attributes

    def look(self, path: str) -> Look:
        full = self._at(path)
        status = full.lstat()
        target = os.readlink(full) if stat.S_ISLNK(status.st_mode) else ""
        xattrs = {
            name: os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        }
        return self._look(status, target, tuple(sorted(xattrs.items())))

    def _look(self, status: os.stat_result, target: str, xattrs: Xattrs) -> Look:
        is_directory = stat.S_ISDIR(status.st_mode)
        return Look(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            0 if is_directory else status.st_size,
            None if status.st_mtime_ns >= self._started_ns else status.st_mtime_ns,
            target,
            xattrs,
        )

    def times(self, path: str) -> tuple[int, int]:
        status = self._at(path).lstat()
        return status.st_atime_ns, status.st_mtime_ns

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def set_xattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def remove_xattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    # Whole files

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        self._at(path).write_bytes(data)

    def append(self, path: str, data: bytes) -> None:
        with self._at(path).open("ab") as file:
            file.write(data)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def sync(self, path: str) -> None:
        """Have all that is unsaved of a file or directory stored."""
        descriptor = os.open(self._at(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # Open files

    def open(self, number: int, path: str, flags: int, mode: int) -> None:
        self.files[number] = os.open(self._at(path), flags, mode)

    def close(self, number: int) -> None:
        os.close(self.files.pop(number))

    def close_all(self) -> None:
        for number in sorted(self.files):
            self.close(number)

    def close_duplicate(self, number: int) -> None:
        os.close(os.dup(self.files[number]))

    def look_open(self, number: int) -> tuple[Look, bool]:
        status = os.fstat(self.files[number])
        return self._look(status, "", ()), status.st_nlink > 0

    def pread(self, number: int, offset: int, size: int) -> bytes:
        return os.pread(self.files[number], size, offset)

    def pwrite(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.files[number], data, offset)

    def write_on(self, number: int, data: bytes) -> int:
        return os.write(self.files[number], data)

    def seek(self, number: int, offset: int, whence: int) -> int:
        return os.lseek(self.files[number], offset, whence)

    def truncate_open(self, number: int, size: int) -> None:
        os.ftruncate(self.files[number], size)

    def fsync(self, number: int) -> None:
        os.fsync(self.files[number])

    def chmod_open(self, number: int, mode: int) -> None:
        os.fchmod(self.files[number], mode)

    def utime_open(self, number: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.files[number], ns=(atime_ns, mtime_ns))

    def map_and_write(self, number: int, offset: int, data: bytes) -> None:
        """Change what is there, not the size, through a shared mapping."""
        with mmap.mmap(self.files[number], 0) as mapping:
            data = data[: max(0, len(mapping) - offset)]
            mapping[offset : offset + len(data)] = data
            mapping.flush()

    def forget_pages(self, path: str) -> None:
        """Have the kernel drop its cached pages of a file."""
        descriptor = os.open(self._at(path), os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _raise(exc: OSError) -> None:
    raise exc


def forget_names(mountpoint: Path) -> None:
    """Have the kernel forget all inodes of a mount that nobody uses; needs root.

    A mount(2) that changes nothing does it, and for this one mount alone.
    """
    ms_remount, ms_nosuid, ms_nodev = 32, 2, 4
    flags = ms_remount | ms_nosuid | ms_nodev
    if _libc.mount(b"none", os.fsencode(mountpoint), None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), "mount(MS_REMOUNT)")
