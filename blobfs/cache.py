"""Decrypted content in memory, within a bound: what was used longest ago goes first."""

import mmap
from collections.abc import Callable, Hashable
from typing import cast

from cachetools import LRUCache

_PER_BLOCK = 1024
_PER_UNIT = 192
"""Bytes of memory that a block takes beside its plaintext, and for each of its units: of small
files that is most of it (measured with CPython 3.11: 1,050 and 180)."""

_MAPPED = 256 * 1024
"""Bytes from which on memory is mapped. The kernel zeroes that page by page, when it is written to;
a bytearray is written to at once, in 4 ms for 8 MiB, for which a request would have to wait."""

Memory = bytearray | mmap.mmap


def fresh(size: int) -> Memory:
    """Memory that nobody has used."""
    if size < _MAPPED:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Buffers:
    """Memory for large blocks, which is used again: zeroing what is fresh took 8 % of the time of a
    read, and decrypting 9 %."""

    def __init__(self, size: int, spare: int) -> None:
        """Of `size` bytes each; at most `spare` are kept that nobody uses."""
        self._size = size
        self._spare = spare
        self._given: list[Memory] = []

    def take(self, size: int) -> Memory:
        """At least `size` bytes, whatever is in them."""
        if not self._size * 7 // 8 < size <= self._size:
            return fresh(size)  # of one much larger, the cache would have to bear the cost
        for index, buffer in enumerate(self._given):
            if _is_unshared(buffer):
                del self._given[index]
                return buffer
        return fresh(self._size)

    def give(self, buffer: Memory) -> None:
        """It may still be read from: it is taken again when no memoryview of it is left."""
        if len(buffer) == self._size and len(self._given) < self._spare:
            self._given.append(buffer)


def _is_unshared(buffer: Memory) -> bool:
    """Python refuses to resize what there is a memoryview of."""
    try:
        if isinstance(buffer, mmap.mmap):
            buffer.resize(len(buffer))
        else:
            buffer.append(buffer.pop())
    except BufferError:
        return False
    return True


class Block:
    """The plaintext of the units first..last of one content, in one piece.

    `plain` is a view of memory that may be longer.
    """

    __slots__ = ("first", "last", "plain")

    def __init__(self, first: int, last: int, plain: memoryview) -> None:
        self.first = first
        self.last = last
        self.plain = plain

    @property
    def buffer(self) -> Memory:
        return cast(Memory, self.plain.obj)

    @property
    def cost(self) -> int:
        """Bytes of memory that it takes in the cache."""
        return len(self.buffer) + _PER_BLOCK + (self.last + 1 - self.first) * _PER_UNIT


class BlockCache:
    """Blocks by content and unit, which take at most `size` bytes of memory.

    `on_drop` gets the buffer of each block that goes.
    """

    def __init__(
        self, size: int, on_drop: Callable[[Memory], object] = lambda buffer: None
    ) -> None:
        self._lru = _Blocks(size, on_drop)

    @property
    def bytes_held(self) -> int:
        return int(self._lru.currsize)

    def get(self, content: Hashable, unit: int) -> Block | None:
        """The block that has the unit; it counts as used."""
        block = self._lru.by_unit.get((content, unit))
        if block is not None:
            self._lru[content, block.first]  # cachetools counts an access by item only
        return block

    def __contains__(self, key: tuple[Hashable, int]) -> bool:
        return key in self._lru.by_unit

    def put(self, content: Hashable, block: Block) -> None:
        """Keep the block, unless it is larger than the whole cache."""
        if block.cost > self._lru.maxsize:
            return
        self._lru.pop((content, block.first), None)
        self._lru[content, block.first] = block
        for unit in range(block.first, block.last + 1):
            self._lru.by_unit[content, unit] = block


class _Blocks(LRUCache[tuple[Hashable, int], Block]):
    """Blocks by content and first unit, with an index of all units that is kept in step."""

    def __init__(self, size: int, on_drop: Callable[[Memory], object]) -> None:
        super().__init__(size, getsizeof=lambda block: block.cost)
        self._on_drop = on_drop
        self.by_unit: dict[tuple[Hashable, int], Block] = {}

    def __delitem__(self, key: tuple[Hashable, int]) -> None:
        block = super().__getitem__(key)
        super().__delitem__(key)
        for unit in range(block.first, block.last + 1):
            if self.by_unit.get((key[0], unit)) is block:
                del self.by_unit[key[0], unit]
        self._on_drop(block.buffer)
