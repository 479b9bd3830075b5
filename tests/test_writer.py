"""How long the blocks of a long write may take, which share a line."""

from typing import cast

import pytest
import trio
from trio.testing import MockClock

from blobfs import writer
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


async def write(line: Line, policy: WritePolicy | None = None) -> Exception | None:
    """What keeps it from being stored."""

    async def read(offset: int, size: int) -> bytes:
        return bytes(size)

    async with trio.open_nursery() as nursery:
        container, nobody = cast(Container, line), cast(Keyring, None)
        room = Room(writer.UNDER_WAY)
        policy = policy or WritePolicy()
        upload = Upload(container, "file", Kind.FILE, nobody, policy, nursery, room)
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


async def test_a_block_that_is_larger_than_what_is_sent_at_once_has_the_time_for_itself(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "UNDER_WAY", BLOCK // 8)
    line = Line(SLOWEST_UPLOAD)
    assert await write(line, WritePolicy(timeout=1.0)) is None
    assert line.stored == SIZE // BLOCK


async def test_a_line_that_is_dead_is_given_up(autojump_clock: MockClock) -> None:
    assert "was not stored within 124 s" in str(await write(Line(0)))
    assert trio.current_time() < 200
