"""Making service SAS tokens with an account key.

The layout of what is signed: Microsoft, "Create a service SAS", section "Service SAS examples",
and "Version 2020-12-06 and later".
"""

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote

from blobfs.errors import SasError
from blobfs.sas.rights import PERMISSIONS
from blobfs.sas.words import in_order, stamp

DEFAULT_VERSION = "2020-12-06"
"""The `sv` that `create` signs with: the first with today's string-to-sign, so widely accepted."""

_SP_TO_SI = ("sp", "st", "se", "resource", "si")
HEADERS = {
    "rscc": "Cache-Control",
    "rscd": "Content-Disposition",
    "rsce": "Content-Encoding",
    "rscl": "Content-Language",
    "rsct": "Content-Type",
}
"""Field -> the header of responses that it sets."""
_STRING_TO_SIGN = {
    "2012-02-12": (*_SP_TO_SI, "sv"),
    "2013-08-15": (*_SP_TO_SI, "sv", *HEADERS),
    "2015-04-05": (*_SP_TO_SI, "sip", "spr", "sv", *HEADERS),
    "2018-11-09": (*_SP_TO_SI, "sip", "spr", "sv", "sr", "snapshot", *HEADERS),
    "2020-12-06": (*_SP_TO_SI, "sip", "spr", "sv", "sr", "snapshot", "ses", *HEADERS),
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
    if not headers.keys() <= HEADERS.keys():
        raise SasError(f"the response headers of a SAS are {', '.join(HEADERS)}")
    fields = {
        "sv": version,
        "st": stamp(start) if start else "",
        "se": stamp(expiry) if expiry else "",
        "sr": "c",
        "sp": in_order(frozenset(permissions)),
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
