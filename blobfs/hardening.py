"""Keeping the secrets of this process from who looks at it: in `ps`, in a core dump, by ptrace."""

import ctypes
import logging
import os
import resource
from pathlib import Path

from blobfs.sas import redact

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def harden() -> None:
    """For a program to call first. What the kernel refuses is logged as a warning."""
    _forbid_dumps()
    _hide_arguments()


def _forbid_dumps() -> None:
    """No core dumps of this process, and no look into it by others of its user: /proc/PID/mem,
    environ and fd become root's. Forks keep that; of programs started later, the limit alone."""
    # The limit does not hold where core_pattern is a pipe (systemd-coredump, apport).
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.warning("blobfs: core dumps cannot be turned off: %s", reason)
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        except (OSError, ValueError) as exc:
            log.warning("blobfs: the limit of core dumps stays: %s", exc)


def _hide_arguments() -> None:
    """Overwrite SAS signatures in the memory that /proc/PID/cmdline shows.

    The kernel shows the bytes between arg_start and arg_end (fields 48 and 49 of proc(5) stat),
    which belong to the process. For the moment between exec and this call they are readable:
    `sas_file=` has no such moment.
    """
    command = Path("/proc/self/cmdline").read_bytes()
    redacted = redact(command.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    if redacted == command:
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, redacted, min(len(redacted), end - start))
