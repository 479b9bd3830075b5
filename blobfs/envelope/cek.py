"""Content-encryption keys, and the payload in which each is wrapped (FORMAT.md section 3)."""

import secrets

from blobfs.envelope.data import Protocol
from blobfs.errors import Corrupt

CEK_LENGTH = 32
_PREFIX_LENGTH = 8


def new_cek() -> bytes:
    """32 bytes from the operating system's generator: one per commit, never used again."""
    return secrets.token_bytes(CEK_LENGTH)


def pack_cek(protocol: Protocol, cek: bytes) -> bytes:
    """The payload to wrap: 32 bytes for protocol 1.0, else 40 that begin with the protocol."""
    return _prefix(protocol) + cek


def unpack_cek(protocol: Protocol, payload: bytes) -> bytes:
    """The CEK in an unwrapped payload.

    Raises Corrupt when the payload was made for another protocol: the prefix is all that
    authenticates `encryptiondata`, and what stops a downgrade from 2.x to 1.0.
    """
    prefix = _prefix(protocol)
    if not payload.startswith(prefix) or len(payload) != len(prefix) + CEK_LENGTH:
        raise Corrupt(f"the wrapped key was not made for protocol {protocol}")
    return payload[len(prefix) :]


def _prefix(protocol: Protocol) -> bytes:
    if protocol is Protocol.V1_0:
        return b""
    return protocol.encode().ljust(_PREFIX_LENGTH, b"\0")
