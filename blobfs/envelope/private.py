"""Files that hold a secret: read only when nobody else can have read or changed it."""

import os
import stat

from blobfs.errors import KeyFileError

MAX_PRIVATE_FILE = 1024 * 1024


def read_private(path: str | os.PathLike[str], *, group_may_read: bool = False) -> bytes:
    """The file's content, at most 1 MiB, if only its owner can use it and we may trust that owner.

    `group_may_read` is for systemd credentials, which have mode 0440 in a service with User=.
    Raises KeyFileError.
    """
    allowed = 0o740 if group_may_read else 0o700
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a regular file")
            if stat.S_IMODE(status.st_mode) & 0o777 & ~allowed:
                raise KeyFileError(f"{path} can be used by others; run: chmod 600 {path}")
            if status.st_uid not in (0, os.geteuid()):
                raise KeyFileError(
                    f"{path} belongs to uid {status.st_uid}; run: chown {os.geteuid()} {path}"
                )
            content = file.read(MAX_PRIVATE_FILE + 1)
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
    if len(content) > MAX_PRIVATE_FILE:
        raise KeyFileError(f"{path} is over {MAX_PRIVATE_FILE} bytes, which no key set is")
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO must not wait for a writer


def read_passphrase(path: str | os.PathLike[str]) -> bytes:
    """The passphrase in the file, without the newline at its end. Raises KeyFileError."""
    content = read_private(path, group_may_read=True)
    passphrase = content.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise KeyFileError(f"{path} is empty, and was to hold the passphrase of the key file")
    return passphrase
