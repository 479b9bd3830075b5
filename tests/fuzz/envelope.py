"""Metadata of a blob: what whoever writes to the container chooses freely."""

from contextlib import suppress

from blobfs.attributes import POSIX_KEYS, Defaults, Kind, kind_of, read_attributes, write_attributes
from blobfs.blobs import BlobInfo, PackedInfo
from blobfs.envelope import (
    BOX_KEY,
    METADATA_KEY,
    Box,
    EncryptionData,
    Layout,
    Protocol,
    WrappedKey,
    check_seal,
    make_seal,
    plain_size,
    sealed_size,
    split_standby,
    with_wrapped_key,
    wrapped_key_of,
)
from blobfs.errors import Corrupt, ProtocolRefused, Truncated, WrongKey
from blobfs.xattrs import decode_box, encode_box

_OTHER_KEY = WrappedKey("other", "A256KW", b"w" * 48)
_CEK = b"c" * 32
_SEALED = EncryptionData(Protocol.V2_1, _OTHER_KEY, 64, b"")
_BLOB_SIZE = 1000 + 16 * 28
GENUINE_SEAL = make_seal(
    _CEK,
    protocol=Protocol.V2_1,
    region_length=64,
    iv=b"",
    plain_size=1000,
    blob_size=_BLOB_SIZE,
    kind="file",
)


def encryptiondata(data: bytes) -> None:
    """What is accepted is written and read again as the same, a listing sees the same layout, and
    another key takes the old one's place without changing anything else. A box likewise."""
    value = data.decode("utf-8", "surrogateescape")
    with suppress(Corrupt, ProtocolRefused):
        parsed = EncryptionData.parse(value)
        assert EncryptionData.parse(parsed.serialize()) == parsed
        assert Layout.parse(value) == (parsed.protocol, parsed.region_length)
        assert wrapped_key_of(METADATA_KEY, value) == parsed.wrapped
        with suppress(WrongKey):
            split_standby(parsed.wrapped)
        with suppress(Truncated):
            size = plain_size(parsed, 12345)
            assert size is None or 0 <= size <= 12345
        _check_rewrapping(METADATA_KEY, value)
    with suppress(Corrupt):
        box = Box.parse(value)
        assert Box.parse(box.serialize()) == box
        _check_rewrapping(BOX_KEY, value)
    with suppress(Corrupt):
        attributes = decode_box(data)
        assert decode_box(encode_box(attributes)) == attributes
        assert all(b"\0" not in name.encode() for name in attributes)


def _check_rewrapping(key: str, value: str) -> None:
    other = with_wrapped_key(key, value, _OTHER_KEY)
    if len(other) <= 8192:  # the service takes no more, and rekey says so
        assert wrapped_key_of(key, other) == _OTHER_KEY
        back = with_wrapped_key(key, other, wrapped_key_of(key, value))
        assert with_wrapped_key(key, back, _OTHER_KEY) == other


def seal(data: bytes) -> None:
    """No seal fits but the one that was made, and its length is the one that it says."""
    value = data.decode("utf-8", "surrogateescape")
    with suppress(Corrupt):
        size = sealed_size(value)
        assert value.startswith(f"1:{size}:")
        assert 0 <= size < 10**18
    with suppress(Corrupt):
        check_seal(value, _CEK, _SEALED, _BLOB_SIZE, "file")
        assert value == GENUINE_SEAL


def posix_metadata(data: bytes) -> None:
    """Nothing is refused: a malformed value counts as absent. All that the kernel is given is in
    its range, what is written reads back, and what blobfs does not know stays as it is.

    The input is lines KEY=VALUE; its first byte chooses the kind."""
    text = data[1:].decode("utf-8", "surrogateescape")
    pairs = (line.partition("=") for line in text.split("\n"))
    metadata = {key: value for key, equals, value in pairs if equals and "\0" not in key + value}
    info = BlobInfo("", "", 0, 0, metadata=metadata)
    assert PackedInfo.of(info).unpacked() == info
    kind = kind_of(metadata, blob_size=data[0] % 2 if data else 0)
    attributes = read_attributes(metadata, kind, 1_700_000_000_000_000_000, Defaults())
    assert 0 <= attributes.mode <= 0o7777
    assert 0 <= attributes.uid < 2**32 - 1
    assert 0 <= attributes.gid < 2**32 - 1
    assert 0 <= attributes.rdev < 2**32
    for time in (attributes.mtime_ns, attributes.atime_ns, attributes.ctime_ns):
        assert -(2**63) <= time < 2**63
    written = write_attributes(metadata, attributes)
    read_back = read_attributes(written, kind, 0, Defaults(uid=7, gid=7))
    if kind not in (Kind.BLOCK, Kind.CHARACTER):
        read_back.rdev = attributes.rdev
    assert read_back == attributes
    assert kind_of(written, 0) == kind
    assert {key: value for key, value in metadata.items() if key.lower() not in POSIX_KEYS} == {
        key: value for key, value in written.items() if key.lower() not in POSIX_KEYS
    }
