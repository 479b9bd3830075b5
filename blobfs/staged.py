"""What of a draft was encrypted and sent already, before the file is closed.

Its plaintext is not kept beside it: the ciphertext, in memory or in the spool, is decrypted again
in the rare case that someone reads or changes what was just written, or that it must become a
recovery file. So each byte of a long write is encrypted once and reaches the disk at most once.
"""

import errno
from bisect import bisect_right

from blobfs.envelope import BodyReader, BodyWriter
from blobfs.errors import Corrupt, PosixError
from blobfs.spool import Spool, SpoolFile


class Staged:
    """The plaintext `[0, size)` of one body that is being written.

    Protocol 2.x notices when the disk returns other bytes than it was given, 1.0 does not.
    """

    def __init__(self, spool: Spool, body: BodyWriter) -> None:
        self._spool = spool
        self._body = body
        self._starts: list[int] = []  # of each block in the blob
        self._blocks: list[bytearray | None] = []  # None: in the file
        self.bytes_held = 0
        self._file: SpoolFile | None = None
        self._reader: BodyReader | None = None
        self.size = 0

    def add(self, ciphertext: bytearray) -> int:
        """Keep the next block, which the body has just encrypted; its index."""
        self._starts.append(self.bytes_held)
        self._blocks.append(ciphertext)
        self.bytes_held += len(ciphertext)
        self._reader = None
        self.size = self._body.plain_size
        return len(self._blocks) - 1

    def read(self, offset: int, size: int) -> memoryview:
        """Raises PosixError(EIO) when the disk does not return what was stored."""
        if self._reader is None:
            self._reader = self._body.reader(self.bytes_held)
        unit = self._reader.unit
        first, last = offset // unit, (offset + size - 1) // unit
        try:
            plain = self._reader.decrypt(
                first, self._ciphertext(*self._reader.blob_range(first, last))
            )
        except Corrupt as exc:
            raise PosixError(errno.EIO, f"the spool lost a block: {exc}") from exc
        return plain[offset - first * unit :][:size]

    def spill(self, index: int) -> int:
        """Move a block to the file; bytes of memory freed. Raises PosixError(ENOSPC)."""
        block = self._blocks[index]
        assert block is not None
        if self._file is None:
            self._file = self._spool.new_file()
        self._file.write(block, self._starts[index])
        self._blocks[index] = None
        return len(block)

    def discard(self) -> list[tuple[int, int]]:
        """Let go of all of it; (index, bytes) of the blocks that were in memory."""
        in_memory = [(i, len(block)) for i, block in enumerate(self._blocks) if block is not None]
        self._starts, self._blocks = [], []
        if self._file is not None:
            self._file.close()
            self._file = None
        return in_memory

    def _ciphertext(self, start: int, stop: int) -> bytes:
        parts: list[bytes | memoryview] = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            begin, block = self._starts[index], self._blocks[index]
            end = self.bytes_held if index + 1 == len(self._starts) else self._starts[index + 1]
            upto = min(stop, end)
            if block is not None:
                parts.append(memoryview(block)[start - begin : upto - begin])
            else:
                assert self._file is not None
                parts.append(self._file.read(start, upto - start))
            start, index = upto, index + 1
        return b"".join(parts)
