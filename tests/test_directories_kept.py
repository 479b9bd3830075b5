"""Directories that others remove, or a rename moves, while something is put into them or taken out.

What this mount is changing stays in its tree, so that it can be stored or kept. As in
`test_adversarial`, without a kernel.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial

import pytest
import trio
import trio.testing

from blobfs.attributes import INTENT_KEY, Kind
from blobfs.content import Content
from blobfs.errors import BlobfsError, errno_of
from blobfs.fs import Changes
from blobfs.inodes import Node
from blobfs.reader import Reach
from tests.bare_host import (
    CALLER,
    Host,
    Service,
    eventually,
    failing,
    listing_of,
    operation,
)


async def set_mode(host: Host, path: str, mode: int) -> None:
    node = await host.node(path)
    await host.fs.metadata.set(node, Changes(mode=mode), by_handle=False)
    await host.fs.metadata.save(node)


async def waited_for(node: Node) -> None:
    """Until somebody waits for the node's lock."""
    await eventually(lambda: bool(node.lock and node.lock.statistics().tasks_waiting))


async def test_who_looks_up_a_directory_at_the_end_of_its_rename_does_not_take_it_away(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("dir/file", b"content")
        writing = await host.open("dir/file", os.O_WRONLY)
        go = trio.Event()
        with host.faults.delayed(operation("PUT", "/new", comp="metadata"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, "dir", "new")
                await host.faults.met.wait()
                assert service.names() == ["new", "new/file"]
                await host.node("dir")  # as the kernel does for who is in it, without a lock
                go.set()
        await host.fs.files.write(writing, 0, b"CONTENT")
        await host.close(writing)
        assert await host.read("new/file") == b"CONTENT"
        with failing(errno.ENOENT):
            await host.node("dir")


@pytest.mark.parametrize("is_dirty", [True, False])
async def test_a_directory_that_others_remove_stays_while_a_file_is_renamed_into_it(
    service: Service, is_dirty: bool
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("file", b"before")
        writing = await host.open("file", os.O_WRONLY)
        if is_dirty:
            await host.fs.files.write(writing, 0, b"after!")
        go = trio.Event()
        with host.faults.delayed(operation("PUT", "/dir/file"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, "file", "dir/file")
                await host.faults.met.wait()
                service.sdk.delete_blob("dir")
                await host.node("dir")
                go.set()
        await host.close(writing)
        assert await host.read("dir/file") == (b"after!" if is_dirty else b"before")
    assert service.names() == ["dir/file"]


async def test_so_it_does_while_another_is_made_in_it(service: Service) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        parent, go = await host.node("dir"), trio.Event()
        with host.faults.delayed(operation("PUT", "/dir/sub"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.mkdir, "dir/sub")
                await host.faults.met.wait()
                service.sdk.delete_blob("dir")
                await host.node("dir")
                go.set()
        assert await host.node("dir") is parent
        await host.write("dir/sub/file", b"content")
    assert service.names() == ["dir/sub", "dir/sub/file"]


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("dir", lambda host: host.rmdir("dir"), errno.ENOENT),
        ("file", lambda host: host.rename("draft", "file"), errno.ESTALE),
        ("file", lambda host: host.unlink("file"), errno.ENOENT),
    ],
    ids=["rmdir", "rename", "unlink"],
)
async def test_what_others_remove_while_its_lock_is_waited_for_is_not_there(
    service: Service, name: str, change: Callable[[Host], Awaitable[None]], error: int
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("file", b"")
        writing = await host.create("draft", b"content")
        node = await host.node(name)

        async def refused() -> None:
            with failing(error):
                await change(host)

        async with trio.open_nursery() as nursery, host.store.locked(node):
            nursery.start_soon(refused)
            await waited_for(node)
            service.sdk.delete_blob(name)
            with failing(errno.ENOENT):
                await host.node(name)
        await host.close(writing)
        assert await host.read("draft") == b"content"


async def test_what_is_written_while_others_remove_the_directory_is_kept_aside(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("dir/file", bytes(1000))
        writing, go = await host.open("dir/file", os.O_WRONLY), trio.Event()
        with host.faults.late(operation("GET", "/dir/file"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.fs.files.write, writing, 100, b"ours")
                await host.faults.carried_out.wait()
                service.sdk.delete_blob("dir/file")
                service.sdk.delete_blob("dir")
                await host.node("dir")
                go.set()
        with failing(errno.ESTALE):
            await host.close(writing)
        (aside,) = service.names()
        assert await host.read(aside) == bytes(100) + b"ours" + bytes(896)


async def test_so_is_what_is_cut_while_a_key_is_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = trio.Event(), trio.Event()
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("dir/file", bytes(1000))
        writing, node = await host.open("dir/file", os.O_WRONLY), await host.node("dir/file")
        content = host.store.content

        async def slow(node: Node, reach: Reach | None = None) -> Content:
            asked.set()
            await go.wait()
            return await content(node, reach)

        monkeypatch.setattr(host.store, "content", slow)
        cut = partial(host.fs.metadata.set, node, Changes(size=500), by_handle=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            await asked.wait()
            service.sdk.delete_blob("dir/file")
            service.sdk.delete_blob("dir")
            await host.node("dir")
            go.set()
        monkeypatch.undo()
        with failing(errno.ESTALE):
            await host.close(writing)
        assert len(host.recovery_files()) == 1  # that it was cut: what is left of it is gone


async def test_a_file_that_is_made_while_others_remove_the_directory_is_stored_in_it(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        parent, go = await host.node("dir"), trio.Event()
        handles: list[int] = []

        async def create() -> None:
            node = await host.fs.names.create(parent, "file", 0o644, CALLER)
            handles.append(host.fs.files.create(node, os.O_RDWR))

        with host.faults.late(listing_of("dir"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(create)
                await host.faults.carried_out.wait()
                service.sdk.delete_blob("dir")
                go.set()
                with suppress(BlobfsError):
                    await host.node("dir")
        await host.close(handles[0])
    assert service.names() == ["dir/file"]


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_directory_in_which_an_open_file_was_deleted_by_others_goes_unless_it_is_written(
    service: Service, is_written: bool
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await set_mode(host, "dir", 0o700)
        await host.write("dir/file", b"theirs")
        writing, go = await host.open("dir/file", os.O_WRONLY | os.O_TRUNC), trio.Event()
        await host.fs.files.flush(writing)
        service.sdk.delete_blob("dir/file")

        async def remove() -> None:
            with failing(errno.ENOTEMPTY) if is_written else nullcontext():
                await host.rmdir("dir")

        with host.faults.delayed(operation("DELETE", "/dir"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove)
                await host.faults.met.wait()
                if is_written:
                    await host.fs.files.write(writing, 0, b"ours")
                go.set()
        with failing(errno.ESTALE):
            if is_written:
                await host.fs.files.flush(writing)
            else:
                await host.fs.files.write(writing, 0, b"ours")
        await host.fs.files.release(writing)
        if not is_written:
            assert service.names() == []
            return
        (aside,) = await host.entries("dir")
        assert await host.read(f"dir/{aside}") == b"ours"
    async with service.host() as other:
        assert (await other.node("dir")).attrs.mode == 0o700


async def test_a_rename_is_not_taken_up_again_over_what_was_written_into_its_target_since(
    service: Service,
) -> None:
    service.sdk.upload_blob("new", b"", metadata={"hdi_isfolder": "true", INTENT_KEY: "dir"})
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("dir/file", b"content")
        writing = await host.create("new/draft", b"draft")
        with failing(errno.ENOTEMPTY):
            await host.rename("dir", "new")
        await host.close(writing)
        await host.unlink("new/draft")
        await host.rename("dir", "new")
    assert service.names() == ["new", "new/file"]


async def test_a_directory_with_something_unsaved_below_keeps_its_marker(service: Service) -> None:
    async with service.host() as host, service.host() as others:
        await host.mkdir("dir")
        await host.mkdir("dir/sub")
        await set_mode(host, "dir", 0o700)
        await host.mkdir("source")
        writing = await host.create("dir/sub/file", b"ours")
        await others.rmdir("dir/sub")
        before = service.names()
        with failing(errno.ENOTEMPTY):
            await host.rmdir("dir")
        with failing(errno.ENOTEMPTY):
            await host.rename("source", "dir")
        assert service.names() == before
        await host.close(writing)
    assert service.names() == ["dir", "dir/sub/file", "source"]


@pytest.mark.parametrize(
    ("old", "new"), [("dir/s", "new/sub/deep"), ("new/sub/deep", "dir/s")], ids=["into", "out of"]
)
async def test_a_file_is_renamed_between_a_directory_and_what_that_is_to_replace(
    service: Service, old: str, new: str
) -> None:
    """Each waits for something of the other's, but not for ever."""
    service.sdk.upload_blob("new", b"", metadata={"hdi_isfolder": "true", INTENT_KEY: "dir"})
    async with service.host(ttl=60, timeout=120) as host:
        for path in ("dir", "dir/s", "new/sub", "new/sub/deep"):
            await host.mkdir(path)
        await host.write(f"{old}/file", b"before")
        writing = await host.open(f"{old}/file", os.O_WRONLY)
        await host.fs.files.write(writing, 0, b"after!")
        directory, node, go = await host.node("dir"), await host.node(f"{old}/file"), trio.Event()
        results: list[object] = []

        async def rename(old: str, new: str) -> None:
            try:
                results.append(await host.rename(old, new))
            except BlobfsError as exc:
                results.append(errno_of(exc))

        with trio.fail_after(60), host.faults.delayed(operation("PUT", f"/{old}/file"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.fs.files.flush, writing)
                await host.faults.met.wait()
                nursery.start_soon(rename, f"{old}/file", f"{new}/file")
                await waited_for(node)
                nursery.start_soon(rename, "dir", "new")
                await eventually(lambda: directory.moving is not None)
                go.set()
        await host.close(writing)
        assert None in results
        found = [name for name in service.names() if name.endswith("file")]
        assert [await host.read(name) for name in found] == [b"after!"]


async def test_a_directory_that_is_filled_while_it_is_read_is_in_the_listing(
    service: Service,
) -> None:
    for name in "abc":
        service.sdk.upload_blob(f"{name}/file", b"")
    async with service.host(ttl=60) as host:
        assert await host.entries() == ["a", "b", "c"]
        go = trio.Event()
        with host.faults.delayed(operation("PUT", "/sub"), go):
            async with trio.open_nursery() as nursery:
                for name in "abc":
                    nursery.start_soon(host.mkdir, f"{name}/sub")
                await eventually(lambda: host.faults.hits == 3)
                stream = host.fs.tree.open_directory(host.fs.inodes.root)
                (first, *_) = await host.fs.tree.entries(stream, 0)  # all that the kernel takes
                go.set()
        rest = await host.fs.tree.entries(stream, first[2])
        host.fs.tree.close_directory(stream)
        assert sorted(name for name, _, _ in [first, *rest]) == ["a", "b", "c"]


async def test_what_is_made_in_a_directory_goes_by_a_marker_that_comes_with_its_listing(
    service: Service,
) -> None:
    marker = {"hdi_isfolder": "true", "permissions": str(0o42750), "posix_group": "77"}
    service.sdk.upload_blob("dir/", b"", metadata=marker)
    async with service.host(ttl=60) as host:
        parent = await host.node("dir")
        assert not parent.is_stored
        await host.mkdir("dir/sub")
        made = (await host.node("dir/sub")).attrs
        assert (parent.attrs.mode, made.mode & 0o2000, made.gid) == (0o2750, 0o2000, 77)


async def test_an_answer_from_before_does_not_take_away_a_directory_that_was_filled(
    service: Service,
) -> None:
    async with service.host(ttl=60) as host:
        await host.mkdir("dir")
        parent, go = await host.node("dir"), trio.Event()
        service.sdk.delete_blob("dir")
        host.store.listings.drop(host.fs.inodes.root)
        with host.faults.late(listing_of(""), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.entries)
                await host.faults.carried_out.wait()
                await host.fs.names.make_empty(parent, "sub", Kind.DIRECTORY, 0o755, CALLER)
                go.set()
        parent.fresh_until = 0.0
        assert await host.node("dir") is parent


async def test_a_directory_is_not_renamed_onto_one_that_others_have_removed_meanwhile(
    service: Service,
) -> None:
    async with service.host() as host:
        await host.mkdir("dir")
        await host.mkdir("other")
        await host.mkdir("target")
        go = trio.Event()

        async def refused() -> None:
            with failing(errno.ESTALE):
                await host.rename("dir", "target")

        with host.faults.delayed(operation("PUT", "/elsewhere"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, "other", "elsewhere")
                await host.faults.met.wait()
                nursery.start_soon(refused)
                await eventually(lambda: host.fs.names._moving.statistics().tasks_waiting == 1)
                service.sdk.delete_blob("target")
                with failing(errno.ENOENT):
                    await host.node("target")
                go.set()
        assert await host.entries() == ["dir", "elsewhere"]


async def test_what_is_written_into_what_a_rename_replaces_waits_for_its_end(
    service: Service,
) -> None:
    service.sdk.upload_blob("new", b"", metadata={"hdi_isfolder": "true", INTENT_KEY: "dir"})
    async with service.host(ttl=60) as host:
        await host.mkdir("dir")
        await host.write("dir/file", b"content")
        source = service.sdk.get_blob_client("dir/file")
        service.sdk.get_blob_client("new/file").start_copy_from_url(source.url)
        writing, go = await host.open("new/file", os.O_WRONLY), trio.Event()

        results: list[int] = []

        async def write() -> None:
            try:
                results.append(await host.fs.files.write(writing, 0, b"late"))
            except BlobfsError as exc:
                results.append(-errno_of(exc))

        with host.faults.delayed(operation("PUT", "/new", comp="metadata"), go):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rename, "dir", "new")
                await host.faults.met.wait()
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked(0.01)  # it sends nothing
                go.set()
        assert results == [-errno.ESTALE]
        await host.close(writing)
        assert await host.read("new/file") == b"content"
    assert service.names() == ["new", "new/file"]
