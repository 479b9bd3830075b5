"""Shared access signatures: read, judge, explain, redact and make container SAS tokens. Pure.

blobfs is authorised by a SAS alone. The token is appended to every URL byte for byte as it was
given, since any re-encoding or reordering can invalidate it; what is parsed here only serves to
say, before anything is mounted, why the service would refuse it.

Fields and letters: Microsoft, "Create a service SAS" and "Create a user delegation SAS".
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from blobfs.errors import SasError

START_SKEW = timedelta(minutes=15)
"""How far ahead of the local clock a token may start: the clock skew that Azure's SAS practices
reckon with. Within it the service decides. An expiry gets no such grace."""

DEFAULT_VERSION = "2020-12-06"
"""The `sv` that `create` signs with: the first with today's string-to-sign, so widely accepted."""

PERMISSIONS = {
    "r": "read blobs, their properties and metadata; source of a copy",
    "a": "append to append blobs",
    "c": "create new blobs",
    "w": "write blobs, metadata, properties and tier; lease",
    "d": "delete blobs",
    "x": "delete blob versions",
    "y": "permanently delete soft-deleted versions and snapshots",
    "l": "list blobs",
    "t": "read and write tags",
    "f": "find blobs by tags",
    "m": "move files and directories (hierarchical namespace)",
    "e": "read system properties and ACLs (hierarchical namespace)",
    "o": "change the owner (hierarchical namespace)",
    "p": "change permissions and ACLs (hierarchical namespace)",
    "i": "set immutability policies and legal holds",
}
"""Permission letter -> what it allows, in the order that the service demands in `sp`."""

_RESOURCES = {
    "c": "the container and every blob in it",
    "d": "a directory and everything below it",
    "b": "a single blob",
    "bs": "a single blob snapshot",
    "bv": "a single blob version",
    "s": "a file share",
    "f": "a single file of a file share",
}


@dataclass(frozen=True, slots=True)
class Sas:
    """One token. `query` is the secret part: append it to a URL verbatim, never log it.

    `permissions` is None when only the stored access policy (`identifier`) knows them.
    `resource` is "" for an account SAS. Times are aware; None means not in the token.
    """

    query: str = field(repr=False)
    version: str
    resource: str
    permissions: frozenset[str] | None
    start: datetime | None = None
    expiry: datetime | None = None
    protocols: frozenset[str] = frozenset({"https", "http"})
    ip: str = ""
    identifier: str = ""
    directory_depth: int | None = None
    encryption_scope: str = ""
    is_account: bool = False
    is_user_delegation: bool = False
    key_expiry: datetime | None = None

    @property
    def effective_expiry(self) -> datetime | None:
        """When the token stops working: a delegation key (`ske`) may expire before the token."""
        return min((t for t in (self.expiry, self.key_expiry) if t is not None), default=None)


# --- reading ---------------------------------------------------------------------------------

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CONNECTION_STRING = re.compile(
    r"(?:^|;)\s*(?:SharedAccessSignature|AccountKey|AccountName|\w+Endpoint|EndpointSuffix"
    r"|DefaultEndpointsProtocol)\s*=",
    re.IGNORECASE,
)
_ACCOUNT_KEY = re.compile(r"[A-Za-z0-9+/]{86}==")
# fromisoformat alone would also take week dates and times without a zone.
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,7})?)?(Z|[+-]\d\d:\d\d))?", re.IGNORECASE
)
# Parameters of a request, as in a URL copied from a tool; kept, they would change our requests.
_OPERATION = re.compile(
    "blockid|comp|delimiter|include|marker|maxresults|prefix|restype|snapshot|timeout|versionid",
    re.IGNORECASE,
)
_ACCOUNT_KEY_GIVEN = (
    "this is an account key, which blobfs never uses to mount: "
    "make a container SAS with it (blobfs sas create) and give that"
)
_NOT_A_SAS = (
    "this is not a SAS token, it has no signature (sig=): "
    "paste the token, the SAS URL or the connection string as the portal shows it"
)


