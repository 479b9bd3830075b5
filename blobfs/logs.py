"""Where log records go, with every SAS signature taken out of them."""

import errno
import logging
import logging.handlers
import os
import sys
from pathlib import Path

from blobfs.sas import redact

_SYSLOG = "/dev/log"
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RedactingFormatter(logging.Formatter):
    """Redacts the finished text, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def unanswered_is_debug(record: logging.LogRecord) -> bool:
    """A filter for pyfuse3's log: an answer that nobody waits for is nothing to worry about.

    An unmount does not wait for a RELEASE; the kernel then refuses the answer with ENOENT.
    """
    if record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}"):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return record.levelno >= logging.getLogger().level


def configure(level: str, log_file: Path | None, *, foreground: bool) -> None:
    """Send the log of this process to the file, else to stderr or, for a daemon, to syslog.

    Raises OSError when the file cannot be opened.
    """
    handler: logging.Handler
    line = _LINE
    if log_file is not None:
        handler = logging.FileHandler(log_file, delay=False)
    elif foreground or not Path(_SYSLOG).exists():
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.SysLogHandler(_SYSLOG)
        line = "blobfs[%(process)d]: %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(RedactingFormatter(line))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in ("httpx", "httpcore", "trio", "azure", "msal", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("pyfuse3").addFilter(unanswered_is_debug)
