"""Others delete, replace or change blobs that this mount uses.

As in `test_adversarial`, without a kernel.
"""

import errno
import itertools
import math
import os

import pytest
import trio

from blobfs.envelope import SEAL_KEY
from blobfs.fs import Changes
from blobfs.writer import SINGLE_PUT
from tests.bare_host import CALLER, Host, Service, failing, operation


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


@pytest.mark.parametrize("view", ["x", "azure.metadata.x", "azure.tag.x", "azure.content_type"])
async def test_so_are_changes_of_its_extended_attributes(service: Service, view: str) -> None:
    name = f"user.{view}".encode()
    async with service.host(ttl=60) as host:
        await host.write("file", b"before")
        reading = await host.open("file")
        node = await host.node("file")
        await host.fs.metadata.set_xattr(node, name, b"before")
        await host.fs.metadata.save(node)
        service.sdk.delete_blob("file")
        host.store.distrust(node)
        with failing(errno.ENOENT):
            await host.node("file")
        with failing(errno.ESTALE):
            await host.fs.metadata.set_xattr(node, name, b"afterwards")
        with failing(errno.ESTALE):
            await host.fs.metadata.remove_xattr(node, name)
        await host.close(reading)


async def test_who_may_write_and_has_nothing_unsaved_does_not_hide_what_others_store(
    service: Service,
) -> None:
    async with service.host() as ours, service.host() as others:
        handle = await ours.create("file", b"ours")
        await ours.fs.files.fsync(handle)
        await others.overwrite("file", b"theirs")
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
        await others.overwrite("file", b"B" * 100_000)
        second = await ours.open("file")
        assert await ours.fs.files.read(second, 0, 10) == b"B" * 10
        nodes = {ours.fs.inodes.handle(handle).node.ino for handle in (first, second)}
        assert len(nodes) == 2
        assert await ours.fs.files.read(first, 70_000, 10) == b"A" * 10
        await ours.close(first)
        await ours.close(second)


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


@pytest.mark.parametrize("name", ["file", "n" * 255, "é" * 127], ids=["short", "long", "é"])
async def test_a_file_deleted_by_others_while_it_was_written_is_kept_beside_its_name(
    service: Service, name: str
) -> None:
    async with service.host() as host:
        await host.write(name, b"before")
        handle = await host.open(name, os.O_RDWR | os.O_TRUNC)
        await host.fs.files.write(handle, 0, b"ours")
        service.sdk.delete_blob(name)
        with failing(errno.ESTALE):
            await host.close(handle)
        assert host.recovery_files() == []
        (aside,) = service.names()
        assert await host.entries() == [aside]
        assert aside.startswith(name[:100])
        assert await host.read(aside) == b"ours"


