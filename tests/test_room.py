"""Memory that is shared: never more than there is, in the order of asking, and nothing is lost."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blobfs.room import Room


async def test_who_needs_less_does_not_overtake_who_asked_before() -> None:
    room = Room(10)
    served: list[str] = []

    async def ask(name: str, size: int) -> None:
        await room.take(size)
        served.append(name)

    async with trio.open_nursery() as nursery:
        await room.take(6)
        for name, size in (("big", 8), ("small", 1)):
            nursery.start_soon(ask, name, size)
            await wait_all_tasks_blocked()
        assert served == []
        room.give(6)
    assert sorted(served) == ["big", "small"]
    assert room.used == 9


async def test_who_asks_for_more_than_there_is_gets_all_of_it_alone() -> None:
    room = Room(10)
    async with room.taken(11):
        assert room.used == 10
        with pytest.raises(trio.TooSlowError), trio.fail_after(0):
            await room.take(1)
    assert room.used == 0


async def test_who_gives_up_has_taken_nothing_and_lets_the_next_in() -> None:
    room = Room(10)
    await room.take(6)
    served = trio.Event()

    async def ask() -> None:
        await room.take(4)
        served.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(room.take, 8)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                assert not served.is_set()
                scope.cancel()
        with trio.fail_after(1):
            await served.wait()
    assert room.used == 10


async def test_what_is_given_in_the_moment_of_giving_up_is_given_back() -> None:
    room = Room(10)
    await room.take(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.take, 5)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        room.give(10)
    assert room.used == 0
