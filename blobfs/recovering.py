"""Recovery files read back: what they hold, storing it, and getting rid of them.

The format is in `recovery`. A file is removed only after the service has shown that it has the
content; until then every step can be cut short and done again:

- one process at a time works on a file, by a lock that ends with the process;
- content that is stored already is known by its seal, which belongs to one commit;
- a conflict copy is named after the recovery file, so that there is one however often it is tried;
- ranges that are unknown are filled in on disk first, in a file that takes the old one's place.
"""

import base64
import errno
import fcntl
import hashlib
import json
import math
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from blobfs.attributes import kind_of, value_of
from blobfs.blobs import BlobInfo, Buffer, Container, ContentHeaders, Version
from blobfs.envelope import (
    METADATA_KEY,
    SEAL_KEY,
    BodyReader,
    EncryptionData,
    check_seal,
    open_body,
    sealed_size,
    split_standby,
)
from blobfs.errors import (
    AlreadyExists,
    ConditionFailed,
    NotFound,
    RecoveryError,
    Unavailable,
)
from blobfs.fs.commit import CONFLICT_MARK
from blobfs.keyring import Keyring
from blobfs.reader import PlainBody
from blobfs.recovery import MAGIC, SUFFIX, keep_for_recovery, sync_directory
from blobfs.writer import BLOCK, MAX_BLOCKS, SINGLE_PUT, Properties, WritePolicy, seal_kind

_LONGEST_TRAILER = 1024 * 1024
_CHUNK = 4 * 1024 * 1024
_UPLOADS = 4
_TRIES = 3

T = TypeVar("T")

Fetch = Callable[[int, int], Awaitable[Buffer]]


@dataclass(frozen=True, slots=True)
class RecoveryFile:
    """A complete recovery file. Sizes are in bytes; `unknown` are ranges (offset, size)."""

    path: Path
    container_url: str
    name: str
    etag: str
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

    @property
    def aside(self) -> str:
        """The name of its conflict copy."""
        return f"{self.name}{CONFLICT_MARK}{self.path.name.removesuffix(SUFFIX)}"


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
            return _parse(path, file.fileno())
    except OSError as exc:
        raise RecoveryError(f"cannot read {path}: {exc.strerror}") from None


def _parse(path: Path, descriptor: int) -> RecoveryFile:
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
    except (ValueError, KeyError, TypeError) as exc:
        raise RecoveryError(f"{path.name} is damaged: its description makes no sense") from exc
    if found.blob_size != start:
        raise RecoveryError(
            f"{path.name} is damaged: it has {start} bytes of content, not {found.blob_size}"
        )
    return found