LARGE = b"ours" * (SINGLE_PUT // 4 + 1)
"""Stored in blocks: what others store under the name makes Azure drop those staged for it."""


async def test_blocks_that_are_gone_are_staged_again_where_ours_is_to_replace_theirs(
    service: Service,
) -> None:
    async with service.host(overwrite=True) as host, service.host() as others:
        await host.write("file", b"before")
        handle, go = await host.open("file", os.O_RDWR | os.O_TRUNC), trio.Event()
        await host.fs.files.write(handle, 0, LARGE)
        with host.faults.delayed(operation("PUT", "/file", comp="blocklist"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.close, handle)
                await host.faults.met.wait()
                await others.overwrite("file", b"theirs")
                go.set()
        assert await host.read("file") == LARGE
    assert service.names() == ["file"]


async def test_so_they_are_of_a_new_file_of_which_others_had_one_for_a_moment(
    service: Service,
) -> None:
    async with service.host() as host, service.host() as others:
        handle, go = await host.create("file", LARGE), trio.Event()
        with host.faults.delayed(operation("PUT", "/file", comp="blocklist"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.close, handle)
                await host.faults.met.wait()
                await others.write("file", LARGE)
                await others.unlink("file")
                go.set()
        assert await host.read("file") == LARGE
    assert service.names() == ["file"]


async def test_a_listing_from_before_a_conflict_does_not_bring_the_old_version_back(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.write("file", b"old")
        assert await ours.entries() == ["file"]
        writing = await ours.open("file", os.O_RDWR | os.O_TRUNC)
        await ours.fs.files.write(writing, 0, b"ours")
        await others.overwrite("file", b"theirs")
        with failing(errno.ESTALE):
            await ours.close(writing)
        reading = await ours.open("file")
        assert "file" in await ours.entries()
        assert await ours.read("file") == b"theirs"
        assert await ours.read_all(reading) == b"theirs"
        assert (await ours.node("file")).size == len(b"theirs")


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


@pytest.mark.parametrize("call", ["write", "rename"])
async def test_tags_that_others_set_between_our_writes_stay(service: Service, call: str) -> None:
    """Our own writes, however often, do not tell what tags there are."""
    async with service.host(ttl=3600) as host:
        await host.write("file", b"1")
        node = await host.node("file")
        node.fresh_until = 0.0  # long ago
        await host.overwrite("file", b"2")
        service.sdk.get_blob_client("file").set_blob_tags({"kept": "yes"})
        node.tags_until = 0.0
        if call == "write":
            await host.overwrite("file", b"3")
        else:
            await host.rename("file", "renamed")
    (name,) = service.names()
    assert service.sdk.get_blob_client(name).get_blob_tags() == {"kept": "yes"}


async def set_xattr(host: Host, path: str, name: str, value: bytes | None) -> None:
    node = await host.node(path)
    if value is None:
        await host.fs.metadata.remove_xattr(node, name.encode())
    else:
        await host.fs.metadata.set_xattr(node, name.encode(), value)
    await host.fs.metadata.save(node)


async def xattrs(host: Host, path: str) -> dict[str, bytes]:
    node = await host.node(path)
    names = await host.fs.metadata.list_xattrs(node)
    return {name.decode(): await host.fs.metadata.get_xattr(node, name) for name in names}


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_extended_attributes_of_two_hosts_are_put_together(
    service: Service, kind: str
) -> None:
    async with service.host(ttl=3600) as ours, service.host(ttl=3600) as others:
        await (ours.mkdir("name") if kind == "directory" else ours.write("name", b"content"))
        for name in ("kept", "changed", "removed", "taken"):
            await set_xattr(ours, "name", f"user.{name}", b"before")
        assert await xattrs(others, "name") == await xattrs(ours, "name")
        await set_xattr(others, "name", "user.theirs", b"new")
        await set_xattr(others, "name", "user.taken", None)
        await set_xattr(ours, "name", "user.ours", b"new")
        await set_xattr(ours, "name", "user.changed", b"after")
        await set_xattr(ours, "name", "user.removed", None)
    async with service.host() as host:
        assert await xattrs(host, "name") == {
            "user.kept": b"before",
            "user.changed": b"after",
            "user.theirs": b"new",
            "user.ours": b"new",
        }


async def test_so_are_those_that_a_commit_or_a_rename_carries(service: Service) -> None:
    async with service.host(ttl=3600) as ours, service.host(ttl=3600) as others:
        for name in ("file", "other"):
            await ours.write(name, b"content")
            await set_xattr(ours, name, "user.kept", b"before")
        writing = await ours.open("file", os.O_WRONLY)
        await ours.fs.files.write(writing, 0, b"CON")
        for name in ("file", "other"):
            node = await ours.node(name)
            await ours.fs.metadata.set_xattr(node, b"user.ours", b"new")  # with what follows
            await set_xattr(others, name, "user.theirs", b"new")
        await ours.close(writing)
        await ours.rename("other", "new")
    async with service.host() as host:
        for name in ("file", "new"):
            assert await xattrs(host, name) == dict.fromkeys(
                ("user.kept", "user.theirs", "user.ours"), b"new"
            ) | {"user.kept": b"before"}
        assert await host.read("file") == b"CONtent"


@pytest.mark.parametrize("kind", ["attribute", "xattr"])
async def test_a_change_that_fails_does_not_take_others_changes_with_it(
    service: Service, kind: str
) -> None:
    """It has been put together with theirs by then, and is tried a second time."""
    times = itertools.count(1)
    put = operation("PUT", comp="metadata")
    async with service.host(ttl=3600) as ours, service.host() as others:
        await ours.write("file", b"content")
        node, theirs = await ours.node("file"), await others.node("file")
        change = ours.fs.metadata
        if kind == "xattr":
            await change.set_xattr(node, b"user.ours", b"1")  # with what follows
            await set_xattr(others, "file", "user.theirs", b"2")
        else:
            await change.set(node, Changes(uid=5), by_handle=False)
            await others.fs.metadata.set(theirs, Changes(mode=0o600), by_handle=False)
            await others.fs.metadata.save(theirs)
        node.committed_at = -math.inf  # too long ago for changes to wait
        with (
            ours.faults.unreachable(lambda request: put(request) and next(times) > 1),
            failing(errno.EIO),
        ):
            if kind == "xattr":
                await change.set_xattr(node, b"user.failed", b"3")
            else:
                await change.set(node, Changes(gid=7), by_handle=False)
        await change.save(node)
    async with service.host() as host:
        if kind == "xattr":
            assert await xattrs(host, "file") == {"user.ours": b"1", "user.theirs": b"2"}
        else:
            attrs = (await host.node("file")).attrs
            assert (attrs.uid, attrs.gid, attrs.mode) == (5, 0, 0o600)


async def test_a_failed_change_of_metadata_does_not_make_others_attributes_ours(
    service: Service,
) -> None:
    times = itertools.count(1)
    put = operation("PUT", comp="metadata")
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.write("file", b"content")
        node = await ours.node("file")

        async def chmod(mode: int) -> None:
            theirs = await others.node("file")
            await others.fs.metadata.set(theirs, Changes(mode=mode), by_handle=False)
            await others.fs.metadata.save(theirs)

        await chmod(0o600)
        with (
            ours.faults.unreachable(lambda request: put(request) and next(times) > 1),
            failing(errno.EIO),
        ):
            await ours.fs.metadata.set_xattr(node, b"user.azure.metadata.key", b"value")
        await chmod(0o640)
        await ours.store.save_overdue(-math.inf)
        assert (await others.node("file")).attrs.mode == 0o640
