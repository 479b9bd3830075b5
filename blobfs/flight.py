"""A request for content that is under way: ciphertext comes in, plaintext lands piece by piece.

Who reads need not wait for all of a large request, and ciphertext passes through a buffer that is
small enough to stay in the processor's cache between its arrival and its decryption.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from blobfs.envelope import Regions
from blobfs.errors import Truncated

PIECE = 512 * 1024
"""Bytes of plaintext that are decrypted at a time: but whole units, so more of larger ones."""

_BESIDE = 64
"""Bytes that precede or follow the units of a piece at most: a cipher block of protocol 1.0 at
either end, or an empty region."""


class Body(Protocol):
    """What a `BodyReader` and a `PlainBody` have in common."""

    def decrypt_into(self, first: int, ciphertext: memoryview, into: memoryview) -> int: ...


class Flight:
    """The request for the units first..last; a `Sink` of their ciphertext.

    What has `landed` is authenticated as far as the protocol goes. Nothing else is ever served.
    """

    def __init__(
        self, regions: Regions, first: int, last: int, opened: Callable[[], Awaitable[Body]]
    ) -> None:
        """`opened` waits until there is a key, which may be when the request is under way."""
        self.first = first
        self.last = last
        self._regions = regions
        self._opened = opened
        self._body: Body | None = None
        self.start, self.stop = regions.blob_range(first, last)
        self.plain = memoryview(b"")
        self.landed = 0  # bytes of `plain`, from its start
        self.error: Exception | None = None
        self.has_ended = False
        self._waiting: list[tuple[int, trio.Event]] = []
        self._unit = first  # the piece that is coming has the units from here
        self._last_unit = first  # to here
        self._buffer = self._piece = memoryview(b"")  # its ciphertext
        self._filled = 0
        self._on_landing: Callable[[], object] = lambda: None

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        assert self._regions.plain_size is not None
        unit = self._regions.unit
        return min((self.last + 1) * unit, self._regions.plain_size) - self.first * unit

    @property
    def piece_size(self) -> int:
        """Bytes that the ciphertext of a piece takes at most."""
        start, stop = self._regions.blob_range(self.first, self._piece_end(self.first))
        return stop - start + _BESIDE

    # For the reader

    async def reach(self, size: int) -> bool:
        """Wait until `size` bytes have landed, or raise what kept them from it; False when the
        flight was ended before it could tell."""
        while self.landed < size:
            if self.error is not None:
                raise self.error
            if self.has_ended:
                return False
            event = trio.Event()
            self._waiting.append((size, event))
            await event.wait()
        return True

    def board(
        self, plain: memoryview, ciphertext: memoryview, on_landing: Callable[[], object]
    ) -> None:
        """Take memory: for all of the plaintext, and for the ciphertext of a piece."""
        self.plain = plain
        self._buffer = ciphertext
        self._on_landing = on_landing

    def check_whole(self) -> None:
        """When all has come that there is. Raises Truncated when that is too little."""
        if self.landed < self.size:
            raise Truncated(f"the body ends {self.stop - self.start} bytes too early")

    def end(self, error: Exception | None) -> None:
        self.error = error
        self.has_ended = True
        self._buffer = self._piece = memoryview(b"")
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            if entry[0] <= self.landed or self.has_ended:
                entry[1].set()
            else:
                self._waiting.append(entry)

    # For the transport

    def begin(self) -> None:
        """A piece that did not come whole comes again."""
        if self._unit <= self.last:
            self._next_piece(0)

    async def ready(self) -> None:
        """Raises Unavailable when the body could not be opened."""
        self.unlock(await self._opened())

    def unlock(self, body: Body) -> None:
        self._body = body

    def room(self) -> memoryview:
        return self._piece[self._filled :]

    def filled(self, count: int) -> None:
        """Raises Corrupt, or Truncated, when what came is not what was stored."""
        self._filled += count
        self.start += count
        if self._filled == len(self._piece):
            self._land()

    def _piece_end(self, unit: int) -> int:
        return min(unit + max(1, PIECE // self._regions.unit) - 1, self.last)

    def _next_piece(self, kept: int) -> None:
        """`kept` bytes at the buffer's start are of this piece already."""
        self._last_unit = self._piece_end(self._unit)
        start, stop = self._regions.blob_range(self._unit, self._last_unit)
        self._piece = self._buffer[: stop - start]
        self._filled = kept
        self.start = start + kept

    def _land(self) -> None:
        assert self._body is not None
        self.landed += self._body.decrypt_into(self._unit, self._piece, self.plain[self.landed :])
        self._unit = self._last_unit + 1
        if self._unit <= self.last:
            # In protocol 1.0 the end of a piece begins the next one, too.
            kept = self.start - self._regions.blob_range(self._unit, self._unit)[0]
            self._buffer[:kept] = self._piece[len(self._piece) - kept :]
            self._next_piece(kept)
        else:
            self._piece, self._filled = memoryview(b""), 0
        self._on_landing()
        self._wake()
