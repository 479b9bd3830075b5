"""Packed metadata is the metadata, in less memory."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs.blobs import PackedMetadata

# What a header or XML can carry: bytes that are no UTF-8 come as surrogate escapes.
text = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.just("\udc80"))


@given(st.dictionaries(text, text))
def test_it_holds_the_same_keys_and_values_in_the_same_order(metadata: dict[str, str]) -> None:
    packed = PackedMetadata(metadata)
    assert list(packed.items()) == list(metadata.items())
    assert packed == metadata
    assert dict(packed) == metadata
    assert len(packed) == len(metadata)


def test_a_key_that_is_not_there_is_a_key_error() -> None:
    packed = PackedMetadata({"here": "value"})
    assert "gone" not in packed
    with pytest.raises(KeyError):
        packed["gone"]


def test_it_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        PackedMetadata({})["key"] = "value"  # type: ignore[index]


def test_that_of_our_files_takes_less_than_a_third() -> None:
    metadata = {
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
    }
    packed = PackedMetadata(metadata)
    plain = sys.getsizeof(metadata) + sum(map(sys.getsizeof, metadata.values()))
    assert sys.getsizeof(packed) + sys.getsizeof(packed._packed) < plain / 3
