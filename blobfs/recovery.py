"""What a failed close leaves on disk: the very blob that would have been stored.

A recovery file is the ciphertext, then a JSON object that says everything else the commit would
have sent (nothing in it is secret without the KEK), then 16 bytes: the object's length (8 bytes,
big-endian) and `MAGIC`. A file that does not end in `MAGIC` is incomplete. `unknown` in the object
lists the ranges [offset, size] of plaintext that stand as zeros, since the file was changed in
part and the version below was gone.

With keys outside of this process the content key is wrapped in the standby form (`Keyring.
wrap_to_keep`): wrap it again before the blob is put at the service.
"""

import json
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from blobfs.attributes import Kind
from blobfs.envelope import METADATA_KEY, SEAL_KEY
from blobfs.keyring import Keyring
from blobfs.writer import Properties, WritePolicy, new_body, region_of, seal_kind

MAGIC = b"blobfsR1"
SUFFIX = ".blobfs-recovery"

_CHUNK = 4 * 1024 * 1024

ReadKnown = Callable[[int, int], Awaitable[tuple[bytes, list[tuple[int, int]]]]]


async def keep_for_recovery(
    directory: Path,
    *,
    container_url: str,
    name: str,
    etag: str,
    kind: Kind,
    size: int,
    read: ReadKnown,
    properties: Properties,
    keyring: Keyring,
    policy: WritePolicy,
    reason: str,
) -> Path:
    """Encrypt `size` bytes of plaintext from `read` into a new file of mode 0600; its path.

    `etag` is the version that the content was to replace, "" for none. `read` gives the plaintext
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
