"""How stored content is read: decrypted units in a bounded cache, each fetched once.

- Single flight: a unit is fetched by one request however many readers ask for it.
- One open file sees one version: every request carries the ETag, and a change is ConditionFailed,
  unless the new version has the same CEK. A CEK encrypts one plaintext, ever, so then only
  metadata changed (a chmod by another host, a re-wrapped key).
- Sequential readers get requests ahead of them, in a window that grows up to `readahead`; random
  readers get just the units that they touch.
- What has come of a request is served while the rest is on its way.

Requests run in the mount's nursery under their own deadline, so that a reader that gives up
neither wastes nor delays what others wait for.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakSet

import trio
from cachetools import LRUCache

from blobfs.attributes import Kind, value_of
from blobfs.blobs import BlobInfo
from blobfs.cache import Block, BlockCache, Buffers
from blobfs.content import Content, Locate, PlainBody
from blobfs.envelope import (
    METADATA_KEY,
    SEAL_KEY,
    BodyReader,
    EncryptionData,
    Layout,
    Protocol,
    check_seal,
    open_body,
    plain_size,
    regions_of,
    sealed_size,
)
from blobfs.errors import (
    BlobfsError,
    ConditionFailed,
    Corrupt,
    NotEncrypted,
    NotFound,
    ProtocolRefused,
    Unavailable,
)
from blobfs.flight import PIECE, Flight
from blobfs.keyring import Keyring
from blobfs.room import Room

FIRST_WINDOW = 1024 * 1024
"""Bytes that are fetched at first: small files take one request."""

FIRST_OF_LARGE = 128 * 1024
"""The same of larger files, of which often no more is read than tells what they are."""

AHEAD = 4
"""Times the bytes read in order that are fetched ahead: more saves round trips at the beginning of
a large file, and fetches more in vain of one of which only the beginning is read."""

REORDERED = 4 * 1024 * 1024
"""Bytes by which reads that the kernel sends at once may come out of order."""

SEQUENTIAL = 1024 * 1024
"""Bytes read in order, and in the last SEQUENTIAL_TIME seconds, that make a reader one of those who
share the memory for what is fetched ahead."""

SEQUENTIAL_TIME = 10.0

REQUEST_SIZE = 8 * 1024 * 1024
"""Bytes of plaintext that one read-ahead request covers at most."""

UNDER_WAY = 8 * REQUEST_SIZE
"""Bytes of memory for what is being fetched, of all files."""

SMALL_UNDER_WAY = 2 * REQUEST_SIZE
"""The same for requests of at most FIRST_WINDOW, which never wait behind what is read ahead."""

_ROUNDS = 3
"""Of the scheduler, until a request is sent: it runs what is ready in either order, and TLS has a
lock of its own."""

_SPARE_BUFFERS = 4
"""Buffers that are kept for what comes next: memory that is fresh costs more than decrypting."""

_LARGEST_SPARE = 2 * PIECE
"""Bytes: a region may be of 1 GiB, and what it took is not to be kept for the life of the mount."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Which blobs are served: see the mount options of the same names."""

    require_encryption: bool = True
    require_seal: bool = False
    min_protocol: Protocol = Protocol.V1_0
    cache_size: int = 128 * 1024 * 1024
    readahead: int = 32 * 1024 * 1024
    timeout: float = 60.0


@dataclass(slots=True, eq=False, weakref_slot=True)
class Reach:
    """How far one handle has read, and how far ahead it has fetched."""

    next_offset: int = 0
    run: int = 0  # bytes read in order
    asked: int = 0  # the unit up to which requests were sent
    read_at: float = 0.0


