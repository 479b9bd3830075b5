"""Ways to lose bytes, to serve wrong ones or to end the mount, each tried on purpose.

The file system runs in the test's own process, as the kernel would use it, over Azurite and a
connection that fails on demand.
"""

import errno
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfs.draft import PAGE
from blobfs.envelope import SEAL_KEY
from blobfs.errors import BlobfsError, errno_of
from blobfs.fs import Changes
from blobfs.inodes import Node
from blobfs.recovery import attempt_mark, read_description
from tests.azurite import Azurite
from tests.bare_host import CALLER, KIB, Host, Service, Wanted, listing_of, operation
from tests.mounts import PLAINTEXT_MARKER, mounted


@pytest.fixture
def service(azurite: Azurite, container: str, tmp_path: Path) -> Service:
    return Service(azurite, container, tmp_path)


@contextmanager
def failing(*codes: int) -> Iterator[None]:
    """The block must fail with one of these error numbers."""
    raised = None
    try:
        yield
    except BlobfsError as exc:
        raised = exc
    assert raised is not None, "it did not fail"
    assert errno_of(raised) in codes, repr(raised)


async def overwrite(host: Host, path: str, data: bytes) -> None:
    handle = await host.open(path, os.O_WRONLY | os.O_TRUNC)
    await host.fs.files.write(handle, 0, data)
    await host.close(handle)


async def no_room(*args: object, **kwargs: object) -> Path:
    """In the place of `keep_for_recovery`."""
    raise OSError(errno.ENOSPC, "No space left on device")


# --- unlinked and replaced files -----------------------------------------------------------


async def test_a_file_whose_unlink_failed_keeps_what_is_written_to_it(service: Service) -> None:
    async with service.host() as host:
        await host.write("file", b"before")
        handle = await host.open("file", os.O_RDWR)
        with host.faults.denied(operation("DELETE", "/file")), failing(errno.EACCES):
            await host.unlink("file")
        await host.fs.files.write(handle, 0, b"after!")
        await host.close(handle)
        assert await host.read("file") == b"after!"
    assert service.names() == ["file"]


