"""A small sealed metadata value under a CEK of its own: the user's xattrs (FORMAT.md section 7).

Independent of the body, so it survives rewrites and works on directories.
"""

import json
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blobfs.envelope.cek import CEK_LENGTH
from blobfs.envelope.data import NONCE_LENGTH, Members, WrappedKey, encode_base64
from blobfs.errors import Corrupt

BOX_KEY = "blobfs_xattr"

# Both bind the use: no box opens as a body or as a later kind of box, nor the other way round.
_PAYLOAD_PREFIX = b"xattr1\0\0"
_ASSOCIATED_DATA = b"blobfs xattr v1"


@dataclass(frozen=True, slots=True)
class Box:
    wrapped: WrappedKey
    sealed: bytes
    """nonce(12) ‖ ciphertext ‖ tag(16)."""

    @classmethod
    def parse(cls, value: str) -> "Box":
        """Raises Corrupt."""
        members = Members.parse(BOX_KEY, value)
        return cls(members.wrapped_key(), members.base64("Data"))

    def serialize(self) -> str:
        """Compact ASCII: all metadata of a blob share 8 KiB."""
        return json.dumps(
            {
                "KeyId": self.wrapped.key_id,
                "Algorithm": self.wrapped.algorithm,
                "EncryptedKey": encode_base64(self.wrapped.encrypted_key),
                "Data": encode_base64(self.sealed),
            },
            separators=(",", ":"),
        )

    def decrypt(self, cek: bytes) -> bytes:
        """Raises Corrupt."""
        nonce, ciphertext = self.sealed[:NONCE_LENGTH], self.sealed[NONCE_LENGTH:]
        try:
            return AESGCM(cek).decrypt(nonce, ciphertext, _ASSOCIATED_DATA)
        except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
            raise Corrupt(f"{BOX_KEY} fails authentication") from None


def box_encrypt(cek: bytes, wrapped: WrappedKey, plain: bytes) -> Box:
    """Seal `plain` under `cek`: a new one for each write, and `wrapped` is its `box_payload`."""
    nonce = secrets.token_bytes(NONCE_LENGTH)
    return Box(wrapped, nonce + AESGCM(cek).encrypt(nonce, plain, _ASSOCIATED_DATA))


def box_payload(cek: bytes) -> bytes:
    """The payload to wrap. Secret."""
    return _PAYLOAD_PREFIX + cek


def box_cek(payload: bytes) -> bytes:
    """The CEK in an unwrapped payload. Raises Corrupt for one that was not made for a box."""
    if not payload.startswith(_PAYLOAD_PREFIX) or len(payload) != len(_PAYLOAD_PREFIX) + CEK_LENGTH:
        raise Corrupt(f"the wrapped key was not made for {BOX_KEY}")
    return payload[len(_PAYLOAD_PREFIX) :]
