"""The content of a file while it is being changed.

A draft lies over the stored version (its base) like a sheet of tracing paper: pages that were
written hide the base, `base_size` says how much of the base still shows, and everything else up
to `size` is a hole that reads as zeros and costs nothing. Nothing is downloaded before it is
needed: a page is read from the base only when it is written in part.

All drafts of a mount share a budget of memory; what is over it goes to the spool.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol
from weakref import WeakSet

from blobfs.envelope import BodyWriter
from blobfs.spool import Slot, Spool
from blobfs.staged import Staged

PAGE = 256 * 1024
"""Bytes a page: two of the kernel's default 128 KiB writes, a quarter of its largest."""

Buffer = bytes | bytearray | memoryview
ReadBase = Callable[[int, int], Awaitable[Buffer]]


class Owner(Protocol):
    """Who holds numbered pieces of content in the pool's memory."""

    def spill(self, index: int, /) -> int:
        """Move a piece to the spool; bytes of memory freed. Raises PosixError(ENOSPC)."""


class PagePool:
    """The memory that all drafts share; over `limit` bytes of it what is oldest is spooled."""

    def __init__(self, spool: Spool, limit: int) -> None:
        self.spool = spool
        self._limit = limit
        self._used = 0
        self._pages: OrderedDict[tuple[int, int], tuple[Owner, int]] = OrderedDict()
        self.drafts: WeakSet[Draft] = WeakSet()

    @property
    def largest_draft(self) -> int:
        """Bytes of the largest file that is being changed."""
        return max((draft.size for draft in self.drafts), default=0)

    @property
    def memory_used(self) -> int:
        return self._used

    def make_room(self, owner: Owner, index: int, growth: int) -> None:
        """Before a page grows: the pages written longest ago go to the spool.

        Raises PosixError(ENOSPC) when the spool is full; no page is lost or changed.
        """
        key = (id(owner), index)
        while self._used + growth > self._limit:
            oldest = next((other for other in self._pages if other != key), None)
            if oldest is None:
                return
            other, number = self._pages[oldest]
            self._used -= other.spill(number)
            del self._pages[oldest]

    def touched(self, owner: Owner, index: int, growth: int) -> None:
        """A page was written, in room made before."""
        self._used += growth
        key = (id(owner), index)
        self._pages[key] = (owner, index)
        self._pages.move_to_end(key)

    def dropped(self, owner: Owner, index: int, size: int) -> None:
        if self._pages.pop((id(owner), index), None) is not None:
            self._used -= size


class PageMap:
    """Pages by index, in memory or in the spool. One shorter than `PAGE` ends in zeros."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._memory: dict[int, bytearray | memoryview] = {}
        self._spooled: dict[int, Slot] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._memory or index in self._spooled

    def __iter__(self) -> Iterator[int]:
        return iter([*self._memory, *self._spooled])

    @property
    def bytes_held(self) -> int:
        return (len(self._memory) + len(self._spooled)) * PAGE

    def get(self, index: int) -> Buffer | None:
        """The page for reading only, or None."""
        page = self._memory.get(index)
        if page is not None:
            return page
        slot = self._spooled.get(index)
        return None if slot is None else self._pool.spool.load(slot)

    def put(self, index: int, page: bytearray | memoryview) -> None:
        """Store the page; it is the map's own from now on, or nobody changes it (memoryview)."""
        growth = len(page) - len(self._memory.get(index, b""))
        self._memory[index] = page
        self._forget_slot(index)
        self._pool.touched(self, index, growth)

    def make_room(self, index: int) -> None:
        """To be called before a page is written. Raises PosixError(ENOSPC)."""
        self._pool.make_room(self, index, PAGE - len(self._memory.get(index, b"")))

    def cut(self, index: int, size: int) -> None:
        """Shorten a page, which needs no room: a truncate must not fail halfway."""
        page = self._memory.get(index)
        if page is None:
            page = self._pool.spool.load(self._spooled[index])
            del page[size:]
            self.put(index, page)
        else:
            before = len(page)
            page = self._memory[index] = bytearray(page[:size])
            self._pool.touched(self, index, len(page) - before)

    def take(self, index: int) -> bytearray | None:
        """The page, to be changed and `put` again, or None."""
        page = self._memory.pop(index, None)
        if page is not None:
            self._pool.dropped(self, index, len(page))
            return page if isinstance(page, bytearray) else bytearray(page)
        slot = self._spooled.get(index)
        return None if slot is None else self._pool.spool.load(slot)

    def drop(self, index: int) -> None:
        page = self._memory.pop(index, None)
        if page is not None:
            self._pool.dropped(self, index, len(page))
        self._forget_slot(index)

    def clear(self) -> None:
        for index in self:
            self.drop(index)

    def spill(self, index: int) -> int:
        """Move a page to the spool; bytes of memory freed."""
        page = self._memory[index]
        self._spooled[index] = self._pool.spool.store(page)
        del self._memory[index]
        return len(page)

    def _forget_slot(self, index: int) -> None:
        slot = self._spooled.pop(index, None)
        if slot is not None:
            self._pool.spool.free(slot)


