"""What becomes of content and attributes that could not be stored, at once or at all.

As in `test_adversarial`, without a kernel.
"""

import errno
import itertools
import os
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from blobfs.draft import PAGE
from blobfs.errors import BlocksGone
from blobfs.fs import Changes
from blobfs.fs.store import RETRY_DELAY
from blobfs.recovery import attempt_mark, read_description
from blobfs.writer import SINGLE_PUT
from tests.bare_host import Host, Service, failing, operation
from tests.strict import error


async def no_room(*args: object, **kwargs: object) -> Path:
    """In the place of `keep_for_recovery`."""
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_failed_overwrite_leaves_the_old_version_and_a_recovery_file(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"the old version")
        node = await host.node("file")
        mtime = node.attrs.mtime_ns
        handle = await host.open("file", os.O_RDWR | os.O_TRUNC)
        await host.fs.files.write(handle, 0, b"the new version")
        with host.faults.unreachable(), failing(errno.EIO):
            await host.close(handle)
        assert len(host.recovery_files()) == 1
        again, may_keep_pages = await host.fs.files.open(await host.node("file"), os.O_RDONLY)
        assert not may_keep_pages  # they hold the version that was not stored
        assert await host.read_all(again) == b"the old version"
        assert (await host.node("file")).attrs.mtime_ns == mtime
        await host.close(again)


async def test_a_commit_whose_answer_was_lost_is_completed_by_the_next_close(
    service: Service,
) -> None:
    async with service.host(cache_size=1) as host:
        await host.write("file", b"x" * 600_000)
        handle = await host.open("file", os.O_RDWR)
        await host.fs.files.write(handle, 300_000, b"first")
        with host.faults.unheard(operation("PUT", "/file")), failing(errno.EIO):
            await host.fs.files.flush(handle)
        await host.fs.files.write(handle, 0, b"second")
        await host.close(handle)
        expected = bytearray(b"x" * 600_000)
        expected[:6] = b"second"
        expected[300_000:300_005] = b"first"
        assert await host.read("file") == expected
        assert host.recovery_files() == []
    assert service.names() == ["file"]


async def test_a_recovery_file_knows_the_commit_whose_answer_was_lost(service: Service) -> None:
    async with service.host(ttl=60) as host:
        await host.write("file", b"before")
        handle = await host.open("file", os.O_RDWR)
        await host.fs.files.write(handle, 0, b"first")
        with host.faults.unheard(lambda request: True), failing(errno.EIO):
            await host.close(handle)
        (path,) = host.recovery_files()
    stored = service.sdk.get_blob_client("file").get_blob_properties().metadata["encryptiondata"]
    assert attempt_mark(stored) in read_description(path).attempts


@pytest.mark.usefixtures("small_blocks")
async def test_a_cancelled_commit_is_completed_by_the_next_close(service: Service) -> None:
    async with service.host() as host:
        for size in (10, PAGE + 1):
            handle = await host.create(f"file-{size}", b"z" * size)
            with trio.move_on_after(0.3), host.faults.stalled(operation("PUT")):
                await host.fs.files.flush(handle)
            await host.close(handle)
            assert await host.read(f"file-{size}") == b"z" * size


async def test_a_release_that_takes_too_long_still_keeps_the_bytes(service: Service) -> None:
    # written through a mapping after the last flush, so that only the release can store it
    async with service.host() as host:
        handle = await host.create("file", b"mapped")
        with host.faults.stalled(), trio.move_on_after(0.3):
            await host.fs.files.release(handle)
        assert len(host.recovery_files()) == 1


async def release_in_vain(host: Host, handle: int) -> None:
    """Somebody has the file's lock until there is no time left."""
    node = host.fs.inodes.handle(handle).node
    async with host.store.locked(node), trio.open_nursery() as nursery:
        nursery.start_soon(host.fs.files.release, handle)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_release_without_time_for_the_files_lock_leaves_no_old_version_behind(
    service: Service,
) -> None:
    async with service.host() as ours, service.host() as others:
        handle = await ours.create("file", b"ours")
        await ours.fs.files.flush(handle)
        await release_in_vain(ours, handle)
        await others.overwrite("file", b"theirs")
        await ours.fs.files.retry()
        assert await ours.read("file") == b"theirs"


async def test_a_release_without_time_for_the_files_lock_leaves_nothing_hidden(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"content")
        handle = await host.open("file")
        node = await host.node("file")
        await host.unlink("file")
        await release_in_vain(host, handle)
        host.fs.inodes.forget(node.ino, node.lookups)
        assert service.names()
        await host.fs.files.retry()
        assert not service.names()
        with failing(errno.ESTALE):
            host.fs.inodes.get(node.ino)


