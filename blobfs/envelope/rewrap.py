"""The wrapped keys in a blob's metadata, and others in their place when the KEK changes.

FORMAT.md section 3: the body's in `encryptiondata` and the box's in `blobfs_xattr`.
"""

import json

from blobfs.envelope.box import BOX_KEY, Box, box_cek
from blobfs.envelope.cek import unpack_cek
from blobfs.envelope.data import METADATA_KEY, EncryptionData, WrappedKey, encode_base64
from blobfs.envelope.seal import check_seal, sealed_size
from blobfs.envelope.sizes import blob_size_of

WRAPPED_KEYS = (METADATA_KEY, BOX_KEY)
"""The metadata keys whose values hold a wrapped key."""


def wrapped_key_of(key: str, value: str) -> WrappedKey:
    """The wrapped key in the value of one of `WRAPPED_KEYS`. Raises Corrupt or ProtocolRefused."""
    if key == BOX_KEY:
        return Box.parse(value).wrapped
    return EncryptionData.parse(value).wrapped


def check_payload(
    key: str, value: str, payload: bytes, *, seal: str | None = None, kind: str = "file"
) -> None:
    """Return if `payload`, unwrapped, is what belongs in this value, as far as that can be told
    from metadata: a box opens with it, and the body's `seal`, if it has one, was made under it.

    Raises Corrupt.
    """
    if key == BOX_KEY:
        Box.parse(value).decrypt(box_cek(payload))
        return
    data = EncryptionData.parse(value)
    cek = unpack_cek(data.protocol, payload)
    if seal is not None:
        sealed = blob_size_of(data.protocol, data.region_length, sealed_size(seal))
        check_seal(seal, cek, data, sealed, kind)


def with_wrapped_key(key: str, value: str, wrapped: WrappedKey) -> str:
    """A value that `wrapped_key_of` has read, with another wrapped key.

    Every other member stays, in its place and spelling, also those that blobfs does not know.
    """
    root = json.loads(value)
    fields = {
        "keyid": wrapped.key_id,
        "encryptedkey": encode_base64(wrapped.encrypted_key),
        "algorithm": wrapped.algorithm,
    }
    if key == BOX_KEY:
        return json.dumps(_replaced(root, fields), separators=(",", ":"))
    (name,) = (name for name in root if name.lower() == "wrappedcontentkey")
    root[name] = _replaced(root[name], fields)
    return json.dumps(root)


def _replaced(members: dict[str, object], fields: dict[str, str]) -> dict[str, object]:
    return {name: fields.get(name.lower(), value) for name, value in members.items()}
