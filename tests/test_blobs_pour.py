"""Bodies that are taken as they come: each byte once, in order, and none of another version."""

import random
from collections.abc import AsyncIterator

import httpx
import pytest
from trio.testing import MockClock

from blobfs.blobs import Client, Container, RetryPolicy
from blobfs.errors import ConditionFailed, Corrupt, Unavailable
from tests.strict import Script, answer, error

BODY = bytes(range(10))


class Breaks(httpx.AsyncByteStream):
    """A body, and then no more."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body
        raise httpx.ReadError("reset")


class Memory:
    """A sink that keeps what comes, in pieces of three bytes."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.kept = b""
        self._piece = bytearray()
        self._filled = 0
        self.refused = -1

    def begin(self) -> None:
        self.start -= self._filled
        self._filled = 0
        self._piece = bytearray(min(3, self.stop - self.start))

    async def ready(self) -> None:
        pass

    def room(self) -> memoryview:
        return memoryview(self._piece)[self._filled :]

    def filled(self, count: int) -> None:
        self._filled += count
        self.start += count
        if self._filled == len(self._piece):
            if self.refused in list(self._piece):
                raise Corrupt("not this one")
            self.kept += self._piece
            self._filled = 0
            self._piece = bytearray(min(3, self.stop - self.start))


def part(start: int, stop: int, *, cut: int = 0, total: int = 10) -> httpx.Response:
    """The bytes from `start` up to `stop`; of a body that is `cut`, so many fewer come."""
    length = min(stop, total) - start
    whole = answer(206, BODY[start : start + length - cut])
    whole.headers["Content-Length"] = str(length)
    whole.headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{total}"
    return whole


def container(script: Script, attempts: int = 10) -> Container:
    policy = RetryPolicy(attempts=attempts)
    client = Client(transport=script, retry=policy, rng=random.Random(1))
    return Container(client, "https://account/box", lambda: "sig=x")


def ranges(script: Script) -> list[str]:
    return [request.headers["Range"] for request in script.requests]


async def test_the_whole_range_is_one_request_for_one_version() -> None:
    script, sink = Script(part(2, 9)), Memory(2, 9)
    await container(script).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY[2:9]
    assert ranges(script) == ["bytes=2-8"]
    assert script.requests[0].headers["If-Match"] == '"0x1"'


async def test_of_a_cut_body_only_the_rest_is_asked_for_again(autojump_clock: MockClock) -> None:
    script, sink = Script(part(0, 10, cut=3), part(6, 10, cut=4), part(6, 10)), Memory(0, 10)
    await container(script).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY
    assert ranges(script) == ["bytes=0-9", "bytes=6-9", "bytes=6-9"]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(part(1, 10), id="another start"),
        pytest.param(part(0, 9), id="another end"),
        pytest.param(answer(206, BODY), id="no range"),
        pytest.param(answer(206, BODY, Content_Range="bytes 0-9/10", ETag='"0x2"'), id="ETag"),
        pytest.param(answer(200, BODY + b"more"), id="more than was asked for"),
        pytest.param(httpx.Response(200, stream=answer(200, BODY).stream), id="not the service"),
    ],
)
async def test_nothing_of_an_answer_to_another_question_is_taken(
    broken: httpx.Response, autojump_clock: MockClock
) -> None:
    script, sink = Script(broken, part(0, 10)), Memory(0, 10)
    await container(script).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY
    assert ranges(script) == ["bytes=0-9", "bytes=0-9"]


async def test_what_the_sink_refuses_ends_the_request_and_is_not_asked_for_again() -> None:
    script, sink = Script(part(0, 10)), Memory(0, 10)
    sink.refused = 4
    with pytest.raises(Corrupt, match="not this one"):
        await container(script).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY[:3]
    assert len(script.requests) == 1


async def test_a_body_ends_where_the_blob_does() -> None:
    script, sink = Script(part(0, 20)), Memory(0, 20)
    await container(script).pour("a", sink, if_match="0x1")
    assert (sink.kept, sink.start) == (BODY[:9], 10)


async def test_a_range_that_the_blob_does_not_have_gives_nothing() -> None:
    script, sink = Script(error(416, "InvalidRange")), Memory(10, 20)
    await container(script).pour("a", sink, if_match="0x1")
    assert sink.start == 10


async def test_another_version_is_a_conflict() -> None:
    script, sink = Script(error(412, "ConditionNotMet")), Memory(0, 10)
    with pytest.raises(ConditionFailed):
        await container(script).pour("a", sink, if_match="0x1")


async def test_a_body_that_never_comes_whole_is_unavailable(autojump_clock: MockClock) -> None:
    script, sink = Script(part(0, 10, cut=5), part(3, 10, cut=7)), Memory(0, 10)
    with pytest.raises(Unavailable, match="0 bytes of an answer of 7 bytes"):
        await container(script, attempts=2).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY[:3]


async def test_a_body_that_comes_a_little_at_a_time_comes_whole_in_the_end(
    autojump_clock: MockClock,
) -> None:
    script = Script(*[part(start, 10, cut=10 - start - 3) for start in (0, 3)], part(6, 10))
    sink = Memory(0, 10)
    await container(script, attempts=2).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY
    assert ranges(script) == ["bytes=0-9", "bytes=3-9", "bytes=6-9"]


async def test_when_only_the_end_of_the_answer_is_missing_there_is_nothing_to_ask_for() -> None:
    whole = part(0, 10)
    del whole.headers["Content-Length"]
    cut = httpx.Response(206, headers=whole.headers, stream=Breaks(BODY))
    script, sink = Script(cut), Memory(0, 10)
    with pytest.raises(Unavailable, match="reset"):
        await container(script).pour("a", sink, if_match="0x1")
    assert sink.kept == BODY
    assert len(script.requests) == 1
