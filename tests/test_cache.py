"""The cache of decrypted content keeps to its bound, whatever the size of what is in it."""

import os
import tracemalloc
from pathlib import Path

import pytest

from blobfs.cache import Block, BlockCache, Buffers, Memory, fresh

MIB = 1024 * 1024


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def block(first: int, units: int, unit: int) -> Block:
    plain = memoryview(bytearray(units * unit)).toreadonly()
    return Block(first, first + units - 1, plain)


def identity(number: int) -> tuple[object, ...]:
    """As `Reader.open` makes one: with a wrapped key of its own."""
    return (object(), 65536, b"", number, "", number.to_bytes(40, "big"))


@pytest.mark.parametrize(
    ("units", "unit"),
    [
        pytest.param(1, 10, id="tiny files"),
        pytest.param(1, 4096, id="small files"),
        pytest.param(100, 16, id="the smallest regions"),
        pytest.param(64, 4096, id="small regions"),
        pytest.param(4, 65536, id="the usual regions"),
    ],
)
def test_what_is_cached_takes_no_more_memory_than_it_may(units: int, unit: int) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = BlockCache(MIB)
        for number in range(2 * MIB // (units * unit + 400)):  # more than there is room for
            cache.put(identity(number), block(0, units, unit))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert MIB * 0.7 < cache.bytes_held <= MIB
    assert after - before <= MIB * 1.1
    assert after - before > MIB * 0.5, "half of the bound is no use"


def test_what_goes_is_gone_with_all_its_units() -> None:
    cache = BlockCache(20_000)
    cache.put("a", block(0, 4, 2000))
    cache.put("b", block(0, 4, 2000))
    assert ("a", 3) in cache
    assert cache.get("a", 0) is not None  # so that b was used longest ago
    cache.put("c", block(2, 2, 4000))
    assert [(name, unit) for name in "abc" for unit in range(4) if (name, unit) in cache] == [
        *(("a", unit) for unit in range(4)),
        *(("c", unit) for unit in (2, 3)),
    ]


def test_a_block_that_is_larger_than_all_room_leaves_the_others_alone() -> None:
    cache = BlockCache(20_000)
    cache.put("a", block(0, 1, 10))
    cache.put("b", block(0, 1, 20_000))
    assert ("a", 0) in cache
    assert ("b", 0) not in cache


@pytest.mark.parametrize("size", [pytest.param(1000, id="small"), pytest.param(MIB, id="mapped")])
def test_memory_is_used_again_when_nobody_reads_from_it_any_more(size: int) -> None:
    buffers = Buffers(size, spare=2)
    first = buffers.take(size)
    view = memoryview(first)[10:20]
    buffers.give(first)
    assert buffers.take(size) is not first, "somebody may be reading from it"
    view.release()
    assert buffers.take(size) is first
    assert buffers.take(size) is not first


def test_large_memory_takes_none_before_it_is_filled() -> None:
    before = resident()
    memory = fresh(64 * MIB)
    assert resident() - before < 8 * MIB
    memory[:] = bytes(64 * MIB)
    assert resident() - before > 56 * MIB


def test_memory_of_another_size_and_more_than_is_to_be_kept_is_let_go() -> None:
    buffers = Buffers(1000, spare=1)
    assert [len(buffers.take(size)) for size in (10, 875, 876, 1000, 1001)] == [
        *(10, 875, 1000, 1000, 1001)
    ]
    one, other, small = buffers.take(1000), buffers.take(1000), buffers.take(10)
    for buffer in (small, one, other):
        buffers.give(buffer)
    assert buffers.take(1000) is one
    assert buffers.take(1000) is not other


def test_a_block_costs_all_of_the_memory_that_it_holds_on_to() -> None:
    plain = memoryview(bytearray(1000))[:600].toreadonly()
    assert Block(0, 0, plain).cost == block(0, 1, 1000).cost


def test_who_wants_the_memory_of_what_goes_is_given_it() -> None:
    dropped: list[Memory] = []
    cache = BlockCache(20_000, dropped.append)
    first = block(0, 1, 8000)
    cache.put("a", first)
    cache.put("b", block(0, 1, 8000))
    assert not dropped
    cache.put("c", block(0, 1, 8000))
    assert [id(buffer) for buffer in dropped] == [id(first.buffer)]
