"""Log records as journal entries with fields, over journald's native protocol.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: one datagram an entry. The bindings to libsystemd need
its headers and a compiler for what are these few lines.
"""

import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")

_LONGEST = 64 * 1024  # bytes of a message: a datagram of 200 KiB would be refused
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def is_stderr() -> bool:
    """Whether standard error leads to the journal, by what systemd.exec(5) says of JOURNAL_STREAM:
    a child that has another one inherits the variable, too."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """`fields` go with every entry. What journald does not take goes to standard error."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = fields
        self._path = str(JOURNAL)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # a mount does not wait for its log

    def close(self) -> None:
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        entry = {
            "MESSAGE": message.encode(errors="backslashreplace")[:_LONGEST],
            "PRIORITY": str(_PRIORITY.get(record.levelname, 5)).encode(),
            "SYSLOG_IDENTIFIER": b"blobfs",
            "LOGGER": record.name.encode(),
            "CODE_FILE": record.pathname.encode(),
            "CODE_LINE": str(record.lineno).encode(),
            "CODE_FUNC": record.funcName.encode() if record.funcName else b"",
            **{name: os.fsencode(value) for name, value in self._fields.items()},
        }
        try:
            self._socket.sendto(encode(entry), self._path)
        except OSError:
            print(message, file=sys.stderr, flush=True)


def encode(entry: Mapping[str, bytes]) -> bytes:
    """An entry as journald reads it: a value with a newline goes by its length."""
    return b"".join(
        name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
        if b"\n" in value
        else name.encode() + b"=" + value + b"\n"
        for name, value in entry.items()
    )
