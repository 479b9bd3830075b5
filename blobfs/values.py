"""The values of options: each function takes the text after `=`, and raises ValueError with what
it should have been."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise ValueError("a size in bytes, as in 65536, 64K, 16M or 2G (K is 1024)")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    if not match:
        raise ValueError("a time in seconds, as in 10, 0.5, 30s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def timeout(text: str) -> float:
    limit = seconds(text)
    if limit < 1:
        raise ValueError("at least one second")
    return limit


def region_size(text: str) -> int:
    length = size(text)
    if not 16 <= length <= 1024**3:  # what the Java SDK writes and every SDK reads
        raise ValueError("a size from 16 bytes to 1G")
    return length


def mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,4}", text):
        raise ValueError("permission bits in octal, as in 0644")
    return int(text, 8)


def numeric_id(text: str) -> int:
    # 2**32 - 1 is (uid_t) -1, which chown(2) takes for "leave as it is".
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**32 - 1:
        raise ValueError("a numeric id")
    return int(text)


def connections(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise ValueError("a number from 1 to 1024")
    return int(text)


def list_page(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 5000:
        raise ValueError("a number from 1 to 5000")
    return int(text)


def path(text: str) -> Path:
    """Absolute, since the daemon leaves the directory that it was started in."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a path; there is no home directory for its ~") from None


def words(text: str) -> tuple[str, ...]:
    """A command as a shell would split it; nothing else of a shell."""
    try:
        split = tuple(shlex.split(text))
    except ValueError:
        split = ()
    if not split:
        raise ValueError("a program and its arguments, with any quotes closed")
    return split


def command(text: str) -> tuple[str, ...]:
    """A program and its arguments, split as a shell would; the program with its whole path, since
    the daemon leaves the directory that it was started in."""
    try:
        program, *arguments = shlex.split(text)
        found = shutil.which(Path(program).expanduser())
    except (ValueError, RuntimeError):
        found = None
    if found is None:
        raise ValueError("a program that can be run, and its arguments")
    return os.path.abspath(found), *arguments


def choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def default_spool_dir() -> Path:
    """Where files survive a reboot, since close may leave recovery files there."""
    if os.geteuid() == 0:
        return Path("/var/lib/blobfs")
    state, home = os.environ.get("XDG_STATE_HOME", ""), os.environ.get("HOME", "")
    if state.startswith("/"):  # the XDG specification has relative paths ignored
        return Path(state, "blobfs")
    if home.startswith("/"):
        return Path(home, ".local/state/blobfs")
    return Path(f"/var/tmp/blobfs-{os.geteuid()}")
