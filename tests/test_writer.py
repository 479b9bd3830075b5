"""How long the blocks of a long write may take, which share a line."""

from typing import cast

import trio
from trio.testing import MockClock

from blobfs.attributes import Kind
from blobfs.blobs import Container
from blobfs.errors import Unavailable
from blobfs.keyring import Keyring
from blobfs.room import Room
from blobfs.writer import BLOCK, SLOWEST_UPLOAD, UNDER_WAY, Upload, WritePolicy

SIZE = 2 * UNDER_WAY


class Line:
    """A container whose blocks all come over one line, of so many bytes a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._under_way = 0
        self.stored = 0

    async def put_block(self, name: str, block_id: str, data: bytes) -> None:
        left = float(len(data))
        self._under_way += 1
        try:
            while left > 0:
                await trio.sleep(0.5)
                left -= 0.5 * self._rate / self._under_way
        finally:
            self._under_way -= 1
        self.stored += 1


async def write(line: Line) -> Exception | None:
    """What keeps it from being stored."""

    async def read(offset: int, size: int) -> bytes:
        return bytes(size)

    async with trio.open_nursery() as nursery:
        container, nobody = cast(Container, line), cast(Keyring, None)
        room = Room(UNDER_WAY)
        upload = Upload(container, "file", Kind.FILE, nobody, WritePolicy(), nursery, room)
        try:
            await upload.finish(SIZE, read)
        except Unavailable as exc:
            return exc
        finally:
            upload.abandon()
    return None


async def test_a_long_write_is_stored_over_the_slowest_line(autojump_clock: MockClock) -> None:
    line = Line(SLOWEST_UPLOAD)
    assert await write(line) is None
    assert line.stored == SIZE // BLOCK


async def test_a_line_that_is_dead_is_given_up(autojump_clock: MockClock) -> None:
    assert "was not stored within 124 s" in str(await write(Line(0)))
    assert trio.current_time() < 200