class Draft:
    """One file's content while it is open for writing or truncated.

    The caller serialises `write` and `truncate` (the node's lock); `read` may run at any time,
    also while one of them waits for the base, and then sees the state before or after it.
    `dirty` says that the service does not have this content yet; `changes` counts changes;
    `front_to_back` that nothing was written but at the end.
    """

    def __init__(self, pool: PagePool, base_size: int, read_base: ReadBase | None) -> None:
        self._pool = pool
        self._pages = PageMap(pool)
        self._read_base = read_base
        self._staged: Staged | None = None  # the base, while it is what this draft was
        self.base_size = base_size
        self.size = base_size
        self.dirty = False
        self.changes = 0
        self.front_to_back = base_size == 0
        self.failed_at = -1  # `changes` at the time of the last failed commit
        pool.drafts.add(self)

    @property
    def bytes_held(self) -> int:
        staged = 0 if self._staged is None else self._staged.bytes_held
        return self._pages.bytes_held + staged

    @property
    def is_base_local(self) -> bool:
        """Whether all of it can be read without the service."""
        return self._staged is not None or not self.base_size

    def mark_dirty(self) -> None:
        self.dirty = True
        self.changes += 1

    async def write(self, offset: int, data: Buffer) -> None:
        """Raises what reading the base raises, or PosixError(ENOSPC); the pages before the one
        that failed are written then."""
        view = memoryview(data)
        # Not after a hole: staging one of gigabytes would take longer than a write may.
        self.front_to_back &= offset == self.size
        while view:
            index, start = divmod(offset, PAGE)
            piece = view[: PAGE - start]
            end = start + len(piece)
            if self.front_to_back and isinstance(data, bytes) and len(piece) == PAGE:
                # Encrypted and gone soon: a copy would be 5 % of what a long write takes.
                self._pages.make_room(index)
                self._pages.put(index, piece)
            else:
                page = await self._writable(index, start, end)
                if len(page) < start:
                    page.extend(bytes(start - len(page)))
                page[start:end] = piece
                self._pages.put(index, page)
            offset += len(piece)
            self.size = max(self.size, offset)
            self.mark_dirty()
            view = view[len(piece) :]

    async def truncate(self, size: int) -> None:
        """Cut, or grow with a hole."""
        if size < self.size:
            first, keep = divmod(size, PAGE)
            if keep and first in self._pages:
                self._pages.cut(first, keep)
            for index in list(self._pages):
                if index > first or (index == first and not keep):
                    self._pages.drop(index)
            self.base_size = min(self.base_size, size)
        self.front_to_back = size == 0
        self.size = size
        if not self.base_size:
            self._discard_staged()
        self.mark_dirty()

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        end = min(offset + size, self.size)
        parts: list[Buffer] = []
        while offset < end:
            index, start = divmod(offset, PAGE)
            stop = min(PAGE, start + end - offset)
            page = self._pages.get(index)
            if page is None:
                stop = self._run(index, start, end - offset)
                parts.extend(await self._from_base(offset, stop - start))
            else:
                found = bytes(memoryview(page)[start:stop])
                parts.append(found)
                parts.append(bytes(stop - start - len(found)))
            offset += stop - start
        return b"".join(parts)

    def written(self, offset: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        """What `read` would give, but without the base: zeros stand where only the base knows.

        Those are the ranges (offset, size) of the second value.
        """
        end = min(offset + size, self.size)
        content, unknown = bytearray(end - offset), []
        for index in range(offset // PAGE, -(-end // PAGE)):
            start, stop = max(offset, index * PAGE), min(end, (index + 1) * PAGE)
            page = self._pages.get(index)
            if page is not None:
                found = bytes(memoryview(page)[start - index * PAGE : stop - index * PAGE])
                content[start - offset : start - offset + len(found)] = found
            elif start < self.base_size:
                unknown.append((start, min(stop, self.base_size) - start))
        return bytes(content), unknown

    def pieces(self, offset: int, size: int) -> list[Buffer]:
        """What `read` would give of pages that were written whole, not copied if in memory."""
        found: list[Buffer] = []
        for index in range(offset // PAGE, -(-(offset + size) // PAGE)):
            page = self._pages.get(index)
            assert page is not None
            start = max(0, offset - index * PAGE)
            found.append(memoryview(page)[start : offset + size - index * PAGE])
        return found

    def stage(self, body: BodyWriter, ciphertext: bytearray) -> None:
        """`body` has encrypted the content, front to back, up to and with `ciphertext`: that
        takes the place of its pages. Raises PosixError(ENOSPC); then nothing has changed."""
        staged = self._staged or Staged(self._pool.spool, body)
        self._pool.make_room(staged, -1, len(ciphertext))
        self._pool.touched(staged, staged.add(ciphertext), len(ciphertext))
        self._staged = staged
        before, self.base_size = self.base_size, staged.size
        for index in range(before // PAGE, self.base_size // PAGE):
            self._pages.drop(index)

    def committed(self, keep: int) -> None:
        """The service has this content: it is the new base.

        Pages are kept up to `keep` bytes, so that the next commit need not fetch them.
        """
        self.dirty = False
        # A shell closes a duplicate of what it has just opened, and so has an empty file stored.
        self.front_to_back = self.size == 0
        self.base_size = self.size
        self._discard_staged()
        if self.bytes_held > keep:
            self._pages.clear()

    def discard(self) -> None:
        """Let go of all memory and spool space."""
        self._pages.clear()
        self._discard_staged()
        self._pool.drafts.discard(self)

    def _discard_staged(self) -> None:
        if self._staged is not None:
            for index, size in self._staged.discard():
                self._pool.dropped(self._staged, index, size)
            self._staged = None

    def _run(self, index: int, start: int, wanted: int) -> int:
        """How far, from the start of page `index`, no page hides the base (or hole)."""
        stop = PAGE
        while stop - start < wanted and index + stop // PAGE not in self._pages:
            stop += PAGE
        return min(stop, start + wanted)

    async def _base(self, offset: int, size: int) -> Buffer:
        if self._staged is not None:
            return self._staged.read(offset, size)
        assert self._read_base is not None
        return await self._read_base(offset, size)

    async def _from_base(self, offset: int, size: int) -> list[Buffer]:
        shown = max(0, min(size, self.base_size - offset))
        parts: list[Buffer] = []
        if shown:
            parts.append(await self._base(offset, shown))
        if size > shown:
            parts.append(bytes(size - shown))
        return parts

    async def _writable(self, index: int, start: int, end: int) -> bytearray:
        """The page with what it shows now, unless that is about to be overwritten whole."""
        offset = index * PAGE
        shown = max(0, min(PAGE, self.base_size - offset))
        if index not in self._pages and shown and (start > 0 or end < shown):
            page = bytearray(await self._base(offset, shown))
            self._pages.make_room(index)
            return page
        self._pages.make_room(index)
        taken = self._pages.take(index)
        return bytearray() if taken is None else taken
