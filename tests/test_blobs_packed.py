"""What is packed is what was said of the blob, in less memory."""

import sys
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs.attributes import POSIX_KEYS
from blobfs.blobs import BlobInfo, ContentHeaders, PackedInfo
from blobfs.envelope import BOX_KEY, METADATA_KEY, SEAL_KEY

# What a header or XML can carry: bytes that are no UTF-8 come as surrogate escapes.
text = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.just("\udc80"))
number = st.integers(0, 2**63)
infos = st.builds(
    BlobInfo,
    name=text,
    etag=text,
    size=number,
    last_modified_ns=number,
    blob_type=text,
    headers=st.builds(ContentHeaders, *[text] * 6),
    metadata=st.dictionaries(text, text),
    tier=text,
    tier_inferred=st.booleans(),
    tag_count=number,
    lease_state=text,
    copy_id=text,
    copy_status=text,
    snapshot=text,
)

OURS = BlobInfo(
    "some/where/file-0001",
    "0x8DE2A1B3C4D5E6F",
    1028,
    1_763_800_000_000_000_000,
    "BlockBlob",
    ContentHeaders("application/octet-stream", content_md5="6l4E+yRMfHRHBbDzBPDi0w=="),
    {
        "encryptiondata": '{"WrappedContentKey": {"KeyId": "blobfs-2026-11-22-deadbeef", '
        '"EncryptedKey": "Lr1w+PKOoBHwEoSbYwSECImk/1Rd6o/hGmUPLXGct9hhN0975WPNGqsI2OOMSaVR", '
        '"Algorithm": "A256KW"}, "EncryptionAgent": {"Protocol": "2.1", "EncryptionAlgorithm": '
        '"AES_GCM_256"}, "EncryptedRegionInfo": {"DataLength": 65536, "NonceLength": 12}, '
        '"KeyWrappingMetadata": {"EncryptionLibrary": "blobfs 0.1.0"}, '
        '"EncryptionMode": "FullBlob"}',
        "blobfs_seal": "1:1:z2Zzc0hWOb7dNSNAOM7d5zJUJw75UWkP6NhAQdxuOsg=",
        "permissions": "33188",
        "posix_owner": "1000",
        "posix_group": "1000",
        "modtime": "1763800000123456789",
    },
    "Hot",
    True,
    lease_state="available",
)


@given(infos)
def test_it_holds_all_that_was_said(info: BlobInfo) -> None:
    unpacked = PackedInfo.of(info).unpacked()
    assert unpacked == info
    assert list(unpacked.metadata) == list(info.metadata), "in the same order"


@given(infos)
def test_its_etag_needs_no_unpacking(info: BlobInfo) -> None:
    assert PackedInfo.of(info).etag == info.etag


def test_every_field_of_a_blob_is_packed() -> None:
    plain = BlobInfo("", "", 0, 0)
    missing = [
        name
        for name, here, there in zip(
            BlobInfo.__slots__, astuple(PackedInfo.of(OURS).unpacked()), astuple(OURS), strict=True
        )
        if here != there
    ]
    assert missing == []
    assert PackedInfo.of(plain).unpacked() == plain


def test_that_of_our_files_takes_less_than_a_fifth() -> None:
    headers = [OURS.headers, OURS.headers.content_md5]
    metadata = [OURS.metadata, *OURS.metadata.values()]
    plain = [OURS, OURS.name, OURS.etag, OURS.size, *headers, *metadata]
    assert sys.getsizeof(PackedInfo.of(OURS)) < sum(map(sys.getsizeof, plain)) / 5


@pytest.mark.parametrize("name", [METADATA_KEY, SEAL_KEY, BOX_KEY, *sorted(POSIX_KEYS)])
def test_a_name_of_our_metadata_takes_next_to_nothing(name: str) -> None:
    bare, named = BlobInfo("", "", 0, 0), BlobInfo("", "", 0, 0, metadata={name: ""})
    assert len(PackedInfo.of(named)) <= len(PackedInfo.of(bare)) + 4


@pytest.mark.parametrize("etag", ["", "0x8DE2A1B3C4D5E6F"])
def test_equal_blobs_are_packed_alike(etag: str) -> None:
    one, other = BlobInfo("a", etag, 1, 2), BlobInfo("a", etag, 1, 2)
    assert PackedInfo.of(one) == PackedInfo.of(other)
