"""The seal: what it holds against, and what it lets through on purpose."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs.envelope import (
    BodyWriter,
    EncryptionData,
    Protocol,
    WrappedKey,
    check_seal,
    sealed_size,
    unpack_cek,
)
from blobfs.errors import Corrupt, Truncated

WRAPPED = WrappedKey("kid", "A256KW", b"not wrapped")


def sealed(
    protocol: Protocol, size: int, kind: str = "file"
) -> tuple[str, bytes, EncryptionData, int]:
    writer = BodyWriter(protocol, 4 * 1024 * 1024)
    writer.encrypt(bytes(size), final=True)
    cek = unpack_cek(protocol, writer.cek_payload)
    return writer.seal(kind), cek, writer.encryption_data(WRAPPED), writer.blob_size


@pytest.mark.parametrize("kind", ["file", "symlink"])
@pytest.mark.parametrize("size", [0, 1, 16, 1000])
@pytest.mark.parametrize("protocol", Protocol)
def test_seal_fits_the_body_it_was_made_for(protocol: Protocol, size: int, kind: str) -> None:
    value, cek, data, blob_size = sealed(protocol, size, kind)
    assert value.isascii()
    assert sealed_size(value) == size
    check_seal(value, cek, data, blob_size, kind)


@pytest.mark.parametrize("protocol", Protocol)
def test_another_ciphertext_length_is_truncated(protocol: Protocol) -> None:
    value, cek, data, blob_size = sealed(protocol, 100)
    for other in (0, blob_size - 16, blob_size + 16):
        with pytest.raises(Truncated):
            check_seal(value, cek, data, other, "file")


@pytest.mark.parametrize("protocol", Protocol)
def test_a_file_cannot_become_a_symlink_nor_a_symlink_a_file(protocol: Protocol) -> None:
    for kind, other in (("file", "symlink"), ("symlink", "file")):
        value, cek, data, blob_size = sealed(protocol, 100, kind)
        with pytest.raises(Corrupt):
            check_seal(value, cek, data, blob_size, other)


def test_changed_protocol_region_length_or_iv_is_corrupt() -> None:
    value, cek, data, blob_size = sealed(Protocol.V2_1, 100)
    for changed in (
        dataclasses.replace(data, protocol=Protocol.V2_0),
        dataclasses.replace(data, region_length=data.region_length + 1),
    ):
        with pytest.raises(Corrupt):
            check_seal(value, cek, changed, blob_size, "file")
    value, cek, data, blob_size = sealed(Protocol.V1_0, 100)
    flipped = dataclasses.replace(data, iv=bytes([data.iv[0] ^ 1]) + data.iv[1:])
    with pytest.raises(Corrupt):
        check_seal(value, cek, flipped, blob_size, "file")


def test_seal_under_another_cek_is_corrupt() -> None:
    value, _, data, blob_size = sealed(Protocol.V2_1, 100)
    with pytest.raises(Corrupt):
        check_seal(value, bytes(32), data, blob_size, "file")


def test_a_cut_with_a_seal_edited_to_match_is_corrupt() -> None:
    value, cek, data, _ = sealed(Protocol.V2_1, 100)
    with pytest.raises(Corrupt) as caught:
        check_seal(value.replace(":100:", ":0:"), cek, data, 0, "file")
    assert caught.type is Corrupt


def test_rewrapping_the_cek_keeps_the_seal() -> None:
    value, cek, data, blob_size = sealed(Protocol.V2_1, 100)
    rewrapped = dataclasses.replace(data, wrapped=WrappedKey("new", "RSA-OAEP-256", b"x"))
    check_seal(value, cek, rewrapped, blob_size, "file")


GOOD = sealed(Protocol.V2_1, 100)


@given(st.integers(0, len(GOOD[0]) - 1), st.characters(codec="ascii"))
def test_any_changed_character_is_corrupt(position: int, character: str) -> None:
    value, cek, data, blob_size = GOOD
    changed = value[:position] + character + value[position + 1 :]
    if changed != value:
        with pytest.raises(Corrupt) as caught:
            check_seal(changed, cek, data, blob_size, "file")
        assert caught.type is Corrupt


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        "1:100",
        "2:100:" + "A" * 43 + "=",
        "1:0100:" + "A" * 43 + "=",
        "1:-1:" + "A" * 43 + "=",
        "1:1_0:" + "A" * 43 + "=",
        "1:\u0661:" + "A" * 43 + "=",
        "1:" + "9" * 19 + ":" + "A" * 43 + "=",
        "1:100:" + "A" * 44,
        "1:100:" + "A" * 43 + "=\n",
        " 1:100:" + "A" * 43 + "=",
    ],
)
def test_malformed_or_unknown_seal_is_corrupt(value: str) -> None:
    with pytest.raises(Corrupt, match="malformed or of an unknown version"):
        sealed_size(value)
    with pytest.raises(Corrupt, match="malformed or of an unknown version"):
        check_seal(value, *GOOD[1:], "file")
