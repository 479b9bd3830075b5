"""The metadata value `encryptiondata`: which protocol, which wrapped CEK, how the body is cut.

Azure's own format, specified in FORMAT.md section 2.
"""

import base64
import binascii
import functools
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from blobfs import __version__
from blobfs.errors import Corrupt, ProtocolRefused

METADATA_KEY = "encryptiondata"

MIN_REGION_LENGTH = 16
MAX_REGION_LENGTH = 2**30
REGION_LENGTH_2_0 = 4 * 1024 * 1024
"""The one region length that SDKs write for protocol 2.0."""

NONCE_LENGTH = 12
IV_LENGTH = 16

MAX_METADATA_VALUE = 8 * 1024
"""Azure's limit for all metadata of a blob together, so for one value too."""


class Protocol(StrEnum):
    V1_0 = "1.0"
    V2_0 = "2.0"
    V2_1 = "2.1"


_CIPHER = {
    Protocol.V1_0: "AES_CBC_256",
    Protocol.V2_0: "AES_GCM_256",
    Protocol.V2_1: "AES_GCM_256",
}


class Layout(NamedTuple):
    """How a body is laid out, as far as its plaintext's length depends on it."""

    protocol: Protocol
    region_length: int
    """As in `EncryptionData`."""

    @classmethod
    def parse(cls, value: str) -> "Layout":
        """What `EncryptionData.parse` says of it, for listings: 5,000 values a page that differ
        in their wrapped key alone. Raises as that does, but for what is wrong with the key."""
        return _layout(_ENCRYPTED_KEY.sub(_ANY_KEY, value))


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A payload encrypted by the KEK `key_id` with the key-wrap `algorithm`."""

    key_id: str
    algorithm: str
    encrypted_key: bytes


@dataclass(frozen=True, slots=True)
class EncryptionData:
    """What `encryptiondata` says. Nothing in it is authenticated but, by the wrap, the protocol."""

    protocol: Protocol
    wrapped: WrappedKey
    region_length: int
    """Plaintext bytes per region; 0 for protocol 1.0."""
    iv: bytes
    """CBC's initialisation vector; empty for protocols 2.x."""
    library: str = f"blobfs {__version__}"

    @classmethod
    def parse(cls, value: str) -> "EncryptionData":
        """Read what any SDK wrote: member names in any case, any order and spacing.

        Raises ProtocolRefused for a protocol that we do not know, Corrupt for anything malformed.
        """
        root = Members.parse(METADATA_KEY, value)
        agent = root.members("EncryptionAgent")
        name = agent.text("Protocol")
        try:
            protocol = Protocol(name)
        except ValueError:
            raise ProtocolRefused(f"{METADATA_KEY}: unknown protocol {name[:20]!r}") from None
        if agent.text("EncryptionAlgorithm") != _CIPHER[protocol]:
            raise Corrupt(f"{METADATA_KEY}: wrong EncryptionAlgorithm for protocol {protocol}")
        region_length, iv = 0, b""
        if protocol is Protocol.V1_0:
            iv = root.base64("ContentEncryptionIV")
            if len(iv) != IV_LENGTH:
                raise Corrupt(f"{METADATA_KEY}: ContentEncryptionIV is not {IV_LENGTH} bytes")
        else:
            regions = root.members("EncryptedRegionInfo")
            region_length = regions.integer("DataLength")
            if not MIN_REGION_LENGTH <= region_length <= MAX_REGION_LENGTH:
                raise Corrupt(f"{METADATA_KEY}: DataLength is not in 16..2**30")
            if regions.integer("NonceLength") != NONCE_LENGTH:
                raise Corrupt(f"{METADATA_KEY}: NonceLength is not {NONCE_LENGTH}")
        return cls(
            protocol,
            root.members("WrappedContentKey").wrapped_key(),
            region_length,
            iv,
            root.library(),
        )

    def serialize(self) -> str:
        """ASCII, byte for byte as the Python SDK writes it, but for the library's name."""
        body: dict[str, object]
        if self.protocol is Protocol.V1_0:
            body = {"ContentEncryptionIV": encode_base64(self.iv)}
        else:
            body = {
                "EncryptedRegionInfo": {
                    "DataLength": self.region_length,
                    "NonceLength": NONCE_LENGTH,
                }
            }
        return json.dumps(
            {
                "WrappedContentKey": {
                    "KeyId": self.wrapped.key_id,
                    "EncryptedKey": encode_base64(self.wrapped.encrypted_key),
                    "Algorithm": self.wrapped.algorithm,
                },
                "EncryptionAgent": {
                    "Protocol": self.protocol,
                    "EncryptionAlgorithm": _CIPHER[self.protocol],
                },
                **body,
                "KeyWrappingMetadata": {"EncryptionLibrary": self.library},
                "EncryptionMode": "FullBlob",
            }
        )


