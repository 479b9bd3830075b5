"""Extended attribute names, and which part of a blob each one shows.

| name | shows | writable |
|---|---|---|
| `user.azure.metadata.KEY` | a metadata key that is not blobfs's own | yes |
| `user.azure.tag.KEY` | a blob index tag | yes |
| `user.azure.content_type` and the other content headers | that header | yes |
| `user.azure.tier`, `user.azure.etag`, `user.azure.content_md5` | that property | no |
| `user.blobfs.` `protocol`, `key_id`, `region_length`, `sealed`, `etag` | the envelope | no |
| any other `user.…` | itself, encrypted in one metadata value | yes |

Read-only views, and headers that say nothing, are not listed: copying them to another file would
fail or cost a request for nothing.
"""

import base64
import enum
import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from blobfs.attributes import INTENT_KEY, POSIX_KEYS, value_of
from blobfs.blobs import BlobInfo
from blobfs.envelope import BOX_KEY, METADATA_KEY, SEAL_KEY, EncryptionData
from blobfs.errors import Corrupt, PosixError

HEADERS = frozenset(
    {
        "content_type",
        "cache_control",
        "content_encoding",
        "content_language",
        "content_disposition",
    }
)
READ_ONLY = frozenset({"tier", "etag", "content_md5"})
ENVELOPE = frozenset({"protocol", "key_id", "region_length", "sealed", "etag"})

_OWN_KEYS = POSIX_KEYS | {METADATA_KEY, SEAL_KEY, BOX_KEY, INTENT_KEY}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_UNSAID = {"content_type": "application/octet-stream"}


class View(enum.Enum):
    METADATA = "metadata"
    TAG = "tag"
    HEADER = "header"
    READ_ONLY = "read-only"
    ENVELOPE = "envelope"
    BOX = "box"


@dataclass(frozen=True, slots=True)
class Attribute:
    """An xattr name taken apart: `key` is the name within its view."""

    view: View
    key: str


def parse_name(raw: bytes) -> Attribute:
    """Raises PosixError: EOPNOTSUPP outside `user.`, EPERM for a key that is blobfs's own."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise PosixError(errno.EILSEQ, "an attribute name is UTF-8 text") from None
    if not name.startswith("user."):
        raise PosixError(errno.EOPNOTSUPP)
    blobfs = name.removeprefix("user.blobfs.")
    if blobfs != name:
        if blobfs in ENVELOPE:
            return Attribute(View.ENVELOPE, blobfs)
        raise PosixError(errno.EINVAL, f"no such view of a blob: {name}")
    azure = name.removeprefix("user.azure.")
    if azure == name:
        return Attribute(View.BOX, name)
    if azure in HEADERS:
        return Attribute(View.HEADER, azure)
    if azure in READ_ONLY:
        return Attribute(View.READ_ONLY, azure)
    view, _, key = azure.partition(".")
    if view == "tag" and key:
        return Attribute(View.TAG, key)
    if view == "metadata" and _IDENTIFIER.fullmatch(key):
        if key.lower() in _OWN_KEYS:
            raise PosixError(errno.EPERM, f"{key} is kept by blobfs")
        return Attribute(View.METADATA, key)
    raise PosixError(errno.EINVAL, f"no such view of a blob: {name}")


def text_of(value: bytes, what: str) -> str:
    """Raises PosixError(EINVAL) for what cannot be metadata, a header or a tag."""
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        raise PosixError(errno.EINVAL, f"{what} is ASCII text") from None
    if not text.isprintable() or text != text.strip():
        raise PosixError(errno.EINVAL, f"{what} is printable, without spaces around it")
    return text


def listed(info: BlobInfo, metadata: Mapping[str, str]) -> list[str]:
    """Names of the metadata and header views that the blob has."""
    names = [f"user.azure.metadata.{key}" for key in metadata if key.lower() not in _OWN_KEYS]
    for header in sorted(HEADERS):
        value = getattr(info.headers, header)
        if value and value != _UNSAID.get(header):
            names.append(f"user.azure.{header}")
    return names


def envelope_of(info: BlobInfo, key: str) -> str | None:
    """What `user.blobfs.KEY` shows of the blob's body as it is stored: None where it has no such
    thing. Raises Corrupt or ProtocolRefused for an envelope that cannot be read."""
    if key == "etag":
        return info.etag or None
    value = value_of(info.metadata, METADATA_KEY)
    if value is None:
        return None
    if key == "sealed":
        return "no" if value_of(info.metadata, SEAL_KEY) is None else "yes"
    data = EncryptionData.parse(value)
    if key == "protocol":
        return data.protocol
    if key == "key_id":
        return data.wrapped.key_id
    return str(data.region_length) if data.region_length else None


def encode_box(attributes: Mapping[str, bytes]) -> bytes:
    """The plaintext of the box: a JSON object of Base64 values."""
    pairs = {name: base64.b64encode(value).decode() for name, value in sorted(attributes.items())}
    return json.dumps(pairs, separators=(",", ":")).encode()


def decode_box(plain: bytes) -> dict[str, bytes]:
    """Raises Corrupt for what `encode_box` never makes."""
    try:
        pairs = json.loads(plain)
        attributes = {k: base64.b64decode(v, validate=True) for k, v in pairs.items()}
        # Whoever knows an RSA key's public half makes boxes, too: these names are for the kernel.
        if any(parse_name(name.encode()) != Attribute(View.BOX, name) for name in attributes):
            raise ValueError("not a name that is kept in a box")
        if any("\0" in name for name in attributes):
            raise ValueError("a name with a NUL")
        return attributes
    except (ValueError, AttributeError, TypeError, RecursionError, PosixError):
        raise Corrupt("the sealed extended attributes are malformed") from None
