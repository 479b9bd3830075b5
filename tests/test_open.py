"""Opening a file to read it: its beginning is on its way before its key is known, and no byte of
it is decrypted before that and its seal are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blobfs.attributes import Kind
from blobfs.blobs import BlobInfo, Container, Sink
from blobfs.content import Content
from blobfs.envelope import (
    METADATA_KEY,
    SEAL_KEY,
    BodyWriter,
    Kek,
    KeySet,
    Protocol,
    WrappedKey,
)
from blobfs.errors import BlobfsError, Corrupt, KeyUnknown, Truncated, WrongKey
from blobfs.keyring import Keyring
from blobfs.reader import Reach, Reader, ReadPolicy
from tests.sdk import content

SIZE = 200_000
REGION = 64 * 1024


class SlowKey:
    """A key provider that answers when it is told to."""

    name = "slow"
    key_id: str | None = "slow"
    algorithm = "A256KW"
    can_wrap = True

    def __init__(self) -> None:
        self.kek = Kek("slow", bytes(32))
        self.may_answer = trio.Event()
        self.calls = 0

    def serves(self, key_id: str) -> bool:
        return key_id == self.key_id

    async def wrap(self, payload: bytes) -> WrappedKey:
        return self.kek.wrap(payload)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        self.calls += 1
        await self.may_answer.wait()
        return self.kek.unwrap(wrapped)

    async def aclose(self) -> None:
        pass


class Blob:
    """One encrypted blob, in the place of its container; it counts what is asked of it."""

    def __init__(self, kek: Kek, protocol: Protocol = Protocol.V2_1) -> None:
        writer = BodyWriter(protocol, REGION)
        self.plain = content(SIZE)
        self.stored = bytes(writer.encrypt(self.plain, final=True))
        data = writer.encryption_data(kek.wrap(writer.cek_payload)).serialize()
        metadata = {METADATA_KEY: data, SEAL_KEY: writer.seal("file")}
        self.info = BlobInfo("a", "0x1", len(self.stored), 0, "BlockBlob", metadata=metadata)
        self.asked: list[tuple[int, int]] = []
        self.taken = 0

    async def pour(self, name: str, sink: Sink, *, if_match: str) -> None:
        self.asked.append((sink.start, sink.stop))
        sink.begin()
        await sink.ready()
        while room := sink.room():
            room[:] = self.stored[sink.start : sink.start + len(room)]
            self.taken += len(room)
            sink.filled(len(room))

    async def open(self, reader: Reader, reach: Reach | None) -> Content:
        where = cast(Container, self), "a"
        return await reader.open(lambda: where, self.info, Kind.FILE, reach)


@asynccontextmanager
async def reader(*providers: SlowKey, keys: KeySet | None = None) -> AsyncIterator[Reader]:
    async with trio.open_nursery() as nursery:
        yield Reader(Keyring(keys, *providers), ReadPolicy(), nursery)


async def test_the_beginning_is_asked_for_while_the_key_is_and_decrypted_after_it() -> None:
    key = SlowKey()
    blob, reach = Blob(key.kek), Reach()
    async with reader(key) as r, trio.open_nursery() as nursery:
        opened: list[Content] = []

        async def open_it() -> None:
            opened.append(await blob.open(r, reach))

        nursery.start_soon(open_it)
        await wait_all_tasks_blocked()
        assert (len(blob.asked), key.calls, opened) == (1, 1, [])
        assert (blob.taken, r.cached_bytes) == (0, 0)
        key.may_answer.set()
        await wait_all_tasks_blocked()
        assert await r.read(opened[0], reach, 0, SIZE) == blob.plain
    assert len(blob.asked) == 1


async def test_nothing_is_asked_for_before_who_opens_it_reads_unless_it_is_the_beginning() -> None:
    key = SlowKey()
    key.may_answer.set()
    blob = Blob(key.kek)
    async with reader(key) as r:
        await blob.open(r, None)
        await wait_all_tasks_blocked()
    assert blob.asked == []


async def test_of_protocol_1_the_beginning_is_asked_for_when_its_key_is_known() -> None:
    key = SlowKey()
    blob, reach = Blob(key.kek, Protocol.V1_0), Reach()
    async with reader(key) as r, trio.open_nursery() as nursery:
        nursery.start_soon(blob.open, r, reach)
        await wait_all_tasks_blocked()
        assert blob.asked == []
        key.may_answer.set()
        await wait_all_tasks_blocked()
        assert len(blob.asked) == 1
        assert key.calls == 1


def without_its_seal_right(blob: Blob) -> BlobInfo:
    other = Blob(Kek("slow", bytes(32)))
    metadata = {**blob.info.metadata, SEAL_KEY: other.info.metadata[SEAL_KEY]}
    return replace(blob.info, metadata=metadata)


def cut_by_a_region(blob: Blob) -> BlobInfo:
    return replace(blob.info, size=2 * (REGION + 28))


def cut_within_a_tag(blob: Blob) -> BlobInfo:
    return replace(blob.info, size=2 * (REGION + 28) + 20)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (without_its_seal_right, Corrupt),
        (cut_by_a_region, Truncated),
        (cut_within_a_tag, Truncated),
    ],
)
async def test_of_what_does_not_fit_its_seal_nothing_is_decrypted(
    damage: object, error: type[BlobfsError]
) -> None:
    key = SlowKey()
    key.may_answer.set()
    blob = Blob(key.kek)
    blob.info = damage(blob)  # type: ignore[operator]
    async with reader(key) as r:
        with pytest.raises(error):
            await blob.open(r, Reach())
        await wait_all_tasks_blocked()
        assert (blob.taken, r.cached_bytes) == (0, 0)


async def test_under_the_wrong_key_nothing_is_decrypted() -> None:
    key = SlowKey()
    key.may_answer.set()
    blob = Blob(Kek("slow", b"\1" * 32))
    async with reader(key) as r:
        with pytest.raises(WrongKey):
            await blob.open(r, Reach())
        await wait_all_tasks_blocked()
        assert (blob.taken, r.cached_bytes) == (0, 0)


async def test_without_anybody_to_ask_for_the_key_nothing_is_fetched() -> None:
    blob = Blob(Kek("gone", bytes(32)))
    async with reader(SlowKey()) as r:
        with pytest.raises(KeyUnknown):
            await blob.open(r, Reach())
        await wait_all_tasks_blocked()
    assert blob.asked == []


async def test_an_open_that_is_given_up_gives_up_its_request() -> None:
    key = SlowKey()
    blob = Blob(key.kek)
    async with reader(key) as r:
        with trio.move_on_after(0):
            await blob.open(r, Reach())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blob.open, r, Reach())
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert (blob.taken, r.cached_bytes) == (0, 0)


async def test_with_a_key_file_the_request_is_sent_first_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kek = Kek("own", bytes(32))
    blobs = [Blob(kek) for _ in range(20)]  # trio runs what is ready in either order
    asked: list[int] = []
    unwrap = Kek.unwrap

    def count_and_unwrap(self: Kek, wrapped: WrappedKey) -> bytes:
        asked.append(sum(len(blob.asked) for blob in blobs))
        return unwrap(self, wrapped)

    monkeypatch.setattr(Kek, "unwrap", count_and_unwrap)
    async with reader(keys=KeySet([kek], kek)) as r:
        for blob in blobs:
            reach = Reach()
            it = await blob.open(r, reach)
            assert await r.read(it, reach, 0, SIZE) == blob.plain
    assert asked == list(range(1, 21))