async def test_a_file_that_was_not_replaced_after_all_keeps_what_is_written_to_it(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("old", b"old")
        await host.write("new", b"new")
        handle = await host.open("old", os.O_RDWR)
        with host.faults.unreachable(operation("PUT", "/old")), failing(errno.EIO):
            await host.rename("new", "old")
        await host.fs.files.write(handle, 0, b"OLD")
        await host.close(handle)
        assert await host.read("old") == b"OLD"
        assert await host.read("new") == b"new"
    assert service.names() == ["new", "old"]


async def test_an_open_file_that_was_replaced_is_read_to_its_end_and_leaves_nothing(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("old", b"old")
        await host.write("new", b"new")
        handle = await host.open("old", os.O_RDWR)
        await host.fs.files.write(handle, 3, b" and written")
        await host.rename("new", "old")
        assert await host.read_all(handle) == b"old and written"
        await host.close(handle)
        assert await host.read("old") == b"new"
    assert service.names() == ["old"]


async def test_an_unstored_file_renamed_over_another_can_be_renamed_again(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"stored")
        handle = await host.create("new", b"unstored")
        await host.rename("new", "file")
        await host.rename("file", "other")
        await host.close(handle)
        assert await host.read("other") == b"unstored"
        assert await host.entries() == ["other"]
    assert service.names() == ["other"]


async def test_an_unstored_file_renamed_over_another_and_unlinked_is_gone(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"stored")
        handle = await host.create("new", b"unstored")
        await host.rename("new", "file")
        await host.unlink("file")
        await host.close(handle)
        assert await host.entries() == []
    assert service.names() == []


# --- what others delete and replace --------------------------------------------------------


async def test_a_file_in_a_directory_that_others_removed_is_stored_under_its_own_name(
    service: Service,
) -> None:
    service.sdk.upload_blob("dir/theirs", b"")
    async with service.host() as host:
        handle = await host.create("dir/mine", b"mine")
        service.sdk.delete_blob("dir/theirs")
        await host.node("dir")
        await host.close(handle)
    assert service.names() == ["dir/mine"]


async def test_a_directory_that_others_removed_takes_no_files_for_another_place(
    service: Service,
) -> None:
    service.sdk.upload_blob("dir/sub/theirs", b"")
    async with service.host() as host:
        working_directory = await host.node("dir/sub")
        service.sdk.delete_blob("dir/sub/theirs")
        with failing(errno.ENOENT):
            await host.node("dir")
        with failing(errno.ESTALE):
            await host.fs.names.create(working_directory, "file", 0o644, CALLER)


async def test_writing_to_a_file_that_others_deleted_is_refused(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"before")
        handle = await host.open("file", os.O_RDWR)
        service.sdk.delete_blob("file")
        with failing(errno.ENOENT):
            await host.node("file")
        with failing(errno.ESTALE):
            await host.fs.files.write(handle, 0, b"afterwards")
        await host.close(handle)
    assert service.names() == []


async def test_who_may_write_and_has_nothing_unsaved_does_not_hide_what_others_store(
    service: Service,
) -> None:
    async with service.host() as ours, service.host() as others:
        handle = await ours.create("file", b"ours")
        await ours.fs.files.fsync(handle)
        theirs = await others.open("file", os.O_RDWR | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"theirs")
        await others.close(theirs)
        assert await ours.read("file") == b"theirs"
        assert await ours.fs.files.read(handle, 0, 10) == b"ours"
        with failing(errno.ESTALE):
            await ours.fs.files.write(handle, 0, b"more")
        await ours.close(handle)
        assert await ours.read("file") == b"theirs"


async def test_a_link_that_others_changed_is_read_anew_also_after_a_rename(
    service: Service,
) -> None:
    async with service.host() as ours, service.host() as others:
        root = others.fs.inodes.root
        await others.fs.names.symlink(root, "link", b"before", CALLER)
        assert await ours.fs.names.readlink(await ours.node("link")) == b"before"
        await others.unlink("link")
        await others.fs.names.symlink(root, "link", b"afterwards", CALLER)
        await ours.rename("link", "renamed")
        assert await ours.fs.names.readlink(await ours.node("renamed")) == b"afterwards"


async def test_a_handle_never_reads_bytes_of_another_version(service: Service) -> None:
    # The kernel has one page cache for all handles of an inode: what the older handle reads would
    # be served to the newer one.
    async with service.host() as ours, service.host() as others:
        await others.write("file", b"A" * 100_000)
        first = await ours.open("file")
        assert await ours.fs.files.read(first, 0, 10) == b"A" * 10
        theirs = await others.open("file", os.O_RDWR | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"B" * 100_000)
        await others.close(theirs)
        second = await ours.open("file")
        assert await ours.fs.files.read(second, 0, 10) == b"B" * 10
        nodes = {ours.fs.inodes.handle(handle).node.ino for handle in (first, second)}
        assert len(nodes) == 2
        assert await ours.fs.files.read(first, 70_000, 10) == b"A" * 10
        await ours.close(first)
        await ours.close(second)


async def test_a_directory_rename_does_not_pass_off_others_content_as_what_was_read(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.mkdir("dir")
        await others.write("dir/file", b"A" * 1000)
        reading = await ours.open("dir/file")
        theirs = await others.open("dir/file", os.O_RDWR | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"B" * 500)
        await others.close(theirs)
        await ours.rename("dir", "new")
        assert await ours.read("new/file") == b"B" * 500
        node = await ours.node("new/file")
        assert node.size == 500
        await ours.close(reading)


async def test_a_directory_rename_does_not_hide_a_conflict(service: Service) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.mkdir("dir")
        await others.write("dir/file", b"A" * 1000)
        writing = await ours.open("dir/file", os.O_RDWR | os.O_TRUNC)
        await ours.fs.files.write(writing, 0, b"ours")
        theirs = await others.open("dir/file", os.O_RDWR | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"theirs")
        await others.close(theirs)
        await ours.rename("dir", "new")
        with failing(errno.ESTALE):
            await ours.close(writing)
        assert await others.read("new/file") == b"theirs"
        (aside,) = [name for name in await others.entries("new") if name != "file"]
        assert await others.read(f"new/{aside}") == b"ours"


@pytest.mark.parametrize(
    ("call", "waits_for", "left"),
    [
        ("rename a file over it", operation("PUT", "/file"), ["file"]),
        ("rename a directory over it", listing_of("dir"), ["dir"]),
        ("unlink", operation("DELETE", "/file"), []),
        ("rmdir", listing_of("dir"), []),
    ],
)
async def test_what_the_kernel_has_not_looked_up_is_kept_while_a_call_uses_it(
    service: Service, call: str, waits_for: Wanted, left: list[str]
) -> None:
    """Others have made it just now, and a listing that has no place for it lets it go."""
    async with service.host(ttl=3600) as ours, service.host() as others:
        root, names, tree = ours.fs.inodes.root, ours.fs.names, ours.fs.tree
        calls = {
            "rename a file over it": lambda: names.rename(root, "old file", root, "file", 0),
            "rename a directory over it": lambda: names.rename(root, "old dir", root, "dir", 0),
            "unlink": lambda: names.unlink(root, "file"),
            "rmdir": lambda: names.rmdir(root, "dir"),
        }
        if call == "rename a file over it":
            await ours.write("old file", b"old")
        elif call == "rename a directory over it":
            await ours.mkdir("old dir")
        else:
            assert await ours.entries() == []
        ours.store.listings.drop(root)
        await (others.mkdir("dir") if "dir" in call else others.write("file", b"new"))
        answer = trio.Event()
        with ours.faults.delayed(waits_for, answer):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[call])
                await ours.faults.met.wait()
                stream = tree.open_directory(root)
                for _, node, _ in await tree.entries(stream, 0):
                    ours.fs.inodes.release(node)
                tree.close_directory(stream)
                answer.set()
        assert await ours.entries() == left


@pytest.mark.parametrize("first", ["the file", "the directory"])
async def test_a_file_renamed_into_a_directory_that_is_renamed_goes_with_it(
    service: Service, first: str
) -> None:
    async with service.host(ttl=3600) as host:
        for directory in ("from", "old"):
            await host.mkdir(directory)
        await host.write("from/file", b"content")
        renames = {"the file": ("from/file", "old/file"), "the directory": ("old", "new")}
        waits_for = {"the file": "old/file", "the directory": "new"}[first]
        answer = trio.Event()
        with host.faults.delayed(operation("PUT", waits_for), answer):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, *renames.pop(first))
                await host.faults.met.wait()
                for second in renames.values():
                    nursery.start_soon(host.rename, *second)
                await trio.testing.wait_all_tasks_blocked(0.1)
                answer.set()
        (directory,) = set(await host.entries()) - {"from"}
        assert await host.read(f"{directory}/file") == b"content"
    assert service.names() == sorted(["from", directory, f"{directory}/file"])


async def test_others_may_change_metadata_of_what_is_renamed_unlinked_or_given_a_header(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        for name in ("renamed", "unlinked", "headed"):
            await ours.write(name, name.encode())
        handle = await ours.open("unlinked")
        for name in ("renamed", "unlinked", "headed"):
            node = await others.node(name)
            await others.fs.metadata.set(node, Changes(mode=0o640), by_handle=False)
            await others.store.save_overdue(0)
        await ours.rename("renamed", "elsewhere")
        await ours.unlink("unlinked")
        headed = await ours.node("headed")
        await ours.fs.metadata.set_xattr(headed, b"user.azure.cache_control", b"no-cache")
        assert await ours.read_all(handle) == b"unlinked"
        await ours.close(handle)
        for name in ("elsewhere", "headed"):
            assert (await ours.node(name)).attrs.mode == 0o640
            assert (await others.node(name)).attrs.mode == 0o640
        assert await others.read("elsewhere") == b"renamed"
    headers = service.sdk.get_blob_client("headed").get_blob_properties().content_settings
    assert headers.cache_control == "no-cache"


@pytest.mark.parametrize("call", ["write", "rename"])
async def test_tags_that_others_set_between_our_writes_stay(service: Service, call: str) -> None:
    """Our own writes, however often, do not tell what tags there are."""
    async with service.host(ttl=3600) as host:
        await host.write("file", b"1")
        node = await host.node("file")
        node.fresh_until = 0.0  # long ago
        await overwrite(host, "file", b"2")
        service.sdk.get_blob_client("file").set_blob_tags({"kept": "yes"})
        node.tags_until = 0.0
        if call == "write":
            await overwrite(host, "file", b"3")
        else:
            await host.rename("file", "renamed")
    (name,) = service.names()
    assert service.sdk.get_blob_client(name).get_blob_tags() == {"kept": "yes"}


async def test_what_is_marked_as_a_symbolic_link_is_not_read_beyond_what_one_can_have(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("link", b"x" * 4096)
        blob = service.sdk.get_blob_client("link")
        metadata = blob.get_blob_properties().metadata
        del metadata[SEAL_KEY]
        blob.set_blob_metadata({**metadata, "is_symlink": "true"})
        node = await host.node("link")
        with failing(errno.EIO):
            await host.fs.names.readlink(node)


async def test_what_one_reader_of_a_directory_has_found_another_does_not_let_go(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.host(ttl=3600) as host:
        for number in range(3):
            await host.write(f"file-{number}", b"content")
    async with service.host(ttl=3600) as host:
        tree, inodes, size_known = host.fs.tree, host.fs.inodes, trio.Event()

        async def exact_size(*args: object) -> int:
            """As of protocol 1.0, of which it costs a request."""
            await size_known.wait()
            return 7

        monkeypatch.setattr(host.store.reader, "known_size", lambda info: None)
        monkeypatch.setattr(host.store.reader, "exact_size", exact_size)
        found: list[Node] = []

        async def read(*, is_full: bool) -> None:
            stream = tree.open_directory(inodes.root)
            for _, node, _ in await tree.entries(stream, 0):
                if is_full:
                    inodes.release(node)
                else:
                    node.lookups += 1
                    found.append(node)
            tree.close_directory(stream)

        async with trio.open_nursery() as nursery:
            for is_full in (True, False, True):
                nursery.start_soon(partial(read, is_full=is_full))
            await trio.testing.wait_all_tasks_blocked(0.1)
            size_known.set()
        assert [inodes.get(node.ino) for node in found] == found
        assert len(found) == 3


async def test_a_file_hidden_by_a_directory_of_its_name_outlives_the_directory(
    service: Service,
) -> None:
    service.sdk.upload_blob("name", b"a file of another tool")
    async with service.host() as host:
        service.sdk.upload_blob("name/entry", b"")
        await host.unlink("name/entry")
    assert service.names() == ["name"]


async def test_changing_a_directory_leaves_the_file_that_it_hides_alone(
    service: Service,
) -> None:
    service.sdk.upload_blob("name", b"a file of another tool", metadata={"k": "v"})
    service.sdk.upload_blob("name/entry", b"")
    async with service.host() as host:
        node = await host.node("name")
        with failing(errno.EEXIST):
            await host.fs.metadata.set(node, Changes(mode=0o700), by_handle=False)
        await host.unlink("name/entry")
        with pytest.raises(BlobfsError):
            await host.rmdir("name")
    blob = service.sdk.get_blob_client("name")
    assert blob.download_blob().readall() == b"a file of another tool"
    assert blob.get_blob_properties().metadata == {"k": "v"}


async def test_a_file_deleted_by_others_while_it_was_written_is_kept_beside_its_name(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.write("file", b"before")
        handle = await host.open("file", os.O_RDWR | os.O_TRUNC)
        await host.fs.files.write(handle, 0, b"ours")
        service.sdk.delete_blob("file")
        with failing(errno.ESTALE):
            await host.close(handle)
        assert host.recovery_files() == []
        (aside,) = service.names()
        assert await host.read(aside) == b"ours"


# --- failing commits -----------------------------------------------------------------------


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
        theirs = await others.open("file", os.O_WRONLY | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"theirs")
        await others.close(theirs)
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
                writing = await host.open("file", os.O_WRONLY | os.O_TRUNC)
                await host.fs.files.write(writing, 0, b"2" * 600_000)
                await host.close(writing)
                committed.set()
        assert results == [b"2" * 600_000]
        await host.close(reading)


# --- directories ---------------------------------------------------------------------------


async def test_a_listing_never_outlives_its_directory(service: Service) -> None:
    # Inode numbers come from paths, and a renamed directory keeps its own.
    async with service.host(ttl=3600) as host:
        await host.mkdir("first")
        await host.write("first/file", b"1")
        await host.rename("first", "second")
        moved = await host.node("second")
        assert await host.entries("second") == ["file"]
        for node in [*moved.children.values(), moved]:
            host.fs.inodes.forget(node.ino, node.lookups)
        await host.mkdir("first")
        assert await host.entries("first") == []


async def test_a_directory_rename_that_fails_half_way_loses_nothing(service: Service) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        for name in "abc":
            await host.write(f"dir/{name}", name.encode())
        writing = await host.open("dir/a", os.O_RDWR | os.O_TRUNC)
        await host.fs.files.write(writing, 0, b"changed")
        with host.faults.denied(operation("DELETE", "/dir/b")), failing(errno.EACCES):
            await host.rename("dir", "new")
        await host.close(writing)
    async with service.host() as other:
        found = [
            (name, await other.read(f"{directory}/{name}"))
            for directory in await other.entries()
            for name in await other.entries(directory)
        ]
        assert found == [("a", b"changed"), ("b", b"b"), ("c", b"c")]


async def test_renames_of_a_directory_and_of_one_below_it_at_once_agree(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.mkdir("dir/sub")
        for number in range(8):
            await host.write(f"dir/sub/{number}", b"%d" % number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.rename, "dir", "new")
            nursery.start_soon(host.rename, "dir/sub", "dir/sub2")
    files = [name for name in service.names() if name[-1].isdigit() and name[-2] == "/"]
    assert files == [f"new/sub2/{number}" for number in range(8)]


async def test_a_listing_from_before_a_conflict_does_not_bring_the_old_version_back(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.write("file", b"old")
        assert await ours.entries() == ["file"]
        writing = await ours.open("file", os.O_RDWR | os.O_TRUNC)
        await ours.fs.files.write(writing, 0, b"ours")
        theirs = await others.open("file", os.O_RDWR | os.O_TRUNC)
        await others.fs.files.write(theirs, 0, b"theirs")
        await others.close(theirs)
        with failing(errno.ESTALE):
            await ours.close(writing)
        reading = await ours.open("file")
        assert "file" in await ours.entries()
        assert await ours.read("file") == b"theirs"
        assert await ours.read_all(reading) == b"theirs"
        assert (await ours.node("file")).size == len(b"theirs")


async def test_a_lookup_during_a_directory_rename_does_not_lose_open_files(
    service: Service,
) -> None:
    async with service.host(cache_size=1) as host:
        await host.mkdir("dir")
        await host.write("dir/file", b"content")
        directory = await host.node("dir")
        reading = await host.open("dir/file")
        resume = trio.Event()
        found: list[Node] = []

        async def look_up() -> None:
            found.append(await host.fs.tree.lookup(directory, "file"))

        with host.faults.delayed(operation("PUT", "/new", comp="metadata"), resume):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, "dir", "new")
                await host.faults.met.wait()
                assert service.names() == ["new", "new/file"]
                nursery.start_soon(look_up)
                await trio.testing.wait_all_tasks_blocked(0.1)
                resume.set()
        assert found == [host.fs.inodes.handle(reading).node]
        assert await host.read_all(reading) == b"content"
        await host.close(reading)


async def test_tags_that_others_give_a_file_between_two_commits_of_it_stay(
    service: Service,
) -> None:
    async with service.host() as host:
        handle = await host.create("file", b"one")
        await host.fs.files.flush(handle)
        blob = service.sdk.get_blob_client("file")
        blob.set_blob_tags({"team": "storage"})
        await host.fs.files.write(handle, 3, b"two")
        await host.close(handle)
        assert await host.read("file") == b"onetwo"
        assert blob.get_blob_tags() == {"team": "storage"}


# --- the spool -----------------------------------------------------------------------------


async def test_a_full_spool_refuses_the_write_and_loses_nothing_else(service: Service) -> None:
    async with service.host(memory=2 * PAGE, spool=2 * PAGE + 100) as host:
        handle = await host.create("file")
        written = bytearray()
        with failing(errno.ENOSPC):
            for number in range(20):
                page = bytes([number]) * PAGE
                await host.fs.files.write(handle, len(written), page)
                written += page
        await host.close(handle)
        assert (await host.read("file"))[: len(written)] == written
        other = await host.create("other", b"1" * 3 * PAGE)  # there is room again
        await host.close(other)


# --- sizes, holes, and what the spool does -------------------------------------------------

EDGES = [64 * KIB, PAGE, 2 * PAGE]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and the largest Put Blob are of one page, so that small files have all edges."""
    for name in (
        "writer.BLOCK",
        "writer.SINGLE_PUT",
        "fs.files.SINGLE_PUT",
        "fs.commit.SINGLE_PUT",
    ):
        monkeypatch.setattr(f"blobfs.{name}", PAGE)


@pytest.mark.parametrize("size", [edge + by for edge in EDGES for by in (-1, 0, 1)])
@pytest.mark.usefixtures("small_blocks")
async def test_overwriting_growing_and_cutting_at_the_edges_of_blocks(
    service: Service, size: int
) -> None:
    model = bytearray(numbered(size))
    async with service.host(cache_size=1) as host:
        handle = await host.create("file", bytes(model))
        await host.fs.files.flush(handle)
        for offset, data in [(0, b"head"), (size - 2, b"tail!"), (size + 300_000, b"beyond")]:
            await host.fs.files.write(handle, offset, data)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        assert await host.read_all(handle) == model
        await host.close(handle)
        assert await host.read("file") == model
        node = await host.node("file")
        for cut, grown in [(size, size + 70_000), (size - 1, size), (5, PAGE + 1)]:
            handle = await host.open("file", os.O_RDWR)
            for length in (cut, grown):
                await host.fs.metadata.set(node, Changes(size=length), by_handle=True)
                model = model[:length] + bytes(max(0, length - len(model)))
            assert await host.read_all(handle) == model
            await host.close(handle)
            assert await host.read("file") == model


@pytest.mark.usefixtures("small_blocks")
async def test_blocks_staged_before_their_content_changes_are_never_committed(
    service: Service,
) -> None:
    model = bytearray(numbered(3 * PAGE + 5))
    async with service.host() as host:
        handle = await host.create("file")
        for offset in range(0, len(model), PAGE):
            await host.fs.files.write(handle, offset, bytes(model[offset : offset + PAGE]))
        staged = (await host.node("file")).upload
        assert staged is not None
        assert staged.staged >= 2 * PAGE
        await host.fs.files.write(handle, 0, b"changed")
        model[:7] = b"changed"
        await host.close(handle)
        assert await host.read("file") == model


@pytest.mark.usefixtures("small_blocks")
async def test_a_file_is_written_on_after_a_block_was_refused(
    service: Service,
) -> None:
    # Regions that do not fill pages: the page that a block ends in has yet to grow.
    model = numbered(700_000)
    gc.disable()  # nothing is freed but by its last reference
    try:
        async with service.host(region_size=100_000) as host:
            handle = await host.create("file")
            with host.faults.denied(operation("PUT", "file", comp="block")):
                for offset in range(0, 600_000, 50_000):
                    await host.fs.files.write(handle, offset, model[offset : offset + 50_000])
                    await trio.testing.wait_all_tasks_blocked(0.05)
            await host.fs.files.write(handle, 600_000, model[600_000:])
            await host.close(handle)
            assert await host.read("file") == model
    finally:
        gc.enable()


def numbered(size: int) -> bytes:
    """Bytes that are the same at no two offsets that a mistake would take for one another."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


# --- the end of a mount --------------------------------------------------------------------


@pytest.mark.mount
def test_a_terminated_mount_stores_what_is_still_open(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with mounted(azurite, container, tmp_path) as mount:
        new = os.open(mount.path / "new", os.O_CREAT | os.O_RDWR)
        (mount.path / "old").write_bytes(PLAINTEXT_MARKER + b"before")
        old = os.open(mount.path / "old", os.O_RDWR)
        os.pwrite(new, PLAINTEXT_MARKER + b"new", 0)
        os.pwrite(old, b"after!", len(PLAINTEXT_MARKER))
        os.kill(mount.pid, signal.SIGTERM)
        assert mount._process is not None
        assert mount._process.wait(30) == 0
        for descriptor in (new, old):
            with suppress(OSError):  # the mount under it is gone
                os.close(descriptor)
        mount.start()
        assert (mount.path / "new").read_bytes() == PLAINTEXT_MARKER + b"new"
        assert (mount.path / "old").read_bytes() == PLAINTEXT_MARKER + b"after!"
