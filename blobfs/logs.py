"""Where log records go, with every SAS signature taken out of them.

To `log_file`; else to the journal, with fields, when standard error leads there; else, in the
foreground, to standard error; else to syslog.
"""

import errno
import logging
import logging.handlers
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from blobfs.journal import JournalHandler, is_stderr
from blobfs.sas import redact

LEVELS = ("debug", "info", "warning", "error")

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


def configure(
    level: str, log_file: Path | None, *, foreground: bool, fields: Mapping[str, str] | None = None
) -> None:
    """Set where the log of this process goes (see the module). `fields` are for the journal.

    Raises OSError when the file cannot be opened.
    """
    handler: logging.Handler
    line = _LINE
    if log_file is not None:
        handler = logging.FileHandler(log_file, delay=False)
    elif is_stderr():
        shown = {name: redact(value) for name, value in (fields or {}).items()}
        handler = JournalHandler(shown)
        line = "%(message)s"
    elif foreground or not Path(_SYSLOG).exists():
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.SysLogHandler(_SYSLOG)
        line = "blobfs[%(process)d]: %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(RedactingFormatter(line))
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], [handler]
    for old in before:
        old.close()
    set_level(level)
    for library in ("httpx", "httpcore", "trio", "azure", "msal", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("pyfuse3").addFilter(unanswered_is_debug)


def level() -> str:
    """The least severity that is logged, as the mount option spells it."""
    return logging.getLevelName(logging.getLogger().level).lower()


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())
