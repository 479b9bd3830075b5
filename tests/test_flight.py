"""Content is served as it comes, however it comes, and nothing of it before it is proven."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from blobfs import flight as flight_module
from blobfs.envelope import BodyReader, BodyWriter, Protocol, WrappedKey, open_body, unpack_cek
from blobfs.errors import Corrupt, Truncated, Unavailable
from blobfs.flight import Flight
from tests.sdk import content

REGION = 64


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight_module, "PIECE", 4 * REGION)
        yield


@dataclass(frozen=True)
class Blob:
    plain: bytes
    body: BodyReader
    stored: bytes


def blob(size: int, protocol: Protocol = Protocol.V2_1) -> Blob:
    writer = BodyWriter(protocol, REGION)
    plain = content(size)
    stored = bytes(writer.encrypt(plain, final=True))
    data = writer.encryption_data(WrappedKey("kid", "A256KW", b""))
    cek = unpack_cek(protocol, writer.cek_payload)
    return Blob(plain, open_body(data, cek, len(stored), size), stored)


def boarded(body: BodyReader, first: int, last: int) -> Flight:
    async def opened() -> BodyReader:
        return body

    flight = Flight(body, first, last, opened)
    flight.unlock(body)
    memory = memoryview(bytearray(flight.size)), memoryview(bytearray(flight.piece_size))
    flight.board(*memory, lambda: None)
    return flight


def arrive(flight: Flight, stored: bytes, size: int) -> None:
    """So many bytes come, in as many parts as the flight takes them."""
    while size and (room := flight.room()[:size]):
        room[:] = stored[flight.start : flight.start + len(room)]
        flight.filled(len(room))
        size -= len(room)


@given(st.sampled_from([Protocol.V1_0, Protocol.V2_1]), st.integers(0, 2**32))
def test_however_the_bytes_come_the_plaintext_is_what_was_stored(
    protocol: Protocol, seed: int
) -> None:
    random = Random(seed)
    longest = 3 * 65536 if protocol is Protocol.V1_0 else 20 * REGION
    it = blob(random.randint(1, longest), protocol)
    units = -(-len(it.plain) // it.body.unit)
    first = random.randrange(units)
    last = random.randrange(first, units)
    expected = it.plain[first * it.body.unit : (last + 1) * it.body.unit]
    flight = boarded(it.body, first, last)
    flight.begin()
    while flight.landed < len(expected):
        if random.random() < 0.1:  # the connection broke
            flight.begin()
        arrive(flight, it.stored, random.randint(1, len(it.stored)))
        assert flight.plain[: flight.landed] == expected[: flight.landed]
    assert flight.size == len(expected)
    assert (flight.start, len(flight.room())) == (flight.stop, 0)
    flight.check_whole()
    flight.begin()
    assert (flight.start, len(flight.room())) == (flight.stop, 0)


def test_what_has_landed_does_not_come_again() -> None:
    it = blob(20 * REGION)
    flight = boarded(it.body, 0, 19)
    flight.begin()
    arrive(flight, it.stored, 5 * (REGION + 28))
    assert flight.landed == 4 * REGION, "whole pieces land"
    flight.begin()
    assert flight.start == 4 * (REGION + 28)


def test_a_piece_that_was_changed_does_not_land_and_those_before_it_stay() -> None:
    it = blob(12 * REGION)
    changed = bytearray(it.stored)
    changed[5 * (REGION + 28) + 20] ^= 1
    flight = boarded(it.body, 0, 11)
    flight.begin()
    with pytest.raises(Corrupt, match="region 5"):
        arrive(flight, bytes(changed), len(changed))
    assert flight.landed == 4 * REGION
    assert flight.plain[: flight.landed] == it.plain[: flight.landed]


def test_a_body_that_ends_too_early_is_truncated() -> None:
    it = blob(12 * REGION)
    flight = boarded(it.body, 0, 11)
    flight.begin()
    arrive(flight, it.stored, 11 * (REGION + 28))
    with pytest.raises(Truncated, match="92 bytes"):
        flight.check_whole()


async def test_a_reader_goes_on_when_its_bytes_are_there_and_not_at_the_end() -> None:
    it = blob(12 * REGION)
    flight = boarded(it.body, 0, 11)
    served: list[int] = []

    async def reader(size: int) -> None:
        assert await flight.reach(size)
        served.append(size)

    async with trio.open_nursery() as nursery:
        for size in (12 * REGION, 3 * REGION, 5 * REGION):
            nursery.start_soon(reader, size)
        await trio.testing.wait_all_tasks_blocked()
        flight.begin()
        for expected in ([3], [3, 5], [3, 5, 12]):
            arrive(flight, it.stored, 4 * (REGION + 28))
            await trio.testing.wait_all_tasks_blocked()
            assert served == [size * REGION for size in expected]


async def test_a_failure_is_told_to_those_alone_who_lack_bytes() -> None:
    it = blob(12 * REGION)
    flight = boarded(it.body, 0, 11)
    flight.begin()
    arrive(flight, it.stored, 4 * (REGION + 28))
    flight.end(Unavailable("no answer"))
    assert await flight.reach(4 * REGION)
    with pytest.raises(Unavailable):
        await flight.reach(5 * REGION)


async def test_a_flight_that_ends_with_the_mount_fails_nobody_and_serves_nobody() -> None:
    flight = boarded(blob(REGION).body, 0, 0)
    flight.end(None)
    assert not await flight.reach(1)
