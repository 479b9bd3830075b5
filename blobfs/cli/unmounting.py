"""`umount.blobfs`, as umount(8) calls it: returns when everything is stored."""

import argparse
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from blobfs import ending
from blobfs.errors import OptionError
from blobfs.mount import EXIT_FAILURE
from blobfs.mountinfo import blobfs_at, unmount

PATIENCE = 2.0
"""Seconds after which somebody at a terminal is told what is waited for."""


def helper_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="umount.blobfs",
        description="Unmount, and wait until what was written is stored and the daemon has ended. "
        "Called by umount(8). An interrupt ends the waiting, not the storing.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.add_argument("-f", dest="force", action="store_true", help="do not ask the daemon")
    parser.add_argument(
        "-l", dest="lazy", action="store_true", help="when it is not busy any more; do not wait"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is unmounted")
    parser.add_argument("-n", action="store_true", help="accepted: there is no mtab to write")
    parser.add_argument("-r", action="store_true", help="accepted: busy mounts stay as they are")
    parser.add_argument("-t", metavar="TYPE", help="accepted: the type is fuse.blobfs")
    parser.set_defaults(run=_unmount)
    return parser


def _unmount(chosen: argparse.Namespace) -> int:
    path = chosen.mountpoint.absolute()
    mounted = blobfs_at(path)
    if mounted is None:
        raise OptionError(f"{path} has no blobfs mount; see: findmnt -t fuse.blobfs")
    daemon = ending.connect(mounted)
    if not chosen.force:
        # Releases that the kernel has not sent yet would be lost; it sends this after them.
        with suppress(OSError):
            os.statvfs(path)
    flags = [flag for flag, given in (("-f", chosen.force), ("-l", chosen.lazy)) if given]
    done = unmount(path, *flags)
    if done.returncode != 0:
        print(done.stderr.strip(), file=sys.stderr)
        return EXIT_FAILURE
    if chosen.verbose:
        print(f"blobfs: {path} unmounted", file=sys.stderr)
    if daemon is not None and not chosen.lazy:
        _wait(daemon, path)
    return 0


def _wait(daemon: socket.socket, path: Path) -> None:
    with daemon:
        if ending.wait(daemon, PATIENCE):
            return
        if sys.stderr.isatty():
            print(f"blobfs: storing what was written to {path}…", file=sys.stderr)
        ending.wait(daemon, None)
