"""Which file names a blob can have, and which blob names a directory can show.

Limits are Azure's (naming and referencing blobs): 1,024 characters and 254 segments a name, no
segment that ends in a dot, no control characters, U+FFFE or U+FFFF, and `\\` becomes `/`.
"""

import errno
import os
import re
from collections.abc import Iterable

from blobfs.errors import PosixError

MAX_NAME_CHARACTERS = 1024
MAX_SEGMENTS = 254
MAX_SEGMENT_BYTES = 255

HIDDEN_PREFIX = ".blobfs-hidden-"
"""Blobs of files that were unlinked or replaced while open, or that a rename is replacing; never
shown, never creatable."""

REENCRYPT_PREFIX = HIDDEN_PREFIX + "reencrypt-"
"""Blobs that `blobfs reencrypt` has written and is checking before they replace the original."""

_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ufffe\uffff]")


def decode_segment(raw: bytes) -> str:
    """A name from the kernel as text.

    Raises PosixError: EILSEQ when it is not UTF-8, ENAMETOOLONG over 255 bytes, EINVAL when
    Azure cannot hold it or would change it.
    """
    if len(raw) > MAX_SEGMENT_BYTES:
        raise PosixError(errno.ENAMETOOLONG)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise PosixError(errno.EILSEQ, "a blob name is UTF-8 text") from None
    if not is_storable(name) or name.startswith(HIDDEN_PREFIX):
        raise PosixError(errno.EINVAL, f"no blob can have the name {name!r}")
    return name


def lookup_segment(raw: bytes) -> str | None:
    """A name from the kernel as text, or None when no blob has it, since it is not UTF-8.

    Raises PosixError(ENAMETOOLONG) over 255 bytes.
    """
    if len(raw) > MAX_SEGMENT_BYTES:
        raise PosixError(errno.ENAMETOOLONG)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def is_storable(name: str) -> bool:
    """Whether Azure keeps a segment as it is."""
    return not (_UNSTORABLE.search(name) or name.endswith("."))


def _characters(name: str) -> int:
    """As Azure counts: UTF-16 units, of which a character beyond the BMP has two."""
    return len(name.encode("utf-16-le")) // 2


def marked(name: str, mark: str) -> str:
    """The blob name with a mark at its end, where directories can show it: of a name that gets too
    long by that the last segment is cut before the mark."""
    directory, slash, segment = name.rpartition("/")
    while segment and (
        len((segment + mark).encode()) > MAX_SEGMENT_BYTES
        or _characters(directory + slash + segment + mark) > MAX_NAME_CHARACTERS
    ):
        segment = segment[:-1]
    return directory + slash + segment + mark


def check_blob_name(name: str) -> None:
    """Raises PosixError(ENAMETOOLONG) when the whole name is over Azure's limits."""
    if _characters(name) > MAX_NAME_CHARACTERS:
        raise PosixError(errno.ENAMETOOLONG, "a blob name has at most 1,024 characters")
    if name.count("/") >= MAX_SEGMENTS:
        raise PosixError(errno.ENAMETOOLONG, "a blob name has at most 254 segments")


def is_showable(segment: str) -> bool:
    """Whether a directory can show a blob's name segment under just that name."""
    return (
        segment not in ("", ".", "..")
        and not segment.startswith(HIDDEN_PREFIX)
        and "/" not in segment
        and "\0" not in segment
        and len(os.fsencode(segment)) <= MAX_SEGMENT_BYTES
    )


def join(parts: Iterable[str]) -> str:
    """Segments as a blob name; empty ones (a mount's root) vanish."""
    return "/".join(part for part in parts if part)
