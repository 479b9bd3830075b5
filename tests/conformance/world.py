"""What the conformance tests act with: users, files of every type, and watches on what changes."""

import ctypes
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

USER, OTHER = 65533, 65534
"""Two users without privileges; each has the group of the same number."""

GROUP = 65532
"""A group that neither user is in, but when a test says so."""

_CLOCK_REALTIME_COARSE = 5

DEVICE = os.makedev(7, 1234)

_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
    "symlink": stat.S_IFLNK,
}
KINDS = tuple(_TYPES)
NOT_DIRECTORIES = tuple(kind for kind in KINDS if kind != "directory")
NOT_SYMLINKS = tuple(kind for kind in KINDS if kind != "symlink")


def make(kind: str, path: Path, mode: int = 0o644, *, owner: int = 0, group: int = 0) -> Path:
    """A new file of this type with exactly these attributes; a symlink's target is missing."""
    if kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    elif kind == "directory":
        os.mkdir(path, mode)
    elif kind == "symlink":
        os.symlink("nowhere", path)
    else:
        os.mknod(path, _TYPES[kind] | mode, DEVICE if kind in ("block", "character") else 0)
    if owner or group:
        os.chown(path, owner, group, follow_symlinks=False)
    if kind != "symlink" and mode != stat.S_IMODE(path.lstat().st_mode):
        os.chmod(path, mode)  # mkdir and chown take set-id bits off
    return path


def remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        os.rmdir(path)
    else:
        os.unlink(path)


def kind_of(path: Path) -> str:
    found = stat.S_IFMT(path.lstat().st_mode)
    return next(kind for kind, bits in _TYPES.items() if bits == found)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def socket_at(path: Path) -> socket.socket:
    """A socket that listens at `path`, whatever the length of that."""
    listener = socket.socket(socket.AF_UNIX)
    directory = os.open(path.parent, os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


# --- who acts --------------------------------------------------------------------------------


@contextmanager
def acting_as(user: int, *groups: int, group: int | None = None) -> Iterator[None]:
    """Be `user` with just these groups, beside `group` (by default the user's own)."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(user if group is None else group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# --- what comes of it ------------------------------------------------------------------------


def outcome(action: Callable[[], object]) -> str:
    """How a call ended: "ok", or the name of its errno."""
    try:
        result = action()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    if type(result) is int:  # a descriptor: every operation of these tests returns None otherwise
        os.close(result)
    return "ok"


@contextmanager
def refused(code: int) -> Iterator[None]:
    """The block must raise OSError with this error number."""
    raised = 0
    try:
        yield
    except OSError as exc:
        raised = exc.errno or 0
    shown = errno.errorcode.get(raised, "success")
    assert raised == code, f"{shown} instead of {errno.errorcode[code]}"


def _facts(path: Path) -> dict[str, int]:
    status = path.lstat()
    return {
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "links": status.st_nlink,
        "device": status.st_rdev,
        "inode": status.st_ino,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
    }


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """The block must leave the attributes of these as they are, times included."""
    before = [_facts(path) for path in paths]
    pass_time(paths)
    yield
    for path, facts in zip(paths, before, strict=True):
        assert _facts(path) == facts, path


def pass_time(paths: Sequence[Path]) -> None:
    """Wait until a change of these would give them later times than they have.

    Linux stamps files with a clock that ticks every few milliseconds.
    """
    latest = max(path.lstat().st_ctime_ns for path in paths)
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= latest:
        time.sleep(0.001)


@contextmanager
def moves(times: str, *paths: Path) -> Iterator[None]:
    """The block must move exactly these times ("ctime mtime") of the paths, to the present."""
    before = [_facts(path) for path in paths]
    pass_time(paths)
    yield
    now = time.time_ns()
    for path, facts in zip(paths, before, strict=True):
        after = _facts(path)
        for name in ("mtime", "ctime"):
            if name in times.split():
                assert facts[name] < after[name] <= now, f"{name} of {path} did not move"
            else:
                assert after[name] == facts[name], f"{name} of {path} moved"


# --- calls that Python has no function for ---------------------------------------------------

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


Moment = tuple[int, int]
NOW: Moment = (0, UTIME_NOW)
OMIT: Moment = (0, UTIME_OMIT)


def utimensat(path: Path | str, access: Moment, change: Moment, *, follow: bool = True) -> None:
    """utimensat(2), with seconds and nanoseconds as they are."""
    times = (_Timespec * 2)(access, change)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
