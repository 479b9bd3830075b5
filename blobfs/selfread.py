"""Having the kernel read from a directory of a mount that this very process serves.

What it reads it keeps, with attributes (READDIRPLUS), and need not look up name by name.

- A directory that is open keeps others from unmounting, so it is opened in a copy of the mount that
  nobody else has (open_tree(2), Linux 5.2), which only root may make.
- Who waits for an answer of FUSE cannot be killed, and while any thread has /dev/fuse open there
  may be one. So this is for a thread with descriptors of its own, without that one: if the daemon
  is killed, the connection ends, and with it the wait.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

_OPEN_TREE = 428  # the same on all architectures but alpha: include/uapi/asm-generic/unistd.h
_OPEN_TREE_CLONE = 1  # linux/mount.h
_AT_FDCWD = -100  # linux/fcntl.h
_CLONE_FILES = 0x400  # linux/sched.h

_READ = 200
"""Entries at least: one READDIRPLUS on new kernels, and ten where one has a page."""

_BUFFER = 32 * 1024
"""Bytes for entries. Not through scandir: it waits for the interpreter's lock at each of them."""


class CannotCopy(OSError):
    """The mount cannot be copied, or not read without /dev/fuse open, now or later."""


class OtherMount(OSError):
    """What is at the path is not this mount any more."""


async def read_some(mountpoint: Path, device: int, directory: str, offset: int) -> int:
    """Have the kernel read some 200 entries of `directory`, a path below the mount's root, from
    `offset` on; the offset after them. `device` is st_dev of the mount.

    Raises OSError. Cancelled, it leaves a thread, which ends with the mount at the latest.
    """
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    outcome: list[int | OSError] = []

    def read() -> None:
        try:
            outcome.append(_read(mountpoint, device, directory, offset))
        except OSError as exc:
            outcome.append(exc)
        finally:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

    threading.Thread(target=read, name="read_some", daemon=True).start()
    await done.wait()
    (found,) = outcome
    if isinstance(found, OSError):
        raise found
    return found


def _read(mountpoint: Path, device: int, directory: str, offset: int) -> int:
    _let_go_of_fuse()
    opened = _copy_of(mountpoint)
    try:
        if os.fstat(opened).st_dev != device:
            raise OtherMount(f"{mountpoint} is another mount")
        for name in filter(None, directory.split("/")):
            above, opened = opened, _open_below(opened, name)
            os.close(above)
        reading = _open_below(opened, ".")
        try:
            position = os.lseek(reading, offset, os.SEEK_SET)
            buffer = ctypes.create_string_buffer(_BUFFER)
            while position - offset < _READ and _call("getdents64", reading, buffer, _BUFFER):
                position = os.lseek(reading, 0, os.SEEK_CUR)
            return position
        finally:
            os.close(reading)
    finally:
        os.close(opened)


def _open_below(directory: int, name: str) -> int:
    """A name that has become a link since leads nowhere else."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


def _let_go_of_fuse() -> None:
    try:
        _call("unshare", ctypes.c_int(_CLONE_FILES))
    except OSError as exc:  # before the mount is touched
        raise CannotCopy(*exc.args) from exc
    for number in map(int, os.listdir("/proc/thread-self/fd")):
        with suppress(OSError):
            if os.readlink(f"/proc/thread-self/fd/{number}") == "/dev/fuse":
                os.close(number)


def _copy_of(mountpoint: Path) -> int:
    number, flags = ctypes.c_long(_OPEN_TREE), ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        return _call("syscall", number, _AT_FDCWD, os.fsencode(mountpoint), flags)
    except OSError as exc:
        raise CannotCopy(*exc.args) from exc


def _call(name: str, *arguments: object) -> int:
    call: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    result = call(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
