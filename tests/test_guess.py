"""What is looked up may be a directory: it is listed while its parent still is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from blobfs.errors import ConditionFailed, Denied, PosixError
from blobfs.fs import Filesystem, guess
from tests.azurite import Azurite
from tests.bare_host import Host, Service, listing_of, operation, whole
from tests.strict import error

FILE = {"permissions": "33188"}


@pytest.fixture
def service(azurite: Azurite, container: str, tmp_path: Path) -> Service:
    service = Service(azurite, container, tmp_path)
    for name in ("dir/file", "other/file", "dotted.d/file", "plain"):
        service.sdk.upload_blob(name, b"", metadata=FILE)
    return service


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.2)


@asynccontextmanager
async def guess_held(service: Service, name: str) -> AsyncIterator[tuple[Host, trio.Event]]:
    """A host on which `name` was looked up and is being listed by a guess, until the event."""
    async with service.host(ttl=3600) as host:
        answer = trio.Event()
        with host.faults.delayed(listing_of(name), answer):
            with suppress(PosixError):
                await host.node(name)
            await host.faults.met.wait()
            yield host, answer


async def test_a_directory_is_listed_while_its_parent_is(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        service.listed()
        answer = trio.Event()
        with host.faults.delayed(listing_of(""), answer):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.node, "dir/file")
                await settled()
                assert service.listed() == ["dir"]
                answer.set()
        await settled()
        assert service.listed() == [""]


async def test_whoever_comes_to_the_directory_waits_for_that(service: Service) -> None:
    async with guess_held(service, "dir") as (host, answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.node, "dir/file")
            await settled()
            service.listed()
            answer.set()
        assert await host.entries("dir") == ["file"]
        assert service.listed() == ["dir"]


async def test_there_is_one_guess_at_a_time(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        service.listed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.node, "dir")
            nursery.start_soon(host.node, "other")
        await settled()
        assert len(service.listed()) == 2, "the root, and one of them"


async def test_a_name_with_a_dot_is_taken_for_a_file(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        service.listed()
        await host.node("dotted.d")
        await settled()
        assert service.listed() == [""]


async def test_what_is_asked_anew_each_time_is_not_asked_early(service: Service) -> None:
    async with service.host(ttl=0) as host:
        service.listed()
        await host.node("dir")
        await settled()
        assert service.listed() == ["", "dir"], "the second asks whether there is such a directory"


@pytest.mark.parametrize("name", ["plain", "nothing"])
async def test_after_a_guess_in_vain_there_is_none_for_a_while(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(path: str) -> list[str]:
        service.listed()
        with suppress(PosixError):
            await host.node(path)
        await settled()
        return sorted(service.listed())

    async with service.host(ttl=3600) as host:
        assert await look_up(name) == ["", name]
        assert await look_up("dir") == []
        assert await look_up("dir/file") == ["dir"]
        assert await look_up("other/nothing") == ["other"]
    monkeypatch.setattr(guess, "PAUSE", 0.0)
    async with service.host(ttl=3600) as host:
        assert await look_up(name) == ["", name]
        assert await look_up("other/nothing") == ["other", "other/nothing"]


async def test_a_guess_that_fails_is_nobodys_failure(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        with host.faults.denied(listing_of("dir")):
            await host.node("dir")
            await settled()
            assert host.faults.hits == 1
            with pytest.raises(Denied):
                await host.node("dir/file")
            assert host.faults.hits == 2
        await host.node("dir/file")


async def test_a_bug_in_a_guess_ends_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=3600) as host:
        with host.faults.broken(listing_of("dir")):
            await host.node("dir")
            await settled()
        assert "a bug in blobfs" in caplog.text
        assert await host.entries("dir") == ["file"]


async def test_what_this_host_makes_meanwhile_is_not_lost(service: Service) -> None:
    async with guess_held(service, "dir") as (host, answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.write, "dir/new", b"x")
            await settled()
            answer.set()
        assert await host.entries("dir") == ["file", "new"]
        assert await host.read("dir/new") == b"x"


async def test_what_was_guessed_of_nothing_is_not_taken_for_what_is_made_then(
    service: Service,
) -> None:
    async with guess_held(service, "fresh") as (host, answer):
        await host.mkdir("fresh")
        await host.write("fresh/file", b"x")
        answer.set()
        await settled()
        assert await host.entries("fresh") == ["file"]


async def test_what_is_renamed_meanwhile_has_its_own_entries(service: Service) -> None:
    async with guess_held(service, "dir") as (host, answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.rename, "dir", "moved")
            await settled()
            answer.set()
        await settled()
        assert await host.entries("moved") == ["file"]
        with pytest.raises(PosixError):
            await host.node("dir")


async def test_a_listing_of_what_is_removed_is_not_taken_for_one_of_its_successor(
    service: Service,
) -> None:
    """It has the same path and, when the kernel has forgotten both, the same number."""
    async with service.host() as other:
        await other.mkdir("empty")
    async with service.host(ttl=3600) as host:
        forget, answer = host.fs.inodes.forget, trio.Event()
        with host.faults.late(listing_of("empty"), answer):
            old = await host.node("empty")
            await host.faults.met.wait()
        await host.rmdir("empty")
        forget(old.ino, old.lookups - 1)  # one is the guess's
        await host.mkdir("empty")
        await host.write("empty/file", b"x")
        answer.set()
        await settled()
        for path in ("empty/file", "empty"):
            node = await host.node(path)
            forget(node.ino, node.lookups)
        assert (await host.node("empty")).ino == old.ino
        assert await host.entries("empty") == ["file"]


@pytest.mark.parametrize("name", ["file", "dotted.d"])
async def test_nothing_is_guessed_of_what_is_gone(service: Service, name: str) -> None:
    """As for a shell that is in a directory that another host has deleted."""
    async with service.host(ttl=3600) as host:
        directory = await host.node("dir")
        await settled()
        host.store.vanish(directory)
        for _ in range(2):
            with pytest.raises(ConditionFailed), trio.fail_after(5):
                await host.fs.tree.lookup(directory, name, may_guess=True)
        assert await host.entries("dir") == ["file"]


async def test_what_is_listed_while_a_rename_fails_is_not_believed(service: Service) -> None:
    """It may be a half of the directory, whose other half was under the new name then."""
    service.sdk.upload_blob("dir/last", b"", metadata=FILE)
    is_listed, is_deleted, is_undone = trio.Event(), trio.Event(), trio.Event()

    class Halfway(httpx.AsyncBaseTransport):
        def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
            self.inner = inner

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if operation("DELETE", "dir/last")(request):
                await is_listed.wait()
                return error(403, "AuthorizationPermissionMismatch")
            if listing_of("dir")(request) and not is_listed.is_set():
                await is_deleted.wait()
                response = await whole(await self.inner.handle_async_request(request))
                is_listed.set()
                await is_undone.wait()
                return response
            response = await self.inner.handle_async_request(request)
            if operation("DELETE", "dir/file")(request):
                is_deleted.set()
                await is_listed.wait()
            return response

        async def aclose(self) -> None:
            await self.inner.aclose()

    async with service.host(ttl=3600, attempts=1) as host:
        host.faults.inner = Halfway(host.faults.inner)
        await host.node("dir")
        with pytest.raises(Denied):
            await host.rename("dir", "moved")
        is_undone.set()
        await settled()
        assert await host.entries("dir") == ["file", "last"]


async def test_a_directory_of_many_pages_is_read_on_from_the_first(service: Service) -> None:
    names = [f"file{number}" for number in range(7)]
    for name in names:
        service.sdk.upload_blob(f"many/{name}", b"", metadata=FILE)
    async with service.host(ttl=3600) as host:
        host.fs = Filesystem(host.store, page_size=5)
        await host.node("many/file6")
        assert await host.entries("many") == names
