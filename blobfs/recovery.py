"""What a failed close leaves on disk: the very blob that would have been stored.

A recovery file is the ciphertext, then a JSON object that says everything else the commit would
have sent (nothing in it is secret without the KEK), then 16 bytes: the object's length (8 bytes,
big-endian) and `MAGIC`. A file that does not end in `MAGIC` is incomplete. `unknown` in the object
lists the ranges [offset, size] of plaintext that stand as zeros, since the file was changed in
part and the version below was gone. `attempts` marks the versions that this mount may have stored
in that one's place: commits of which it never heard whether they were applied.

With keys outside of this process the content key is wrapped in the standby form (`Keyring.
wrap_to_keep`): wrap it again before the blob is put at the service.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from blobfs.attributes import Kind
from blobfs.blobs import ContentHeaders
from blobfs.envelope import METADATA_KEY, SEAL_KEY
from blobfs.errors import RecoveryError
from blobfs.keyring import Keyring
from blobfs.writer import Properties, WritePolicy, new_body, region_of, seal_kind

MAGIC = b"blobfsR1"
SUFFIX = ".blobfs-recovery"

_CHUNK = 4 * 1024 * 1024
_LONGEST_TRAILER = 1024 * 1024

ReadKnown = Callable[[int, int], Awaitable[tuple[bytes, list[tuple[int, int]]]]]


async def keep_for_recovery(
    directory: Path,
    *,
    container_url: str,
    name: str,
    etag: str,
    attempts: Sequence[str] = (),
    kind: Kind,
    size: int,
    read: ReadKnown,
    properties: Properties,
    keyring: Keyring,
    policy: WritePolicy,
    reason: str,
) -> Path:
    """Encrypt `size` bytes of plaintext from `read` into a new file of mode 0600; its path.

    `etag` is the version that the content was to replace, "" for none, or one of those that
    `attempts` has an `attempt_mark` of. `read` gives the plaintext
    and the ranges (offset, size) of it that nobody knows any more. The file is complete and
    synchronised with the disk when this returns. Raises OSError, and whatever `read` raises.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    final = directory / f"{stamp}-{secrets.token_hex(4)}{SUFFIX}"
    body = new_body(policy)
    wrapped = await keyring.wrap_to_keep(body.cek_payload)
    region = region_of(policy)
    chunk = max(1, _CHUNK // region) * region
    unknown: list[tuple[int, int]] = []
    try:
        with _create(final) as file:
            last = False
            while not last:
                offset = body.plain_size
                length = min(chunk, size - offset)
                last = offset + length == size
                plain, gaps = await read(offset, length)
                unknown += gaps
                file.write(body.encrypt(plain, final=last))
            description = {
                "container": container_url,
                "name": name,
                "etag": etag,
                "attempts": [*attempts],
                "reason": reason,
                "created": stamp,
                "plain_size": size,
                "unknown": unknown,
                "blob_size": body.blob_size,
                "metadata": {
                    **properties.metadata,
                    METADATA_KEY: body.encryption_data(wrapped).serialize(),
                    SEAL_KEY: body.seal(seal_kind(kind)),
                },
                "headers": asdict(properties.headers),
                "tags": properties.tags,
                "tier": properties.tier,
            }
            trailer = json.dumps(description).encode()
            file.write(trailer + len(trailer).to_bytes(8, "big") + MAGIC)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        final.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # it is there; some file systems do not promise more
        sync_directory(directory)
    return final


def attempt_mark(encryption_data: str) -> str:
    """Of a version, by what no two of them have in common."""
    return hashlib.sha256(encryption_data.encode()).hexdigest()


def sync_directory(directory: Path) -> None:
    """Make sure that after a crash it has the entries that it has now. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


# --- reading it back ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecoveryFile:
    """A complete recovery file. Sizes are in bytes; `unknown` are ranges (offset, size)."""

    path: Path
    container_url: str
    name: str
    etag: str
    attempts: frozenset[str]
    reason: str
    created: str
    plain_size: int
    blob_size: int
    unknown: tuple[tuple[int, int], ...]
    properties: Properties

    @property
    def seal(self) -> str:
        """Made under the content key, it belongs to one commit, whatever key wraps that key."""
        return self.properties.metadata[SEAL_KEY]


def recovery_files(directory: Path) -> list[Path]:
    """Raises RecoveryError when the directory cannot be read; one that is not there has none."""
    try:
        return sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise RecoveryError(f"cannot read {directory}: {exc.strerror}") from None


def read_description(path: Path) -> RecoveryFile:
    """Raises RecoveryError for a file that is incomplete, damaged or something else."""
    try:
        with path.open("rb") as file:
            return parse_open_file(path, file.fileno())
    except OSError as exc:
        raise RecoveryError(f"cannot read {path}: {exc.strerror}") from None


def parse_open_file(path: Path, descriptor: int) -> RecoveryFile:
    status = os.fstat(descriptor)
    # It says where the token is sent to, so nobody else may have written it.
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RecoveryError(f"{path.name} belongs to, or can be written by, another user")
    size = status.st_size
    end = os.pread(descriptor, 16, max(0, size - 16))
    if not end.endswith(MAGIC):
        if is_being_written(path):
            raise RecoveryError(f"{path.name} is being written")
        raise RecoveryError(f"{path.name} is incomplete: whatever wrote it was cut short")
    length = int.from_bytes(end[:8], "big")
    start = size - 16 - length
    if not 0 < length <= _LONGEST_TRAILER or start < 0:
        raise RecoveryError(f"{path.name} is damaged: its description has an impossible length")
    try:
        found = _checked(path, json.loads(os.pread(descriptor, length, start)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise RecoveryError(f"{path.name} is damaged: its description makes no sense") from exc
    if found.blob_size != start:
        raise RecoveryError(
            f"{path.name} is damaged: it has {start} bytes of content, not {found.blob_size}"
        )
    return found


def _checked(path: Path, said: dict[str, Any]) -> RecoveryFile:
    """Raises ValueError, LookupError, TypeError or AttributeError for a description that nobody
    wrote like this."""
    texts = [said[key] for key in ("container", "name", "etag", "reason", "created")]
    sizes = plain_size, blob_size = said["plain_size"], said["blob_size"]
    unknown = [(offset, size) for offset, size in said["unknown"]]
    attempts = said.get("attempts", [])  # version 0.1 had none
    metadata, headers, tags, tier = (said[key] for key in ("metadata", "headers", "tags", "tier"))
    pairs = [*metadata.items(), *(tags or {}).items(), *headers.items()]
    "".join([*texts, *attempts, *(text for pair in pairs for text in pair), tier or ""]).encode()
    if not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise ValueError("not a size")
    for offset, size in unknown:
        if not (type(offset) is type(size) is int and 0 <= offset <= offset + size <= plain_size):
            raise ValueError("not a range of the content")
    if not {METADATA_KEY, SEAL_KEY} <= metadata.keys() or not said["name"]:
        raise ValueError("no envelope or no name")
    container, name, etag, reason, created = texts
    return RecoveryFile(
        path,
        container,
        name,
        etag,
        frozenset(attempts),
        reason,
        created,
        plain_size,
        blob_size,
        tuple(unknown),
        Properties(metadata, ContentHeaders(**headers), tags, tier),
    )


def is_being_written(path: Path) -> bool:
    """Whether some process has the file open for writing: then it gives no read lease on it."""
    try:
        with path.open("rb") as file:
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN
    return False
