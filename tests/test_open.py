"""Opening a file to read it: its beginning is asked for before its key is unwrapped, and no byte of
it is decrypted before that is done and its seal was checked."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

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
from blobfs.errors import BlobfsError, Corrupt, KeyRefused, KeyUnknown, Truncated, WrongKey
from blobfs.keyring import Keyring
from blobfs.reader import Reach, Reader, ReadPolicy
from tests.azurite import Azurite
from tests.bare_host import Service
from tests.sdk import content

SIZE = 200_000
REGION = 64 * 1024
OWN = Kek("own", bytes(32))


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
async def reader(*providers: SlowKey) -> AsyncIterator[Reader]:
    """With `OWN` in its key file."""
    async with trio.open_nursery() as nursery:
        yield Reader(Keyring(KeySet([OWN], OWN), *providers), ReadPolicy(), nursery)


async def test_the_beginning_is_asked_for_before_the_key_is_unwrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blobs = [Blob(OWN) for _ in range(20)]  # trio runs what is ready in either order
    asked: list[int] = []
    unwrap = Kek.unwrap

    def count_and_unwrap(self: Kek, wrapped: WrappedKey) -> bytes:
        asked.append(sum(len(blob.asked) for blob in blobs))
        assert sum(blob.taken for blob in blobs) == (len(asked) - 1) * len(blobs[0].stored)
        return unwrap(self, wrapped)

    monkeypatch.setattr(Kek, "unwrap", count_and_unwrap)
    async with reader() as r:
        for blob in blobs:
            reach = Reach()
            it = await blob.open(r, reach)
            assert await r.read(it, reach, 0, SIZE) == blob.plain
    assert asked == list(range(1, 21))
    assert all(len(blob.asked) == 1 for blob in blobs)


async def test_who_must_be_asked_for_the_key_is_asked_first_and_keeps_nobody_waiting() -> None:
    key = SlowKey()
    slow, reach, own = Blob(key.kek), Reach(), Blob(OWN)
    async with reader(key) as r, trio.open_nursery() as nursery:
        opened: list[Content] = []

        async def open_it() -> None:
            opened.append(await slow.open(r, reach))

        nursery.start_soon(open_it)
        await wait_all_tasks_blocked()
        assert (slow.asked, key.calls, opened) == ([], 1, [])
        assert await r.read(await own.open(r, Reach()), Reach(), 0, SIZE) == own.plain
        key.may_answer.set()
        await wait_all_tasks_blocked()
        assert len(slow.asked) == 1, "before it is read"
        assert await r.read(opened[0], reach, 0, SIZE) == slow.plain
    assert len(slow.asked) == 1


async def test_nothing_is_asked_for_unless_the_beginning_will_be_read() -> None:
    blob = Blob(OWN)
    async with reader() as r:
        await blob.open(r, None)
        await wait_all_tasks_blocked()
    assert blob.asked == []


async def test_of_protocol_1_the_beginning_is_asked_for_once_it_is_open() -> None:
    blob, reach = Blob(OWN, Protocol.V1_0), Reach()
    async with reader() as r:
        it = await blob.open(r, reach)
        assert await r.read(it, reach, 0, SIZE) == blob.plain
    assert len(blob.asked) == 1


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
    damage: Callable[[Blob], BlobInfo], error: type[BlobfsError]
) -> None:
    blob = Blob(OWN)
    blob.info = damage(blob)
    async with reader() as r:
        with pytest.raises(error):
            await blob.open(r, Reach())
        await wait_all_tasks_blocked()
        assert (blob.taken, r.cached_bytes) == (0, 0)


async def test_under_the_wrong_key_nothing_is_decrypted() -> None:
    blob = Blob(Kek("own", b"\1" * 32))
    async with reader() as r:
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
    blob = Blob(OWN)
    async with reader() as r:
        with trio.CancelScope() as scope:
            scope.cancel()
            await blob.open(r, Reach())
        await wait_all_tasks_blocked()
        assert (len(blob.asked), blob.taken, r.cached_bytes) == (1, 0, 0)


# Of a mount


async def test_those_who_open_a_file_at_once_share_one_opening_and_its_failure(
    azurite: Azurite, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(azurite, container, tmp_path)
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await host.write("a", b"content")
        node = await host.node("a")
        node.content = None
        refused, calls = trio.Event(), 0
        failures: list[BlobfsError] = []

        async def open_refused(*arguments: object) -> Content:
            nonlocal calls
            calls += 1
            await refused.wait()
            raise KeyRefused("not you")

        async def open_it() -> None:
            try:
                await host.store.content(node)
            except BlobfsError as exc:
                failures.append(exc)

        with monkeypatch.context() as patch:
            patch.setattr(host.store.reader, "open", open_refused)
            for _ in range(8):
                nursery.start_soon(open_it)
            await wait_all_tasks_blocked()
            refused.set()
            await wait_all_tasks_blocked()
        assert (calls, [type(exc) for exc in failures]) == (1, [KeyRefused] * 8)
        assert (await host.store.content(node)).size == len(b"content")


async def test_who_gives_up_opening_leaves_it_to_those_who_wait(
    azurite: Azurite, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(azurite, container, tmp_path)
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await host.write("a", b"content")
        node = await host.node("a")
        node.content = None
        open_really, first = host.store.reader.open, trio.CancelScope()

        async def open_slowly(*arguments: Any) -> Content:
            if not first.cancel_called:
                await trio.sleep_forever()
            return await open_really(*arguments)

        async def open_first() -> None:
            with first:
                await host.store.content(node)

        opened: list[Content] = []

        async def open_second() -> None:
            opened.append(await host.store.content(node))

        monkeypatch.setattr(host.store.reader, "open", open_slowly)
        nursery.start_soon(open_first)
        await wait_all_tasks_blocked()
        nursery.start_soon(open_second)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        assert [it.size for it in opened] == [len(b"content")]
