"""What is in a recovery file, read without blobfs's own reader of them."""

import json
from pathlib import Path
from typing import Any

from blobfs.envelope import EncryptionData, load_key_set, open_body, unpack_cek


def opened(recovery_file: Path, key_file: Path) -> tuple[bytes, dict[str, Any]]:
    """The plaintext and the description in a recovery file (blobfs/recovery.py)."""
    blob = recovery_file.read_bytes()
    assert blob.endswith(b"blobfsR1")
    length = int.from_bytes(blob[-16:-8], "big")
    description: dict[str, Any] = json.loads(blob[-16 - length : -16])
    data = EncryptionData.parse(description["metadata"]["encryptiondata"])
    cek = unpack_cek(data.protocol, load_key_set(key_file).unwrap(data.wrapped))
    body = open_body(data, cek, len(blob) - 16 - length)
    assert body.plain_size is not None
    start, stop = body.blob_range(0, (body.plain_size - 1) // body.unit)
    return bytes(body.decrypt(0, blob[start:stop])), description
