"""What the service said of a blob, as it is kept of blobs that nobody works on: a fifth of the
memory.

A mount knows hundreds of thousands of blobs and has a few open. Most of what is known of each is
the same text, so what is kept is the deflated difference to a sample of it.
"""

import zlib
from typing import Self

from blobfs.blobs.model import BlobInfo, ContentHeaders

# A window just larger than the sample, and little state to set up: some 15 µs to pack and 8 to
# unpack; the defaults (15, 8) take 80 µs.
_WINDOW = -11
_MEMORY_LEVEL = 4

# As `_texts` has it of a file of ours.
_SAMPLE = (
    b"\0is_socket\0is_block_dev\0is_char_dev\0is_fifo\0hdi_isfolder\0is_symlink\0true\0"
    b"\0mtime\0owner\0group\0blobfs_xattr\0posix_rdev\0"
    b"BlockBlob\0application/octet-stream\0\0\0\0\0\0Hot\0True\0\0available"
    b"\0\0\0\0blobfs_seal\0001:1:=\0encryptiondata\0"
    b'{"WrappedContentKey": {"KeyId": "blobfs-2026-01-01-", "EncryptedKey": "", "Algorithm": '
    b'"A256KW"}, "EncryptionAgent": {"Protocol": "2.1", "EncryptionAlgorithm": "AES_GCM_256"}, '
    b'"EncryptedRegionInfo": {"DataLength": 65536, "NonceLength": 12}, "KeyWrappingMetadata": '
    b'{"EncryptionLibrary": "blobfs 0.1.0"}, "EncryptionMode": "FullBlob"}\0'
    b"posix_owner\0001000\0posix_group\0001000\0permissions\00033188\0modtime\00017"
    b"00000000000000000\0posix_atime\00017\0posix_ctime\00017"
)


class PackedInfo(bytes):
    """One BlobInfo: its ETag, NUL, and all else, deflated."""

    __slots__ = ()

    @classmethod
    def of(cls, info: BlobInfo) -> Self:
        packer = zlib.compressobj(level=6, wbits=_WINDOW, memLevel=_MEMORY_LEVEL, zdict=_SAMPLE)
        packed = packer.compress(_encode("\0".join(_texts(info)))) + packer.flush()
        return cls(_encode(info.etag) + b"\0" + packed)

    @property
    def etag(self) -> str:
        return _decode(self[: self.index(0)])

    def unpacked(self) -> BlobInfo:
        unpacker = zlib.decompressobj(wbits=_WINDOW, zdict=_SAMPLE)
        texts = _decode(unpacker.decompress(memoryview(self)[self.index(0) + 1 :])).split("\0")
        name, size, modified, blob_type = texts[:4]
        tier, inferred, tag_count, *others = texts[10:_FIELDS]
        metadata = iter(texts[_FIELDS:])
        return BlobInfo(
            name,
            self.etag,
            int(size),
            int(modified),
            blob_type,
            ContentHeaders(*texts[4:10]),
            dict(zip(metadata, metadata, strict=True)),
            tier,
            bool(inferred),
            int(tag_count or 0),
            *others,
        )


_FIELDS = 17


def _texts(info: BlobInfo) -> list[str]:
    headers = info.headers
    return [
        info.name,
        str(info.size),
        str(info.last_modified_ns),
        info.blob_type,
        headers.content_type,
        headers.cache_control,
        headers.content_encoding,
        headers.content_language,
        headers.content_disposition,
        headers.content_md5,
        info.tier,
        "True" if info.tier_inferred else "",
        str(info.tag_count or ""),
        info.lease_state,
        info.copy_id,
        info.copy_status,
        info.snapshot,
        *[part for item in info.metadata.items() for part in item],
    ]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # bytes that are no UTF-8 came as surrogates


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
