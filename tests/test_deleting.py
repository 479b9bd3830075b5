"""Many files deleted one after another: not each is waited for, and nothing of that shows."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfs.attributes import INTENT_KEY
from blobfs.blobs import BlobInfo, Container
from blobfs.errors import Denied, PosixError
from blobfs.fs import deleting
from blobfs.fs.deleting import MOST, STREAK
from tests.azurite import Azurite
from tests.bare_host import Host, Service, Wanted, operation
from tests.mounts import mounted

COUNT = STREAK + MOST + 4
FILES = [f"d/f{number:02}" for number in range(COUNT)]
MANY = FILES[STREAK:]
"""Those that come after the ones which are waited for."""

DELETE = operation("DELETE")


@pytest.fixture(autouse=True)
def streaks_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(deleting, "PAUSE", 60.0)


@pytest.fixture
def service(azurite: Azurite, container: str, tmp_path: Path) -> Service:
    service = Service(azurite, container, tmp_path)
    for name in FILES:
        service.sdk.upload_blob(name, b"", metadata={"permissions": "33188"})
    return service


def left(service: Service) -> list[str]:
    return [name for name in service.names() if name != "d"]


def operation_below(directory: str) -> Wanted:
    return lambda request: DELETE(request) and f"/{directory}/" in request.url.raw_path.decode()


async def settled() -> None:
    """Time enough for what must not happen; and what was begun has been sent."""
    await trio.testing.wait_all_tasks_blocked(0.1)


async def over(host: Host) -> None:
    """No deletion is under way any more."""
    await host.store.deletions.drain()


async def begin_streak(host: Host, directory: str = "d") -> None:
    for name in FILES[:STREAK]:
        await host.unlink(name)
    assert (await host.node(directory)).deletions is not None


async def test_the_first_ones_are_waited_for(service: Service) -> None:
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            nursery.start_soon(host.unlink, FILES[0])
            await settled()
            assert "f00" in (await host.node("d")).children
            assert host.store.deletions.count == 0
            go_on.set()


async def test_the_next_ones_are_not_and_some_are_deleted_at_once(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            with host.faults.delayed(DELETE, go_on):
                for name in MANY[:MOST]:
                    await host.unlink(name)  # returns
                    with pytest.raises(PosixError):
                        await host.node(name)
                nursery.start_soon(host.unlink, MANY[MOST])
                await settled()
                assert host.store.deletions.count == MOST
                await host.node(MANY[MOST])  # this one is waited for
                assert left(service) == MANY
                go_on.set()
        await over(host)
        assert left(service) == MANY[MOST + 1 :]


async def test_those_that_are_stalled_hold_up_no_others(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await host.mkdir("e")
        for number in range(STREAK + 1):
            await host.write(f"e/file{number}", b"")
        await begin_streak(host)
        go_on = trio.Event()
        with host.faults.delayed(operation_below("d"), go_on):
            for name in MANY[:MOST]:
                await host.unlink(name)
            for number in range(STREAK + 1):
                await host.unlink(f"e/file{number}")
            host.store.listings.drop(host.fs.inodes.root)
            assert await host.entries() == ["d", "e"]
            assert left(service) == [*MANY, "e"]
            go_on.set()


async def test_after_a_pause_they_are_waited_for_again(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        streak = (await host.node("d")).deletions
        assert streak is not None
        streak.last -= deleting.PAUSE
        await host.unlink(MANY[0])
        assert host.store.deletions.count == 0
        assert MANY[0] not in service.names()


async def test_a_name_that_comes_again_is_waited_for(service: Service) -> None:
    """As that of a lock file, which other hosts wait for."""
    async with service.host(ttl=3600) as host:
        for _ in range(2 * STREAK):
            await host.write("d/lock", b"")
            await host.unlink("d/lock")
            assert host.store.deletions.count == 0
            await host.write("d/.lock", b"")
            await host.rename("d/.lock", "d/locked")
            assert host.store.deletions.count == 0


async def test_other_directories_are_another_streak(service: Service) -> None:
    service.sdk.upload_blob("e/file", b"", metadata={"permissions": "33188"})
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        await host.unlink("e/file")
        assert "e/file" not in service.names()


async def test_a_listing_and_a_lookup_past_it_show_none_of_them(service: Service) -> None:
    """Both wait, since the service still has the names."""
    async with service.host(ttl=0) as host:
        await begin_streak(host)
        directory = await host.node("d")
        seen: list[str] = []

        async def list_directory() -> None:
            seen.extend(await host.entries("d"))

        async def probe() -> None:
            directory.big = True  # then each name is asked for by itself
            with pytest.raises(PosixError):
                await host.fs.tree.lookup(directory, MANY[1][2:])
            seen.append("not there")

        looks = ((list_directory, [name[2:] for name in MANY[1:]]), (probe, ["not there"]))
        for (look, expected), name in zip(looks, MANY, strict=False):
            seen.clear()
            go_on = trio.Event()
            async with trio.open_nursery() as nursery:
                with host.faults.delayed(DELETE, go_on):
                    await host.unlink(name)
                    nursery.start_soon(look)
                    await settled()
                    assert seen == []
                    go_on.set()
            assert seen == expected


async def test_a_name_is_given_anew_when_it_is_free(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            with host.faults.delayed(DELETE, go_on):
                for name in MANY[:3]:
                    await host.unlink(name)
                nursery.start_soon(host.write, MANY[0], b"new")
                nursery.start_soon(host.mkdir, MANY[1])
                nursery.start_soon(host.rename, MANY[3], MANY[2])
                await settled()
                assert left(service) == MANY
                go_on.set()
        await over(host)
        assert await host.read(MANY[0]) == b"new"
        assert (await host.node(MANY[1])).is_directory
        assert not (await host.node(MANY[2])).is_directory
        assert left(service) == [*MANY[:3], *MANY[4:]]


async def fail_one(host: Host, name: str) -> None:
    with host.faults.denied(operation("DELETE", name)):
        await host.unlink(name)
        await over(host)


async def test_one_that_fails_is_there_again_and_the_next_call_says_so(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        await fail_one(host, MANY[0])
        await host.node(MANY[0])
        assert f"/{MANY[0]} was not deleted" in caplog.text.replace("d/", "/d/")
        with pytest.raises(Denied, match=MANY[0]):
            await host.unlink(MANY[1])
        await host.unlink(MANY[1])  # it was said once
        await host.unlink(MANY[0])
        assert host.store.deletions.count == 0, "they are waited for again"
        assert left(service) == MANY[2:]


async def test_rmdir_and_fsync_wait_for_all_and_say_what_failed(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        directory = await host.node("d")
        await fail_one(host, MANY[0])
        with pytest.raises(Denied, match=MANY[0]):
            await host.rmdir("d")
        for name in MANY[:-1]:
            await host.unlink(name)
        await over(host)
        await fail_one(host, MANY[-1])
        with pytest.raises(Denied, match=MANY[-1]):
            await host.fs.metadata.save(directory)
        for name in ("d/a", "d/b", "d/c", "d/d"):
            await host.write(name, b"")
        for name in ("d/a", "d/b", "d/c"):
            await host.unlink(name)
        await over(host)
        go_on, synced = trio.Event(), trio.Event()

        async def sync() -> None:
            await host.fs.metadata.save(directory)
            synced.set()

        async with trio.open_nursery() as nursery:
            with host.faults.delayed(DELETE, go_on):
                await host.unlink("d/d")
                await host.unlink(MANY[-1])
                nursery.start_soon(sync)
                await settled()
                assert host.store.deletions.count == 2
                assert not synced.is_set()
                go_on.set()
        await host.rmdir("d")
        assert service.names() == []


async def test_a_bug_in_a_deletion_is_its_failure_alone(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        with host.faults.broken(DELETE):
            await host.unlink(MANY[0])
            await over(host)
        assert "Traceback" in caplog.text
        await host.node(MANY[0])
        with pytest.raises(KeyError):
            await host.unlink(MANY[1])


async def test_an_open_file_is_waited_for_and_kept(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await host.write("d/open", b"content")
        await begin_streak(host)
        handle = await host.open("d/open")
        await host.unlink("d/open")
        assert "d/open" not in service.names()
        assert await host.read_all(handle) == b"content"
        await host.close(handle)


async def test_a_renamed_directory_has_none_of_them(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            with host.faults.delayed(DELETE, go_on):
                await host.unlink(MANY[0])
                nursery.start_soon(host.rename, "d", "e")
                await settled()
                assert left(service) == MANY
                go_on.set()
        await over(host)
        assert await host.entries("e") == [name[2:] for name in MANY[1:]]


async def rename_streak(host: Host) -> None:
    """As rsync does with each file."""
    for number in range(STREAK):
        await host.write(f"d/.tmp{number}", b"content")
        await host.rename(f"d/.tmp{number}", f"d/new{number}")


async def test_the_old_names_of_many_renames_are_not_waited_for_either(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await rename_streak(host)
        await host.write("d/.tmp", b"content")
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.rename("d/.tmp", "d/new")
            assert {"d/.tmp", "d/new"} <= set(service.names())
            assert await host.read("d/new") == b"content"
            with pytest.raises(PosixError):
                await host.node("d/.tmp")
            go_on.set()
        await over(host)
        assert "d/.tmp" not in service.names()


async def test_an_old_name_that_others_have_written_to_stays(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=3600) as host, service.host() as other:
        await rename_streak(host)
        await host.write("d/.tmp", b"content")
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.rename("d/.tmp", "d/new")
            handle = await other.open("d/.tmp", os.O_WRONLY | os.O_TRUNC)
            await other.fs.files.write(handle, 0, b"theirs")
            await other.close(handle)
            go_on.set()
        await over(host)
        assert await host.read("d/.tmp") == b"theirs"
        assert await host.read("d/new") == b"content"
        assert "was not deleted" in caplog.text


async def test_the_end_of_a_mount_waits_for_them(service: Service) -> None:
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        go_on, drained = trio.Event(), trio.Event()

        async def drain() -> None:
            await host.store.deletions.drain()
            drained.set()

        with host.faults.delayed(DELETE, go_on):
            for name in MANY[:MOST]:
                await host.unlink(name)
            nursery.start_soon(drain)
            await settled()
            assert not drained.is_set()
            go_on.set()
        await drained.wait()
        assert left(service) == MANY[MOST:]


async def test_what_others_store_after_the_unlink_stays(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=3600) as host, service.host() as other:
        await begin_streak(host)
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.unlink(MANY[0])
            handle = await other.open(MANY[0], os.O_WRONLY | os.O_TRUNC)
            await other.fs.files.write(handle, 0, b"theirs")
            await other.close(handle)
            go_on.set()
        await over(host)
        assert await host.read(MANY[0]) == b"theirs"
        assert "was not deleted" in caplog.text
        with pytest.raises(PosixError, match=MANY[0]) as raised:
            await host.unlink(MANY[1])
        assert raised.value.errno == errno.EIO, "of ESTALE and ENOENT nobody would hear"


async def test_what_others_do_to_its_metadata_does_not_keep_it(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await host.write("d/ours", b"content")
        await begin_streak(host)
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.unlink("d/ours")
            await settled()
            blob = service.sdk.get_blob_client("d/ours")
            blob.set_blob_metadata({**blob.get_blob_properties().metadata, "permissions": "33152"})
            go_on.set()
        await over(host)
        assert "d/ours" not in service.names()


async def test_what_others_have_deleted_is_deleted(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        service.sdk.delete_blob(MANY[0])
        await host.unlink(MANY[0])
        await over(host)
        await host.unlink(MANY[1])
        await rename_streak(host)
        await host.write("d/.tmp", b"content")
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.rename("d/.tmp", "d/new")
            await settled()
            service.sdk.delete_blob("d/.tmp")
            go_on.set()
        await over(host)
        await host.unlink("d/new")


async def test_a_lookup_under_way_does_not_bring_the_name_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel looks names up again without the directory's lock."""
    answered, deleted = trio.Event(), trio.Event()
    head = Container.head

    async def slow_head(self: Container, name: str, *, if_match: str | None = None) -> BlobInfo:
        info = await head(self, name, if_match=if_match)
        await answered.wait()
        return info

    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        directory, node = await host.node("d"), await host.node(MANY[0])

        async def look() -> None:
            with pytest.raises(PosixError):
                await host.fs.tree.lookup(directory, node.name)

        host.store.listings.drop(directory)
        fresh_until, node.fresh_until = node.fresh_until, 0.0
        monkeypatch.setattr(Container, "head", slow_head)
        nursery.start_soon(look)
        await settled()
        node.fresh_until = fresh_until
        host.store.deletions.waited_for(directory, "another")
        with host.faults.delayed(DELETE, deleted):
            await host.unlink(MANY[0])
            answered.set()
            await settled()
            assert node.name not in directory.children
            deleted.set()


