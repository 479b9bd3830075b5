"""A draft is a file: whatever is written, cut, grown and committed, it reads as a bytearray would.

The base, the memory limit and the spool are all small here, so that pages move between them in
every example.
"""

import errno
import os
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from blobfs import draft as draft_module
from blobfs.draft import Draft, PagePool
from blobfs.envelope import BodyWriter, Protocol
from blobfs.errors import PosixError, Unavailable
from blobfs.spool import Spool
from tests.mounts import PLAINTEXT_MARKER

T = TypeVar("T")

PAGE = 64
MEMORY = 3 * PAGE


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens at the edges of pages is the same for a thousandth of their size."""
    monkeypatch.setattr(draft_module, "PAGE", PAGE)


offsets = st.integers(0, 6 * PAGE) | st.builds(
    lambda page, nearby: max(0, page * PAGE + nearby), st.integers(0, 6), st.integers(-2, 2)
)
lengths = st.integers(0, 10) | st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 5])


def filler(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def completed(operation: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for; an event loop would take ten times as long."""
    try:
        operation.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


class Stored:
    """The service's side of one draft: what `read_base` reads, and what a commit replaces."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []
        self.fails = False

    async def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        if self.fails:
            raise Unavailable("no answer")
        found = self.data[offset : offset + size]
        assert len(found) == size, "read beyond what is stored"
        return found


def overwritten(before: bytes, offset: int, data: bytes) -> bytes:
    """`before` with `data` at `offset`, as a file would have it."""
    grown = before.ljust(offset, b"\0") if data else before
    return grown[:offset] + data + grown[offset + len(data) :]


class DraftModel(RuleBasedStateMachine):
    """Several drafts that share one pool, each beside the bytes that it must equal."""

    spool_pages: int
    directory: Path
    drafts = Bundle("drafts")

    def __init__(self) -> None:
        super().__init__()
        # A slot holds a page and its tag.
        self.spool = Spool(self.directory, PAGE, self.spool_pages * (PAGE + 16))
        self.pool = PagePool(self.spool, MEMORY)
        self.all: list[tuple[Draft, Stored]] = []
        self.bodies: dict[int, BodyWriter] = {}  # of drafts that are being staged
        self.expected: list[bytes] = []

    @rule(target=drafts, size=lengths)
    def open(self, size: int) -> int:
        stored = Stored(filler(len(self.all), size))
        self.all.append((Draft(self.pool, size, stored.read), stored))
        self.expected.append(stored.data)
        return len(self.all) - 1

    @rule(number=drafts, offset=offsets, size=lengths.filter(bool), reachable=st.booleans())
    def write(self, number: int, offset: int, size: int, reachable: bool) -> None:
        """Without the base, or with a full spool, some of the pages may have been written."""
        draft, stored = self.all[number]
        before, changes = self.expected[number], draft.changes
        data = filler(size, size)
        self.abandon(number, offset)
        stored.fails = not reachable
        try:
            completed(draft.write(offset, data))
        except (Unavailable, PosixError) as exc:
            if isinstance(exc, PosixError) and exc.errno != errno.ENOSPC:
                raise
            stored.fails = False
            found = completed(draft.read(0, draft.size))
            ends = [offset, *range((offset // PAGE + 1) * PAGE, offset + size, PAGE)]
            partial = [overwritten(before, offset, data[: end - offset]) for end in ends]
            assert found in partial
            self.expected[number] = found
        else:
            self.expected[number] = overwritten(before, offset, data)
            assert draft.changes > changes
        finally:
            stored.fails = False
        if self.expected[number] != before:
            assert draft.dirty

    @rule(number=drafts, size=offsets)
    def truncate(self, number: int, size: int) -> None:
        """Needs no base, and no room in the spool."""
        draft, _ = self.all[number]
        self.abandon(number, size)
        completed(draft.truncate(size))
        self.expected[number] = self.expected[number][:size].ljust(size, b"\0")
        assert draft.dirty

    def abandon(self, number: int, offset: int) -> None:
        """What was staged must not change any more."""
        if number in self.bodies and offset < self.bodies[number].plain_size:
            del self.bodies[number]

    @rule(number=drafts, regions=st.integers(1, 12))
    def stage(self, number: int, regions: int) -> None:
        """Blocks end where pages do, or not."""
        draft, _ = self.all[number]
        if number not in self.bodies and draft.base_size:
            return
        body = self.bodies.get(number) or BodyWriter(Protocol.V2_1, 16)
        staged, block = body.plain_size, regions * 16
        if not draft.front_to_back or draft.size - staged < block:
            return
        ciphertext = body.encrypt(*draft.pieces(staged, block), final=False)
        try:
            draft.stage(body, ciphertext)
        except PosixError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            draft.front_to_back = False
            self.bodies.pop(number, None)
        else:
            self.bodies[number] = body
            assert draft.base_size == staged + block
            assert draft.is_base_local

    @rule(number=drafts, offset=offsets, size=lengths)
    def read(self, number: int, offset: int, size: int) -> None:
        draft, _ = self.all[number]
        expected = self.expected[number][offset : offset + size]
        assert completed(draft.read(offset, size)) == expected

    @rule(number=drafts, keep=st.sampled_from([0, PAGE, 100 * PAGE]))
    def commit(self, number: int, keep: int) -> None:
        draft, stored = self.all[number]
        stored.data = completed(draft.read(0, draft.size))
        self.bodies.pop(number, None)
        draft.committed(keep)
        assert not draft.dirty
        assert draft.bytes_held <= keep

    @rule(number=drafts)
    def discard(self, number: int) -> None:
        draft, stored = self.all[number]
        self.bodies.pop(number, None)
        draft.discard()
        stored.data = self.expected[number]
        self.all[number] = Draft(self.pool, len(stored.data), stored.read), stored

    @invariant()
    def sizes_are_right(self) -> None:
        assert [draft.size for draft, _ in self.all] == [len(data) for data in self.expected]

    @invariant()
    def the_pool_knows_what_is_in_memory(self) -> None:
        held = sum(draft.bytes_held for draft, _ in self.all)
        assert self.pool.memory_used + self.spool.bytes_used <= held + 16 * self.spool_pages

    def teardown(self) -> None:
        for (draft, _), expected in zip(self.all, self.expected, strict=True):
            assert completed(draft.read(0, len(expected) + 1)) == expected
            draft.discard()
        assert self.pool.memory_used == 0
        assert self.spool.bytes_used == 0
        self.spool.close()


@pytest.mark.parametrize("spool_pages", [100, 3, 0])
def test_a_draft_reads_as_a_plain_file_would(tmp_path: Path, spool_pages: int) -> None:
    model = type("Model", (DraftModel,), {"directory": tmp_path, "spool_pages": spool_pages})
    run_state_machine_as_test(model, settings=settings(max_examples=settings().max_examples // 2))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", PAGE, 4 * (PAGE + 16))
    yield spool
    spool.close()


async def nothing(offset: int, size: int) -> bytes:
    raise AssertionError(f"{size} bytes at {offset} of the base were not needed")


async def test_memory_stays_within_the_limit(spool: Spool) -> None:
    pool = PagePool(spool, MEMORY)
    draft = Draft(pool, 0, None)
    for page in range(6):
        await draft.write(page * PAGE, bytes(PAGE))
        assert pool.memory_used <= MEMORY
    assert spool.bytes_used == 3 * (PAGE + 16)


@pytest.mark.parametrize("protocol", [Protocol.V1_0, Protocol.V2_1])
async def test_what_is_staged_reads_from_its_ciphertext(tmp_path: Path, protocol: Protocol) -> None:
    """Without a request, and without its plaintext in memory or on the disk."""
    pool = PagePool(Spool(tmp_path, PAGE, 10 * PAGE), PAGE)
    draft, body = Draft(pool, 0, nothing), BodyWriter(protocol, 32)
    content = PLAINTEXT_MARKER * 2 + filler(0, 3 * PAGE - 2 * len(PLAINTEXT_MARKER))
    for offset in range(0, 3 * PAGE, PAGE):
        await draft.write(offset, content[offset : offset + PAGE])
        draft.stage(body, body.encrypt(*draft.pieces(offset, PAGE), final=False))
    assert await draft.read(5, 3 * PAGE) == content[5:]
    assert draft._staged is not None
    assert draft._staged._file is not None
    on_disk = os.pread(draft._staged._file._descriptor, 4 * PAGE, 0)
    assert len(on_disk) >= 2 * PAGE
    assert PLAINTEXT_MARKER[:16] not in on_disk
    await draft.write(PAGE + 1, b"changed")
    assert (
        await draft.read(PAGE, PAGE)
        == content[PAGE : PAGE + 1] + b"changed" + content[PAGE + 8 : 2 * PAGE]
    )


async def test_a_staged_block_that_the_disk_changed_is_eio(spool: Spool) -> None:
    draft, body = Draft(PagePool(spool, 0), 0, nothing), BodyWriter(Protocol.V2_1, 32)
    await draft.write(0, bytes(PAGE))
    draft.stage(body, body.encrypt(*draft.pieces(0, PAGE), final=False))
    await draft.write(PAGE, b"x")  # no memory for both
    assert draft._staged is not None
    assert draft._staged._file is not None
    os.pwrite(draft._staged._file._descriptor, b"changed", 20)
    with pytest.raises(PosixError) as lost:
        await draft.read(0, PAGE)
    assert lost.value.errno == errno.EIO


async def test_pages_that_are_overwritten_whole_are_not_fetched(spool: Spool) -> None:
    draft = Draft(PagePool(spool, MEMORY), 2 * PAGE, nothing)
    await draft.write(0, b"x" * PAGE)
    await draft.write(PAGE, b"y" * PAGE)
    await draft.truncate(PAGE)
    assert await draft.read(0, 2 * PAGE) == b"x" * PAGE


async def test_a_hole_takes_no_memory(spool: Spool) -> None:
    draft = Draft(PagePool(spool, MEMORY), 0, None)
    await draft.truncate(2**40)
    await draft.write(2**39, b"x")
    assert draft.bytes_held == PAGE
    assert await draft.read(2**39 - 1, 3) == b"\0x\0"


async def test_a_full_spool_is_enospc_until_there_is_room(spool: Spool) -> None:
    pool = PagePool(spool, MEMORY)
    one, other = Draft(pool, 0, None), Draft(pool, 0, None)
    data = filler(0, 7 * PAGE)
    await one.write(0, data)
    with pytest.raises(PosixError) as refused:
        await other.write(0, data)
    assert refused.value.errno == errno.ENOSPC
    assert await one.read(0, 8 * PAGE) == data
    one.discard()
    await other.write(0, data)
    assert await other.read(0, 8 * PAGE) == data


async def test_a_truncate_needs_no_room_in_the_spool(spool: Spool) -> None:
    pool = PagePool(spool, MEMORY)
    draft = Draft(pool, 0, None)
    data = filler(0, 8 * PAGE)
    with pytest.raises(PosixError):
        await draft.write(0, data)
    for size in (6 * PAGE + 3, 3 * PAGE - 1, 3):
        await draft.truncate(size)
        assert await draft.read(0, PAGE * 8) == data[:size]


async def test_refused_writes_take_no_memory(spool: Spool) -> None:
    pool = PagePool(spool, MEMORY)
    draft = Draft(pool, 0, None)
    await draft.write(0, filler(0, 7 * PAGE))
    for page in range(7, 20):
        with pytest.raises(PosixError):
            await draft.write(page * PAGE, b"x")
    assert pool.memory_used == MEMORY
    assert draft.size == 7 * PAGE


async def test_a_spool_directory_that_cannot_be_made_is_enospc(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    draft = Draft(PagePool(Spool(tmp_path / "file", PAGE, 4 * PAGE), PAGE), 0, None)
    with pytest.raises(PosixError) as refused:
        await draft.write(0, bytes(2 * PAGE))
    assert refused.value.errno == errno.ENOSPC


def test_the_spool_holds_ciphertext_in_a_file_without_a_name(spool: Spool, tmp_path: Path) -> None:
    slot = spool.store(PLAINTEXT_MARKER)
    assert spool.load(slot) == PLAINTEXT_MARKER
    assert list(tmp_path.rglob("*")) == [tmp_path / "spool"]
    on_disk = os.pread(spool._file, PAGE, 0)
    assert len(on_disk) == len(PLAINTEXT_MARKER) + 16
    assert PLAINTEXT_MARKER not in on_disk


def test_the_same_page_stored_twice_is_another_ciphertext(spool: Spool) -> None:
    slots = [spool.store(b"same"), spool.store(b"same")]
    stored = [os.pread(spool._file, slot.length, slot.index * (PAGE + 16)) for slot in slots]
    assert stored[0] != stored[1]


def test_a_page_that_the_disk_changed_is_eio(spool: Spool) -> None:
    slot = spool.store(b"page")
    os.pwrite(spool._file, b"\0", 0)
    os.pwrite(spool._file, b"\1", 1)
    with pytest.raises(PosixError) as lost:
        spool.load(slot)
    assert lost.value.errno == errno.EIO


def test_slots_are_used_again(spool: Spool) -> None:
    for _ in range(20):
        slots = [spool.store(bytes(PAGE)) for _ in range(4)]
        for slot in slots:
            spool.free(slot)
    assert spool.bytes_used == 0
    assert os.fstat(spool._file).st_size == 0
