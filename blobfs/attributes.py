"""Blob metadata as POSIX attributes, and back.

Keys are AzCopy's (`--preserve-posix-properties`): times in decimal nanoseconds since the epoch,
`permissions` the whole `st_mode` in decimal. Its other style (AMLFS: `owner`, `group`, octal
permissions, date text) and rclone's `mtime` are read too, and kept up to date where a blob has
them. A malformed foreign value counts as absent. Key names compare case-insensitively, as the
service does; the case that a blob has is kept.
"""

import enum
import functools
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

_NS = 1_000_000_000
_MAX_ID = 2**32 - 2
_TIME_RANGE = range(-(2**63), 2**63)


class Kind(enum.IntEnum):
    """File types, as the type bits of `st_mode`."""

    FILE = stat.S_IFREG
    DIRECTORY = stat.S_IFDIR
    SYMLINK = stat.S_IFLNK
    FIFO = stat.S_IFIFO
    SOCKET = stat.S_IFSOCK
    BLOCK = stat.S_IFBLK
    CHARACTER = stat.S_IFCHR


# In the order in which they are to be tested: AzCopy marks symlinks and block devices as
# character devices too, and block devices and sockets as folders.
_KIND_KEYS: dict[str, Kind] = {
    "is_symlink": Kind.SYMLINK,
    "is_socket": Kind.SOCKET,
    "is_block_dev": Kind.BLOCK,
    "is_char_dev": Kind.CHARACTER,
    "is_fifo": Kind.FIFO,
    "hdi_isfolder": Kind.DIRECTORY,
}
_KEY_OF_KIND: dict[Kind, str] = {kind: key for key, kind in _KIND_KEYS.items()}

POSIX_KEYS = frozenset(
    {
        *_KIND_KEYS,
        "modtime",
        "mtime",
        "posix_atime",
        "posix_ctime",
        "permissions",
        "posix_owner",
        "posix_group",
        "posix_rdev",
        "owner",
        "group",
    }
)
"""Lower-case metadata keys that carry POSIX attributes."""


INTENT_KEY = "blobfs_rename_from"
"""Metadata of a directory that is being filled by a rename: the old name, percent-encoded."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a blob without POSIX keys is shown with; modes are permission bits."""

    file_mode: int = 0o644
    dir_mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(slots=True)
