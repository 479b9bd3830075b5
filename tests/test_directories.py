"""Directories that are renamed or listed while what is in them is used.

As in `test_adversarial`, without a kernel.
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
from blobfs.fs.moving import PARALLEL
from blobfs.inodes import Node
from blobfs.reader import Reach
from tests.bare_host import (
    CALLER,
    Host,
    Service,
    Wanted,
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


async def test_a_directory_rename_does_not_pass_off_others_content_as_what_was_read(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await others.mkdir("dir")
        await others.write("dir/file", b"A" * 1000)
        reading = await ours.open("dir/file")
        await others.overwrite("dir/file", b"B" * 500)
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
        await others.overwrite("dir/file", b"theirs")
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


async def test_a_directory_rename_carries_what_others_have_just_changed_of_it(
    service: Service,
) -> None:
    async with service.host(ttl=3600) as ours, service.host() as others:
        await ours.mkdir("dir")
        node = await others.node("dir")
        await others.fs.metadata.set(node, Changes(mode=0o700), by_handle=False)
        await others.fs.metadata.save(node)
        await others.fs.metadata.set_xattr(node, b"user.azure.tag.theirs", b"yes")
        await ours.rename("dir", "new")
        node = await others.node("new")
        assert node.attrs.mode == 0o700
        assert await others.fs.metadata.get_xattr(node, b"user.azure.tag.theirs") == b"yes"


@pytest.mark.parametrize(
    "fault",
    [operation("PUT", "/inside"), operation("DELETE", "dir/inside"), operation("PUT", "/new")],
)
async def test_a_directory_rename_that_fails_leaves_the_empty_one_it_was_to_replace_as_it_was(
    service: Service, fault: Wanted
) -> None:
    def stored() -> tuple[object, ...]:
        properties = target.get_blob_properties()
        kind = properties.content_settings.content_type
        return properties.metadata, kind, target.get_blob_tags()

    target = service.sdk.get_blob_client("new")
    async with service.host() as host:
        await host.mkdir("dir")
        await host.write("dir/inside", b"content")
        await host.mkdir("new")
        node = await host.node("new")
        await host.fs.metadata.set(node, Changes(mode=0o700), by_handle=False)
        await host.fs.metadata.save(node)
        await host.fs.metadata.set_xattr(node, b"user.azure.content_type", b"text/x-kept")
        await host.fs.metadata.set_xattr(node, b"user.azure.tag.kept", b"yes")
        before = stored()
        with host.faults.denied(fault), failing(errno.EACCES):
            await host.rename("dir", "new")
        assert stored() == before
        await host.rename("dir", "new")
        assert await host.read("new/inside") == b"content"


async def test_a_directory_rename_that_fails_again_can_still_be_finished(service: Service) -> None:
    """A crash has left the target filled but for one file, with its mark."""
    names = [f"{number:02}" for number in range(3 * PARALLEL)]
    async with service.host() as host:
        await host.mkdir("dir")
        for name in names:
            await host.write(f"dir/{name}", name.encode())
    service.sdk.upload_blob("new", b"", metadata={"hdi_isfolder": "true", INTENT_KEY: "dir"})
    for name in names[1:]:
        source = service.sdk.get_blob_client(f"dir/{name}")
        service.sdk.get_blob_client(f"new/{name}").start_copy_from_url(source.url)
    async with service.host() as host:
        with host.faults.denied(operation("PUT", "new/00")), failing(errno.EACCES):
            await host.rename("dir", "new")
        await host.rename("dir", "new")
        assert await host.entries("new") == names
        assert await host.entries() == ["new"]


async def test_of_two_hosts_that_rename_a_directory_the_later_takes_nothing_back_of_the_other(
    service: Service,
) -> None:
    go = trio.Event()
    async with service.host(ttl=60) as ours, service.host(ttl=60) as others:
        await others.mkdir("dir")
        await others.write("dir/file", b"content")
        node = await others.node("dir")
        await others.fs.metadata.set(node, Changes(mode=0o700), by_handle=False)
        await others.fs.metadata.save(node)
        await ours.node("dir")

        async def rename() -> None:
            with failing(errno.EEXIST):
                await ours.rename("dir", "new")

        copied = trio.Event()
        with (
            ours.faults.delayed(operation("PUT", "/new"), go),
            others.faults.delayed(operation("PUT", "/new/file"), copied),
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rename)
                await ours.faults.met.wait()
                nursery.start_soon(others.rename, "dir", "new")
                await others.faults.met.wait()
                go.set()
                await trio.testing.wait_all_tasks_blocked(0.01)
                copied.set()
    async with service.host() as host:
        assert (await host.node("new")).attrs.mode == 0o700
        assert await host.read("new/file") == b"content"


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
