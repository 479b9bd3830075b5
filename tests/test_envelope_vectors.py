"""Every vector in tests/vectors that is about bodies and boxes, read as FORMAT.md says."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from blobfs.envelope import (
    BodyReader,
    Box,
    EncryptionData,
    Kek,
    KeySet,
    box_cek,
    check_seal,
    make_seal,
    open_body,
    plain_size,
    sealed_size,
    unpack_cek,
)
from blobfs.errors import Corrupt, Truncated

VECTORS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "vectors").glob("*.json"))
    if not path.stem.startswith("sas-")
}
POSITIVE = [name for name in VECTORS if not name.startswith("neg-") and name != "blobfs-box"]
SEALED = [name for name in POSITIVE if "blobfs_seal" in VECTORS[name]]
SDK = [name for name in POSITIVE if name.startswith("py-")]
REFUSED = {
    "neg-v2.0-bitflip": Corrupt,
    "neg-v2.0-swap01": Corrupt,
    "neg-v1.0-non_multiple16": Corrupt,
}
UNDETECTABLE = {"neg-v2.0-truncated_at_region", "neg-v1.0-bitflip_mid"}


def key_set(vector: dict[str, Any]) -> KeySet:
    if "kek_private_pem" in vector:
        key = load_pem_private_key(vector["kek_private_pem"].encode(), None)
        kek = Kek(vector["kek_id"], key)  # type: ignore[arg-type]
    else:
        kek = Kek(vector["kek_id"], bytes.fromhex(vector["kek_hex"]))
    return KeySet([kek], kek)


def unwrap(vector: dict[str, Any]) -> tuple[EncryptionData, bytes, bytes]:
    """The parsed metadata, the CEK and the ciphertext."""
    data = EncryptionData.parse(vector["encryptiondata"])
    cek = unpack_cek(data.protocol, key_set(vector).unwrap(data.wrapped))
    return data, cek, base64.b64decode(vector["ciphertext_b64"])


def read(body: BodyReader, blob: bytes) -> bytes:
    """All the plaintext, by the interface that the file system uses."""
    size = body.settle_size(blob[slice(*body.tail_range())])
    start, stop = body.blob_range(0, max(0, -(-size // body.unit) - 1))
    return bytes(body.decrypt(0, blob[start:stop]))


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_vector_decrypts_to_its_plaintext(name: str) -> None:
    vector = VECTORS[name]
    data, cek, blob = unwrap(vector)
    assert data.protocol == vector["protocol"]
    assert len(blob) == vector["ciphertext_len"]
    assert cek.hex() == vector.get("cek_hex", cek.hex())
    body = open_body(data, cek, len(blob))
    assert read(body, blob) == base64.b64decode(vector["plaintext_b64"])
    assert body.plain_size == vector["plaintext_len"]


@pytest.mark.parametrize("name", POSITIVE)
def test_size_of_a_positive_vector_comes_from_a_listing_for_protocols_2(name: str) -> None:
    vector = VECTORS[name]
    data = EncryptionData.parse(vector["encryptiondata"])
    expected = None if data.protocol == "1.0" else vector["plaintext_len"]
    assert plain_size(data, vector["ciphertext_len"]) == expected


@pytest.mark.parametrize("name", SDK)
def test_serialize_is_the_sdks_own_value_byte_for_byte(name: str) -> None:
    value = VECTORS[name]["encryptiondata"]
    assert EncryptionData.parse(value).serialize() == value


@pytest.mark.parametrize("name", SEALED)
def test_golden_seal_is_what_we_write_and_accept(name: str) -> None:
    vector = VECTORS[name]
    data, cek, blob = unwrap(vector)
    assert data.serialize() == vector["encryptiondata"]
    ours = make_seal(
        cek,
        protocol=data.protocol,
        region_length=data.region_length,
        iv=data.iv,
        plain_size=vector["plaintext_len"],
        blob_size=len(blob),
        kind=vector["kind"],
    )
    assert ours == vector["blobfs_seal"]
    assert sealed_size(ours) == vector["plaintext_len"]
    check_seal(ours, cek, data, len(blob), vector["kind"])


def test_golden_box_opens_and_is_what_we_write() -> None:
    vector = VECTORS["blobfs-box"]
    box = Box.parse(vector["blobfs_xattr"])
    cek = box_cek(key_set(vector).unwrap(box.wrapped))
    assert cek.hex() == vector["cek_hex"]
    assert box.decrypt(cek) == base64.b64decode(vector["plaintext_b64"])
    assert box.serialize() == vector["blobfs_xattr"]


def test_every_negative_vector_has_its_failure_class() -> None:
    assert {name for name in VECTORS if name.startswith("neg-")} == REFUSED.keys() | UNDETECTABLE


@pytest.mark.parametrize(("name", "failure"), REFUSED.items())
def test_negative_vector_is_refused_with_its_class(name: str, failure: type[Corrupt]) -> None:
    data, cek, blob = unwrap(VECTORS[name])
    with pytest.raises(Corrupt) as caught:
        read(open_body(data, cek, len(blob)), blob)
    assert caught.type is failure


def seal_of_the_original(vector: dict[str, Any], data: EncryptionData, cek: bytes) -> str:
    size = len(base64.b64decode(vector["original_plaintext_b64"]))
    blob_size = 80 if data.protocol == "1.0" else 210
    return make_seal(
        cek,
        protocol=data.protocol,
        region_length=data.region_length,
        iv=data.iv,
        plain_size=size,
        blob_size=blob_size,
        kind="file",
    )


def test_cut_at_a_region_passes_without_a_seal_and_is_truncated_with_one() -> None:
    vector = VECTORS["neg-v2.0-truncated_at_region"]
    data, cek, blob = unwrap(vector)
    original = base64.b64decode(vector["original_plaintext_b64"])
    assert read(open_body(data, cek, len(blob)), blob) == original[:48]
    with pytest.raises(Truncated):
        check_seal(seal_of_the_original(vector, data, cek), cek, data, len(blob), "file")


def test_flipped_bit_inside_a_protocol_1_body_is_undetectable() -> None:
    vector = VECTORS["neg-v1.0-bitflip_mid"]
    data, cek, blob = unwrap(vector)
    check_seal(seal_of_the_original(vector, data, cek), cek, data, len(blob), "file")
    altered = read(open_body(data, cek, len(blob)), blob)
    assert altered == base64.b64decode(vector["sdk_plaintext_b64"])
    assert altered != base64.b64decode(vector["original_plaintext_b64"])
