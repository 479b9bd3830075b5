"""Recovery files read back: what they hold, storing it, and getting rid of them.

The format is in `recovery`. A file is removed only after the service has shown that it has the
content; until then every step can be cut short and done again:

- one process at a time works on a file, by a lock that ends with the process;
- content that is stored already is known by its seal, which belongs to one commit;
- a conflict copy is named after the recovery file, so that there is one however often it is tried;
- ranges that are unknown are filled in on disk first, in a file that takes the old one's place.
"""

import base64
import fcntl
import hashlib
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from blobfs.attributes import kind_of, value_of
from blobfs.blobs import BlobInfo, Buffer, Container, Version
from blobfs.content import PlainBody
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
from blobfs.names import marked
from blobfs.recovery import (
    SUFFIX,
    RecoveryFile,
    attempt_mark,
    is_being_written,
    keep_for_recovery,
    parse_open_file,
    sync_directory,
)
from blobfs.writer import BLOCK, MAX_BLOCKS, SINGLE_PUT, Properties, WritePolicy, seal_kind

_CHUNK = 4 * 1024 * 1024
_UPLOADS = 4
_TRIES = 3

T = TypeVar("T")

Fetch = Callable[[int, int], Awaitable[Buffer]]


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
        return "unchanged since" if _is_expected(current, file) else "changed since"

    async def upload(self, path: Path, *, overwrite: bool, accept_holes: bool) -> str:
        """Store the file's content, remove the file; what was done, in words.

        Raises RecoveryError, or what the service, the key or the disk say; the file is left then.
        """
        with locked(path) as descriptor:
            file = parse_open_file(path, descriptor)
            if file.unknown and not accept_holes and not await self._stored_at(file):
                with self._filled_in(await self._fill(file, descriptor), path) as filled:
                    return await self._store(
                        parse_open_file(path, filled), filled, overwrite=overwrite
                    )
            return await self._store(file, descriptor, overwrite=overwrite)

    async def _stored_at(self, file: RecoveryFile) -> str:
        """The name under which the content is stored already, "" for none."""
        for name in (file.name, _aside(file)):
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
            if not (_is_expected(current, file) or overwrite):
                target, etag = _aside(file), ""
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
        if base is None or not _is_expected(base, file):
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
            attempts=[*file.attempts],
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


def _aside(file: RecoveryFile) -> str:
    """The name of its conflict copy."""
    return marked(file.name, CONFLICT_MARK + file.path.name.removesuffix(SUFFIX))


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


def _is_expected(info: BlobInfo | None, file: RecoveryFile) -> bool:
    """Whether it is the version that the content was to replace, or what the same mount put in
    its place without hearing of it; what shows of the one below the content is in both."""
    if info is None:
        return not file.etag
    mark = attempt_mark(value_of(info.metadata, METADATA_KEY) or "")
    return info.etag == file.etag or mark in file.attempts


def _is_stored(info: BlobInfo | None, file: RecoveryFile) -> bool:
    return (
        info is not None
        and info.size == file.blob_size
        and value_of(info.metadata, SEAL_KEY) == file.seal
    )
