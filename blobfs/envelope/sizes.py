"""Plaintext length from ciphertext length and back (FORMAT.md sections 4 and 5)."""

from blobfs.envelope.cbc import cbc_blob_size
from blobfs.envelope.data import EncryptionData, Layout, Protocol
from blobfs.envelope.gcm import gcm_blob_size, gcm_plain_size


def plain_size(data: EncryptionData | Layout, blob_size: int) -> int | None:
    """The plaintext's length from what a listing says; None for protocol 1.0.

    Raises Truncated for a length that no body has.
    """
    if data.protocol is Protocol.V1_0:
        return None
    return gcm_plain_size(data.region_length, blob_size)


def blob_size_of(protocol: Protocol, region_length: int, plain_size: int) -> int:
    """The ciphertext's length for a plaintext's, as blobfs writes it (no page blobs)."""
    if protocol is Protocol.V1_0:
        return cbc_blob_size(plain_size)
    return gcm_blob_size(region_length, plain_size)