class Reader:
    """All reading of one mount. `nursery` runs the requests and must outlive the last read.

    `hits` counts pieces that were in memory, `misses` those for which a reader had to wait.
    """

    def __init__(self, keyring: Keyring, policy: ReadPolicy, nursery: trio.Nursery) -> None:
        self._keyring = keyring
        self._policy = policy
        self._nursery = nursery
        self._buffers = Buffers(REQUEST_SIZE, _SPARE_BUFFERS)
        self._cache = BlockCache(policy.cache_size, self._buffers.give)
        self._spare: list[bytearray] = []
        self._sizes: LRUCache[tuple[str, str], int] = LRUCache(100_000)
        self._room = Room(UNDER_WAY)
        self._room_of_small = Room(SMALL_UNDER_WAY)
        self._sequential: WeakSet[Reach] = WeakSet()
        self.on_protocol_1: Callable[[str], None] = lambda name: None
        self.hits = 0
        self.misses = 0

    @property
    def cached_bytes(self) -> int:
        return self._cache.bytes_held

    def known_size(self, info: BlobInfo) -> int | None:
        """The plaintext size as far as it can be told without a request; None: `exact_size` can.

        Raises Corrupt or ProtocolRefused for metadata or a length that no writer makes.
        """
        value = value_of(info.metadata, METADATA_KEY)
        if value is None:
            return info.size
        layout = Layout.parse(value)
        if layout.protocol is not Protocol.V1_0:
            return plain_size(layout, info.size)
        if info.blob_type == "PageBlob":
            return info.size
        seal = value_of(info.metadata, SEAL_KEY)
        if seal is not None:
            return sealed_size(seal)
        size: int | None = self._sizes.get((info.name, info.etag))
        return size

    async def exact_size(self, locate: Locate, info: BlobInfo, kind: Kind) -> int:
        """The plaintext size of any blob: protocol 1.0 needs the blob's last 32 bytes.

        Raises ServiceError or ContentError.
        """
        size = self.known_size(info)
        if size is None:
            size = (await self.open(locate, info, kind)).size
            self._sizes[info.name, info.etag] = size
        return size

    async def open(
        self, locate: Locate, info: BlobInfo, kind: Kind, reach: Reach | None = None
    ) -> Content:
        """The content of this version. Raises ContentError when it may not be served.

        For whom will read from the beginning with `reach`, that is asked for (`expect`): before
        anything else if the key is at hand, so that unwrapping it and checking the seal is done
        while the answer is on its way. Who must be asked for a key may take long, and a request
        that waits for it would keep others waiting.
        """
        value = value_of(info.metadata, METADATA_KEY)
        if value is None:
            if self._policy.require_encryption:
                raise NotEncrypted(
                    f"{info.name!r} is not encrypted; mount with norequire_encryption to read it"
                )
            plain = PlainBody(info.size)
            content = Content(locate, info, kind, plain, (info.name, info.etag))
            content.settle(plain)
            if reach is not None:
                self.expect(content, reach)
            return content
        data = EncryptionData.parse(value)
        if data.protocol < self._policy.min_protocol:
            raise ProtocolRefused(f"{info.name!r} has protocol {data.protocol}, below min_protocol")
        regions, body = regions_of(data, info.size), None
        if regions is None:
            regions = body = await self._unlock(locate, info, kind, data)
        # All that says which bytes a unit has, as without a seal an attacker may have changed it:
        # what was decrypted of the genuine version must not serve for another cut of it.
        # Of protocol 1.0 nothing proves the bytes, so they serve for this version alone.
        version = info.etag if data.protocol is Protocol.V1_0 else ""
        cut = (data.protocol, data.region_length, data.iv, info.size, version)
        content = Content(locate, info, kind, regions, (*cut, data.wrapped.encrypted_key))
        try:
            if reach is not None and self._keyring.has(data.wrapped):
                self.expect(content, reach)
                for _ in range(_ROUNDS if content.flights else 0):
                    await trio.lowlevel.checkpoint()
            body = body or await self._unlock(locate, info, kind, data)
        finally:
            content.settle(body)
        if reach is not None:
            self.expect(content, reach)
        return content

    async def _unlock(
        self, locate: Locate, info: BlobInfo, kind: Kind, data: EncryptionData
    ) -> BodyReader:
        """The body under its key, checked against its seal."""
        cek = await self._keyring.content_key(data)
        size_hint = None
        seal = value_of(info.metadata, SEAL_KEY)
        if seal is not None:
            check_seal(seal, cek, data, info.size, "symlink" if kind is Kind.SYMLINK else "file")
            size_hint = sealed_size(seal)
        elif self._policy.require_seal:
            raise Corrupt(f"{info.name!r} has no seal, and the mount has require_seal")
        padded = info.blob_type != "PageBlob"
        body = open_body(data, cek, info.size, size_hint, padded=padded)
        if data.protocol is Protocol.V1_0:
            self.on_protocol_1(info.name)
        if body.plain_size is None:
            body.settle_size(await self._tail(locate, info, body))
        return body

    async def read(
        self, content: Content, reach: Reach, offset: int, size: int
    ) -> bytes | memoryview:
        """Up to `size` bytes from `offset`; fewer only at the end.

        Raises ConditionFailed when the blob is another version by now, ServiceError, or Corrupt.
        """
        end = min(offset + size, content.size)
        if offset >= end:
            return b""
        unit = content.unit
        self._request(content, offset // unit, self._look_ahead(content, reach, offset, end))
        pieces = []
        while offset < end:
            piece = await self._piece(content, offset, end)
            assert piece, "a block holds the units that it was made for"
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def expect(self, content: Content, reach: Reach) -> None:
        """Whoever has just opened it will read its beginning: ask for that while the kernel is
        still on its way to ask us. Not for a large region of which little may be read."""
        size = min(self._least(content), self._policy.readahead)
        if size and not reach.asked and min(content.unit, content.size) <= FIRST_WINDOW:
            reach.asked = self._units(content, size)
            self._request(content, 0, reach.asked - 1)

    async def fetch(self, content: Content) -> None:
        """Have all of a small content in the cache; failures are for whoever reads it."""
        if content.size:
            self._request(content, 0, (content.size - 1) // content.unit)
        for flight in set(content.flights.values()):
            with suppress(BlobfsError):
                await flight.reach(flight.size)

    def _look_ahead(self, content: Content, reach: Reach, offset: int, end: int) -> int:
        """The unit up to which this reader is to be served now: what it asked for, and when it
        reads on from where it was, enough at a time ahead of it to make few requests."""
        if offset == reach.next_offset:
            reach.run += end - offset
        elif abs(offset - reach.next_offset) > REORDERED:
            reach.run = reach.asked = 0
        reach.next_offset, reach.read_at = end, trio.current_time()
        unit = content.unit
        last = (end - 1) // unit
        asked = max(reach.asked * unit, end)
        window = self._window(content, reach)
        size = min(end + window, content.size) - asked
        is_rest = 0 < size == content.size - asked
        if size < max(1, min(window // 2, REQUEST_SIZE)) and not is_rest:
            return last
        if size > REQUEST_SIZE:
            size -= size % REQUEST_SIZE
        reach.asked = max(last + 1, self._units(content, asked + size))
        return reach.asked - 1

    def _units(self, content: Content, size: int) -> int:
        """How many units the first `size` bytes have."""
        return -(-min(size, content.size) // content.unit)

    def _least(self, content: Content) -> int:
        return FIRST_WINDOW if content.size <= FIRST_WINDOW else FIRST_OF_LARGE

    def _window(self, content: Content, reach: Reach) -> int:
        """Bytes that this reader may have fetched ahead of it."""
        window = max(AHEAD * reach.run, self._least(content)) if reach.run else 0
        window = min(window, self._policy.readahead)
        return min(window, self._share(reach)) if window > SEQUENTIAL else window

    def _share(self, reach: Reach) -> int:
        """Bytes that this reader may fetch ahead, so that they are still in the cache when they are
        read: of half of that, since what has been read goes later than what came before it."""
        if reach.run >= SEQUENTIAL:
            self._sequential.add(reach)
        since = reach.read_at - SEQUENTIAL_TIME
        readers = sum(other.read_at > since for other in self._sequential)
        return self._policy.cache_size // 2 // max(1, readers)

    def _request(self, content: Content, first: int, last: int) -> None:
        """Start requests for the units first..last that are neither cached nor under way."""
        stride = max(1, REQUEST_SIZE // content.unit)
        start: int | None = None
        for index in range(first, last + 2):
            missing = (
                index <= last
                and index not in content.flights
                and (content.identity, index) not in self._cache
            )
            if missing and start is None:
                start = index
            elif start is not None and (not missing or index - start >= stride):
                self._launch(content, start, index - 1)
                start = index if missing else None

    def _launch(self, content: Content, first: int, last: int) -> None:
        flight = Flight(content.regions, first, last, content.opened)
        for index in range(first, last + 1):
            content.flights[index] = flight
        self._nursery.start_soon(self._fly, content, flight)

    async def _fly(self, content: Content, flight: Flight) -> None:
        error: Exception | None = None
        try:
            room = self._room if flight.size > FIRST_WINDOW else self._room_of_small
            with trio.move_on_after(self._policy.timeout) as scope:
                async with room.taken(flight.size + flight.piece_size):
                    await self._fill(content, flight, scope)
            if scope.cancelled_caught:
                error = Unavailable(
                    f"{content.info.name!r}: no content within {self._policy.timeout:g} s"
                )
            else:
                block = Block(flight.first, flight.last, flight.plain.toreadonly())
                self._cache.put(content.identity, block)
        except Exception as exc:  # handed to those who wait for it, never to the nursery
            error = exc
        finally:
            for index in range(flight.first, flight.last + 1):
                content.flights.pop(index, None)
            flight.end(error)

    async def _piece(self, content: Content, offset: int, end: int) -> memoryview:
        """Plaintext from `offset` on, up to `end` at most: of a block in the cache, or of a request
        under way or new, which then asks for all of it."""
        unit = content.unit
        index = offset // unit
        flight = content.flights.get(index)
        if flight is None:
            block = self._cache.get(content.identity, index)
            if block is not None:
                self.hits += 1
                return block.plain[offset - block.first * unit : end - block.first * unit]
            self._request(content, index, (end - 1) // unit)
            flight = content.flights[index]
        start = flight.first * unit
        stop = min(end - start, flight.size)
        if flight.landed >= stop:
            self.hits += 1
        else:
            self.misses += 1
        if not await flight.reach(stop):
            raise ConditionFailed(f"{content.info.name!r}: the mount is closing")
        return flight.plain[offset - start : stop].toreadonly()

    async def _fill(self, content: Content, flight: Flight, scope: trio.CancelScope) -> None:
        def extend_deadline() -> None:
            scope.deadline = trio.current_time() + self._policy.timeout

        buffer = self._spare.pop() if self._spare else bytearray()
        if len(buffer) < flight.piece_size:
            buffer = bytearray(flight.piece_size)
        plain = self._buffers.take(flight.size)
        flight.board(memoryview(plain)[: flight.size], memoryview(buffer), extend_deadline)
        try:
            await self._get(content, flight)
            flight.check_whole()
        except Unavailable:
            if flight.landed < flight.size:  # else only the end of the answer was not heard
                raise
        except Corrupt as exc:
            raise type(exc)(f"{content.info.name!r}: {exc}") from exc
        finally:
            if len(self._spare) < _SPARE_BUFFERS and len(buffer) <= _LARGEST_SPARE:
                self._spare.append(buffer)

    async def _get(self, content: Content, flight: Flight) -> None:
        container, name = content.locate()
        try:
            await container.pour(name, flight, if_match=content.info.etag)
        except (ConditionFailed, NotFound):
            await self._follow(content)
            container, name = content.locate()
            await container.pour(name, flight, if_match=content.info.etag)

    async def _follow(self, content: Content) -> None:
        """Take up the blob's present ETag if only its metadata changed, or its name.

        Raises ConditionFailed when the content is another one or gone.
        """
        container, name = content.locate()
        try:
            info = await container.head(name)
            if await self.same_content(content.info, info):
                content.info = info
                return
        except NotFound:
            pass
        raise ConditionFailed(f"{name!r} was replaced or deleted by someone else while it was open")

    async def same_content(self, before: BlobInfo, after: BlobInfo) -> bool:
        """Whether two versions of a blob differ in metadata only.

        Raises ContentError when the later one cannot be judged for want of its key.
        """
        if after.etag == before.etag:
            return True
        old = value_of(before.metadata, METADATA_KEY)
        new = value_of(after.metadata, METADATA_KEY)
        if old is None or new is None or after.size != before.size:
            return False
        first, second = EncryptionData.parse(old), EncryptionData.parse(new)
        return (
            first.protocol == second.protocol
            and first.region_length == second.region_length
            and first.iv == second.iv
            and await self._keyring.content_key(first) == await self._keyring.content_key(second)
        )

    async def _tail(self, locate: Locate, info: BlobInfo, body: BodyReader) -> Buffer:
        container, name = locate()
        start, stop = body.tail_range()
        _, tail = await container.get(name, start, stop, if_match=info.etag)
        return tail
