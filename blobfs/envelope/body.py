"""Bodies of every protocol behind one interface: sizes, ranges, decrypting, encrypting."""

import secrets
import typing

from blobfs.envelope.cbc import CbcReader, CbcWriter
from blobfs.envelope.cek import new_cek, pack_cek
from blobfs.envelope.data import (
    IV_LENGTH,
    MAX_REGION_LENGTH,
    MIN_REGION_LENGTH,
    REGION_LENGTH_2_0,
    EncryptionData,
    Protocol,
    WrappedKey,
)
from blobfs.envelope.gcm import GcmReader, GcmRegions, GcmWriter
from blobfs.envelope.seal import make_seal
from blobfs.errors import Corrupt, Truncated


class Regions(typing.Protocol):
    """Where the units of one version of one blob's body lie.

    Unit i is the plaintext `[i * unit, (i + 1) * unit)`; only the last one is shorter.
    """

    blob_size: int
    plain_size: int | None
    """None while it is not known, which happens in protocol 1.0 only: see `settle_size`."""

    @property
    def unit(self) -> int:
        """Plaintext bytes per unit: the region length, or 64 KiB for protocol 1.0."""

    def blob_range(self, first: int, last: int) -> tuple[int, int]:
        """The bytes `[start, stop)` of the blob that decrypt to the units first..last.

        A body without plaintext has no units, and `(0, 0)` asks for all of it: an empty region
        or a block of padding, which `decrypt` then checks.
        """


class BodyReader(Regions, typing.Protocol):
    """Its body, decrypted unit by unit from ciphertext that others fetch."""

    def decrypt(self, first: int, ciphertext: bytes | bytearray | memoryview) -> memoryview:
        """The plaintext of the units, from `first` on, in just the bytes that such a range gave.

        Protocol 2.x: every tag and the order of the regions were checked, else it raises Corrupt,
        or Truncated when `ciphertext` is not whole regions. The nonce encoding that fits is
        remembered, so one reader never accepts a mixture. Protocol 1.0: nothing can be checked
        but the padding at the end; every failure is the same Corrupt.
        """

    def decrypt_into(
        self, first: int, ciphertext: bytes | bytearray | memoryview, into: memoryview
    ) -> int:
        """As `decrypt`, into memory that is large enough; how many bytes. What is there after an
        exception is nothing to rely on."""

    def tail_range(self) -> tuple[int, int]:
        """The bytes `[start, stop)` of the blob that `settle_size` needs; none once it is known."""

    def settle_size(self, tail: bytes | bytearray | memoryview) -> int:
        """Set and return `plain_size`, from the bytes of `tail_range`. Raises Corrupt."""


def open_body(
    data: EncryptionData,
    cek: bytes,
    blob_size: int,
    plain_size: int | None = None,
    *,
    padded: bool = True,
) -> BodyReader:
    """A reader of the body of `blob_size` bytes of ciphertext.

    `plain_size` is what the caller knows already (a checked seal, an earlier `settle_size`);
    `padded` is False for page blobs, which protocol 1.0 does not pad. Raises Truncated for a
    length that protocol 2.x does not have, Corrupt for one of 1.0 or another `plain_size`.
    """
    if data.protocol is Protocol.V1_0:
        return CbcReader(data, cek, blob_size, plain_size, padded=padded)
    body = GcmReader(data, cek, blob_size)
    if plain_size not in (None, body.plain_size):
        raise Corrupt(f"{blob_size} bytes of ciphertext are not {plain_size} bytes of plaintext")
    return body


def regions_of(data: EncryptionData, blob_size: int) -> Regions | None:
    """What can be told of the body before its key is known: nothing of protocol 1.0, nor of a body
    of a length that no regions have."""
    if data.protocol is Protocol.V1_0:
        return None
    try:
        return GcmRegions(data.region_length, blob_size)
    except Truncated:
        return None


class BodyWriter:
    """One body for one commit, encrypted front to back under a CEK of its own.

    Whatever the caller does, no (CEK, nonce) pair meets two plaintexts: the CEK is born and dies
    here, and every byte that goes in comes out encrypted in a place of its own. To encrypt
    something again, make another writer; to send something again, send the same ciphertext.
    """

    def __init__(self, protocol: Protocol, region_length: int) -> None:
        """`region_length` is plaintext bytes per region. Protocol 1.0 has none and ignores it;
        2.0 takes only 4 MiB, which readers of it may rely on. Raises ValueError."""
        self.protocol = protocol
        self._cek = new_cek()
        self._writer: GcmWriter | CbcWriter
        if protocol is Protocol.V1_0:
            self._region_length, self._iv = 0, secrets.token_bytes(IV_LENGTH)
            self._writer = CbcWriter(self._cek, self._iv)
        else:
            if not MIN_REGION_LENGTH <= region_length <= MAX_REGION_LENGTH:
                raise ValueError(f"region length {region_length} is not in 16..2**30")
            if protocol is Protocol.V2_0 and region_length != REGION_LENGTH_2_0:
                raise ValueError(f"protocol 2.0 has regions of {REGION_LENGTH_2_0} bytes only")
            self._region_length, self._iv = region_length, b""
            self._writer = GcmWriter(self._cek, region_length)
        self.unit = self._writer.unit
        """Plaintext bytes of which every piece but the final one must be a multiple."""
        self.plain_size = 0
        self.blob_size = 0
        self._accepts = True
        self._finished = False

    @property
    def cek_payload(self) -> bytes:
        """What the KEK must wrap. Secret."""
        return pack_cek(self.protocol, self._cek)

    def encrypt(self, *plain: bytes | bytearray | memoryview, final: bool) -> bytearray:
        """The ciphertext of the next piece, to be stored right after that of the one before.

        The piece may lie in several buffers. Raises ValueError for a piece that is not whole
        units before the final one, and for anything after the final one or after a failure: what
        was given may be encrypted by then.
        """
        views = [memoryview(part).cast("B") for part in plain]
        size = sum(map(len, views))
        if not self._accepts:
            raise ValueError("this body is finished or failed; encrypt again with a new writer")
        if not final and size % self.unit:
            raise ValueError(f"{size} bytes are not a multiple of {self.unit}")
        if any(len(view) % self.unit for view in views[:-1]):
            views = [memoryview(b"".join(views))]
        self._accepts = False
        out = self._writer.encrypt(views, final=final)
        self.plain_size += size
        self.blob_size += len(out)
        self._accepts, self._finished = not final, final
        return out

    def reader(self, blob_size: int) -> BodyReader:
        """Decrypts the first `blob_size` bytes of ciphertext, whole pieces before the final one."""
        nobody = WrappedKey("", "", b"")
        return open_body(self.encryption_data(nobody), self._cek, blob_size, padded=False)

    def encryption_data(self, wrapped: WrappedKey) -> EncryptionData:
        """The metadata of this body, given `cek_payload` wrapped."""
        return EncryptionData(self.protocol, wrapped, self._region_length, self._iv)

    def seal(self, kind: str) -> str:
        """The seal's metadata value. Raises ValueError before the final piece."""
        if not self._finished:
            raise ValueError("a body is sealed after its final piece")
        return make_seal(
            self._cek,
            protocol=self.protocol,
            region_length=self._region_length,
            iv=self._iv,
            plain_size=self.plain_size,
            blob_size=self.blob_size,
            kind=kind,
        )