class Attributes:
    """POSIX attributes of one inode; `mode` holds permission bits only, times are ns."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    rdev: int = 0

    @property
    def st_mode(self) -> int:
        return int(self.kind) | self.mode


class PackedAttributes(bytes):
    """Attributes as they are kept of inodes that nobody works on: 101 bytes instead of 250."""

    __slots__ = ()

    @classmethod
    def of(cls, attrs: Attributes) -> Self:
        # in two parts each, as a service may claim a time that 64 bits of nanoseconds do not hold
        return cls(
            _PACKED.pack(
                *(attrs.kind, attrs.mode, attrs.uid, attrs.gid, attrs.rdev),
                *divmod(attrs.mtime_ns, _NS),
                *divmod(attrs.atime_ns, _NS),
                *divmod(attrs.ctime_ns, _NS),
            )
        )

    def unpacked(self) -> Attributes:
        kind, mode, uid, gid, rdev, m_s, m_ns, a_s, a_ns, c_s, c_ns = _PACKED.unpack(self)
        times = m_s * _NS + m_ns, a_s * _NS + a_ns, c_s * _NS + c_ns
        return Attributes(_KINDS[kind], mode, uid, gid, *times, rdev)


_PACKED = struct.Struct("=HHIIIqIqIqI")
_KINDS = {int(kind): kind for kind in Kind}


def find_key(metadata: Mapping[str, object], key: str) -> str | None:
    """The spelling under which `metadata` holds `key` (lower case), or None."""
    if key in metadata:
        return key
    for candidate in metadata:
        if candidate.lower() == key:
            return candidate
    return None


def value_of(metadata: Mapping[str, str], key: str) -> str | None:
    """The value of `key` (lower case) in any spelling, or None."""
    found = find_key(metadata, key)
    return None if found is None else metadata[found]


def put_key(metadata: dict[str, str], key: str, value: str | None) -> None:
    """Set `key`, keeping the spelling that is there; None removes it."""
    found = find_key(metadata, key.lower())
    if value is not None:
        metadata[found or key] = value
    elif found is not None:
        del metadata[found]


def _lowered(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """By lower-case key, as `value_of` finds them: to look up many keys, most of them absent."""
    lowered: dict[str, str] = {}
    for key, value in metadata.items():
        lower = key.lower()
        if key == lower or lower not in lowered:
            lowered[lower] = value
    return lowered


def kind_of(metadata: Mapping[str, str], blob_size: int) -> Kind:
    """The file type of a blob. Only empty blobs are folders, nodes or sockets."""
    lowered = _lowered(metadata)
    for key, kind in _KIND_KEYS.items():
        if lowered.get(key) == "true" and (kind is Kind.SYMLINK or blob_size == 0):
            return kind
    return Kind.FILE


# Owner, group and mode are those of many files, which share the numbers: 32 bytes each.
@functools.lru_cache(maxsize=4096)
def _integer(text: str | None, valid: range, base: int = 10) -> int | None:
    if text is None or len(text) > 20 or not re.fullmatch(r"-?[0-9]+", text):
        return None
    try:
        value = int(text, base)
    except ValueError:
        return None
    return value if value in valid else None


def _permissions(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get("permissions")
    if text is None:
        return None
    octal = _is_amlfs(metadata) or (len(text) > 1 and text.startswith("0"))
    return _mode(text, 8 if octal else 10)


@functools.lru_cache(maxsize=4096)
def _mode(text: str, base: int) -> int | None:
    value = _integer(text, range(2**32), base)
    return None if value is None else stat.S_IMODE(value)


def _is_amlfs(metadata: Mapping[str, str]) -> bool:
    return find_key(metadata, "owner") is not None or find_key(metadata, "group") is not None


_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_AMLFS_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


def _modification_time(metadata: Mapping[str, str]) -> int | None:
    nanoseconds = _integer(metadata.get("modtime"), _TIME_RANGE)
    if nanoseconds is not None:
        return nanoseconds
    try:
        dated = _date(metadata.get("modtime", ""), metadata.get("mtime", ""))
    except (ValueError, OverflowError):  # a date such as 2020-02-31
        return None
    return (
        dated if dated is not None and dated in _TIME_RANGE else None
    )  # the kernel's times are from 1677 to 2262


def _date(amlfs: str, rclone: str) -> int | None:
    """Nanoseconds. Raises ValueError or OverflowError for what only looks like a date."""
    if _AMLFS_TIME.fullmatch(amlfs):
        return _seconds(datetime.strptime(amlfs, "%Y-%m-%d %H:%M:%S %z")) * _NS
    if match := _RFC3339.fullmatch(rclone):
        whole, fraction, zone = match.groups()
        moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
        return _seconds(moment) * _NS + int((fraction or "0").ljust(9, "0"))
    return None


def _rfc3339(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, _NS)
    moment = _EPOCH.replace(tzinfo=None) + timedelta(seconds=seconds)
    # Not by strftime, whose years before 1000 lack their zeros.
    return f"{moment.isoformat()}.{fraction:09d}Z"


def read_attributes(
    metadata: Mapping[str, str], kind: Kind, last_modified_ns: int, defaults: Defaults
) -> Attributes:
    """The attributes that a blob of this kind and metadata is shown with."""
    metadata = _lowered(metadata)
    mtime = _modification_time(metadata)
    if mtime is None:
        mtime = last_modified_ns
    ids = range(_MAX_ID + 1)
    uid = _integer(metadata.get("posix_owner") or metadata.get("owner"), ids)
    gid = _integer(metadata.get("posix_group") or metadata.get("group"), ids)
    mode = _permissions(metadata)
    if mode is None:
        mode = {Kind.DIRECTORY: defaults.dir_mode, Kind.SYMLINK: 0o777}.get(
            kind, defaults.file_mode
        )
    atime = _integer(metadata.get("posix_atime"), _TIME_RANGE)
    ctime = _integer(metadata.get("posix_ctime"), _TIME_RANGE)
    rdev = _integer(metadata.get("posix_rdev"), range(2**32))
    return Attributes(
        kind=kind,
        mode=mode,
        uid=defaults.uid if uid is None else uid,
        gid=defaults.gid if gid is None else gid,
        mtime_ns=mtime,
        atime_ns=mtime if atime is None else atime,
        ctime_ns=last_modified_ns if ctime is None else ctime,
        rdev=0 if rdev is None else rdev,
    )


def write_attributes(metadata: Mapping[str, str], attrs: Attributes) -> dict[str, str]:
    """`metadata` with `attrs` written into it; every other key is kept as it is."""
    result = dict(metadata)
    for key in _KIND_KEYS:
        put_key(result, key, None)
    type_key = _KEY_OF_KIND.get(attrs.kind)
    if type_key is not None:
        result[type_key] = "true"
    if _is_amlfs(metadata):
        put_key(result, "owner", str(attrs.uid))
        put_key(result, "group", str(attrs.gid))
        put_key(result, "permissions", f"{attrs.mode:04o}")
    else:
        put_key(result, "permissions", str(attrs.st_mode))
    for key, value in (("posix_owner", attrs.uid), ("posix_group", attrs.gid)):
        if not _is_amlfs(metadata) or find_key(metadata, key) is not None:  # it is read first
            put_key(result, key, str(value))
    put_key(result, "modtime", str(attrs.mtime_ns))
    put_key(result, "posix_atime", str(attrs.atime_ns))
    put_key(result, "posix_ctime", str(attrs.ctime_ns))
    if attrs.kind in (Kind.BLOCK, Kind.CHARACTER):
        put_key(result, "posix_rdev", str(attrs.rdev))
    if find_key(metadata, "mtime") is not None and _rclone_can_hold(attrs.mtime_ns):
        put_key(result, "mtime", _rfc3339(attrs.mtime_ns))
    return result


def _rclone_can_hold(nanoseconds: int) -> bool:
    # RFC 3339 has years 0000-9999, and datetime starts at year 1.
    return -62_135_596_800 <= nanoseconds // _NS < 253_402_300_800