def parse(text: str) -> Sas:
    """The token in `text`: a token, `?token`, a SAS URL or a connection string.

    Surrounding white space and one pair of quotes are dropped. Raises SasError, which never
    quotes the signature, when there is none, or one that was damaged on its way here.
    """
    _, sas = split_url(text)
    if sas is None:
        raise SasError(_NOT_A_SAS)
    return sas


def split_url(text: str) -> tuple[str, Sas | None]:
    """`text` as (URL or service endpoint without query, "" when it has none; token or None).

    Takes what `parse` takes, and a plain URL. Raises SasError like `parse`.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()  # az prints its tokens in quotes
    if _SCHEME.match(text):
        url, has_query, query = text.partition("?")
        return url, _parse_token(query) if has_query else None
    if _CONNECTION_STRING.search(text):
        pairs = (piece.partition("=") for piece in text.split(";"))
        parts = {name.strip().lower(): value.strip() for name, _, value in pairs}
        token = parts.get("sharedaccesssignature")
        if token is None:
            raise SasError(_ACCOUNT_KEY_GIVEN if "accountkey" in parts else _NOT_A_SAS)
        return parts.get("blobendpoint", ""), _parse_token(token)
    return "", _parse_token(text)


def _parse_token(text: str) -> Sas:
    query = text.lstrip("?&").rstrip("&")
    if _ACCOUNT_KEY.fullmatch(query):
        raise SasError(_ACCOUNT_KEY_GIVEN)
    fields = _fields(query)
    _check_signature(query)
    is_account = "ss" in fields or "srt" in fields
    identifier = fields.get("si", "")
    needed = ["sv"] if is_account else ["sv", "sr"]
    if not identifier:
        needed += ["sp", "se"]
    for name in needed:
        if not fields.get(name):
            raise _damaged(f"it has no {name}= field")
    depth = fields.get("sdd")
    if depth is not None and not re.fullmatch(r"[0-9]{1,3}", depth):
        raise _damaged("its sdd= field is not a number")
    return Sas(
        query=query,
        version=fields["sv"],
        resource="" if is_account else fields["sr"],
        permissions=frozenset(fields["sp"]) if fields.get("sp") else None,
        start=_time(fields, "st"),
        expiry=_time(fields, "se"),
        protocols=frozenset(fields.get("spr", "https,http").split(",")),
        ip=fields.get("sip", ""),
        identifier=identifier,
        directory_depth=None if depth is None else int(depth),
        encryption_scope=fields.get("ses", ""),
        is_account=is_account,
        is_user_delegation="skoid" in fields,
        key_expiry=_time(fields, "ske"),
    )


def _damaged(why: str) -> SasError:
    return SasError(f"the SAS token is damaged, {why}: copy it again, whole and in one line")


def _fields(query: str) -> dict[str, str]:
    """Field name -> decoded value. Messages name a field only when it looks like one."""
    if "&amp;" in query:
        raise SasError("the SAS token was copied out of HTML or XML: write each &amp; as &")
    if re.search(r"(?:^|&)sig=", query) is None:
        raise SasError(_NOT_A_SAS)
    fields: dict[str, str] = {}
    for piece in query.split("&"):
        name, has_value, value = piece.partition("=")
        if not has_value or not re.fullmatch(r"[A-Za-z-]{1,16}", name):
            raise _damaged("one of its fields is not NAME=VALUE")
        if name in fields:
            raise _damaged(f"it has the field {name}= twice")
        if _OPERATION.fullmatch(name):
            raise SasError(f"the SAS token has {name}= in it, a part of some request: remove it")
        try:
            fields[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise _damaged(f"its {name}= field does not decode as UTF-8") from None
    return fields


def _check_signature(query: str) -> None:
    """Raise SasError for what copying and pasting is known to do to a signature."""
    match = re.search(r"(?:^|&)sig=([^&]*)", query)
    signature = match[1] if match else ""
    if re.search(r"[+ ]|%20", signature):
        raise SasError("the SAS token's signature has a bare + or space in it: write it as %2B")
    # A request line holds no other characters, so the token could not be sent as it is.
    if re.search(r"[^!$-;=?-Z_a-z~&\[\]]", query):
        raise _damaged("it has white space or another character in it that no URL may have")
    signature = unquote(signature)
    if "%" in signature:
        raise SasError("the SAS token was percent-encoded twice: write each %25 as %")
    try:
        size = len(base64.b64decode(signature, validate=True))
    except binascii.Error:
        size = 0
    if size != hashlib.sha256().digest_size:
        raise _damaged("its signature (sig=) is not 32 bytes in base64")


def _time(fields: dict[str, str], name: str) -> datetime | None:
    text = fields.get(name)
    if not text:
        return None
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        when = datetime.fromisoformat(text.upper())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _damaged(f"its {name}= field is not a time like 2030-01-31T12:00:00Z") from None


# --- judging ---------------------------------------------------------------------------------


def writable(sas: Sas) -> bool | None:
    """Whether files can be written; None when only the stored access policy knows.

    `w` decides: with it alone a new or existing blob can be stored. A token without `d` still
    writes, but deletes and renames are refused; without `w` everything but reading is.
    """
    return None if sas.permissions is None else "w" in sas.permissions


def check(sas: Sas, *, now: datetime, scheme: str, prefix: str, read_only: bool) -> list[str]:
    """What the user should know about mounting with this token: one line each.

    `scheme` and `prefix` (decoded, "" for the whole container) are the source's; `read_only`
    is whether a read-only mount is asked for. Raises SasError when the token cannot work. The
    signature, and so the container that it is for, can only be checked by the service.
    """
    if sas.is_account:
        raise SasError(
            "this is an account SAS (ss=, srt=), blobfs wants one for a container (sr=c): "
            "make it with blobfs sas create, or in the portal on the container"
        )
    if sas.resource not in ("c", "d"):
        what = _RESOURCES.get(sas.resource, "something that is not a container")
        raise SasError(
            f"the SAS token is for {what}, a mount needs one for the container (sr=c): "
            "make it with blobfs sas create, or in the portal on the container"
        )
    if sas.resource == "d":
        depth = len(prefix.split("/")) if prefix else 0
        if sas.directory_depth is None:
            raise _damaged("it is for a directory (sr=d) but has no sdd= field")
        if depth < sas.directory_depth:
            raise SasError(
                f"the SAS token is for a directory {sas.directory_depth} deep in the container: "
                "give that directory, or one below it, as the source"
            )
    expiry = sas.effective_expiry
    if expiry is not None and expiry <= now:
        raise SasError(
            f"the SAS token expired at {_stamp(expiry)} ({_span(now - expiry)} ago): get a new one"
        )
    if sas.start is not None and sas.start > now + START_SKEW:
        raise SasError(
            f"the SAS token is not valid before {_stamp(sas.start)} "
            f"(in {_span(sas.start - now)}): wait, get another one, or set this machine's clock"
        )
    if scheme not in sas.protocols:
        raise SasError(
            f"the SAS token allows {' and '.join(sorted(sas.protocols))} only (spr=), "
            f"the source is {scheme}: change the source's scheme or get another token"
        )
    if sas.permissions is None:
        return [f"the rights come from the stored access policy {sas.identifier}"]
    if missing := [letter for letter in "rl" if letter not in sas.permissions]:
        raise SasError(
            f"the SAS token lacks {', '.join(missing)} (it has sp={_in_order(sas.permissions)}): "
            "a mount needs r and l at least, and w, c, d to write"
        )
    missing = [letter for letter in "wd" if letter not in sas.permissions]
    if read_only or not missing:
        return []
    has = f"the token lacks {', '.join(missing)} (has {_in_order(sas.permissions)})"
    if "w" in missing:
        return [f"mounted read-only: {has}"]
    return [f"nothing can be deleted or renamed: {has}"]


def _in_order(letters: frozenset[str]) -> str:
    known = [letter for letter in PERMISSIONS if letter in letters]
    return "".join(known + sorted(letters - PERMISSIONS.keys()))


def _stamp(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(delta: timedelta) -> str:
    """`delta` in its largest unit that is at least one: `3 days`, `1 minute`."""
    seconds = int(abs(delta).total_seconds())
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{seconds // size} {unit}{'s' * (seconds >= 2 * size)}"
    return f"{seconds} second{'s' * (seconds != 1)}"


def describe(sas: Sas, now: datetime) -> list[tuple[str, str]]:
    """What the token says, as rows of (field, meaning), for a user to read. No secret in it."""
    kind = "service SAS, signed with an account key"
    if sas.is_account:
        kind = "account SAS, which blobfs does not take"
    elif sas.is_user_delegation:
        kind = "user delegation SAS, signed with a Microsoft Entra user's delegation key"
    rows = [("kind", kind), ("sv", f"service version {sas.version}")]
    if not sas.is_account:
        rows.append(("sr", _RESOURCES.get(sas.resource, f"{sas.resource} (unknown)")))
    if sas.directory_depth is not None:
        rows.append(("sdd", f"the directory is {sas.directory_depth} deep in the container"))
    if sas.permissions is not None:
        rows.append(("sp", _in_order(sas.permissions)))
        rows += [(x, PERMISSIONS.get(x, "unknown to this version")) for x in rows[-1][1]]
    if sas.identifier:
        policy = f"stored access policy {sas.identifier}: what is not in the token comes from it"
        rows.append(("si", policy))
    if sas.start is not None:
        state = f"in {_span(sas.start - now)}" if sas.start > now else "valid"
        rows.append(("st", f"from {_stamp(sas.start)} ({state})"))
    for name, when, what in (
        ("se", sas.expiry, "until"),
        ("ske", sas.key_expiry, "delegation key until"),
    ):
        if when is not None:
            span = _span(when - now)
            state = f"for another {span}" if when > now else f"expired {span} ago"
            rows.append((name, f"{what} {_stamp(when)} ({state})"))
    rows.append(("spr", " or ".join(sorted(sas.protocols, reverse=True))))
    rows.append(("sip", f"from {sas.ip} only" if sas.ip else "from any address"))
    if sas.encryption_scope:
        rows.append(("ses", f"encryption scope {sas.encryption_scope}"))
    rows.append(("sig", "REDACTED"))
    return rows


# --- redacting -------------------------------------------------------------------------------

# Quotes, equals signs and ampersands as they come in URLs, JSON, reprs, and percent-encoded
# once or more, as in a copy source inside another URL. There is no word boundary in front of
# `sig`, since `%3Fsig%3D` has none: better too much redacted than too little.
_QUOTE = r"""(?:b?\\*["']|\\u002[27]|%(?:25)*2[27])"""
_SPACE = r"(?:\s|%(?:25)*20)*"
_COLON = rf"{_QUOTE}{_SPACE}(?:[:,]|%(?:25)*(?:3a|2c)){_SPACE}(?:\[|%(?:25)*5b)?{_SPACE}{_QUOTE}"
_EQUALS = rf"(?:(?:=|\\u003d|%(?:25)*3d)(?:{_QUOTE})?|{_COLON}|>)"
_VALUE = r"(?:[A-Za-z0-9+/=_~.-]|\\/|\\u00(?:2b|2f|3d)|%(?!(?:25)*(?:26|22|27)))+"
_SECRET = re.compile(rf"(?P<name>(?:sig|accountkey){_EQUALS}){_VALUE}", re.IGNORECASE)
# How the service quotes the signature in the body of a 403.
_ECHO = re.compile(r"(?P<name>signature found in the HTTP request ')[^']+", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with every SAS signature and account key in it replaced by REDACTED. Idempotent."""
    for pattern in (_SECRET, _ECHO):
        text = pattern.sub(r"\g<name>REDACTED", text)
    return text


# --- making ----------------------------------------------------------------------------------

_SP_TO_SI = ("sp", "st", "se", "resource", "si")
_HEADERS = ("rscc", "rscd", "rsce", "rscl", "rsct")
_STRING_TO_SIGN = {
    "2012-02-12": (*_SP_TO_SI, "sv"),
    "2013-08-15": (*_SP_TO_SI, "sv", *_HEADERS),
    "2015-04-05": (*_SP_TO_SI, "sip", "spr", "sv", *_HEADERS),
    "2018-11-09": (*_SP_TO_SI, "sip", "spr", "sv", "sr", "snapshot", *_HEADERS),
    "2020-12-06": (*_SP_TO_SI, "sip", "spr", "sv", "sr", "snapshot", "ses", *_HEADERS),
}
"""First `sv` with it -> the fields of the string-to-sign of a service SAS, in order."""
_BLOB_IN_RESOURCE = "2015-02-21"  # from this sv on the canonical resource begins with /blob
_LAST_VERSION = "2026-10-06"  # the newest sv whose string-to-sign is known


def create(
    account: str,
    key: str,
    container: str,
    *,
    permissions: str = "",
    expiry: datetime | None = None,
    start: datetime | None = None,
    protocol: str = "",
    ip: str = "",
    identifier: str = "",
    version: str = DEFAULT_VERSION,
    encryption_scope: str = "",
    headers: Mapping[str, str] | None = None,
) -> str:
    """A service SAS for `container`, signed with the base64 account `key`.

    `permissions` in any order; `protocol` is `https` or `https,http`; `ip` an IPv4 address or
    range `a-b`; `headers` what responses shall say, by field name (rscc .. rsct). Permissions
    and expiry may be left to the stored access policy `identifier`. Times must be aware.
    Raises SasError, never quoting the key, for whatever the service would not accept.
    """
    if unknown := sorted(set(permissions) - PERMISSIONS.keys()):
        raise SasError(
            f"unknown permission {', '.join(unknown)}: choose from {''.join(PERMISSIONS)}"
        )
    if not identifier and not (permissions and expiry):
        raise SasError("a SAS needs permissions and an expiry, or a stored access policy")
    if len(identifier) > 64:
        raise SasError("the name of a stored access policy has at most 64 characters")
    if protocol not in ("", "https", "https,http"):
        raise SasError("the protocol of a SAS is https or https,http")
    if start and expiry and start >= expiry:
        raise SasError("the SAS would expire before it starts")
    headers = headers or {}
    if not headers.keys() <= set(_HEADERS):
        raise SasError(f"the response headers of a SAS are {', '.join(_HEADERS)}")
    fields = {
        "sv": version,
        "st": _stamp(start) if start else "",
        "se": _stamp(expiry) if expiry else "",
        "sr": "c",
        "sp": _in_order(frozenset(permissions)),
        "sip": _ip_range(ip),
        "spr": protocol,
        "si": identifier,
        "ses": encryption_scope,
        **headers,
    }
    fields = {name: value for name, value in fields.items() if value}
    fields["sig"] = _sign(fields, key, account, container)
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items())


def _sign(fields: dict[str, str], key: str, account: str, container: str) -> str:
    version = fields["sv"]
    first = min(_STRING_TO_SIGN)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", version) or not first <= version <= _LAST_VERSION:
        raise SasError(f"the version of a SAS is a date from {first} to {_LAST_VERSION}")
    layout = _STRING_TO_SIGN[max(since for since in _STRING_TO_SIGN if since <= version)]
    for name in fields:
        if name != "sr" and name not in layout:
            raise SasError(f"version {version} of a SAS has no {name}= field: choose a later one")
    resource = f"/{account}/{container}"
    if version >= _BLOB_IN_RESOURCE:
        resource = "/blob" + resource
    values = fields | {"resource": resource}
    try:
        secret = base64.b64decode(key.strip(), validate=True)
    except (ValueError, binascii.Error):
        secret = b""
    if not secret:
        raise SasError("the account key is not base64: copy it again from the portal")
    text = "\n".join(values.get(name, "") for name in layout)
    return base64.b64encode(hmac.digest(secret, text.encode(), "sha256")).decode()


def _ip_range(text: str) -> str:
    try:
        ends = [ipaddress.IPv4Address(end) for end in text.split("-")] if text else []
    except ValueError:
        ends = []
    if text and not (1 <= len(ends) <= 2 and ends[0] <= ends[-1]):
        raise SasError("the IP range of a SAS is an IPv4 address, or two with a - between them")
    return text
