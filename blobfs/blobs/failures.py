"""The one table from what the service answered to an exception, and what its message says.

Codes are Azure's (REST reference, "Blob service error codes") and those that Azurite gives in
their place. A message has the operation, the blob, the code and the request id, and of the
service's own words only what cannot hold a signature or a string to sign.
"""

import re
from collections.abc import Mapping

from blobfs.blobs.documents import parse_error
from blobfs.blobs.operations import Operation
from blobfs.errors import (
    AlreadyExists,
    Archived,
    BlocksGone,
    ConditionFailed,
    Denied,
    HasSnapshots,
    Leased,
    NotFound,
    Rejected,
    ServiceError,
    TokenRefused,
    TooBig,
    Unavailable,
)
from blobfs.sas import lacking

# A code is looked up with its status, then the status alone.
_EXCEPTIONS: dict[tuple[int, str], type[ServiceError]] = {
    (400, "BlockListTooLong"): TooBig,
    (400, "InvalidBlockList"): BlocksGone,
    (400, "Md5Mismatch"): Unavailable,
    (401, ""): TokenRefused,
    (403, ""): Denied,
    (403, "AuthenticationFailed"): TokenRefused,
    (403, "AuthorizationFailure"): TokenRefused,
    (404, ""): NotFound,
    (409, "BlobAlreadyExists"): AlreadyExists,
    (409, "BlobArchived"): Archived,
    (409, "BlobBeingRehydrated"): Archived,
    (409, "BlobImmutableDueToPolicy"): Denied,
    (409, "BlobTierInadequateForContentLength"): TooBig,
    (409, "BlockCountExceedsLimit"): TooBig,
    (409, "ContainerBeingDeleted"): NotFound,
    (409, "ContainerDisabled"): Denied,
    (409, "ContentLengthLargerThanTierLimit"): TooBig,
    (409, "LeaseAlreadyPresent"): Leased,
    (409, "LeaseIdMissing"): Leased,
    (409, "PendingCopyOperation"): Unavailable,
    (409, "SnapshotsPresent"): HasSnapshots,
    (412, ""): ConditionFailed,
    (412, "LeaseIdMismatchWithBlobOperation"): Leased,
    (412, "LeaseIdMissing"): Leased,
    (413, ""): TooBig,
}

_TOKEN_REFUSED = (
    "the SAS token is expired, not yet valid, revoked or wrongly signed, "
    "or the account's network rules refuse this host"
)

_REASONS = {
    "AuthorizationSourceIPMismatch": "the SAS token is bound to other client addresses (sip)",
    "AuthorizationProtocolMismatch": "the SAS token does not allow plain http (spr)",
    "UnauthorizedBlobOverwrite": "the SAS token lacks permission w, needed to overwrite a blob",
    "CannotVerifyCopySource": "the source is gone, or the SAS token lacks r, to read it",
    "Md5Mismatch": "what arrived is not what was sent",
    "BlobImmutableDueToPolicy": "an immutability policy or a legal hold protects it",
}

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Of a URL nothing else is shown: its query may be ours, with the token.
_HOST = re.compile(r"(?:https?:)?//(?:[^/?#]*@)?([\w.:\[\]-]+)", re.IGNORECASE)

_SIGNATURE = re.compile(r"(?<![a-z])sig(?![a-z]).*", re.IGNORECASE | re.DOTALL)
_STRING_TO_SIGN = re.compile(r"string[- ]to[- ]sign.*", re.IGNORECASE | re.DOTALL)
_LONGEST_DETAIL = 300


def failure(
    operation: Operation,
    name: str,
    status: int,
    fields: Mapping[str, str],
    body: bytes,
    *,
    sent: Mapping[str, str],
    granted: frozenset[str] | None = None,
) -> ServiceError:
    """The exception for a failed request. `fields` are the answer's headers in lower case, `sent`
    the request's own, of which only conditions and the presence of tags are looked at, `granted`
    the letters of its token as far as the token says."""
    details = _error_details(body)
    # An answer to HEAD has no body, so the header comes first.
    code = fields.get("x-ms-error-code") or details.get("Code", "")
    kind = _exception(status, code)
    if kind is ConditionFailed and "If-None-Match" in sent and not _is_of_source(code, sent):
        kind = AlreadyExists
    request_id = fields.get("x-ms-request-id", "")
    message = f"{operation.name} of {name!r}: {status}"
    if code:
        message += f" {_clean(code)}"
    if status in _REDIRECTS:
        place = _HOST.match(fields.get("location", ""))
        message += f": a redirect to {place[1] if place else 'another path'}, which is not followed"
    elif reason := _reason(kind, code, details, operation, sent, granted):
        message += f": {reason}"
    if request_id:
        message += f" (request id {request_id})"
    return kind(message, request_id=request_id)


def _is_of_source(code: str, sent: Mapping[str, str]) -> bool:
    """Whether a copy's condition that does not hold is the one on its source: Azurite says no more
    than ConditionNotMet then, and BlobAlreadyExists, or Azure TargetConditionNotMet, of a target.
    """
    return code == "SourceConditionNotMet" or (
        code == "ConditionNotMet" and "x-ms-source-if-match" in sent
    )


def _exception(status: int, code: str) -> type[ServiceError]:
    kind = _EXCEPTIONS.get((status, code)) or _EXCEPTIONS.get((status, ""))
    if kind is not None:
        return kind
    return Unavailable if status >= 500 or status in (408, 429) else Rejected


def _reason(
    kind: type[ServiceError],
    code: str,
    details: Mapping[str, str],
    operation: Operation,
    sent: Mapping[str, str],
    granted: frozenset[str] | None,
) -> str:
    if kind is TokenRefused:
        detail = _clean(details.get("AuthenticationErrorDetail", ""))
        return f"{_TOKEN_REFUSED}: {detail}" if detail else _TOKEN_REFUSED
    if code == "AuthorizationPermissionMismatch":
        tags = "t" if "x-ms-tags" in sent else ""
        ways = [way + tags for way in (operation.letters, operation.for_new) if way]
        needed = operation.permission + (", and t for tags" if tags else "")
        missing = lacking(ways, granted) or "a permission"
        return f"the SAS token lacks {missing}; this needs {needed}"
    # The service's message ends with lines that repeat the request id and give the time.
    return _REASONS.get(code) or _clean(details.get("Message", "").partition("\n")[0])


def _error_details(body: bytes) -> dict[str, str]:
    try:
        return parse_error(body)
    except ValueError:  # a proxy's page, or nothing: the status has to do
        return {}


def _clean(text: str) -> str:
    """What may be shown of the service's words, in one line whatever they are."""
    text = _STRING_TO_SIGN.sub("…", _SIGNATURE.sub("…", text))
    text = "".join(char if char.isprintable() else " " for char in text[:_LONGEST_DETAIL])
    return " ".join(text.split())
