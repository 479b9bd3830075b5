"""Another KEK in the place of an old one: the same content key, and all else as it was."""

import json

import pytest

from blobfs.envelope import (
    BOX_KEY,
    METADATA_KEY,
    BodyWriter,
    Box,
    EncryptionData,
    Kek,
    Protocol,
    box_cek,
    box_encrypt,
    box_payload,
    check_payload,
    new_cek,
    pack_cek,
    unpack_cek,
    with_wrapped_key,
    wrapped_key_of,
)
from blobfs.errors import Corrupt, ProtocolRefused

OLD = Kek("old", bytes(32))
NEW = Kek("new", b"\1" * 32)
CEK = new_cek()


def body_value(protocol: Protocol) -> str:
    iv = bytes(16) if protocol is Protocol.V1_0 else b""
    wrapped = OLD.wrap(pack_cek(protocol, CEK))
    return EncryptionData(protocol, wrapped, 4096, iv, "Novel 1.0").serialize()


@pytest.mark.parametrize("protocol", Protocol)
def test_a_body_opens_with_the_new_key_and_nothing_else_of_its_metadata_changes(
    protocol: Protocol,
) -> None:
    value = body_value(protocol)
    payload = OLD.unwrap(wrapped_key_of(METADATA_KEY, value))
    check_payload(METADATA_KEY, value, payload)
    again = with_wrapped_key(METADATA_KEY, value, NEW.wrap(payload))
    data = EncryptionData.parse(again)
    assert unpack_cek(protocol, NEW.unwrap(data.wrapped)) == CEK
    before = EncryptionData.parse(value)
    assert (
        again
        == EncryptionData(
            before.protocol, data.wrapped, before.region_length, before.iv, before.library
        ).serialize()
    )


def test_a_box_opens_with_the_new_key() -> None:
    value = box_encrypt(CEK, OLD.wrap(box_payload(CEK)), b"xattrs").serialize()
    payload = OLD.unwrap(wrapped_key_of(BOX_KEY, value))
    check_payload(BOX_KEY, value, payload)
    box = Box.parse(with_wrapped_key(BOX_KEY, value, NEW.wrap(payload)))
    assert box.wrapped.key_id == "new"
    assert box.decrypt(box_cek(NEW.unwrap(box.wrapped))) == b"xattrs"


def test_what_blobfs_does_not_know_stays_where_and_as_it_is() -> None:
    root = json.loads(body_value(Protocol.V2_1))
    wrapped = root.pop("WrappedContentKey")
    foreign = {
        "x": [1, 2.5, {"KeyId": "not this one"}],
        "wrappedcontentKEY": {"NOTE": None, **{k.upper(): v for k, v in wrapped.items()}},
        **root,
    }
    again = json.loads(with_wrapped_key(METADATA_KEY, json.dumps(foreign), NEW.wrap(bytes(40))))
    assert list(again) == list(foreign)
    assert list(again["wrappedcontentKEY"]) == list(foreign["wrappedcontentKEY"])
    assert again["wrappedcontentKEY"]["KEYID"] == "new"
    assert {k: v for k, v in again.items() if k != "wrappedcontentKEY"} == {
        k: v for k, v in foreign.items() if k != "wrappedcontentKEY"
    }


def test_a_payload_that_belongs_elsewhere_is_refused() -> None:
    value = body_value(Protocol.V2_1)
    for payload in (pack_cek(Protocol.V2_0, CEK), pack_cek(Protocol.V1_0, CEK), box_payload(CEK)):
        with pytest.raises(Corrupt):
            check_payload(METADATA_KEY, value, payload)
    box = box_encrypt(CEK, OLD.wrap(box_payload(CEK)), b"").serialize()
    with pytest.raises(Corrupt):
        check_payload(BOX_KEY, box, pack_cek(Protocol.V2_1, CEK))


def test_the_key_of_another_file_is_refused_where_a_seal_or_a_box_tells() -> None:
    body = BodyWriter(Protocol.V2_1, 4096)
    body.encrypt(b"plain", final=True)
    value = body.encryption_data(OLD.wrap(body.cek_payload)).serialize()
    check_payload(METADATA_KEY, value, body.cek_payload, seal=body.seal("file"))
    with pytest.raises(Corrupt):
        check_payload(METADATA_KEY, value, pack_cek(Protocol.V2_1, CEK), seal=body.seal("file"))
    box = box_encrypt(CEK, OLD.wrap(box_payload(CEK)), b"xattrs").serialize()
    with pytest.raises(Corrupt):
        check_payload(BOX_KEY, box, box_payload(new_cek()))


def test_values_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(Corrupt):
        wrapped_key_of(BOX_KEY, "{}")
    with pytest.raises(ProtocolRefused):
        wrapped_key_of(METADATA_KEY, body_value(Protocol.V2_1).replace('"2.1"', '"3.0"'))
