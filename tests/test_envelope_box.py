"""The box that holds extended attributes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs.envelope import (
    Box,
    Kek,
    Protocol,
    box_cek,
    box_encrypt,
    box_payload,
    new_cek,
    pack_cek,
    unpack_cek,
)
from blobfs.errors import Corrupt

KEK = Kek("kid", bytes(32))


def box_of(plain: bytes) -> Box:
    cek = new_cek()
    return box_encrypt(cek, KEK.wrap(box_payload(cek)), plain)


def open_box(value: str) -> bytes:
    box = Box.parse(value)
    return box.decrypt(box_cek(KEK.unwrap(box.wrapped)))


@given(st.binary(max_size=300))
def test_box_opens_to_what_was_put_in(plain: bytes) -> None:
    value = box_of(plain).serialize()
    assert value.isascii()
    assert value.isprintable()
    assert open_box(value) == plain


def test_box_costs_little_of_the_metadata_budget() -> None:
    assert len(box_of(b"").serialize()) < 200


SECRET = b"secret xattrs"
BOX = box_of(SECRET)


@given(st.integers(0, len(BOX.sealed) * 8 - 1))
def test_any_flipped_bit_is_corrupt(bit: int) -> None:
    sealed = bytearray(BOX.sealed)
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        open_box(Box(BOX.wrapped, bytes(sealed)).serialize())


@given(st.integers(1, len(BOX.sealed) - 1))
def test_any_cut_is_corrupt(length: int) -> None:
    with pytest.raises(Corrupt):
        open_box(Box(BOX.wrapped, BOX.sealed[:length]).serialize())


def test_content_of_another_box_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        open_box(Box(box_of(SECRET).wrapped, BOX.sealed).serialize())


@pytest.mark.parametrize("protocol", Protocol)
def test_key_of_a_box_opens_no_body_and_the_other_way_round(protocol: Protocol) -> None:
    with pytest.raises(Corrupt):
        unpack_cek(protocol, box_payload(new_cek()))
    with pytest.raises(Corrupt):
        box_cek(pack_cek(protocol, new_cek()))
    with pytest.raises(Corrupt):
        box_cek(box_payload(new_cek()) + b"\0")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{}",
        "[]",
        BOX.serialize()[:-1],
        BOX.serialize().replace('"Data":"', '"Data":"*'),
        BOX.serialize().replace('"KeyId":"kid"', '"KeyId":7'),
        BOX.serialize() + " " * 8192,
    ],
)
def test_malformed_box_is_corrupt(value: str) -> None:
    with pytest.raises(Corrupt):
        Box.parse(value)
