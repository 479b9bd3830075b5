"""Directories that are listed in the order of their names: the next ones are listed already."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfs.errors import Denied
from blobfs.fs.ahead import GAP, MOST
from blobfs.fs.tree import STREAK
from tests.azurite import Azurite
from tests.bare_host import Host, Service, listing_of, operation

COUNT = 24
DIRECTORIES = [f"d{number:02}" for number in range(COUNT)]


@pytest.fixture
def service(azurite: Azurite, container: str, tmp_path: Path) -> Service:
    service = Service(azurite, container, tmp_path)
    for name in DIRECTORIES:
        service.sdk.upload_blob(f"{name}/file", b"", metadata={"permissions": "33188"})
    return service


def listed(service: Service) -> list[str]:
    """The directories, but for the root, that were listed since the last call."""
    return sorted(filter(None, service.listed()))


async def walk(host: Host, directories: Sequence[str]) -> None:
    for directory in directories:
        assert await host.entries(directory) == ["file"]


async def settled() -> None:
    """Nothing is under way any more."""
    await trio.testing.wait_all_tasks_blocked(0.2)


async def shown(host: Host, service: Service) -> None:
    """The kernel knows all directories, and nothing of what is in them."""
    assert await host.entries() == DIRECTORIES
    for name in DIRECTORIES:
        await host.node(name)
    listed(service)


async def test_after_some_in_order_the_next_are_listed(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        await walk(host, DIRECTORIES[:STREAK])
        await settled()
        assert listed(service) == DIRECTORIES[: STREAK + 2]


async def test_each_is_listed_once(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        await walk(host, DIRECTORIES)
        await settled()
        assert listed(service) == DIRECTORIES


async def test_no_more_than_a_few_are_listed_in_vain(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        await walk(host, DIRECTORIES[:8])
        await settled()
        assert len(listed(service)) <= 8 + MOST


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param([20, 3, 11, 2, 17, 9], id="in no order"),
        pytest.param(list(range(0, COUNT, GAP + 1)), id="far apart"),
        pytest.param([5], id="one"),
    ],
)
async def test_others_are_listed_alone(service: Service, chosen: list[int]) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        await walk(host, [DIRECTORIES[number] for number in chosen])
        await settled()
        assert listed(service) == sorted(DIRECTORIES[number] for number in chosen)


async def test_what_is_asked_anew_each_time_is_not_listed_early(service: Service) -> None:
    async with service.host(ttl=0) as host:
        await shown(host, service)
        await walk(host, DIRECTORIES[:5])
        await settled()
        assert set(listed(service)) == set(DIRECTORIES[:5])


@asynccontextmanager
async def listing_held(service: Service) -> AsyncIterator[tuple[Host, Callable[[], None]]]:
    """A host on which d02 is being listed ahead; the answer comes when the function is called."""
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        answer = trio.Event()
        with host.faults.delayed(listing_of("d02"), answer):
            await walk(host, DIRECTORIES[:2])
            await host.faults.met.wait()
            yield host, answer.set


async def test_who_reads_one_that_is_being_listed_waits_for_that(service: Service) -> None:
    async with listing_held(service) as (host, answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(walk, host, ["d02"])
            await trio.testing.wait_all_tasks_blocked(0.05)
            answer()
        await settled()
        assert listed(service).count("d02") == 1


async def test_a_failure_is_for_who_reads_the_directory(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        with host.faults.denied(listing_of("d02")):
            await walk(host, DIRECTORIES[:2])
            await settled()
            with pytest.raises(Denied):
                await host.entries("d02")
        await walk(host, ["d02", "d03"])


async def test_what_was_listed_under_another_name_is_not_taken_for_the_new_one(
    service: Service,
) -> None:
    async with listing_held(service) as (host, answer):
        await host.rename("d02", "moved")
        answer()
        await settled()
        service.sdk.upload_blob("moved/later", b"", metadata={"permissions": "33188"})
        assert await host.entries("moved") == ["file", "later"]


async def test_what_this_host_changes_meanwhile_outranks_the_listing(service: Service) -> None:
    async with listing_held(service) as (host, answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.write, "d02/new", b"x")
            await trio.testing.wait_all_tasks_blocked(0.05)
            answer()
        await settled()
        assert await host.entries("d02") == ["file", "new"]


async def test_a_directory_that_takes_the_place_of_another_has_not_its_listings(
    service: Service,
) -> None:
    """Nor those of directories below it that the kernel has let go of."""
    for name in ("a/x/old", "b/x/new"):
        service.sdk.upload_blob(name, b"", metadata={"permissions": "33188"})
    async with service.host(ttl=3600) as host:
        inodes = host.fs.inodes
        directory = await host.node("a/x")
        assert await host.entries("a/x") == ["old"]
        for child in list(directory.children.values()):
            inodes.release(child)
        inodes.forget(directory.ino, directory.lookups)
        await host.rename("a", "c")
        await host.rename("b", "a")
        assert await host.entries("a/x") == ["new"]


async def test_a_directory_that_is_being_made_is_not_let_go_when_it_was_listed(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        answer = trio.Event()
        async with trio.open_nursery() as nursery:
            with host.faults.delayed(operation("PUT", "d01-new"), answer):
                nursery.start_soon(host.mkdir, "d01-new")
                await host.faults.met.wait()
                await walk(host, DIRECTORIES[:2])
                await settled()
                assert "d01-new" in listed(service)
                answer.set()
        await host.write("d01-new/file", b"x")
        assert await host.entries("d01-new") == ["file"]
        assert await host.entries() == sorted([*DIRECTORIES, "d01-new"])


async def test_what_is_read_from_the_middle_on_is_no_walk(service: Service) -> None:
    """So the kernel is made to read some entries: see `blobfs.fs.priming`."""
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        for name in DIRECTORIES[: STREAK + 1]:
            stream = host.fs.tree.open_directory(await host.node(name))
            assert await host.fs.tree.entries(stream, 1) == []
            host.fs.tree.close_directory(stream)
        await settled()
        assert listed(service) == DIRECTORIES[: STREAK + 1]


async def test_what_a_listing_says_is_not_believed_for_longer_because_it_is_read(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as host:
        await shown(host, service)
        listing = host.store.listings.get(host.fs.inodes.root)
        assert listing is not None
        for node in host.fs.inodes:
            node.fresh_until = 0.0
        listing.fresh_until -= 1800  # half its time has passed
        assert await host.entries() == DIRECTORIES
        assert {(await host.node(name)).fresh_until for name in DIRECTORIES} == {
            listing.fresh_until
        }
