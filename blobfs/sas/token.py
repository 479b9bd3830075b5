"""Reading a token: from what a portal, tool or file gives, never quoting its signature."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from blobfs.errors import SasError

RESOURCES = {
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
    if not all(value.isprintable() for value in fields.values()):  # they are shown to people
        raise damaged("one of its fields has a control character in it")
    is_account = "ss" in fields or "srt" in fields
    identifier = fields.get("si", "")
    needed = ["sv"] if is_account else ["sv", "sr"]
    if not identifier:
        needed += ["sp", "se"]
    for name in needed:
        if not fields.get(name):
            raise damaged(f"it has no {name}= field")
    depth = fields.get("sdd")
    if depth is not None and not re.fullmatch(r"[0-9]{1,3}", depth):
        raise damaged("its sdd= field is not a number")
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


def damaged(why: str) -> SasError:
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
            raise damaged("one of its fields is not NAME=VALUE")
        if name in fields:
            raise damaged(f"it has the field {name}= twice")
        if _OPERATION.fullmatch(name):
            raise SasError(f"the SAS token has {name}= in it, a part of some request: remove it")
        try:
            fields[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise damaged(f"its {name}= field does not decode as UTF-8") from None
    return fields


def _check_signature(query: str) -> None:
    """Raise SasError for what copying and pasting is known to do to a signature."""
    match = re.search(r"(?:^|&)sig=([^&]*)", query)
    signature = match[1] if match else ""
    if re.search(r"[+ ]|%20", signature):
        raise SasError("the SAS token's signature has a bare + or space in it: write it as %2B")
    # A request line holds no other characters, so the token could not be sent as it is.
    if re.search(r"[^!$-;=?-Z_a-z~&\[\]]", query):
        raise damaged("it has white space or another character in it that no URL may have")
    signature = unquote(signature)
    if "%" in signature:
        raise SasError("the SAS token was percent-encoded twice: write each %25 as %")
    try:
        size = len(base64.b64decode(signature, validate=True))
    except binascii.Error:
        size = 0
    if size != hashlib.sha256().digest_size:
        raise damaged("its signature (sig=) is not 32 bytes in base64")


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
        raise damaged(f"its {name}= field is not a time like 2030-01-31T12:00:00Z") from None
