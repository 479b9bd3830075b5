"""What an attacker who writes the container, and has no KEK, can do to one blob: the table.

Each row is a change of a genuine blob, and what a mount makes of it for four kinds of blobs: with a
seal or `bare`, of protocols 2.x or 1.0. An errno is a refusal. A word is what may be read instead,
which SECURITY.md then says in the words of `said`:

    own      the very content        older   a former version of it
    other    another file's          prefix  its beginning, up to the end of a region
    changed  anything: protocol 1.0 has no integrity
"""

import errno
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from blobfs.envelope import BodyWriter, KeySet, Protocol
from tests.sdk import content

EIO, EACCES, ENOKEY = errno.EIO, errno.EACCES, errno.ENOKEY
Outcome = frozenset[int | str]


@dataclass(frozen=True)
class Blob:
    body: bytes
    metadata: dict[str, str]

    def with_body(self, body: bytes) -> "Blob":
        return replace(self, body=body)

    def with_metadata(self, **values: str | None) -> "Blob":
        merged = {**self.metadata, **values}
        return replace(self, metadata={k: v for k, v in merged.items() if v is not None})

    def with_data(self, change: Callable[[dict[str, Any]], object]) -> "Blob":
        data = json.loads(self.metadata["encryptiondata"])
        change(data)
        return self.with_metadata(encryptiondata=json.dumps(data))


@dataclass(frozen=True)
class Form:
    """One kind of genuine blob."""

    protocol: Protocol
    region_length: int
    size: int
    sealed: bool

    @property
    def column(self) -> str:
        old = self.protocol is Protocol.V1_0
        return f"{'sealed' if self.sealed else 'bare'}{1 if old else 2}"

    @property
    def unit(self) -> int:
        """Stored bytes of what can be cut off, moved and repeated."""
        return 16 if self.protocol is Protocol.V1_0 else self.region_length + 28

    def plain(self, seed: int) -> bytes:
        return content(self.size, seed)

    def blob(self, keys: KeySet, seed: int) -> Blob:
        body = BodyWriter(self.protocol, self.region_length)
        ciphertext = bytes(body.encrypt(self.plain(seed), final=True))
        wrapped = keys.wrap(body.cek_payload)
        metadata = {"encryptiondata": body.encryption_data(wrapped).serialize()}
        if self.sealed:
            metadata["blobfs_seal"] = body.seal("file")
        return Blob(ciphertext, metadata)


_2_0 = 4 * 1024 * 1024
FORMS = {
    "2.1 sealed": Form(Protocol.V2_1, 4096, 3 * 4096 + 5, True),
    "2.1 sealed, one region": Form(Protocol.V2_1, 4096, 100, True),
    "2.1 bare": Form(Protocol.V2_1, 4096, 3 * 4096 + 5, False),
    "2.0 sealed": Form(Protocol.V2_0, _2_0, 100, True),
    "2.0 bare, two regions": Form(Protocol.V2_0, _2_0, _2_0 + 5, False),
    "1.0 sealed": Form(Protocol.V1_0, 0, 1000, True),
    "1.0 bare": Form(Protocol.V1_0, 0, 1000, False),
}


@dataclass(frozen=True)
class Versions:
    """What the attacker has of one form: the blob, another file's, and a former version."""

    form: Form
    own: Blob
    other: Blob
    older: Blob
    box_key: dict[str, str]
    """KeyId, EncryptedKey and Algorithm of a box."""

    def units(self) -> list[bytes]:
        unit, body = self.form.unit, self.own.body
        return [body[start : start + unit] for start in range(0, len(body), unit)]


