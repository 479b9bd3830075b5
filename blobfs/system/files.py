"""Files that belong to us below a root: written when they differ, removed when they are ours."""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blobfs.errors import OptionError


@dataclass(frozen=True, slots=True)
class File:
    """`path` begins at the root that it is installed below."""

    path: str
    content: str
    mode: int = 0o644


def install(root: Path, files: Iterable[File], mark: str) -> Iterable[str]:
    """Write those that differ, but none over a file without `mark`; what was done, a line each.
    Raises OSError and OptionError."""
    for file in files:
        place = _place(root, file.path)
        if not place.exists():
            done = "wrote"
        elif not is_marked(place, mark):
            yield f"kept {place}: it is not from blobfs install"
            continue
        else:
            same = place.read_text() == file.content and place.stat().st_mode & 0o7777 == file.mode
            done = "unchanged" if same else "updated"
        if done != "unchanged":
            write(place, file.content, file.mode)
        yield f"{done} {place}"


def uninstall(root: Path, files: Iterable[File], mark: str) -> Iterable[str]:
    """Remove those that are there and have `mark`. Raises OSError and OptionError."""
    for file in files:
        place = _place(root, file.path)
        if not place.exists():
            continue
        if not is_marked(place, mark):
            yield f"kept {place}: it is not from blobfs install"
            continue
        place.unlink()
        yield f"removed {place}"


def write(path: Path, content: str, mode: int) -> None:
    """Replace `path` in one step, whatever the umask; the directories above it are made."""
    missing = [above for above in path.parents if not above.exists()]
    for directory in reversed(missing):
        directory.mkdir()
        directory.chmod(0o755)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
        new.rename(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def is_marked(path: Path, mark: str) -> bool:
    """Whether `path` is there and a file of ours."""
    return path.exists() and mark in path.read_text(errors="replace")


def _place(root: Path, path: str) -> Path:
    """Where `path` is below `root`. Raises OptionError when a link leads out of the root."""
    place = root / path.lstrip("/")
    if not place.parent.resolve().is_relative_to(root.resolve()):
        raise OptionError(f"{place.parent} leads out of {root}: give the root that it leads to")
    return place