async def test_a_truncate_that_fails_loses_nothing_that_a_close_has_left(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.host() as host:
        monkeypatch.setattr("blobfs.fs.commit.keep_for_recovery", no_room)
        handle = await host.create("file", b"neither stored nor kept")
        with host.faults.unreachable():
            with failing(errno.EIO):
                await host.close(handle)
            with failing(errno.EIO):
                await host.fs.metadata.set(
                    await host.node("file"), Changes(size=0), by_handle=False
                )
        await host.fs.files.retry()
    async with service.host() as other:
        assert await other.read("file") == b"neither stored nor kept"


async def test_the_end_of_a_mount_keeps_what_it_has_no_time_to_store(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blobfs.fs.files.DRAIN_TIME", 0.5)
    async with service.host() as host:
        for number in range(3):
            await host.create(f"file-{number}", b"new")
        with host.faults.stalled(), trio.move_on_after(0.1):
            await host.fs.files.drain()
        assert len(host.recovery_files()) == 3


async def test_what_cannot_be_stored_at_the_end_of_a_mount_is_kept_file_by_file(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blobfs.fs.files.DRAIN_TIME", 1.0)
    # One file's base cannot be read within the time, which must not cost the others theirs.
    async with service.host(timeout=0.5, cache_size=1) as host:
        await host.write("first", b"y" * 600_000)
        handle = await host.open("first", os.O_RDWR)
        await host.fs.files.write(handle, 10, b"changed")
        for number in range(3):
            await host.create(f"other-{number}", b"new")
        with host.faults.stalled():
            await host.fs.files.drain()
        assert len(host.recovery_files()) >= 3


UNAVAILABLE, EXPIRED, LEASED, DENIED = (
    (503, "ServerBusy"),
    (403, "AuthenticationFailed"),
    (412, "LeaseIdMissing"),
    (403, "AuthorizationPermissionMismatch"),
)


@pytest.mark.parametrize(
    ("refusal", "is_stored"),
    [(UNAVAILABLE, True), (EXPIRED, True), (LEASED, True), (DENIED, False)],
    ids=["unavailable", "expired", "leased", "denied"],
)
async def test_attributes_that_were_put_off_are_kept_until_they_are_stored_or_refused_for_good(
    service: Service,
    refusal: tuple[int, str],
    is_stored: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with service.host(ttl=60) as host:
        await host.write("file", b"")
        node = await host.node("file")
        await host.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
        with host.faults.answered(operation("PUT", comp="metadata"), lambda _: error(*refusal)):
            await host.store.save_overdue(0)
        kept = "WARNING" if is_stored else "ERROR"
        assert [record.levelname for record in caplog.records if "mode" in record.message] == [kept]
        await host.store.save_overdue(-RETRY_DELAY)
        mode = 0o600 if is_stored else 0o644
        assert (await host.node("file")).attrs.mode == mode
    async with service.host() as other:
        assert (await other.node("file")).attrs.mode == mode


@pytest.mark.parametrize("is_over", [True, False])
async def test_attributes_that_were_put_off_have_a_last_try_when_the_mount_ends(
    service: Service, is_over: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.host(ttl=60) as host:
        await host.write("file", b"")
        node = await host.node("file")
        await host.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
        with host.faults.answered(operation("PUT", comp="metadata"), lambda _: error(*LEASED)):
            await host.store.save_overdue(0)
            if not is_over:
                await host.store.save_last()
        if is_over:
            await host.store.save_last()
        assert ("ERROR" in [record.levelname for record in caplog.records]) == (not is_over)
    async with service.host() as other:
        assert (await other.node("file")).attrs.mode == (0o600 if is_over else 0o644)


async def test_a_change_that_is_given_up_leaves_nothing_behind(service: Service) -> None:
    async with service.host() as host, service.host() as others:
        await host.write("file", b"before")
        node = await host.node("file")
        await host.fs.metadata.set_xattr(node, b"user.azure.metadata.x", b"1")
        with host.faults.answered(operation("PUT", comp="metadata"), lambda _: error(*LEASED)):
            await host.store.save_overdue(0)
        await others.overwrite("file", b"theirs")
        node.committed_at = float("-inf")  # long ago
        for change in (
            partial(host.fs.metadata.set_xattr, node, b"user.azure.metadata.y", b"2"),
            partial(host.fs.metadata.set, node, Changes(mode=0o600), by_handle=False),
        ):
            with failing(errno.ESTALE):
                await change()
            assert not node.is_local
            assert await host.read("file") == b"theirs"
            node = await host.node("file")
            await others.overwrite("file", b"theirs")


async def test_blocks_that_are_gone_for_good_are_not_sent_for_ever(service: Service) -> None:
    commits = itertools.count()

    def refused(_: httpx.Request) -> httpx.Response:
        next(commits)
        return error(400, "InvalidBlockList")

    async with service.host() as host:
        handle = await host.create("file", bytes(SINGLE_PUT + 1))
        with host.faults.answered(operation("PUT", comp="blocklist"), refused):
            with pytest.raises(BlocksGone, match="InvalidBlockList"):
                await host.fs.files.flush(handle)
            assert next(commits) == 3
            await host.fs.files.release(handle)
        assert len(host.recovery_files()) == 1


async def test_a_bug_while_attributes_are_saved_does_not_end_the_mount(service: Service) -> None:
    async with service.host() as host:
        await host.write("file", b"")
        node = await host.node("file")
        await host.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
        assert node.unsaved
        with host.faults.broken(operation("PUT", comp="metadata")):
            await host.store.save_overdue(0)


async def test_a_change_that_was_accepted_survives_another_that_is_refused(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"")
        node = await host.node("file")
        await host.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
        node.committed_at = float("-inf")  # long ago
        with host.faults.unreachable(), failing(errno.EIO):
            await host.fs.metadata.set(node, Changes(uid=7), by_handle=False)
        await host.store.save_overdue(0)
    async with service.host() as other:
        attrs = (await other.node("file")).attrs
        assert (attrs.mode, attrs.uid) == (0o600, 0)


async def test_a_reader_is_not_disturbed_by_a_commit_of_the_same_mount(service: Service) -> None:
    async with service.host(cache_size=1) as host:
        await host.write("file", b"1" * 600_000)
        reading = await host.open("file")
        committed = trio.Event()
        results: list[bytes] = []

        async def read() -> None:
            results.append(bytes(await host.fs.files.read(reading, 0, 600_000)))

        with host.faults.delayed(operation("GET", "/file"), committed):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await host.overwrite("file", b"2" * 600_000)
                committed.set()
        assert results == [b"2" * 600_000]
        await host.close(reading)
