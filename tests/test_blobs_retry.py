"""Which failures are tried again, when, and for how long; all on trio's test clock."""

import random
import time
from email.utils import formatdate

import httpx
import pytest
import trio
from trio.testing import MockClock

from blobfs.blobs import Client, Container, ContentHeaders, RetryPolicy
from blobfs.errors import ConditionFailed, Rejected, ServiceError, Unavailable
from tests.strict import Chunks, Script, answer, error

RANGE = {"Content_Range": "bytes 0-3/4"}


def container(
    script: Script, policy: RetryPolicy | None = None, connections: int = 16
) -> Container:
    client = Client(transport=script, retry=policy, rng=random.Random(1), connections=connections)
    return Container(client, "https://account/box", lambda: "sig=x")


async def stall() -> httpx.Response:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize(
    "failure",
    [
        *(error(status, "ServerBusy") for status in (408, 429, 500, 502, 503, 504)),
        answer(503, b"<html>bad gateway</html>", Content_Type="text/html"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("server disconnected"),
    ],
    ids=str,
)
async def test_a_passing_failure_is_tried_again(failure: object, autojump_clock: MockClock) -> None:
    script = Script(failure, answer())
    await container(script).head("a")
    assert len(script.requests) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 412, 413, 501])
async def test_a_lasting_failure_is_told_at_once(status: int) -> None:
    script = Script(error(status, "Whatever", Location="https://elsewhere/"))
    with pytest.raises(ServiceError):
        await container(script).head("a")
    assert len(script.requests) == 1


async def test_a_request_that_http_cannot_carry_is_not_tried_again() -> None:
    script = Script(httpx.LocalProtocolError("illegal header"))
    with pytest.raises(Rejected):
        await container(script).head("a")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            httpx.Response(
                206,
                headers={**answer(**RANGE).headers, "Content-Length": "4"},
                stream=Chunks(b"ab"),
            ),
            id="cut",
        ),
        pytest.param(answer(206, b"abc", Content_Range="bytes 0-2/4"), id="a shorter range"),
        pytest.param(answer(206, b"abcd", Content_Range="bytes 4-7/8"), id="another range"),
        pytest.param(answer(206, b"abcd"), id="no range"),
        pytest.param(answer(200, b"abcdefgh"), id="more than was asked for"),
        pytest.param(
            httpx.Response(
                206,
                headers={"x-ms-request-id": "1", "Content-Range": "bytes 0-3/4"},
                stream=Chunks(b"abcd", b"e", b"f"),
            ),
            id="more than was asked for, of unknown length",
        ),
        pytest.param(
            httpx.Response(206, headers={"Content-Range": "bytes 0-3/4"}, stream=Chunks(b"abcd")),
            id="from something else than the service",
        ),
        pytest.param(answer(206, b"abcd", **RANGE, Last_Modified="yesterday"), id="no date"),
    ],
)
async def test_a_body_that_is_not_the_one_asked_for_is_asked_for_again(
    broken: httpx.Response, autojump_clock: MockClock
) -> None:
    script = Script(broken, answer(206, b"abcd", **RANGE))
    info, data = await container(script).get("a", 0, 4)
    assert (info.size, data) == (4, b"abcd")
    assert len(script.requests) == 2


async def test_a_blob_that_grows_between_two_requests_is_a_conflict() -> None:
    script = Script(error(416, "InvalidRange"), answer(Content_Length="8"))
    with pytest.raises(ConditionFailed, match="replaced while it was being read"):
        await container(script).get("a", 4, 8)


async def test_a_later_part_is_not_taken_from_the_start_of_the_whole() -> None:
    script = Script(answer(200, b"abcd"))
    with pytest.raises(Unavailable, match="whole blob"):
        await container(script, RetryPolicy(attempts=1)).get("a", 2, 6)


async def test_a_write_that_the_service_did_not_confirm_is_no_success(
    autojump_clock: MockClock,
) -> None:
    page = Chunks(b"<html>log in</html>")
    script = Script(*(httpx.Response(200, stream=page) for _ in range(10)))
    with pytest.raises(Unavailable, match="not an answer of the Blob service"):
        await container(script).put("a", b"x", metadata={}, headers=ContentHeaders())


async def test_a_retry_sends_the_same_body_again(autojump_clock: MockClock) -> None:
    script = Script(httpx.ReadError("reset"), answer(201))
    await container(script).put_block("a", "QUFB", [b"ab", b"cd"])
    assert [request.content for request in script.requests] == [b"abcd", b"abcd"]


