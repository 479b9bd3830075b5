"""Bodies of protocols 2.0 and 2.1: regions of AES-256-GCM (FORMAT.md section 5).

Region i is nonce(12) ‖ ciphertext ‖ tag(16). Its nonce is a counter, in one of three encodings.
"""

import itertools
import threading
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blobfs.envelope.data import NONCE_LENGTH, EncryptionData
from blobfs.errors import Corrupt, Truncated

TAG_LENGTH = 16
OVERHEAD = NONCE_LENGTH + TAG_LENGTH

Encoding = Callable[[int], bytes]
Ciphertext = bytes | bytearray | memoryview


def python_nonce(index: int) -> bytes:
    return index.to_bytes(NONCE_LENGTH, "big")


def java_nonce(index: int) -> bytes:
    return index.to_bytes(8, "big") + bytes(4)


def dotnet_nonce(index: int) -> bytes:
    return bytes(4) + (index + 1).to_bytes(8, "little")


_ENCODINGS: frozenset[Encoding] = frozenset({python_nonce, java_nonce, dotnet_nonce})


def gcm_plain_size(region_length: int, blob_size: int) -> int:
    """Raises Truncated for a length that no sequence of regions has."""
    regions, rest = divmod(blob_size, region_length + OVERHEAD)
    if rest == 0:
        return regions * region_length
    if rest < OVERHEAD:
        raise Truncated(f"a body of {blob_size} bytes ends inside a region's nonce or tag")
    return blob_size - (regions + 1) * OVERHEAD


def gcm_blob_size(region_length: int, plain_size: int) -> int:
    return plain_size + -(-plain_size // region_length) * OVERHEAD


class GcmRegions:
    """Where the regions of a body lie: `Regions` (see body.py), which no key is needed for."""

    def __init__(self, region_length: int, blob_size: int) -> None:
        """Raises Truncated for a length that no sequence of regions has."""
        self.unit = region_length
        self.blob_size = blob_size
        self.plain_size: int | None = gcm_plain_size(region_length, blob_size)
        self._stride = region_length + OVERHEAD

    def blob_range(self, first: int, last: int) -> tuple[int, int]:
        stop = (last + 1) * self._stride
        if self.blob_size - stop <= OVERHEAD:  # an empty region may follow the last unit
            stop = self.blob_size
        return first * self._stride, stop


class GcmReader(GcmRegions):
    """A `BodyReader` (see body.py). Its methods may run in several threads at once."""

    def __init__(self, data: EncryptionData, cek: bytes, blob_size: int) -> None:
        super().__init__(data.region_length, blob_size)
        self._aes = AESGCM(cek)
        self._encodings = _ENCODINGS
        self._settling = threading.Lock()

    def tail_range(self) -> tuple[int, int]:
        return self.blob_size, self.blob_size

    def settle_size(self, tail: bytes | bytearray | memoryview) -> int:
        assert self.plain_size is not None
        return self.plain_size

    def decrypt(self, first: int, ciphertext: Ciphertext) -> memoryview:
        regions = -(-len(ciphertext) // self._stride)
        plain = memoryview(bytearray(max(0, len(ciphertext) - regions * OVERHEAD)))
        self.decrypt_into(first, ciphertext, plain)
        return plain.toreadonly()

    def decrypt_into(self, first: int, ciphertext: Ciphertext, into: memoryview) -> int:
        view = memoryview(ciphertext)
        size = len(view)
        stop = first * self._stride + size
        if stop > self.blob_size or (size % self._stride and stop != self.blob_size):
            raise Truncated(f"{size} bytes from region {first} on are not whole regions")
        encodings, decrypt_into = self._encodings, self._aes.decrypt_into
        start = 0
        for index, offset in enumerate(range(0, size, self._stride), first):
            end = min(offset + self._stride, size)
            nonce = view[offset : offset + NONCE_LENGTH].tobytes()
            if any(encode(index) != nonce for encode in encodings):
                encodings = frozenset(encode for encode in encodings if encode(index) == nonce)
            if not encodings:
                raise Corrupt(f"region {index} is not in its place: its nonce is another one's")
            stop = start + end - offset - OVERHEAD
            try:
                decrypt_into(nonce, view[offset + NONCE_LENGTH : end], None, into[start:stop])
            except InvalidTag:
                raise Corrupt(f"region {index} fails authentication") from None
            start = stop
        self._settle(encodings)
        return start

    def _settle(self, encodings: frozenset[Encoding]) -> None:
        """Keep only what fits; after the tags were checked, since until then nonces prove nothing.

        Another thread may have settled on another encoding meanwhile.
        """
        with self._settling:
            self._encodings &= encodings
            if not self._encodings:
                raise Corrupt("the regions mix several nonce encodings")


class GcmWriter:
    """Encrypts one body under one CEK. No nonce is ever used twice, whatever the caller does."""

    def __init__(self, cek: bytes, region_length: int) -> None:
        self.unit = region_length
        self._aes = AESGCM(cek)
        self._indices = itertools.count()

    def encrypt(self, plain: Sequence[memoryview], *, final: bool) -> bytearray:
        """Only the last of the buffers may end within a region."""
        out = bytearray(sum(gcm_blob_size(self.unit, len(view)) for view in plain))
        regions = (
            view[offset : offset + self.unit]
            for view in plain
            for offset in range(0, len(view), self.unit)
        )
        with memoryview(out) as target:
            start = 0
            for region in regions:
                nonce = python_nonce(next(self._indices))
                stop = start + len(region) + OVERHEAD
                target[start : start + NONCE_LENGTH] = nonce
                self._aes.encrypt_into(nonce, region, None, target[start + NONCE_LENGTH : stop])
                start = stop
        return out
