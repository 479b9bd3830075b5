"""What the service answers, as an exception and as words."""

import pytest

from blobfs.blobs import Client, Container, ContentHeaders, RetryPolicy
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
from tests.strict import Script, answer, error


def container(*steps: object) -> Container:
    client = Client(transport=Script(*steps), retry=RetryPolicy(attempts=1))
    return Container(client, "https://account/box", lambda: "sig=x")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "InvalidHeaderValue", Rejected),
        (400, "MetadataTooLarge", Rejected),
        (400, "InvalidBlockList", BlocksGone),
        (400, "BlockListTooLong", TooBig),
        (401, "NoAuthenticationInformation", TokenRefused),
        (403, "AuthenticationFailed", TokenRefused),
        (403, "AuthorizationFailure", TokenRefused),
        (403, "AuthorizationPermissionMismatch", Denied),
        (403, "AuthorizationSourceIPMismatch", Denied),
        (403, "AuthorizationProtocolMismatch", Denied),
        (403, "UnauthorizedBlobOverwrite", Denied),
        (403, "CannotVerifyCopySource", Denied),
        (403, "", Denied),
        (404, "BlobNotFound", NotFound),
        (404, "ContainerNotFound", NotFound),
        (404, "CannotVerifyCopySource", NotFound),
        (404, "", NotFound),
        (409, "BlobAlreadyExists", AlreadyExists),
        (409, "BlobArchived", Archived),
        (409, "BlobBeingRehydrated", Archived),
        (409, "BlobImmutableDueToPolicy", Denied),
        (409, "LeaseAlreadyPresent", Leased),
        (409, "PendingCopyOperation", Unavailable),
        (409, "BlockCountExceedsLimit", TooBig),
        (409, "SnapshotsPresent", HasSnapshots),
        (412, "ConditionNotMet", ConditionFailed),
        (412, "SourceConditionNotMet", ConditionFailed),
        (412, "TargetConditionNotMet", ConditionFailed),
        (412, "LeaseIdMissing", Leased),
        (412, "LeaseIdMismatchWithBlobOperation", Leased),
        (413, "RequestBodyTooLarge", TooBig),
        (429, "TooManyRequests", Unavailable),
        (500, "InternalError", Unavailable),
        (501, "NotImplemented", Unavailable),
        (503, "ServerBusy", Unavailable),
        (302, "", Rejected),
    ],
)
@pytest.mark.parametrize("place", ["header", "body"])
async def test_each_status_and_code_has_its_exception(
    status: int, code: str, kind: type[ServiceError], place: str
) -> None:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    step = answer(status, x_ms_error_code=code) if place == "header" else answer(status, body)
    with pytest.raises(ServiceError) as caught:
        await container(step).get("dir/a", 0, 1)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"Get Blob of 'dir/a': {status}")
    assert code in str(caught.value)
    assert caught.value.request_id == "request-1"
    assert "request-1" in str(caught.value)


@pytest.mark.parametrize("status", [409, 412])
async def test_a_blob_that_is_there_fails_a_creation_as_already_existing(status: int) -> None:
    code = {409: "BlobAlreadyExists", 412: "ConditionNotMet"}[status]
    with pytest.raises(AlreadyExists):
        await container(error(status, code)).put(
            "a", b"", metadata={}, headers=ContentHeaders(), if_none_match=True
        )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("SourceConditionNotMet", ConditionFailed),
        ("ConditionNotMet", ConditionFailed),  # so says Azurite
        ("TargetConditionNotMet", AlreadyExists),
    ],
)
async def test_a_changed_source_is_no_target_that_exists(
    code: str, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        await container(error(412, code)).copy("a", "b", source_etag="0x1", if_none_match=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Bad request</body></html>",
        b"<html><br></html>",
        b"not XML at all",
        b"\xff\xfe\x00garbage",
        b"<Error>",
        b"<!DOCTYPE x [<!ENTITY e 'boom'>]><Error><Code>&e;</Code></Error>",
    ],
)
async def test_an_answer_that_is_no_error_document_is_judged_by_its_status(body: bytes) -> None:
    with pytest.raises(NotFound, match=r"^Get Blob of 'a': 404 \(request id request-1\)$"):
        await container(answer(404, body)).get("a", 0, 1)


async def test_the_services_own_words_are_told_without_their_tail() -> None:
    message = "The value is odd.\nRequestId:0-1-2\nTime:2024-11-22T06:36:00Z"
    with pytest.raises(Rejected) as caught:
        await container(error(400, "InvalidHeaderValue", message)).head("a")
    assert str(caught.value) == (
        "Get Blob Properties of 'a': 400 InvalidHeaderValue: The value is odd. "
        "(request id request-1)"
    )


async def test_a_refused_token_is_told_from_a_missing_permission() -> None:
    detail = "Signature not valid in the specified time frame: Start [x] - Expiry [y] - Current [z]"
    with pytest.raises(TokenRefused) as refused:
        await container(error(403, "AuthenticationFailed", detail=detail)).head("a")
    assert "token is expired, not yet valid, revoked or wrongly signed" in str(refused.value)
    assert detail in str(refused.value)
    with pytest.raises(Denied) as denied:
        await container(error(403, "AuthorizationPermissionMismatch")).head("a")
    assert "token lacks a permission; this needs r" in str(denied.value)


async def test_a_missing_permission_names_what_the_operation_needs() -> None:
    box = container(*(error(403, "AuthorizationPermissionMismatch") for _ in range(5)))
    headers = ContentHeaders()
    for call, needed in (
        (box.list(""), "needs l "),
        (box.delete("a"), "needs d "),
        (box.get_tags("a"), "needs t "),
        (box.put("a", b"", metadata={}, headers=headers), r"needs w \(or c for a new blob\) "),
        (
            box.put("a", b"", metadata={}, headers=headers, tags={"k": "v"}),
            r"needs w \(or c for a new blob\), and t for tags ",
        ),
    ):
        with pytest.raises(Denied, match=needed):
            await call


@pytest.mark.parametrize(
    "text",
    [
        "Signature did not match. String to sign used was r\n2024-01-01\n/blob/account/box",
        "Signature did not match. string-to-sign: r\n2024-01-01\n/blob/account/box",
        "at https://account/box?sp=r&sig=c2VjcmV0/blob/account/box",
        "at https%3A%2F%2Faccount%2Fbox%3Fsp%3Dr%26sig%3Dc2VjcmV0/blob/account/box",
    ],
)
async def test_no_message_holds_a_signature_or_a_string_to_sign(text: str) -> None:
    for kind in (
        error(403, "AuthenticationFailed", detail=text.replace("&", "&amp;")),
        error(400, "InvalidUri", message=text.replace("&", "&amp;").replace("\n", " ")),
    ):
        with pytest.raises(ServiceError) as caught:
            await container(kind).get("a", 0, 1)
        assert "c2VjcmV0" not in str(caught.value)
        assert "/blob/account/box" not in str(caught.value)
        assert "request-1" in str(caught.value)