async def test_it_gives_up_after_the_policys_attempts_and_says_why(
    autojump_clock: MockClock,
) -> None:
    script = Script(*[httpx.ReadError("reset")] * 3, error(503, "ServerBusy"))
    with pytest.raises(Unavailable, match=r"Get Blob Properties of 'a': 503 ServerBusy") as caught:
        await container(script, RetryPolicy(attempts=4)).head("a")
    assert caught.value.request_id == "request-1"


def test_delays_double_up_to_a_limit_and_are_jittered_over_their_upper_half() -> None:
    policy = RetryPolicy(first_delay=1, longest_delay=8)
    rng = random.Random(1)
    for failures, full in enumerate([1, 2, 4, 8, 8], 1):
        delays = [policy.delay(failures, rng) for _ in range(200)]
        assert full / 2 <= min(delays) < 0.6 * full
        assert 0.9 * full < max(delays) <= full


async def test_the_services_wish_to_wait_is_granted(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    await container(Script(error(503, "ServerBusy", Retry_After="7"), answer())).head("a")
    assert 7 <= trio.current_time() - start < 7.1


async def test_the_services_wish_may_be_a_date(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    later = formatdate(time.time() + 30, usegmt=True)
    await container(Script(error(503, "ServerBusy", Retry_After=later), answer())).head("a")
    assert 25 < trio.current_time() - start <= 30


@pytest.mark.parametrize("wish", ["soon", "-5", "", "1e9"])
async def test_a_wish_without_sense_is_ignored(wish: str, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    await container(Script(error(503, "ServerBusy", Retry_After=wish), answer())).head("a")
    assert trio.current_time() - start <= 0.25


async def test_no_wait_outlasts_the_callers_deadline(autojump_clock: MockClock) -> None:
    script = Script(error(503, "ServerBusy", Retry_After="60"))
    start = trio.current_time()
    with pytest.raises(Unavailable), trio.fail_after(30):
        await container(script).head("a")
    assert trio.current_time() == start


async def test_a_stalled_attempt_is_given_up_while_there_is_time_for_another(
    autojump_clock: MockClock,
) -> None:
    script = Script(stall, answer())
    with trio.fail_after(60):
        await container(script).head("a")
    assert len(script.requests) == 2


async def test_the_callers_deadline_passes_through_as_its_own(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    with pytest.raises(trio.TooSlowError), trio.fail_after(5):
        await container(Script(stall)).head("a")
    assert trio.current_time() - start == 5


async def test_a_service_that_always_stalls_is_unavailable(autojump_clock: MockClock) -> None:
    with pytest.raises(Unavailable, match="no answer in 20 s"):
        await container(Script(stall, stall), RetryPolicy(attempts=2)).head("a")


async def test_a_large_body_has_the_time_that_it_takes_on_a_slow_link(
    autojump_clock: MockClock,
) -> None:
    async def slow() -> httpx.Response:
        await trio.sleep(120)
        return answer(201)

    script = Script(slow)
    await container(script).put_block("a", "QUFB", bytes(4 << 20))
    assert len(script.requests) == 1


async def test_a_cancelled_caller_is_not_told_that_the_service_is_unavailable(
    autojump_clock: MockClock,
) -> None:
    async def fail_when_cancelled() -> httpx.Response:
        scope.cancel()
        raise httpx.ReadError("reset")

    with trio.CancelScope() as scope:
        await container(Script(fail_when_cancelled)).head("a")
    assert scope.cancelled_caught


async def test_a_listing_does_not_wait_behind_reads(autojump_clock: MockClock) -> None:
    listing = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"
    script = Script(stall, answer(200, listing))
    box = container(script, connections=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.get, "a", 0, 1)
        nursery.start_soon(box.get, "b", 0, 1)
        await trio.testing.wait_all_tasks_blocked()
        await box.list("")
        nursery.cancel_scope.cancel()
    read, listed = (request.url.raw_path.partition(b"?")[0] for request in script.requests)
    assert read in (b"/box/a", b"/box/b")
    assert listed == b"/box"


def page(name: str, next_marker: str) -> httpx.Response:
    blobs = f"<Blob><Name>{name}</Name><Properties/></Blob>"
    tail = f"<Blobs>{blobs}</Blobs><NextMarker>{next_marker}</NextMarker>"
    return answer(200, f"<EnumerationResults>{tail}</EnumerationResults>".encode())


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(page("d/a", "here"), id="the page before"),
        pytest.param(page("e/a", "next"), id="another listing's"),
        pytest.param(answer(200, b"<html>log in</html>"), id="no listing"),
        pytest.param(answer(200, b"<EnumerationResults><Blobs/>"), id="cut"),
    ],
)
async def test_a_page_that_is_not_the_one_asked_for_is_asked_for_again(
    broken: httpx.Response, autojump_clock: MockClock
) -> None:
    script = Script(broken, page("d/b", "next"))
    found = await container(script).list("d/", marker="here")
    assert ([blob.name for blob in found.blobs], found.next_marker) == (["d/b"], "next")


@pytest.mark.parametrize("status", [404, 409, 412, 416])
async def test_what_others_say_of_a_blob_in_the_services_place_is_not_believed(
    status: int, autojump_clock: MockClock
) -> None:
    page_of_a_proxy = httpx.Response(status, stream=Chunks(b"<html>not found</html>"))
    script = Script(page_of_a_proxy, answer(202))
    await container(script).delete("a")
    assert len(script.requests) == 2


@pytest.mark.parametrize("etag", ['"0x2"', ""])
async def test_another_version_than_the_one_asked_for_is_asked_for_again(
    etag: str, autojump_clock: MockClock
) -> None:
    other = answer(206, b"abcd", **RANGE, ETag=etag)
    info, data = await container(Script(other, answer(206, b"abcd", **RANGE))).get(
        "a", 0, 4, if_match="0x1"
    )
    assert (info.etag, data) == ("0x1", b"abcd")


async def test_headers_that_were_stored_unheard_are_recognised(autojump_clock: MockClock) -> None:
    ours = answer(200, **{"x-ms-meta-commit": "ours", "Content-Type": "text/plain"})
    script = Script(httpx.ReadError("reset"), error(412, "ConditionNotMet"), ours)
    version = await container(script).set_headers(
        "a", ContentHeaders("text/plain"), metadata={"commit": "ours"}, if_match="0"
    )
    assert version.etag == "0x1"


async def test_headers_of_somebody_else_are_a_conflict(autojump_clock: MockClock) -> None:
    theirs = answer(200, **{"x-ms-meta-commit": "theirs", "Content-Type": "text/plain"})
    script = Script(httpx.ReadError("reset"), error(412, "ConditionNotMet"), theirs)
    with pytest.raises(ConditionFailed):
        await container(script).set_headers(
            "a", ContentHeaders("text/plain"), metadata={"commit": "ours"}, if_match="0"
        )


async def test_a_request_without_a_deadline_ends_with_the_policys_patience(
    autojump_clock: MockClock,
) -> None:
    policy = RetryPolicy.within(9)
    start = trio.current_time()
    with pytest.raises(Unavailable, match="no answer in 3 s"):
        await container(Script(*[stall] * 10), policy).head("a")
    assert 9 <= trio.current_time() - start <= 9 + policy.attempt_timeout


async def test_within_a_short_time_a_stalled_attempt_leaves_time_for_another(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(9):
        await container(Script(stall, answer()), RetryPolicy.within(9)).head("a")


async def test_a_waiting_retry_holds_no_connection(autojump_clock: MockClock) -> None:
    script = Script(error(503, "ServerBusy", Retry_After="60"), answer(), answer())
    box = container(script, connections=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.head, "waits")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await box.head("goes ahead")


async def test_requests_are_counted_by_operation_and_status(autojump_clock: MockClock) -> None:
    script = Script(error(503, "ServerBusy"), httpx.ReadError("reset"), stall, answer())
    client = Client(transport=script)
    await Container(client, "https://account/box", lambda: "sig=x").head("a")
    operation = "Get Blob Properties"
    assert client.requests == {(operation, 503): 1, (operation, 0): 2, (operation, 200): 1}


async def test_the_clocks_are_compared() -> None:
    ahead = formatdate(time.time() + 3600, usegmt=True)
    client = Client(transport=Script(answer(Date=ahead)))
    assert client.clock_skew is None
    await Container(client, "https://account/box", lambda: "sig=x").head("a")
    assert client.clock_skew == pytest.approx(3600, abs=2)


async def test_a_write_in_doubt_is_still_in_doubt_after_its_token_was_renewed(
    autojump_clock: MockClock,
) -> None:
    """Its answer was lost, then the token had expired; what is there now is ours."""
    marked = answer(200, **{"x-ms-meta-commit": "ours", "Content-Length": "0"})
    script = Script(
        httpx.ReadError("reset"),
        error(403, "AuthenticationFailed"),
        error(412, "ConditionNotMet"),
        marked,
    )
    tokens = ["sig=old", "sig=new"]
    refused = []

    async def renew(token: str) -> bool:
        refused.append(tokens.pop(0))
        return token == refused[0]

    client = Client(transport=script, rng=random.Random(1))
    box = Container(client, "https://account/box", lambda: tokens[0], renew)
    version = await box.put(
        "a", b"", metadata={"commit": "ours"}, headers=ContentHeaders(), if_match="0"
    )
    assert version.etag == "0x1"
    assert [request.url.raw_path[-3:] for request in script.requests] == [
        b"old",
        b"old",
        b"new",
        b"new",
    ]
