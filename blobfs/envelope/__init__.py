"""Azure's client-side encryption format, and what blobfs adds to it. FORMAT.md is the spec.

Pure: no network, no trio; the key file and its passphrase are the only files read. Hard
problems, and who solves them:

- a (CEK, nonce) pair must never meet two plaintexts: `body.BodyWriter`, by construction;
- no plaintext may leave before it is authenticated: `gcm.GcmReader.decrypt`;
- a cut at a region's end looks whole, and a symlink could pass for a file: `seal`;
- protocol 1.0 must tell an attacker as little as it can: `cbc`, one error for everything.
"""

from blobfs.envelope.body import BodyReader, BodyWriter, Regions, open_body, regions_of
from blobfs.envelope.box import BOX_KEY, Box, box_cek, box_encrypt, box_payload
from blobfs.envelope.cek import new_cek, pack_cek, unpack_cek
from blobfs.envelope.data import (
    MAX_REGION_LENGTH,
    METADATA_KEY,
    MIN_REGION_LENGTH,
    REGION_LENGTH_2_0,
    EncryptionData,
    Layout,
    Protocol,
    WrappedKey,
)
from blobfs.envelope.keys import (
    Kek,
    KeySet,
    generate_key_set,
    load_key_set,
    load_keys,
    write_key_set,
)
from blobfs.envelope.rewrap import (
    WRAPPED_KEYS,
    check_payload,
    with_wrapped_key,
    wrapped_key_of,
)
from blobfs.envelope.seal import SEAL_KEY, check_seal, make_seal, sealed_size
from blobfs.envelope.sizes import blob_size_of, plain_size
from blobfs.envelope.standby import (
    STANDBY_KEY_LENGTH,
    split_standby,
    unwrap_standby,
    wrap_standby,
)

__all__ = [
    "BOX_KEY",
    "MAX_REGION_LENGTH",
    "METADATA_KEY",
    "MIN_REGION_LENGTH",
    "REGION_LENGTH_2_0",
    "SEAL_KEY",
    "STANDBY_KEY_LENGTH",
    "WRAPPED_KEYS",
    "BodyReader",
    "BodyWriter",
    "Box",
    "EncryptionData",
    "Kek",
    "KeySet",
    "Layout",
    "Protocol",
    "Regions",
    "WrappedKey",
    "blob_size_of",
    "box_cek",
    "box_encrypt",
    "box_payload",
    "check_payload",
    "check_seal",
    "generate_key_set",
    "load_key_set",
    "load_keys",
    "make_seal",
    "new_cek",
    "open_body",
    "pack_cek",
    "plain_size",
    "regions_of",
    "sealed_size",
    "split_standby",
    "unpack_cek",
    "unwrap_standby",
    "with_wrapped_key",
    "wrap_standby",
    "wrapped_key_of",
    "write_key_set",
]
