"""Bodies of protocol 1.0: one AES-256-CBC chain with PKCS#7 padding (FORMAT.md section 4).

The format authenticates nothing. To be no more of a padding oracle (CVE-2022-30187) than it
must, every failure here is the same exception with the same message.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from blobfs.envelope.data import EncryptionData
from blobfs.errors import Corrupt

BLOCK = 16
UNIT = 64 * 1024


def cbc_blob_size(plain_size: int) -> int:
    return plain_size + BLOCK - plain_size % BLOCK


def _refused() -> Corrupt:
    return Corrupt("the body does not decrypt")


class CbcReader:
    """A `BodyReader` (see body.py)."""

    unit = UNIT

    def __init__(
        self,
        data: EncryptionData,
        cek: bytes,
        blob_size: int,
        plain_size: int | None,
        *,
        padded: bool,
    ) -> None:
        if blob_size % BLOCK or (padded and blob_size == 0):
            raise _refused()
        if not padded:
            plain_size = blob_size
        elif plain_size is not None and cbc_blob_size(plain_size) != blob_size:
            raise _refused()
        self.blob_size = blob_size
        self.plain_size = plain_size
        self._iv = data.iv
        self._cek = cek
        self._padded = padded

    def tail_range(self) -> tuple[int, int]:
        if self.plain_size is not None:
            return self.blob_size, self.blob_size
        return max(0, self.blob_size - 2 * BLOCK), self.blob_size

    def settle_size(self, tail: bytes | bytearray | memoryview) -> int:
        if self.plain_size is None:
            start, stop = self.tail_range()
            view = memoryview(tail)
            if len(view) != stop - start:
                raise _refused()
            iv, last = (self._iv, view) if start == 0 and stop == BLOCK else _chain(view)
            self.plain_size = self.blob_size - BLOCK + len(_unpad(self._decrypt(iv, last)))
        return self.plain_size

    def blob_range(self, first: int, last: int) -> tuple[int, int]:
        stop = min((last + 1) * UNIT, self.blob_size)
        if self.plain_size is not None and stop >= self.plain_size:
            stop = self.blob_size  # padding alone may follow the last unit
        return max(0, first * UNIT - BLOCK), stop

    def decrypt(self, first: int, ciphertext: bytes | bytearray | memoryview) -> memoryview:
        view = memoryview(ciphertext)
        iv, view = (self._iv, view) if first == 0 else _chain(view)
        stop = first * UNIT + len(view)
        if stop > self.blob_size or (len(view) % UNIT and stop != self.blob_size):
            raise _refused()
        plain = self._decrypt(iv, view)
        if self._padded and stop == self.blob_size:
            plain = _unpad(plain)
            if self.plain_size is not None and first * UNIT + len(plain) != self.plain_size:
                raise _refused()
        return memoryview(plain)

    def decrypt_into(
        self, first: int, ciphertext: bytes | bytearray | memoryview, into: memoryview
    ) -> int:
        plain = self.decrypt(first, ciphertext)
        into[: len(plain)] = plain
        return len(plain)

    def _decrypt(self, iv: bytes | memoryview, ciphertext: memoryview) -> bytes:
        cipher = Cipher(algorithms.AES(self._cek), modes.CBC(bytes(iv))).decryptor()
        return cipher.update(ciphertext) + cipher.finalize()


def _chain(view: memoryview) -> tuple[memoryview, memoryview]:
    """In CBC the block before a block is its IV."""
    if len(view) < BLOCK:
        raise _refused()
    return view[:BLOCK], view[BLOCK:]


def _unpad(plain: bytes) -> bytes:
    unpadder = PKCS7(8 * BLOCK).unpadder()
    try:
        return unpadder.update(plain) + unpadder.finalize()
    except ValueError:
        raise _refused() from None


class CbcWriter:
    """Encrypts one body under one CEK and IV, in order."""

    unit = BLOCK

    def __init__(self, cek: bytes, iv: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(cek), modes.CBC(iv)).encryptor()

    def encrypt(self, plain: Sequence[memoryview], *, final: bool) -> bytearray:
        """Only the last of the buffers may end within a cipher block."""
        last = plain[-1] if plain else memoryview(b"")
        rest = len(last) % BLOCK
        whole = sum(map(len, plain)) - rest
        out = bytearray(whole + BLOCK - 1)  # update_into asks for this much room
        target = memoryview(out)
        written = 0
        for view in (*plain[:-1], last[: len(last) - rest]):
            written += self._cipher.update_into(view, target[written:])
        target.release()
        out[written:] = self._cipher.update(_pad(bytes(last[len(last) - rest :]))) if final else b""
        return out


def _pad(rest: bytes) -> bytes:
    padder = PKCS7(8 * BLOCK).padder()
    return padder.update(rest) + padder.finalize()
