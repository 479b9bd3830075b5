"""Any change of a genuine blob of protocol 2.x: refused, or bytes that the owner wrote are read.

By the envelope alone, for many changes at once; `test_tamper` has the table, and real mounts.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfs.envelope import (
    EncryptionData,
    Kek,
    KeySet,
    Protocol,
    check_seal,
    open_body,
    sealed_size,
    unpack_cek,
)
from blobfs.errors import ContentError
from tests.tampering import Blob, Form

KEK = Kek("local:key", b"k" * 32)
KEYS = KeySet([KEK], KEK)
FORM = Form(Protocol.V2_1, 64, 4 * 64 + 10, sealed=True)
PLAINS = [FORM.plain(seed) for seed in range(3)]
BLOBS = [FORM.blob(KEYS, seed) for seed in range(3)]


def read(blob: Blob) -> bytes:
    """As a mount does. Raises ContentError."""
    data = EncryptionData.parse(blob.metadata.get("encryptiondata", ""))
    cek = unpack_cek(data.protocol, KEYS.unwrap(data.wrapped))
    size, seal = None, blob.metadata.get("blobfs_seal")
    if seal is not None:
        check_seal(seal, cek, data, len(blob.body), "file")
        size = sealed_size(seal)
    body = open_body(data, cek, len(blob.body), size)
    length = body.settle_size(blob.body[slice(*body.tail_range())])
    start, stop = body.blob_range(0, max(0, -(-length // body.unit) - 1))
    return bytes(body.decrypt(0, blob.body[start:stop]))


positions = st.integers(0, len(BLOBS[0].body))
blobs = st.sampled_from(BLOBS)


@st.composite
def tampered(draw: st.DrawFn) -> Blob:
    """Bodies cut, joined and spoiled at any place, anybody's metadata, with a seal or without."""
    blob, other = draw(blobs), draw(blobs)
    body = blob.body
    for _ in range(draw(st.integers(0, 3))):
        start, stop, unit = draw(positions), draw(positions), draw(st.sampled_from([1, FORM.unit]))
        start, stop = start // unit * unit, stop // unit * unit
        piece = draw(
            st.one_of(
                st.just(b""),
                st.binary(max_size=40),
                st.just(body[start:stop]),
                st.just(other.body[start:stop]),
            )
        )
        body = body[:start] + piece + body[draw(st.sampled_from([start, stop, start + unit])) :]
    metadata = dict(draw(blobs).metadata)
    if draw(st.booleans()):
        del metadata["blobfs_seal"]
    elif draw(st.booleans()):
        metadata["blobfs_seal"] = draw(blobs).metadata["blobfs_seal"]
    if draw(st.booleans()):
        text, at = metadata["encryptiondata"], draw(st.integers(0, 400))
        put = draw(st.one_of(st.just(""), st.sampled_from('0123456789AZaz+/="{}')))
        metadata["encryptiondata"] = text[:at] + put + text[at + draw(st.integers(0, 2)) :]
    return replace(blob, body=body, metadata=metadata)


@settings(max_examples=1500)
@given(tampered())
def test_whatever_is_read_the_owner_wrote(blob: Blob) -> None:
    try:
        plain = read(blob)
    except ContentError:
        return
    if "blobfs_seal" in blob.metadata:
        assert plain in PLAINS
    else:  # a cut at a region's end shows by the seal alone
        assert len(plain) % 64 == 0 or plain in PLAINS
        assert any(whole.startswith(plain) for whole in PLAINS)


def test_a_genuine_blob_is_read() -> None:
    assert [read(blob) for blob in BLOBS] == PLAINS


@pytest.mark.parametrize("at", range(0, len(BLOBS[0].body), 7))
def test_no_bit_of_a_body_can_be_flipped(at: int) -> None:
    body = bytearray(BLOBS[0].body)
    body[at] ^= 1 << at % 8
    with pytest.raises(ContentError):
        read(replace(BLOBS[0], body=bytes(body)))