async def test_a_failure_during_a_listing_does_not_hide_the_name(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        directory = await host.node("d")
        for name in FILES[STREAK:]:
            await host.node(name)
        host.store.listings.drop(directory)
        stream = host.fs.tree.open_directory(directory)
        host.fs.tree._page_size = 5
        found = await host.fs.tree.entries(stream, 0)
        host.store.deletions.waited_for(directory, "another")
        await fail_one(host, FILES[-1])
        while found:
            found = await host.fs.tree.entries(stream, found[-1][2])
        host.fs.tree.close_directory(stream)
        assert FILES[-1][2:] in await host.entries("d")


async def test_a_directory_rename_that_is_finished_loses_none_to_them(service: Service) -> None:
    """Its target has a copy whose deletion is under way."""
    for name in FILES:
        service.sdk.upload_blob(f"e{name[1:]}", b"", metadata={"permissions": "33188"})
    service.sdk.upload_blob("e", b"", metadata={"hdi_isfolder": "true", INTENT_KEY: "d"})
    copies = [f"e{name[1:]}" for name in FILES]
    async with service.host(ttl=3600) as host:
        for name in copies[:STREAK]:
            await host.unlink(name)
        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            with host.faults.delayed(operation("DELETE", copies[STREAK]), go_on):
                await host.unlink(copies[STREAK])
                assert host.store.deletions.count == 1
                nursery.start_soon(host.rename, "d", "e")
                await settled()
                go_on.set()
        await over(host)
        assert [name for name in service.names() if name.startswith("e/")] == copies


async def test_a_directory_is_not_forgotten_before_its_failure_is_heard(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        directory = await host.node("d")
        with host.faults.denied(DELETE):
            await host.unlink(MANY[0])
            for child in list(directory.children.values()):
                host.fs.inodes.forget(child.ino, child.lookups)
            host.fs.inodes.forget(directory.ino, directory.lookups - 1)
            await over(host)
        with pytest.raises(Denied, match=MANY[0]):
            await host.unlink(MANY[1])


async def test_a_name_that_could_not_be_deleted_is_not_given_anew(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        await fail_one(host, MANY[0])
        with pytest.raises(Denied):
            await host.create(MANY[0])


@pytest.mark.mount
def test_rm_deletes_all_and_says_what_it_could_not(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk = azurite.sdk(container)
    with mounted(azurite, container, tmp_path) as mount:
        directory = mount.path / "d"
        directory.mkdir()
        for number in range(60):
            (directory / f"f{number:02}").write_text("text")
        lease = sdk.get_blob_client("d/f55").acquire_lease()
        mount.allow_log("was not deleted|unlink|rmdir")  # it may be one that is waited for
        rm = subprocess.run(["rm", "-r", directory], capture_output=True, text=True, check=False)
        assert rm.returncode == 1
        assert "cannot remove" in rm.stderr
        assert "f55" in os.listdir(directory)
        lease.release()
        subprocess.run(["rm", "-r", directory], check=True)
        assert list(sdk.list_blob_names()) == []
