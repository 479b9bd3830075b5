"""Copies that the service does not complete at once, on trio's test clock: Azurite has none."""

import logging

import pytest
import trio
from trio.testing import MockClock

from blobfs.blobs import Client, Container, RetryPolicy, Version
from blobfs.blobs.model import parse_date
from blobfs.errors import AlreadyExists, ConditionFailed, Unavailable
from tests.strict import LAST_MODIFIED, Script, answer, error

STARTED = {"x_ms_copy_status": "pending", "x_ms_copy_id": "id-1"}


def container(script: Script) -> Container:
    client = Client(transport=script, retry=RetryPolicy(attempts=1))
    return Container(client, "https://account/box", lambda: "sig=x")


def aborts(script: Script) -> list[str]:
    return [
        request.url.raw_path.decode().removesuffix("&sig=x")
        for request in script.requests
        if request.headers.get("x-ms-copy-action") == "abort"
    ]


ABORT = "/box/b?comp=copy&copyid=id-1"


async def test_a_pending_copy_is_waited_for(autojump_clock: MockClock) -> None:
    done = {**STARTED, "x_ms_copy_status": "success"}
    script = Script(
        answer(202, **STARTED), answer(**STARTED), answer(**STARTED), answer(**done, ETag='"0x9"')
    )
    version = await container(script).copy("a", "b", source_etag="0x1")
    assert version == Version("0x9", parse_date(LAST_MODIFIED))
    assert aborts(script) == []


async def test_a_copy_past_its_deadline_is_aborted(autojump_clock: MockClock) -> None:
    script = Script(answer(202, **STARTED), *(answer(**STARTED) for _ in range(20)))
    script.steps[5] = answer(204)  # to the abort
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await container(script).copy("a", "b", source_etag="0x1")
    assert aborts(script) == [ABORT]


async def test_an_aborted_copy_to_a_new_name_leaves_nothing_there(
    autojump_clock: MockClock,
) -> None:
    ended = answer(**{**STARTED, "x_ms_copy_status": "failed"}, ETag='"0x9"')
    over = error(409, "NoPendingCopyOperation")
    script = Script(answer(202, **STARTED), ended, over, ended, answer(202))
    with pytest.raises(Unavailable, match="failed"):
        await container(script).copy("a", "b", source_etag="0x1", if_none_match=True)
    last = script.requests[-1]
    assert (last.method, last.url.raw_path.partition(b"?")[0]) == ("DELETE", b"/box/b")
    assert last.headers["if-match"] == '"0x9"'


async def test_an_aborted_copy_that_others_have_replaced_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    ended = answer(**{**STARTED, "x_ms_copy_status": "failed"})
    over = error(409, "NoPendingCopyOperation")
    script = Script(answer(202, **STARTED), ended, over, answer(ETag='"0x8"'))
    with pytest.raises(Unavailable, match="failed"):
        await container(script).copy("a", "b", source_etag="0x1", if_none_match=True)
    assert [request.method for request in script.requests] == ["PUT", "HEAD", "PUT", "HEAD"]


async def test_an_abort_that_stalls_does_not_hold_up_its_caller(
    autojump_clock: MockClock,
) -> None:
    async def stall() -> None:
        await trio.sleep_forever()

    script = Script(answer(202, **STARTED), stall, stall)
    with trio.move_on_after(1):
        await container(script).copy("a", "b", source_etag="0x1")
    assert aborts(script) == [ABORT]
    assert trio.current_time() == 6


@pytest.mark.parametrize("status", ["failed", "aborted"])
async def test_a_copy_that_fails_is_an_error(status: str, autojump_clock: MockClock) -> None:
    ended = answer(**{**STARTED, "x_ms_copy_status": status})
    over = error(409, "NoPendingCopyOperation")
    with pytest.raises(Unavailable, match=status):
        await container(Script(answer(202, **STARTED), ended, over)).copy(
            "a", "b", source_etag="0x1"
        )


async def test_a_target_that_another_writer_replaced_is_a_conflict(
    autojump_clock: MockClock,
) -> None:
    script = Script(answer(202, **STARTED), answer(ETag='"0x9"'), error(404, "BlobNotFound"))
    with pytest.raises(ConditionFailed, match="replaced"):
        await container(script).copy("a", "b", source_etag="0x1")


async def test_an_abort_that_fails_is_logged_and_hides_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(
        answer(202, **STARTED), error(404, "BlobNotFound"), error(403, "AuthorizationFailure")
    )
    with pytest.raises(Exception, match="404 BlobNotFound"):
        await container(script).copy("a", "b", source_etag="0x1")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a pending copy may go on" in record.message


async def test_a_pending_copy_in_doubt_is_waited_for(autojump_clock: MockClock) -> None:
    ours = {"x_ms_meta_encryptiondata": "cek"}
    script = Script(
        error(503, "ServerBusy"),
        error(409, "BlobAlreadyExists"),
        answer(**ours),  # the source
        answer(**ours, **STARTED),  # the target
        answer(**ours, **{**STARTED, "x_ms_copy_status": "success"}, ETag='"0x9"'),
    )
    client = Client(transport=script)
    box = Container(client, "https://account/box", lambda: "sig=x")
    version = await box.copy("a", "b", source_etag="0x1", if_none_match=True)
    assert version.etag == "0x9"


async def test_a_target_of_another_size_is_not_our_copy(autojump_clock: MockClock) -> None:
    ours = {"x_ms_meta_encryptiondata": "cek"}
    script = Script(
        error(503, "ServerBusy"),
        error(409, "BlobAlreadyExists"),
        answer(**ours, Content_Length="8"),  # the source
        answer(**ours, Content_Length="4"),  # the target
    )
    box = Container(Client(transport=script), "https://account/box", lambda: "sig=x")
    with pytest.raises(AlreadyExists):
        await box.copy("a", "b", source_etag="0x1", if_none_match=True)
