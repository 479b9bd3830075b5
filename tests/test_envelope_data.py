"""`encryptiondata`: what is read, what is refused, and CEK payloads."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobfs import __version__
from blobfs.envelope import (
    EncryptionData,
    Layout,
    Protocol,
    WrappedKey,
    new_cek,
    pack_cek,
    unpack_cek,
)
from blobfs.errors import Corrupt, ProtocolRefused

WRAPPED = WrappedKey("a key", "A256KW", bytes(range(48)))
V1 = EncryptionData(Protocol.V1_0, WRAPPED, 0, bytes(range(16)))
V21 = EncryptionData(Protocol.V2_1, WRAPPED, 65536, b"")

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
encryption_data = st.builds(
    lambda protocol, wrapped, region, iv: (
        EncryptionData(protocol, wrapped, 0, iv)
        if protocol is Protocol.V1_0
        else EncryptionData(protocol, wrapped, region, b"")
    ),
    st.sampled_from(Protocol),
    st.builds(WrappedKey, texts, texts, st.binary(min_size=1, max_size=512)),
    st.integers(16, 2**30),
    st.binary(min_size=16, max_size=16),
)


@given(encryption_data)
def test_parse_reads_back_what_serialize_wrote_in_ascii(data: EncryptionData) -> None:
    value = data.serialize()
    assert value.isascii()
    assert value.isprintable()
    assert EncryptionData.parse(value) == data


def test_serialize_names_blobfs_as_the_library() -> None:
    library = json.loads(V21.serialize())["KeyWrappingMetadata"]["EncryptionLibrary"]
    assert library == f"blobfs {__version__}"


def test_camel_case_members_in_another_order_without_spaces_are_read() -> None:
    def camel(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k[0].lower() + k[1:]: camel(v) for k, v in reversed(value.items())}

    value = json.dumps(camel(json.loads(V1.serialize())), separators=(",", ":"))
    assert '"keyId"' in value
    assert EncryptionData.parse(value) == V1


def test_mode_and_wrapping_metadata_may_be_absent_or_anything() -> None:
    members = json.loads(V21.serialize())
    members["EncryptionMode"] = "foo"
    members["Other"] = {"Protocol": 1}
    del members["KeyWrappingMetadata"]
    data = EncryptionData.parse(json.dumps(members))
    assert (data.protocol, data.wrapped, data.region_length) == (Protocol.V2_1, WRAPPED, 65536)
    members["KeyWrappingMetadata"] = [1]
    assert EncryptionData.parse(json.dumps(members)).library == ""


def edited(data: EncryptionData, path: str, *value: Any) -> str:
    """`data` serialized, with the member at `path` set to `value`, or removed."""
    root = json.loads(data.serialize())
    *parents, name = path.split("/")
    members = root
    for parent in parents:
        members = members[parent]
    del members[name]
    if value:
        members[name] = value[0]
    return json.dumps(root)


@pytest.mark.parametrize(
    "path",
    [
        "WrappedContentKey",
        "WrappedContentKey/KeyId",
        "WrappedContentKey/EncryptedKey",
        "WrappedContentKey/Algorithm",
        "EncryptionAgent",
        "EncryptionAgent/Protocol",
        "EncryptionAgent/EncryptionAlgorithm",
        "EncryptedRegionInfo",
        "EncryptedRegionInfo/DataLength",
        "EncryptedRegionInfo/NonceLength",
    ],
)
@pytest.mark.parametrize("value", [(), (None,), ("",), (True,), (16.0,), ([],), ({},)], ids=repr)
def test_missing_or_mistyped_member_is_corrupt(path: str, value: tuple[Any, ...]) -> None:
    with pytest.raises(Corrupt):
        EncryptionData.parse(edited(V21, path, *value))


@pytest.mark.parametrize(
    ("data", "path", "value"),
    [
        (V21, "EncryptedRegionInfo/DataLength", 15),
        (V21, "EncryptedRegionInfo/DataLength", 2**30 + 1),
        (V21, "EncryptedRegionInfo/DataLength", -65536),
        (V21, "EncryptedRegionInfo/DataLength", "65536"),
        (V21, "EncryptedRegionInfo/NonceLength", 16),
        (V21, "EncryptionAgent/EncryptionAlgorithm", "AES_CBC_256"),
        (V21, "WrappedContentKey/KeyId", "\ud800"),
        (V21, "WrappedContentKey/EncryptedKey", "AAAA\n"),
        (V21, "WrappedContentKey/EncryptedKey", "AA-_"),
        (V21, "WrappedContentKey/EncryptedKey", "AAA"),
        (V21, "WrappedContentKey/EncryptedKey", "AAB="),
        (V1, "EncryptionAgent/EncryptionAlgorithm", "AES_GCM_256"),
        (V1, "ContentEncryptionIV", "AAAA"),
        (V1, "ContentEncryptionIV", "A" * 24),
    ],
)
def test_value_out_of_bounds_is_corrupt(data: EncryptionData, path: str, value: Any) -> None:
    with pytest.raises(Corrupt):
        EncryptionData.parse(edited(data, path, value))


def test_protocol_1_needs_its_iv_and_protocol_2_its_regions() -> None:
    with pytest.raises(Corrupt, match="ContentEncryptionIV"):
        EncryptionData.parse(edited(V1, "ContentEncryptionIV"))
    with pytest.raises(Corrupt, match="EncryptedRegionInfo"):
        EncryptionData.parse(edited(V21, "EncryptedRegionInfo"))


@pytest.mark.parametrize("name", ["3.0", "2", "2.0 ", "latest" * 100])
def test_unknown_protocol_is_refused_as_such(name: str) -> None:
    with pytest.raises(ProtocolRefused):
        EncryptionData.parse(edited(V21, "EncryptionAgent/Protocol", name))


def test_region_lengths_at_the_bounds_are_read() -> None:
    for length in (16, 2**30):
        value = edited(V21, "EncryptedRegionInfo/DataLength", length)
        assert EncryptionData.parse(value).region_length == length


def test_repeated_member_in_any_case_is_corrupt() -> None:
    value = V21.serialize().replace('"KeyId"', '"keyid": "x", "KeyId"')
    with pytest.raises(Corrupt, match="repeated"):
        EncryptionData.parse(value)


def test_value_longer_than_metadata_can_be_is_corrupt_even_if_well_formed() -> None:
    with pytest.raises(Corrupt, match="longer"):
        EncryptionData.parse(V21.serialize() + " " * 8192)


@given(st.text(max_size=200))
@example("[" * 8000)
@example('{"a":' * 1600)
@example("9" * 8000)
@example("null")
@example("[]")
def test_text_that_is_no_encryptiondata_is_corrupt(value: str) -> None:
    with pytest.raises(Corrupt):
        EncryptionData.parse(value)


@pytest.mark.parametrize("protocol", Protocol)
def test_payload_gives_the_cek_back_to_its_own_protocol_only(protocol: Protocol) -> None:
    cek = new_cek()
    payload = pack_cek(protocol, cek)
    assert len(payload) == (32 if protocol is Protocol.V1_0 else 40)
    assert unpack_cek(protocol, payload) == cek
    for other in set(Protocol) - {protocol}:
        with pytest.raises(Corrupt):
            unpack_cek(other, payload)
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(Corrupt):
            unpack_cek(protocol, wrong)


def test_two_ceks_are_never_the_same() -> None:
    assert len({new_cek() for _ in range(100)}) == 100


@given(st.sampled_from([Protocol.V1_0, Protocol.V2_0, Protocol.V2_1]), st.binary(min_size=40))
def test_a_layout_is_what_the_whole_value_says(protocol: Protocol, key: bytes) -> None:
    region_length = 0 if protocol is Protocol.V1_0 else 4 * 1024 * 1024
    iv = bytes(16) if protocol is Protocol.V1_0 else b""
    value = EncryptionData(
        protocol, WrappedKey("kid", "A256KW", key), region_length, iv
    ).serialize()
    assert Layout.parse(value) == (protocol, region_length)


@pytest.mark.parametrize("broken", ["{}", '{"EncryptedKey": "AAAA"}', "", '"EncryptedKey":""'])
def test_a_layout_is_not_made_up(broken: str) -> None:
    with pytest.raises(Corrupt):
        Layout.parse(broken)