@dataclass(frozen=True)
class Row:
    name: str
    change: Callable[[Versions], Blob]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By column; a column that is not there is not applicable."""
    said: str = ""


def _row(
    name: str,
    change: Callable[[Versions], Blob],
    both: object = None,
    *,
    said: str = "",
    **columns: object,
) -> Row:
    given = {**dict.fromkeys(("sealed2", "bare2", "sealed1", "bare1"), both), **columns}
    outcomes = {
        column: frozenset(value if isinstance(value, tuple) else (value,))
        for column, value in given.items()
        if value is not None
    }
    return Row(name, change, outcomes, said)


def _flipped(at: int) -> Callable[[Versions], Blob]:
    def change(v: Versions) -> Blob:
        body = bytearray(v.own.body)
        body[at if at < len(body) else len(body) // 2] ^= 1
        return v.own.with_body(bytes(body))

    return change


def _joined(pick: Callable[[list[bytes]], list[bytes]]) -> Callable[[Versions], Blob]:
    return lambda v: v.own.with_body(b"".join(pick(v.units())))


def _data(change: Callable[[dict[str, Any]], object]) -> Callable[[Versions], Blob]:
    return lambda v: v.own.with_data(change)


def _as_protocol(name: str) -> Callable[[Versions], Blob]:
    """With the members that such a blob has, so that nothing but the wrapped key tells."""

    def change(data: dict[str, Any]) -> None:
        data["EncryptionAgent"] = {
            "Protocol": name,
            "EncryptionAlgorithm": "AES_CBC_256" if name == "1.0" else "AES_GCM_256",
        }
        data["ContentEncryptionIV"] = b64encode(bytes(16)).decode()
        data.setdefault("EncryptedRegionInfo", {"DataLength": 64, "NonceLength": 12})

    return lambda v: v.own if v.form.protocol == name else v.own.with_data(change)


def _set_key(**members: str) -> Callable[[Versions], Blob]:
    return _data(lambda data: data["WrappedContentKey"].update(members))


def _set_regions(**members: int) -> Callable[[Versions], Blob]:
    return _data(lambda data: data["EncryptedRegionInfo"].update(members))


def _key_of(data: dict[str, Any]) -> dict[str, str]:
    key: dict[str, str] = data["WrappedContentKey"]
    return key


def _others_key(v: Versions) -> Blob:
    theirs = _key_of(json.loads(v.other.metadata["encryptiondata"]))
    return v.own.with_data(lambda data: _key_of(data).update(theirs))


def _flip_key(data: dict[str, Any]) -> None:
    key = bytearray(b64decode(_key_of(data)["EncryptedKey"]))
    key[20] ^= 1
    _key_of(data)["EncryptedKey"] = b64encode(key).decode()


def _resealed(v: Versions) -> Blob:
    version, size, mac = v.own.metadata["blobfs_seal"].split(":")
    return v.own.with_metadata(blobfs_seal=f"{version}:{int(size) - 1}:{mac}")


_SEAL = "The presence of the seal"
_CBC = "who can write can change its content in a controlled way"
_ANY = ("changed", EIO)
_OLD = {"sealed1": _ANY, "bare1": _ANY, "said": _CBC}
TWICE = '{"a": 1, "A": 2}'

ROWS = [
    # bodies
    _row("a bit of a nonce flipped", _flipped(3), EIO, **_OLD),
    _row("a bit of content flipped", _flipped(50), EIO, **_OLD),
    _row("a bit of the last tag flipped", _flipped(10**9), EIO, **_OLD),
    _row("a byte cut off", lambda v: v.own.with_body(v.own.body[:-1]), EIO),
    _row(
        "whole units cut off",
        _joined(lambda u: u[:-1]),
        EIO,
        bare2="prefix",
        bare1=_ANY,
        said=_SEAL,
    ),
    _row("emptied", lambda v: v.own.with_body(b""), EIO, bare2="prefix", said=_SEAL),
    _row("a byte more", lambda v: v.own.with_body(v.own.body + b"\0"), EIO),
    _row("the last unit twice", _joined(lambda u: [*u, u[-1]]), EIO, bare1=_ANY, said=_CBC),
    _row("the first two exchanged", _joined(lambda u: [*u[1:2], u[0], *u[2:]]), EIO, **_OLD),
    _row(
        "the first in place of all", _joined(lambda u: [u[0]] * (len(u) - 1) + u[-1:]), EIO, **_OLD
    ),
    _row(
        "the first left out",
        _joined(lambda u: u[1:]),
        EIO,
        bare2=(EIO, "prefix"),
        bare1=_ANY,
        said=_SEAL,
    ),
    _row("another file's body", lambda v: v.own.with_body(v.other.body), EIO, **_OLD),
    _row("an older body", lambda v: v.own.with_body(v.older.body), EIO, **_OLD),
    _row("another file's metadata", lambda v: v.other.with_body(v.own.body), EIO, **_OLD),
    # whole blobs
    _row("an older version", lambda v: v.older, "older", said="An older version, put back whole"),
    _row("another file", lambda v: v.other, "other", said="Two files can be exchanged"),
    # the seal
    _row(
        "the seal taken off",
        lambda v: v.own.with_metadata(blobfs_seal=None),
        "own",
        sealed1="own",
        said=_SEAL,
    ),
    _row(
        "the seal taken off and units cut off",
        lambda v: _joined(lambda u: u[:-1])(v).with_metadata(blobfs_seal=None),
        "prefix",
        sealed1=_ANY,
        bare1=_ANY,
        said=_SEAL,
    ),
    _row(
        "another file's seal",
        lambda v: v.own.with_metadata(blobfs_seal=v.other.metadata["blobfs_seal"]),
        sealed2=EIO,
        sealed1=EIO,
    ),
    _row("a seal of another length", _resealed, sealed2=EIO, sealed1=EIO),
    _row("a seal of nothing", lambda v: v.own.with_metadata(blobfs_seal="1:0:"), EIO),
    _row("a seal of the future", lambda v: v.own.with_metadata(blobfs_seal="2:" + "A" * 90), EIO),
    # encryptiondata
    _row("encryptiondata taken off", lambda v: v.own.with_metadata(encryptiondata=None), EACCES),
    _row("all metadata taken off", lambda v: replace(v.own, metadata={}), EACCES),
    *(_row(f"passed off as {p}", _as_protocol(p), EIO) for p in ("1.0", "2.0", "2.1")),
    _row("of protocol 9", _data(lambda d: d["EncryptionAgent"].update(Protocol="9")), EACCES),
    *(
        _row(name, _set_regions(**members), sealed2=EIO, bare2=EIO)
        for name, members in {
            "another region length": {"DataLength": 64},
            "the longest regions": {"DataLength": 2**30},
            "a nonce of 13 bytes": {"NonceLength": 13},
        }.items()
    ),
    _row(
        "another IV",
        _data(lambda d: d.update(ContentEncryptionIV=b64encode(bytes(16)).decode())),
        sealed1=EIO,
        bare1="changed",
        said=_CBC,
    ),
    _row("an unknown key id", _set_key(KeyId="nobody's"), ENOKEY),
    _row("the id of another key", _set_key(KeyId="local:second"), EIO),
    _row("a key id of 4,000 characters", _set_key(KeyId="k" * 4000), ENOKEY),
    _row("another file's wrapped key", _others_key, EIO, bare1=_ANY, said=_CBC),
    _row("a bit of the wrapped key flipped", _data(_flip_key), EIO),
    _row("the wrapped key cut", _set_key(EncryptedKey="AAAA"), EIO),
    _row("the key of a box", lambda v: _set_key(**v.box_key)(v), EIO),
    _row("another key wrap", _set_key(Algorithm="RSA-OAEP-256"), EIO),
    _row("the standby form", _set_key(Algorithm="blobfs-standby:A256KW"), EIO),
    # metadata that nobody writes
    *(
        _row(f"encryptiondata {name}", lambda v, t=text: v.own.with_metadata(encryptiondata=t), EIO)
        for name, text in {
            "empty of members": "{}",
            "no object": "[]",
            "cut": '{"WrappedContentKey": {"KeyId": "x',
            "with a member twice": TWICE,
            "nested deeply": "[" * 7000,
            "of one number": "9" * 7000,
            "too long": json.dumps({"KeyId": "x" * 7000}),
        }.items()
    ),
]


def allowed(outcome: Outcome, versions: Versions, read: bytes) -> bool:
    """Whether these bytes are one of what the outcome permits."""
    form = versions.form
    own, other, older = (form.plain(seed) for seed in (0, 1, 2))
    return (
        "changed" in outcome
        or ("own" in outcome and read == own)
        or ("other" in outcome and read == other)
        or ("older" in outcome and read == older)
        or ("prefix" in outcome and len(read) % form.region_length == 0 and own.startswith(read))
    )


def versions_of(form: Form, keys: KeySet, box_key: dict[str, str]) -> Versions:
    own, other, older = (form.blob(keys, seed) for seed in (0, 1, 2))
    return Versions(form, own, other, older, box_key)
