"""Names, metadata, content headers and tags as they go over the wire.

What the service would refuse or silently change is refused here with `Rejected`, before any
request: the callers have checked what users may type, so this is the net below them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

from blobfs.blobs.model import ContentHeaders
from blobfs.errors import Rejected

Buffer = bytes | bytearray | memoryview

METADATA_LIMIT = 8 * 1024
"""Most bytes that the names and values of a blob's metadata may have in all (Azure's limit)."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Printable ASCII. HTTP strips blanks around a value, so one there would not come back.
_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")

_CONTENT_FIELDS = (
    "cache_control",
    "content_encoding",
    "content_language",
    "content_disposition",
)


def blob_path(name: str) -> str:
    """`name` as the path of a URL below its container: all but `/` and unreserved is encoded.

    Raises Rejected for a name that addresses something else: "" is the container itself, and
    `.` and `..` are resolved by whoever handles the URL, encoded or not.
    """
    if not name or not {".", ".."}.isdisjoint(name.split("/")):
        raise Rejected(f"no blob can be addressed by the name {name!r}")
    try:
        return quote(name, safe="/")
    except UnicodeEncodeError:
        raise Rejected(f"the name {name!r} is not Unicode text") from None


def query(parameters: Mapping[str, str | int]) -> str:
    """A query string, its values encoded, without those that are ""."""
    return "&".join(
        f"{name}={quote(str(value), safe='')}" for name, value in parameters.items() if value != ""
    )


def metadata_size(metadata: Mapping[str, str]) -> int:
    """The bytes of `metadata` that count against `METADATA_LIMIT`."""
    return sum(len(name) + len(value) for name, value in metadata.items())


def metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """Raises Rejected when a name is no C# identifier in ASCII or equals another but for its case,
    when a value is not printable ASCII or has blanks around it, or when all is over
    `METADATA_LIMIT`."""
    for name, value in metadata.items():
        if not _IDENTIFIER.fullmatch(name):
            raise Rejected(f"{name!r} cannot be a metadata name")
        if not _VALUE.fullmatch(value):
            raise Rejected(f"the value of metadata {name!r} is not ASCII that HTTP keeps as it is")
    if len({name.lower() for name in metadata}) != len(metadata):
        raise Rejected("two metadata names differ only in case")
    size = metadata_size(metadata)
    if size > METADATA_LIMIT:
        raise Rejected(f"metadata of {size} bytes is over Azure's limit of {METADATA_LIMIT}")
    return {f"x-ms-meta-{name}": value for name, value in metadata.items()}


def content_headers(headers: ContentHeaders) -> dict[str, str]:
    """The type is always sent: the service would otherwise take it from the request's own headers,
    and Set Blob Properties clears the others only when at least one is sent."""
    fields = {"x-ms-blob-content-type": headers.content_type or "application/octet-stream"}
    for field in _CONTENT_FIELDS:
        if value := getattr(headers, field):
            fields["x-ms-blob-" + field.replace("_", "-")] = value
    return fields


def tags_header(tags: Mapping[str, str] | None) -> dict[str, str]:
    return {"x-ms-tags": urlencode(tags, quote_via=quote)} if tags else {}


def tier_header(tier: str | None) -> dict[str, str]:
    return {"x-ms-access-tier": tier} if tier else {}


def stored_with(
    metadata: Mapping[str, str],
    headers: ContentHeaders,
    tags: Mapping[str, str] | None,
    tier: str | None,
) -> dict[str, str]:
    """The headers for all that a commit stores beside the body."""
    return {
        **metadata_headers(metadata),
        **content_headers(headers),
        **tags_header(tags),
        **tier_header(tier),
    }


def conditions(if_match: str | None, if_none_match: bool = False) -> dict[str, str]:
    """`if_match` is an ETag without quotes; `if_none_match` asks that no blob be there."""
    fields = {}
    if if_match is not None:
        fields["If-Match"] = f'"{if_match}"'
    if if_none_match:
        fields["If-None-Match"] = "*"
    return fields


def views(body: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """The buffers of a body, uncopied, as bytes."""
    buffers: Iterable[Buffer] = (
        (body,) if isinstance(body, bytes | bytearray | memoryview) else body
    )
    return [memoryview(buffer).cast("B") for buffer in buffers]