def _checked(path: Path, said: dict[str, Any]) -> RecoveryFile:
    """Raises ValueError, KeyError or TypeError for a description that nobody wrote like this."""
    texts = [said[key] for key in ("container", "name", "etag", "reason", "created")]
    plain_size, blob_size, tags = said["plain_size"], said["blob_size"], said["tags"]
    pairs = [*said["metadata"].items(), *(tags or {}).items(), *said["headers"].items()]
    if not all(isinstance(text, str) for text in [*texts, *(x for pair in pairs for x in pair)]):
        raise ValueError("not text")
    if not all(type(size) is int and size >= 0 for size in (plain_size, blob_size)):
        raise ValueError("not a size")
    if not {METADATA_KEY, SEAL_KEY} <= said["metadata"].keys() or not said["name"]:
        raise ValueError("no envelope or no name")
    container, name, etag, reason, created = texts
    return RecoveryFile(
        path,
        container,
        name,
        etag,
        reason,
        created,
        plain_size,
        blob_size,
        tuple((int(offset), int(size)) for offset, size in said["unknown"]),
        Properties(said["metadata"], ContentHeaders(**said["headers"]), tags, said["tier"]),
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


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """A descriptor of the file, which no other `blobfs recover` works on meanwhile.

    Raises RecoveryError when one does, or has just removed it.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise RecoveryError(f"cannot open {path}: {exc.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecoveryError(f"another blobfs recover works on {path.name}") from None
        try:
            is_current = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            is_current = False
        if not is_current:
            raise RecoveryError(f"another blobfs recover has just dealt with {path.name}")
        yield file.fileno()


def discard(path: Path) -> None:
    """Raises RecoveryError when it is in use."""
    with locked(path):
        if is_being_written(path):
            raise RecoveryError(f"{path.name} is being written: it is left")
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink()
    sync_directory(path.parent)


class Recovery:
    """Storing recovery files in one container. `timeout` is for one request, in seconds."""

    def __init__(
        self, container: Container, keyring: Keyring, policy: WritePolicy, *, timeout: float
    ) -> None:
        self._container = container
        self._keyring = keyring
        self._policy = policy
        self._timeout = timeout

    async def state(self, file: RecoveryFile) -> str:
        """What has become of the name since. Raises ServiceError."""
        current = await self._head(file.name)
        if _is_stored(current, file):
            return "stored already"
        if current is None:
            return "gone since" if file.etag else "still not there"
        return "unchanged since" if current.etag == file.etag else "changed since"

    async def upload(self, path: Path, *, overwrite: bool, accept_holes: bool) -> str:
        """Store the file's content, remove the file; what was done, in words.

        Raises RecoveryError, or what the service, the key or the disk say; the file is left then.
        """
        with locked(path) as descriptor:
            file = _parse(path, descriptor)
            if file.unknown and not accept_holes and not await self._stored_at(file):
                with self._filled_in(await self._fill(file, descriptor), path) as filled:
                    return await self._store(_parse(path, filled), filled, overwrite=overwrite)
            return await self._store(file, descriptor, overwrite=overwrite)

    async def _stored_at(self, file: RecoveryFile) -> str:
        """The name under which the content is stored already, "" for none."""
        for name in (file.name, file.aside):
            if _is_stored(await self._head(name), file):
                return name
        return ""

    async def _store(self, file: RecoveryFile, descriptor: int, *, overwrite: bool) -> str:
        if name := await self._stored_at(file):
            _remove(file.path)
            return f"was stored already, as {name!r}"
        await self._verify(file, descriptor)
        file = await self._wrapped_for_others(file)
        for _ in range(_TRIES):
            current = await self._head(file.name)
            etag = "" if current is None else current.etag
            target, properties = file.name, file.properties
            if etag != file.etag and not overwrite:
                target, etag = file.aside, ""
                properties = replace(properties, tags=None, tier=None)
            try:
                version = await self._commit(target, etag, properties, file, descriptor)
            except (ConditionFailed, AlreadyExists, NotFound):
                if await self._stored_at(file):
                    break
                continue  # somebody came between: look again
            await self._confirm(target, version, file)
            break
        else:
            raise RecoveryError(f"{file.name!r} is being changed by others over and over")
        _remove(file.path)
        if target == file.name:
            return f"stored as {target!r}"
        return f"stored beside the version that others made, as {target!r}"

    async def _wrapped_for_others(self, file: RecoveryFile) -> RecoveryFile:
        """In the standby form (FORMAT.md section 3) only blobfs could read it."""
        data = EncryptionData.parse(file.properties.metadata[METADATA_KEY])
        if split_standby(data.wrapped) is None:
            return file
        wrapped = await self._keyring.wrap(await self._keyring.unwrap(data.wrapped))
        value = replace(data, wrapped=wrapped).serialize()
        metadata = {**file.properties.metadata, METADATA_KEY: value}
        return replace(file, properties=replace(file.properties, metadata=metadata))

    async def _commit(
        self, target: str, etag: str, properties: Properties, file: RecoveryFile, descriptor: int
    ) -> Version:
        common: dict[str, Any] = {
            "metadata": properties.metadata,
            "headers": replace(properties.headers, content_md5=""),
            "tags": properties.tags,
            "tier": properties.tier,
            "if_match": etag or None,
            "if_none_match": not etag,
        }
        if file.blob_size <= SINGLE_PUT:
            body = os.pread(descriptor, file.blob_size, 0)
            return await self._timed(lambda: self._container.put(target, body, **common))
        block_ids = await self._stage(target, file, descriptor)
        return await self._timed(
            lambda: self._container.put_block_list(target, block_ids, **common)
        )

    async def _stage(self, target: str, file: RecoveryFile, descriptor: int) -> list[str]:
        length = max(BLOCK, math.ceil(file.blob_size / MAX_BLOCKS))
        offsets = range(0, file.blob_size, length)
        block_ids = _block_ids(file, len(offsets))
        limiter = trio.CapacityLimiter(_UPLOADS)

        async def put(number: int, offset: int) -> None:
            async with limiter:
                body = os.pread(descriptor, min(length, file.blob_size - offset), offset)
                await self._timed(
                    lambda: self._container.put_block(target, block_ids[number], body)
                )

        async with trio.open_nursery() as nursery:
            for number, offset in enumerate(offsets):
                nursery.start_soon(put, number, offset)
        return block_ids

    async def _confirm(self, target: str, version: Version, file: RecoveryFile) -> None:
        info = await self._head(target)
        if info is None or (info.etag, info.size) != (version.etag, file.blob_size):
            raise RecoveryError(
                f"{target!r} was stored, but somebody has replaced it: {file.path.name} is left"
            )

    # Content

    async def _verify(self, file: RecoveryFile, descriptor: int) -> None:
        """Raises ContentError for content that the key does not open just as it was sealed."""
        body = await self._open(file.properties.metadata, file.blob_size)
        step = max(1, _CHUNK // body.unit) * body.unit
        for offset in range(0, max(1, file.plain_size), step):
            await self._plain(body, _from_disk(descriptor), offset, step)

    async def _open(self, metadata: Any, blob_size: int) -> BodyReader:
        value, seal = value_of(metadata, METADATA_KEY), value_of(metadata, SEAL_KEY)
        data = EncryptionData.parse(value or "")
        cek = await self._keyring.content_key(data)
        size = None
        if seal is not None:
            kind = kind_of(metadata, blob_size)
            check_seal(seal, cek, data, blob_size, seal_kind(kind))
            size = sealed_size(seal)
        return open_body(data, cek, blob_size, size)

    async def _plain(
        self, body: BodyReader | PlainBody, fetch: Fetch, offset: int, size: int
    ) -> bytes:
        """The plaintext from `offset`, fewer than `size` bytes only where it ends."""
        assert body.plain_size is not None
        stop = min(offset + size, body.plain_size)
        if stop <= offset and offset:
            return b""
        first, last = offset // body.unit, max(0, stop - 1) // body.unit
        start, end = body.blob_range(first, last)
        ciphertext = await fetch(start, end)
        plain = await trio.to_thread.run_sync(body.decrypt, first, ciphertext)
        skip = offset - first * body.unit
        return bytes(plain[skip : skip + stop - offset])

    async def _fill(self, file: RecoveryFile, descriptor: int) -> Path:
        """A new recovery file without unknown ranges, filled from the version below."""
        base = await self._head(file.name)
        if base is None or base.etag != file.etag:
            missing = sum(size for _, size in file.unknown)
            raise RecoveryError(
                f"{file.path.name} lacks {missing} bytes of the version of {file.name!r} that it "
                "was to replace, which is not there any more: --accept-holes stores zeros for them"
            )
        body = await self._open(file.properties.metadata, file.blob_size)
        below = await self._open_base(base)

        async def read(offset: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
            plain = bytearray(await self._plain(body, _from_disk(descriptor), offset, size))
            for start, length in file.unknown:
                first, last = max(start, offset), min(start + length, offset + size)
                if first < last:
                    known = await self._plain(below, fetch, first, last - first)
                    plain[first - offset : first - offset + len(known)] = known
            return bytes(plain), []

        async def fetch(start: int, stop: int) -> Buffer:
            return await self._fetch(base, start, stop)

        properties = file.properties
        kept = {k: v for k, v in properties.metadata.items() if k not in (METADATA_KEY, SEAL_KEY)}
        return await keep_for_recovery(
            file.path.parent,
            container_url=file.container_url,
            name=file.name,
            etag=file.etag,
            kind=kind_of(properties.metadata, file.blob_size),
            size=file.plain_size,
            read=read,
            properties=replace(properties, metadata=kept),
            keyring=self._keyring,
            policy=self._policy,
            reason=file.reason,
        )

    async def _open_base(self, base: BlobInfo) -> BodyReader | PlainBody:
        if value_of(base.metadata, METADATA_KEY) is None:
            return PlainBody(base.size)
        body = await self._open(base.metadata, base.size)
        if body.plain_size is None:
            start, stop = body.tail_range()
            body.settle_size(await self._fetch(base, start, stop))
        return body

    @contextmanager
    def _filled_in(self, filled: Path, path: Path) -> Iterator[int]:
        """Put the filled file in the place of the old one."""
        with locked(filled):
            filled.replace(path)
            with path.open("rb") as file:
                yield file.fileno()

    async def _fetch(self, info: BlobInfo, start: int, stop: int) -> Buffer:
        if start == stop:
            return b""
        _, data = await self._timed(
            lambda: self._container.get(info.name, start, stop, if_match=info.etag)
        )
        return data

    async def _head(self, name: str) -> BlobInfo | None:
        try:
            return await self._timed(lambda: self._container.head(name))
        except NotFound:
            return None

    async def _timed(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(self._timeout):
                return await request()
        except trio.TooSlowError:
            raise Unavailable(f"no answer within {self._timeout:g} s") from None


def _block_ids(file: RecoveryFile, count: int) -> list[str]:
    """As long as those of `writer`, whose blocks a failed close may have left uncommitted: a blob
    has ids of one length. The same each time, so that an upload that was cut short is staged
    over, and no other content's."""
    mark = hashlib.sha256(file.seal.encode()).hexdigest()[:16]
    return [base64.b64encode(f"blobfs-{mark}-{n:08d}".encode()).decode() for n in range(count)]


def _from_disk(descriptor: int) -> Fetch:
    async def fetch(start: int, stop: int) -> bytes:
        return await trio.to_thread.run_sync(os.pread, descriptor, stop - start, start)

    return fetch


def _is_stored(info: BlobInfo | None, file: RecoveryFile) -> bool:
    return (
        info is not None
        and info.size == file.blob_size
        and value_of(info.metadata, SEAL_KEY) == file.seal
    )
