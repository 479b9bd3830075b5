"""Directories that are renamed or listed while what is in them is used.

As in `test_adversarial`, without a kernel.
"""

import errno
import os
from functools import partial

import pytest
import trio
import trio.testing

from blobfs.attributes import INTENT_KEY
from blobfs.errors import BlobfsError
from blobfs.fs import Changes
from blobfs.fs.moving import PARALLEL
from blobfs.inodes import Node
from tests.bare_host import (
    Service,
    Wanted,
    failing,
    listing_of,
    operation,
)


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
