"""Many files deleted one after another: not each is waited for, and nothing of that shows."""

import os
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfs.errors import Denied, PosixError
from blobfs.fs.deleting import MOST, PAUSE, STREAK
from tests.azurite import Azurite
from tests.bare_host import Host, Service, Wanted, operation
from tests.mounts import mounted

COUNT = STREAK + MOST + 4
FILES = [f"d/f{number:02}" for number in range(COUNT)]
MANY = FILES[STREAK:]
"""Those that come after the ones which are waited for."""

DELETE = operation("DELETE")


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
    """Nothing goes on any more but what waits."""
    await trio.testing.wait_all_tasks_blocked(0.1)


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
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        go_on = trio.Event()
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
        await settled()
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
            assert left(service) == [*MANY, "e"]
            go_on.set()


async def test_after_a_pause_they_are_waited_for_again(service: Service) -> None:
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        streak = (await host.node("d")).deletions
        assert streak is not None
        streak.last -= PAUSE
        await host.unlink(MANY[0])
        assert host.store.deletions.count == 0
        assert MANY[0] not in service.names()


async def test_other_directories_are_another_streak(service: Service) -> None:
    service.sdk.upload_blob("e/file", b"", metadata={"permissions": "33188"})
    async with service.host(ttl=3600) as host:
        await begin_streak(host)
        await host.unlink("e/file")
        assert "e/file" not in service.names()


async def test_a_listing_and_a_lookup_past_it_show_none_of_them(service: Service) -> None:
    """Both wait, since the service still has the names."""
    async with service.host(ttl=0) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        directory = await host.node("d")
        go_on = trio.Event()
        seen: list[str] = []

        async def list_directory() -> None:
            seen.extend(await host.entries("d"))

        async def probe() -> None:
            directory.big = True  # then each name is asked for by itself
            with pytest.raises(PosixError):
                await host.fs.tree.lookup(directory, MANY[0][2:])
            seen.append("not there")

        for look, expected in ((list_directory, [name[2:] for name in MANY[1:]]), (probe, [])):
            with host.faults.delayed(DELETE, go_on):
                await host.unlink(MANY[0])
                nursery.start_soon(look)
                await settled()
                assert seen == []
                go_on.set()
            await settled()
            assert seen == (expected or ["not there"])
            service.sdk.upload_blob(MANY[0], b"", metadata={"permissions": "33188"})
            go_on, seen = trio.Event(), []
            directory.big = False


async def test_a_name_is_given_anew_when_it_is_free(service: Service) -> None:
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            for name in MANY[:3]:
                await host.unlink(name)
            nursery.start_soon(host.write, MANY[0], b"new")
            nursery.start_soon(host.mkdir, MANY[1])
            nursery.start_soon(host.rename, MANY[3], MANY[2])
            await settled()
            assert left(service) == MANY
            go_on.set()
        await settled()
        assert await host.read(MANY[0]) == b"new"
        assert (await host.node(MANY[1])).is_directory
        assert not (await host.node(MANY[2])).is_directory
        assert left(service) == [*MANY[:3], *MANY[4:]]


async def fail_one(host: Host, name: str) -> None:
    with host.faults.denied(operation("DELETE", name)):
        await host.unlink(name)
        await settled()


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
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        await fail_one(host, MANY[0])
        with pytest.raises(Denied, match=MANY[0]):
            await host.rmdir("d")
        for name in FILES[STREAK:-1]:
            await host.unlink(name)
        directory = await host.node("d")
        await fail_one(host, FILES[-1])
        with pytest.raises(Denied, match=FILES[-1]):
            await host.fs.metadata.save(directory)
        go_on = trio.Event()
        for name in ("d/a", "d/b", "d/c", "d/d"):
            await host.write(name, b"")
        for name in ("d/a", "d/b", "d/c"):
            await host.unlink(name)
        with host.faults.delayed(DELETE, go_on):
            await host.unlink("d/d")
            nursery.start_soon(host.fs.metadata.save, directory)
            nursery.start_soon(host.unlink, FILES[-1])
            await settled()
            assert host.store.deletions.count == 2
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
            await settled()
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
    async with service.host(ttl=3600) as host, trio.open_nursery() as nursery:
        await begin_streak(host)
        go_on = trio.Event()
        with host.faults.delayed(DELETE, go_on):
            await host.unlink(MANY[0])
            nursery.start_soon(host.rename, "d", "e")
            await settled()
            assert left(service) == MANY
            go_on.set()
        await settled()
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
        await settled()
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
        await settled()
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
        mount.expect_log("f55.* was not deleted.*lease")
        mount.allow_log("unlink|rmdir")
        rm = subprocess.run(["rm", "-r", directory], capture_output=True, text=True, check=False)
        assert rm.returncode == 1
        assert "cannot remove" in rm.stderr
        assert "f55" in os.listdir(directory)
        lease.release()
        subprocess.run(["rm", "-r", directory], check=True)
        assert list(sdk.list_blob_names()) == []
