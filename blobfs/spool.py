"""What is not stored yet and does not fit in memory, on disk and encrypted.

Pages lie in one unlinked file a mount. Its key exists in this process only, so that after a crash
nobody can read what the disk still holds. Each store uses the next number of a counter as its
nonce, so no (key, nonce) pair is used twice; a page that is stored again gets a new one. What is
ciphertext already gets a `SpoolFile` of its own.
"""

import errno
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blobfs.errors import PosixError

_TAG = 16

_WRITE = 256 * 1024
"""Bytes written at a time: on Linux 6.18 in a VM, 1 GiB took 0.3 s, and in pieces of 8 MiB 3.6 s,
most likely as the page cache then takes large folios, which the host has taken back."""


class Slot:
    """Where a stored page lies."""

    __slots__ = ("index", "length", "nonce")

    def __init__(self, index: int, length: int, nonce: bytes) -> None:
        self.index = index
        self.length = length
        self.nonce = nonce


class Spool:
    """Pages of at most `page_size` bytes, `limit` bytes in all. The file is made on first use."""

    def __init__(self, directory: Path, page_size: int, limit: int) -> None:
        self._directory = directory
        self._slot_size = page_size + _TAG
        self._limit = limit
        self._aead = AESGCM(AESGCM.generate_key(256))
        self._stores = 0
        self._file = -1
        self._free: list[int] = []
        self._slots = 0  # that the file has, used or free
        self._claimed = 0  # bytes in files of their own

    @property
    def bytes_used(self) -> int:
        return (self._slots - len(self._free)) * self._slot_size + self._claimed

    def new_file(self) -> "SpoolFile":
        """Raises PosixError(ENOSPC) when the directory cannot hold one."""
        return SpoolFile(self, self._open())

    def claim(self, size: int) -> None:
        """Account for bytes of a `SpoolFile`. Raises PosixError(ENOSPC) over the limit."""
        if self._slots * self._slot_size + self._claimed + size > self._limit:
            raise PosixError(errno.ENOSPC, "the spool has reached spool_size")
        self._claimed += size

    def release(self, size: int) -> None:
        self._claimed -= size

    def store(self, page: bytes | bytearray | memoryview) -> Slot:
        """Raises PosixError(ENOSPC) when the spool or its disk is full."""
        if self._file < 0:
            self._file = self._open()
        if not self._free:
            self.claim(self._slot_size)
            self.release(self._slot_size)
        index = self._free[-1] if self._free else self._slots
        self._stores += 1
        nonce = self._stores.to_bytes(12, "big")
        data = self._aead.encrypt(nonce, page, None)
        self.write(self._file, data, index * self._slot_size)
        if self._free:
            self._free.pop()
        else:
            self._slots += 1
        return Slot(index, len(data), nonce)

    def load(self, slot: Slot) -> bytearray:
        """Raises PosixError(EIO) when the disk does not return what was stored."""
        try:
            data = os.pread(self._file, slot.length, slot.index * self._slot_size)
            return bytearray(self._aead.decrypt(slot.nonce, data, None))
        except (OSError, InvalidTag) as exc:
            raise PosixError(
                errno.EIO, f"the spool in {self._directory} lost a page: {exc!r}"
            ) from exc

    def free(self, slot: Slot) -> None:
        self._free.append(slot.index)
        if len(self._free) == self._slots:
            self._free.clear()
            self._slots = 0
            os.ftruncate(self._file, 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:  # a file system without O_TMPFILE, such as overlayfs before 6.x
                descriptor, path = tempfile.mkstemp(prefix="blobfs-spool-", dir=self._directory)
                os.unlink(path)
                return descriptor
        except OSError as exc:
            raise PosixError(
                errno.ENOSPC, f"cannot make a spool file in {self._directory}: {exc.strerror}"
            ) from exc

    def write(self, descriptor: int, data: bytes | bytearray, offset: int) -> None:
        """Raises PosixError(ENOSPC) for whatever the disk says."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(descriptor, view[:_WRITE], offset)
                view = view[written:]
                offset += written
        except OSError as exc:
            raise PosixError(
                errno.ENOSPC, f"cannot write to the spool in {self._directory}: {exc.strerror}"
            ) from exc


class SpoolFile:
    """An unlinked file for one body's ciphertext, at the offsets that it has in the blob."""

    def __init__(self, spool: Spool, descriptor: int) -> None:
        self._spool = spool
        self._descriptor = descriptor
        self._size = 0

    def write(self, data: bytearray, offset: int) -> None:
        """Raises PosixError(ENOSPC) when the spool or its disk is full."""
        self._spool.claim(len(data))
        try:
            self._spool.write(self._descriptor, data, offset)
        except BaseException:
            self._spool.release(len(data))
            raise
        self._size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Raises PosixError(EIO)."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as exc:
            raise PosixError(errno.EIO, f"the spool lost a block: {exc.strerror}") from exc
        if len(data) != size:
            raise PosixError(errno.EIO, "the spool lost the end of a block")
        return data

    def close(self) -> None:
        os.close(self._descriptor)
        self._spool.release(self._size)