_ENCRYPTED_KEY = re.compile(r'"EncryptedKey"\s*:\s*"[A-Za-z0-9+/]{32,}={0,2}"')
_ANY_KEY = f'"EncryptedKey": "{"A" * 64}"'


@functools.lru_cache(maxsize=256)
def _layout(value: str) -> Layout:
    data = EncryptionData.parse(value)
    return Layout(data.protocol, data.region_length)


class Members:
    """A JSON object read by name, whatever the case of the names, with strict types.

    Every method raises Corrupt, naming the metadata key and the member.
    """

    def __init__(self, key: str, members: dict[str, object]) -> None:
        self._key = key
        self._members = members

    @classmethod
    def parse(cls, key: str, value: str) -> "Members":
        if len(value) > MAX_METADATA_VALUE:
            raise Corrupt(f"{key} is longer than metadata can be")
        try:
            members = _DECODER.decode(value)
        except (ValueError, RecursionError) as exc:
            raise Corrupt(f"{key} is not a JSON object without repeated members") from exc
        if not isinstance(members, dict):
            raise Corrupt(f"{key} is not a JSON object")
        return cls(key, members)

    def members(self, name: str) -> "Members":
        value = self._members.get(name.lower())
        if not isinstance(value, dict):
            raise self._malformed(name)
        return Members(self._key, value)

    def text(self, name: str) -> str:
        """A string that is neither empty nor, by a lone surrogate, unfit for UTF-8."""
        value = self._members.get(name.lower())
        if not isinstance(value, str) or not value:
            raise self._malformed(name)
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise self._malformed(name) from exc
        return value

    def integer(self, name: str) -> int:
        value = self._members.get(name.lower())
        if type(value) is not int:  # bool is an int, but JSON's true is no number
            raise self._malformed(name)
        return value

    def base64(self, name: str) -> bytes:
        try:
            return decode_base64(self.text(name))
        except ValueError as exc:
            raise self._malformed(name) from exc

    def wrapped_key(self) -> WrappedKey:
        return WrappedKey(self.text("KeyId"), self.text("Algorithm"), self.base64("EncryptedKey"))

    def library(self) -> str:
        """Who wrote this, for people; optional everywhere, so "" rather than an error."""
        notes = self._members.get("keywrappingmetadata")
        value = notes.get("encryptionlibrary") if isinstance(notes, dict) else None
        return value if isinstance(value, str) else ""

    def _malformed(self, name: str) -> Corrupt:
        return Corrupt(f"{self._key}: {name} is missing or malformed")


def _fold(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Lower-case the names; two readers must not see two values, so a repeated one is an error."""
    members = {name.lower(): value for name, value in pairs}
    if len(members) != len(pairs):
        raise ValueError("repeated member")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_fold)


def encode_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def decode_base64(value: str) -> bytes:
    """Standard base64 with its padding, and the one canonical form of it. Raises ValueError."""
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    if encode_base64(decoded) != value:
        raise ValueError("not canonical base64")
    return decoded
