"""How much a reader fetches, when, and that it is always the right bytes."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from blobfs.attributes import Kind
from blobfs.blobs import BlobInfo, Container, Sink
from blobfs.content import Content, PlainBody
from blobfs.errors import Unavailable
from blobfs.keyring import Keyring
from blobfs.reader import (
    AHEAD,
    FIRST_OF_LARGE,
    REQUEST_SIZE,
    Reach,
    Reader,
    ReadPolicy,
)
from tests.sdk import content

KIB = 1024
MIB = 1024 * KIB
UNIT = PlainBody.unit


class Blobs:
    """In the place of a Container: blobs in memory, of which it notes what is asked."""

    def __init__(self, *sizes: int) -> None:
        self.bodies = [content(size, seed) for seed, size in enumerate(sizes)]
        self.asked: list[tuple[int, int]] = []
        self.unreachable = False
        self.fails_at_the_end = False
        self.pause = 0.0

    async def pour(self, name: str, sink: Sink, *, if_match: str) -> None:
        sink.begin()
        self.asked.append((sink.start, sink.stop))
        await trio.lowlevel.checkpoint()
        await sink.ready()
        if self.unreachable:
            raise Unavailable("no network")
        while room := sink.room():
            await trio.sleep(self.pause)
            room[:] = self.bodies[int(name)][sink.start : sink.start + len(room)]
            sink.filled(len(room))
        if self.fails_at_the_end:
            raise Unavailable("reset")

    def content(self, number: int = 0) -> Content:
        size = len(self.bodies[number])
        info = BlobInfo(str(number), "0x1", size, 0)
        where = cast(Container, self), info.name
        it = Content(lambda: where, info, Kind.FILE, PlainBody(size), number)
        it.settle(PlainBody(size))
        return it

    def take_asked(self) -> list[tuple[int, int]]:
        asked, self.asked = self.asked, []
        return sorted(asked)


@asynccontextmanager
async def reader(**policy: int) -> AsyncIterator[Reader]:
    async with trio.open_nursery() as nursery:
        yield Reader(cast(Keyring, None), ReadPolicy(**policy), nursery)  # type: ignore[arg-type]


async def read_in_order(reader: Reader, it: Content, reach: Reach, start: int, stop: int) -> bytes:
    step = 128 * KIB
    pieces = [
        bytes(await reader.read(it, reach, offset, step)) for offset in range(start, stop, step)
    ]
    return b"".join(pieces)


@settings(max_examples=15)
@given(st.data())
def test_whatever_is_read_in_whatever_order_is_what_is_stored(data: st.DataObject) -> None:
    blobs = Blobs(MIB + 5, 9 * MIB, 1)
    options = {
        "cache_size": data.draw(st.sampled_from([0, 2 * MIB, 64 * MIB])),
        "readahead": data.draw(st.sampled_from([0, MIB, 32 * MIB])),
    }

    async def one(it: Content, reader: Reader, ranges: list[tuple[int, int]]) -> None:
        reach = Reach()
        body = blobs.bodies[int(it.info.name)]
        for offset, size in ranges:
            plain = await reader.read(it, reach, offset, size)
            await trio.lowlevel.checkpoint()  # what is in use must not be used again
            assert plain == body[offset : offset + size]

    async def main() -> None:
        async with reader(**options) as it, trio.open_nursery() as nursery:
            for number in (0, 1, 1, 2):
                length = len(blobs.bodies[number])
                begins = st.integers(0, length + 1)
                sizes = st.sampled_from([1, 4 * KIB, 128 * KIB, MIB])
                ranges = data.draw(st.lists(st.tuples(begins, sizes), max_size=8))
                ranges += [(offset, MIB) for offset in range(0, length, MIB)]
                nursery.start_soon(one, blobs.content(number), it, ranges)

    trio.run(main)


async def test_a_reader_in_order_is_fetched_each_byte_once_in_few_requests() -> None:
    blobs = Blobs(64 * MIB)
    async with reader() as it:
        plain = await read_in_order(it, blobs.content(), Reach(), 0, 64 * MIB)
    assert plain == blobs.bodies[0]
    asked = blobs.take_asked()
    assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]
    assert (asked[0][0], asked[-1][1]) == (0, 64 * MIB)
    assert len(asked) <= 20
    assert sum(stop - start == REQUEST_SIZE for start, stop in asked) >= 6


async def test_what_is_fetched_ahead_grows_with_what_was_read_in_order() -> None:
    blobs = Blobs(64 * MIB)
    it, reach = blobs.content(), Reach()
    async with reader() as r:
        for offset in range(0, 4 * MIB, 128 * KIB):
            await r.read(it, reach, offset, 128 * KIB)
            end = offset + 128 * KIB
            ahead = reach.asked * UNIT - end
            assert AHEAD // 2 * end <= ahead + UNIT
            assert ahead <= AHEAD * end + UNIT


async def test_the_beginning_of_a_large_file_costs_little() -> None:
    blobs = Blobs(64 * MIB)
    async with reader() as it:
        await it.read(blobs.content(), Reach(), 0, 4 * KIB)
    ((start, stop),) = blobs.take_asked()
    assert (start, stop) == (0, 3 * UNIT)


@pytest.mark.parametrize(("readahead", "units"), [(0, 1), (UNIT, 1), (2 * UNIT, 2)])
async def test_no_more_is_fetched_ahead_than_the_option_says(readahead: int, units: int) -> None:
    blobs = Blobs(MIB)
    it, reach = blobs.content(), Reach()
    async with reader(readahead=readahead) as r:
        r.expect(it, reach)
        await r.read(it, reach, 0, 4 * KIB)
    assert max(stop for _, stop in blobs.take_asked()) == units * UNIT


async def test_of_what_was_opened_the_beginning_is_fetched_but_no_large_region() -> None:
    blobs = Blobs(MIB, 64 * MIB, 64 * MIB)
    async with reader() as r:
        for number, unit in enumerate((UNIT, UNIT, 4 * MIB)):
            it = blobs.content(number)
            it.unit = unit
            r.expect(it, Reach())
            await trio.testing.wait_all_tasks_blocked()
    assert blobs.take_asked() == [(0, FIRST_OF_LARGE), (0, MIB)]


async def test_a_small_read_does_not_wait_behind_what_is_fetched_ahead() -> None:
    blobs = Blobs(*[64 * MIB] * 9, MIB)
    async with reader(cache_size=1024 * MIB) as r, trio.open_nursery() as nursery:
        blobs.pause = 1e6
        for number in range(9):
            nursery.start_soon(r.read, blobs.content(number), Reach(), 0, 8 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        blobs.pause = 0.0
        assert await r.read(blobs.content(9), Reach(), 0, 10) == blobs.bodies[9][:10]
        nursery.cancel_scope.cancel()
        r._nursery.cancel_scope.cancel()


async def test_a_small_file_is_fetched_at_once() -> None:
    blobs = Blobs(MIB)
    async with reader() as it:
        await it.read(blobs.content(), Reach(), 0, 4 * KIB)
    assert blobs.take_asked() == [(0, MIB)]


async def test_a_random_reader_is_fetched_what_it_touches() -> None:
    blobs = Blobs(64 * MIB)
    it, reach = blobs.content(), Reach()
    offsets = [40 * MIB, 3 * MIB, 50 * MIB + 5, 20 * MIB, 8 * MIB]
    async with reader() as r:
        for offset in offsets:
            await r.read(it, reach, offset, 4 * KIB)
    expected = [(o // UNIT * UNIT, o // UNIT * UNIT + UNIT) for o in sorted(offsets)]
    assert blobs.take_asked() == expected


async def test_who_stops_reading_in_order_is_fetched_nothing_ahead() -> None:
    blobs = Blobs(64 * MIB)
    it, reach = blobs.content(), Reach()
    async with reader() as r:
        await read_in_order(r, it, reach, 0, 2 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        blobs.take_asked()
        for offset in (60 * MIB, 41 * MIB):
            await r.read(it, reach, offset, 4 * KIB)
    assert blobs.take_asked() == [(41 * MIB, 41 * MIB + UNIT), (60 * MIB, 60 * MIB + UNIT)]


@pytest.mark.parametrize(
    ("unit", "cache_size"), [(UNIT, 16 * MIB), (100_000, 16 * MIB), (3_000_000, 64 * MIB)]
)
async def test_readers_share_the_cache_so_that_none_is_fetched_a_byte_twice(
    unit: int, cache_size: int
) -> None:
    blobs = Blobs(*[24 * MIB] * 4)
    async with reader(cache_size=cache_size) as it, trio.open_nursery() as nursery:
        for number in range(4):
            content = blobs.content(number)
            content.body.unit = unit  # type: ignore[misc]
            nursery.start_soon(read_in_order, it, content, Reach(), 0, 24 * MIB)
    assert sum(stop - start for start, stop in blobs.take_asked()) == 4 * 24 * MIB


async def test_readers_of_the_same_bytes_share_one_request() -> None:
    blobs = Blobs(8 * MIB)
    it = blobs.content()
    async with reader() as r, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(r.read, it, Reach(), 5 * MIB, 4 * KIB)
    assert blobs.take_asked() == [(5 * MIB, 5 * MIB + UNIT)]


async def test_a_read_that_failed_is_asked_again_by_the_next() -> None:
    blobs = Blobs(8 * MIB)
    it, reach = blobs.content(), Reach()
    async with reader() as r:
        blobs.unreachable = True
        with pytest.raises(Unavailable):
            await r.read(it, reach, 0, 4 * KIB)
        blobs.unreachable = False
        assert await r.read(it, reach, 0, 4 * KIB) == blobs.bodies[0][: 4 * KIB]


async def test_what_has_come_whole_is_whole_whatever_becomes_of_the_answer() -> None:
    blobs = Blobs(MIB)
    blobs.fails_at_the_end = True
    async with reader() as r:
        assert await r.read(blobs.content(), Reach(), 0, MIB) == blobs.bodies[0]
        await trio.testing.wait_all_tasks_blocked()
        assert r.cached_bytes >= MIB


async def test_memory_stays_within_the_cache_and_what_is_under_way() -> None:
    blobs = Blobs(*[32 * MIB] * 2)
    it = blobs.content(0)
    async with reader(cache_size=16 * MIB) as r:
        for number, start in itertools.product(range(2), range(0, 32 * MIB, 8 * MIB)):
            it = blobs.content(number)
            await read_in_order(r, it, Reach(), start, start + 8 * MIB)
            assert r.cached_bytes <= 16 * MIB


async def test_a_slow_line_is_no_failure_as_long_as_something_comes(
    autojump_clock: MockClock,
) -> None:
    blobs = Blobs(8 * MIB)
    it, reach = blobs.content(), Reach()
    async with reader(timeout=60) as r:
        blobs.pause = 59.0
        assert await read_in_order(r, it, reach, 4 * MIB, 8 * MIB) == blobs.bodies[0][4 * MIB :]
        blobs.pause = 61.0
        with pytest.raises(Unavailable, match="no content within 60 s"):
            await r.read(it, Reach(), 0, 2 * MIB)
