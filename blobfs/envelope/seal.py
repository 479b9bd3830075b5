"""The seal: what Azure's format leaves open, authenticated (FORMAT.md section 6).

A metadata value of blobfs's own. Other tools ignore it.
"""

import hmac
import re

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blobfs.envelope.data import EncryptionData, Protocol, encode_base64
from blobfs.envelope.sizes import blob_size_of
from blobfs.errors import Corrupt, Truncated

SEAL_KEY = "blobfs_seal"

_KINDS = {"file": b"file", "symlink": b"symlink"}
_VALUE = re.compile(r"1:(0|[1-9][0-9]{0,17}):[A-Za-z0-9+/]{43}=")
_HKDF_INFO = b"blobfs seal v1"


def make_seal(
    cek: bytes,
    *,
    protocol: Protocol,
    region_length: int,
    iv: bytes,
    plain_size: int,
    blob_size: int,
    kind: str,
) -> str:
    """The metadata value `1:<plain_size>:<base64 of the MAC>`; `kind` is "file" or "symlink"."""
    message = b"".join(
        (
            protocol.encode().ljust(8, b"\0"),
            region_length.to_bytes(8, "big"),
            iv.ljust(16, b"\0"),
            plain_size.to_bytes(8, "big"),
            blob_size.to_bytes(8, "big"),
            _KINDS[kind].ljust(8, b"\0"),
        )
    )
    key = HKDF(hashes.SHA256(), length=32, salt=None, info=_HKDF_INFO).derive(cek)
    mac = HMAC(key, hashes.SHA256())
    mac.update(message)
    return f"1:{plain_size}:{encode_base64(mac.finalize())}"


def sealed_size(value: str) -> int:
    """The plaintext length that a seal claims: a hint for listings until `check_seal` has passed.

    Raises Corrupt for a value that no version we know writes.
    """
    match = _VALUE.fullmatch(value)
    if match is None:
        raise Corrupt(f"{SEAL_KEY} is malformed or of an unknown version")
    return int(match[1])


def check_seal(value: str, cek: bytes, data: EncryptionData, blob_size: int, kind: str) -> None:
    """Return if the blob is as it was sealed.

    Raises Truncated if the seal is whole and only the ciphertext has another length than was
    sealed, Corrupt if the seal is malformed or made for another body, format or kind.
    """
    size = sealed_size(value)
    sealed_blob_size = blob_size_of(data.protocol, data.region_length, size)
    expected = make_seal(
        cek,
        protocol=data.protocol,
        region_length=data.region_length,
        iv=data.iv,
        plain_size=size,
        blob_size=sealed_blob_size,
        kind=kind,
    )
    if not hmac.compare_digest(expected, value):
        raise Corrupt(f"{SEAL_KEY} does not fit this body, its encryption metadata or its kind")
    if blob_size != sealed_blob_size:
        raise Truncated(f"the body has {blob_size} bytes, and {sealed_blob_size} were sealed")
