"""Taking a secret out of this process's command line, where `ps` would show it to everybody."""

import ctypes
from pathlib import Path

from blobfs.sas import redact


def hide_secrets() -> None:
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
