"""Contents read front to back, each byte fetched once, in bounded memory."""

import hashlib
import secrets

from blobfs.content import Content
from blobfs.envelope import Protocol
from blobfs.reader import Reach, Reader, ReadPolicy

STEP = 4 * 1024 * 1024
"""Bytes of plaintext read at a time, but never a part of a region."""

READ_AHEAD = 4 * 1024 * 1024


def read_policy(
    workers: int,
    timeout: float,
    *,
    plaintext: bool,
    require_seal: bool = False,
    min_protocol: Protocol = Protocol.V1_0,
) -> ReadPolicy:
    """Read whatever can be read and is not refused, with room for all workers' data."""
    return ReadPolicy(
        require_encryption=not plaintext,
        require_seal=require_seal,
        min_protocol=min_protocol,
        cache_size=workers * (STEP + 2 * READ_AHEAD),
        readahead=READ_AHEAD,
        timeout=timeout,
    )


class Sequential:
    """The plaintext of one content, and its digest as far as it has been read."""

    def __init__(self, reader: Reader, content: Content) -> None:
        self._reader = reader
        self._content = content
        # The cache goes by content keys, which copies of a blob share: each is to be read itself.
        content.identity = (content.info.name, secrets.token_bytes(16))
        self._reach = Reach()
        unit = content.unit
        self._step = max(1, STEP // unit) * unit
        self._fetched = 0
        self._ahead = bytearray()
        self._digest = hashlib.sha256()

    async def read(self, offset: int, size: int) -> bytes:
        """The next `size` bytes, fewer at the end; `offset` is where the last read ended.

        Raises ServiceError, and Corrupt for what fails authentication.
        """
        assert offset == self._fetched - len(self._ahead)
        while len(self._ahead) < size and self._fetched < self._content.size:
            self._ahead += await self._fetch()
        piece = bytes(self._ahead[:size])
        del self._ahead[:size]
        return piece

    async def digest(self) -> bytes:
        """The SHA-256 of all of it, after reading what has not been read yet."""
        self._ahead.clear()
        while self._fetched < self._content.size:
            await self._fetch()
        return self._digest.digest()

    async def _fetch(self) -> bytes | memoryview:
        piece = await self._reader.read(self._content, self._reach, self._fetched, self._step)
        self._fetched += len(piece)
        self._digest.update(piece)
        return piece
