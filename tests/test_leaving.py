"""What happens to a file whose name goes: by an unlink, or a rename over it.

As in `test_adversarial`, without a kernel.
"""

import errno
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from urllib.parse import unquote

import httpx
import pytest
import trio
import trio.testing
from azure.storage.blob import BlobProperties

from blobfs.attributes import Kind
from blobfs.fs import Changes
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX
from tests.bare_host import Host, Service, Wanted, failing, operation


async def opened(host: Host, node: Node, flags: int = os.O_RDONLY) -> int:
    """As the kernel does that has looked up the name before."""
    handle, _ = await host.fs.files.open(node, flags)
    return handle


async def source_and_target(service: Service) -> None:
    """As others have made them: so the target is kept while the one replaces the other."""
    async with service.host() as others:
        await others.write("source", b"source")
        await others.write("target", b"target")


async def stored(service: Service) -> dict[str, bytes]:
    async with service.host() as others:
        return {
            name: await others.read(name)
            for name in service.names()
            if (await others.node(name)).kind is Kind.FILE
        }


@asynccontextmanager
async def renaming(
    host: Host, stop: Wanted, *codes: int, new: str = "target"
) -> AsyncIterator[None]:
    """`source` is being renamed, and for the block no further than to this request; then it ends,
    with one of these errors or, without any, well."""
    go = trio.Event()

    async def rename() -> None:
        with failing(*codes) if codes else nullcontext():
            await host.rename("source", new)

    with host.faults.delayed(stop, go):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rename)
            await host.faults.met.wait()
            yield
            go.set()


def of_hidden(method: str) -> Wanted:
    return lambda request: (
        request.method == method and HIDDEN_PREFIX.encode() in request.url.raw_path
    )


@pytest.mark.parametrize("is_stored", [True, False])
async def test_what_is_written_to_an_unlinked_file_is_there_until_the_last_close(
    service: Service, is_stored: bool
) -> None:
    async with service.host() as host:
        writing = await host.create("file", b"content")
        if is_stored:
            await host.fs.files.flush(writing)
        node = await host.node("file")
        reading = await host.open("file")
        await host.unlink("file")
        await host.fs.files.write(writing, 7, b", and more")
        await host.close(writing)
        await host.fs.files.flush(reading)  # as of a copy of the descriptor
        await host.fs.files.retry()
        again = await opened(host, node)  # through /proc/PID/fd
        for handle in (reading, again):
            assert await host.read_all(handle) == b"content, and more"
            await host.close(handle)
        assert host.store.pool.memory_used == 0
        assert host.recovery_files() == []
    assert service.names() == []


@pytest.mark.parametrize("call", ["rename over it", "unlink"])
async def test_who_opens_a_file_while_its_name_goes_waits_and_looks_the_name_up_again(
    service: Service, call: str
) -> None:
    async with service.host() as host:
        await host.write("file", b"old")
        await host.write("new", b"new")
        node = await host.node("file")
        go = trio.Event()

        async def open_it() -> None:
            with failing(errno.ESTALE):
                await opened(host, node)

        is_rename = call == "rename over it"
        wanted = operation("PUT", "/file") if is_rename else operation("DELETE", "/file")
        with host.faults.delayed(wanted, go):
            async with trio.open_nursery() as nursery:
                if is_rename:
                    nursery.start_soon(host.rename, "new", "file")
                else:
                    nursery.start_soon(host.unlink, "file")
                await host.faults.met.wait()
                nursery.start_soon(open_it)
                await trio.testing.wait_all_tasks_blocked(0.01)
                go.set()
        assert "file" in service.names() if is_rename else "file" not in service.names()


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_rename_that_is_refused_leaves_what_it_was_to_replace(
    service: Service, is_open: bool
) -> None:
    await source_and_target(service)
    before = service.sdk.get_blob_client("target").get_blob_properties().metadata
    async with service.host(ttl=600) as host:
        reading = await host.open("target") if is_open else None
        lease = service.sdk.get_blob_client("source").acquire_lease()
        with failing(errno.EBUSY):
            await host.rename("source", "target")
        assert await host.read("source") == b"source"
        assert await host.read("target") == b"target"
        if reading is not None:
            assert await host.read_all(reading) == b"target"
            await host.close(reading)
        assert service.names() == ["source", "target"]
        assert service.sdk.get_blob_client("target").get_blob_properties().metadata == before
        lease.release()
        await host.rename("source", "target")
        assert await host.read("target") == b"source"
        await host.fs.files.retry()  # nobody waits for the end of what was kept
    assert service.names() == ["target"]


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_rename_that_is_done_but_for_the_answer_is_not_rolled_back(
    service: Service, is_open: bool
) -> None:
    """The deletion of the source was carried out: the copy is all there is."""
    await source_and_target(service)
    async with service.host(timeout=1) as host:
        reading = await host.open("target") if is_open else None
        answer = trio.Event()
        with host.faults.late(operation("DELETE", "/source"), answer), failing(errno.EIO):
            await host.rename("source", "target")
        if reading is not None:
            assert await host.read_all(reading) == b"target"
            await host.close(reading)
        assert await host.entries() == ["target"]
    assert await stored(service) == {"target": b"source"}


@pytest.mark.parametrize(
    ("old", "new"), [("source", "target"), ("source", "free"), ("directory", "free")]
)
async def test_a_deletion_that_comes_late_does_not_take_what_was_rolled_back_for_it(
    service: Service, old: str, new: str
) -> None:
    """Its answer is given up, and the service carries it out after all."""
    await source_and_target(service)
    async with service.host() as host:
        await host.mkdir("directory")
        await host.write("directory/file", b"file")
    before = service.names()
    wanted = operation("DELETE", "/source" if old == "source" else "directory/file")
    kept: list[httpx.Request] = []
    async with service.host(timeout=1, attempts=1) as host:

        async def keep(request: httpx.Request) -> None:
            kept.append(request)
            raise httpx.ReadError("the connection was cut")

        with host.faults.held(wanted, keep), failing(errno.EIO):
            await host.rename(old, new)
        for request in kept:
            await host.faults.inner.handle_async_request(request)
    assert service.names() == before
    contents = await stored(service)
    assert (contents["source"], contents["target"]) == (b"source", b"target")
    assert contents["directory/file"] == b"file"


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_late", [True, False])
async def test_a_copy_that_is_done_unheard_or_late_does_not_take_what_it_replaces(
    service: Service, is_open: bool, is_late: bool
) -> None:
    await source_and_target(service)
    kept: list[httpx.Request] = []
    copy = operation("PUT", "/target", comp="")
    async with service.host(timeout=1, attempts=1) as host:

        async def lose(request: httpx.Request) -> None:
            kept.append(request)
            if not is_late:
                await host.faults.inner.handle_async_request(request)
            raise httpx.ReadError("the connection was cut")

        reading = await host.open("target") if is_open else None
        with (
            host.faults.held(lambda request: copy(request) and not kept, lose),
            failing(errno.EIO),
        ):
            await host.rename("source", "target")
        if is_late:
            await host.faults.inner.handle_async_request(kept[0])
        if reading is not None:
            assert await host.read_all(reading) == b"target"
            await host.close(reading)
    assert await stored(service) == {"source": b"source", "target": b"target"}


@pytest.mark.parametrize("new", ["target", "free"])
async def test_what_others_make_anew_where_the_source_was_deleted_is_not_taken_for_it(
    service: Service, new: str
) -> None:
    await source_and_target(service)
    first = itertools.count(1)
    deletion = operation("DELETE", "/source")
    async with service.host() as host, service.host() as others:

        async def replace_it(request: httpx.Request) -> None:
            await host.faults.inner.handle_async_request(request)
            await others.write("source", b"another")
            raise httpx.ReadError("the connection was cut")

        with host.faults.held(lambda request: deletion(request) and next(first) == 1, replace_it):
            await host.rename("source", new)
        await host.fs.files.retry()
        contents = await stored(service)
    assert (contents["source"], contents[new]) == (b"another", b"source")


async def test_what_others_store_under_the_new_name_is_not_rolled_back(service: Service) -> None:
    await source_and_target(service)
    service.sdk.get_blob_client("source").acquire_lease()
    stop = operation("DELETE", "/source")
    async with (
        service.host() as ours,
        service.host() as others,
        renaming(ours, stop, errno.EBUSY, new="free"),
    ):
        await others.overwrite("free", b"theirs")
    contents = await stored(service)
    assert (contents["source"], contents["free"]) == (b"source", b"theirs")


async def test_of_two_hosts_that_rename_the_same_neither_loses_it(service: Service) -> None:
    await source_and_target(service)
    async with service.host(ttl=60) as ours, service.host(ttl=60) as others:
        async with renaming(ours, operation("PUT", "/target"), errno.ENOENT, errno.ESTALE):
            await others.rename("source", "target")
        await others.fs.files.retry()
    assert await stored(service) == {"target": b"source"}


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_refused", [True, False])
async def test_who_looks_up_the_names_while_one_replaces_the_other_changes_nothing(
    service: Service, is_open: bool, is_refused: bool
) -> None:
    await source_and_target(service)
    async with service.host() as host:
        reading = await host.open("target") if is_open else None
        if is_refused:
            service.sdk.get_blob_client("source").acquire_lease()
        codes = [errno.EBUSY] if is_refused else []
        async with renaming(host, operation("DELETE", "/source"), *codes):
            await host.node("source")
            await host.node("target")
            await host.entries()
        if reading is not None:
            assert await host.read_all(reading) == b"target"
            await host.close(reading)
        await host.fs.files.retry()
    before = {"source": b"source", "target": b"target"}
    assert await stored(service) == (before if is_refused else {"target": b"source"})


async def test_a_target_whose_attributes_others_have_changed_is_replaced_at_once(
    service: Service,
) -> None:
    await source_and_target(service)
    async with service.host(ttl=60) as ours, service.host() as others:
        await ours.node("source")
        await ours.node("target")
        node = await others.node("target")
        await others.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
        await others.fs.metadata.save(node)
        await ours.rename("source", "target")
        await ours.fs.files.retry()
    assert await stored(service) == {"target": b"source"}


async def test_an_open_file_is_read_on_while_it_is_put_back(service: Service) -> None:
    await source_and_target(service)
    service.sdk.get_blob_client("source").acquire_lease()
    copy, copies = operation("PUT", "/target"), itertools.count(1)
    async with service.host(ttl=60, cache_size=1) as host:
        reading = await host.open("target")
        async with renaming(host, lambda asked: copy(asked) and next(copies) == 2, errno.EBUSY):
            assert await host.read_all(reading) == b"target"
        assert await host.read_all(reading) == b"target"
        await host.close(reading)


async def test_a_target_that_others_delete_meanwhile_leaves_nothing(service: Service) -> None:
    await source_and_target(service)
    service.sdk.get_blob_client("source").acquire_lease()
    async with service.host(ttl=60) as host:
        async with renaming(host, operation("DELETE", "/source"), errno.EBUSY):
            service.sdk.delete_blob("target")
        assert await host.entries() == ["source"]
    assert service.names() == ["source"]


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
async def test_what_others_deleted_before_a_rename_does_not_keep_it_from_being_done(
    service: Service, is_open: bool, is_ours: bool
) -> None:
    await source_and_target(service)
    async with service.host(ttl=60) as host:
        if is_ours:
            await host.unlink("source")
            await host.write("source", b"source")
        await host.node("source")
        reading = await host.open("target")
        if not is_open:
            await host.close(reading)
        service.sdk.delete_blob("target")
        with failing(errno.ESTALE):  # after which the kernel looks both names up, and tries again
            await host.rename("source", "target")
        await host.rename("source", "target")
        assert await host.entries() == ["target"]
        if is_open:
            await host.close(reading)
    assert await stored(service) == {"target": b"source"}


async def test_a_hidden_copy_that_was_made_unheard_is_taken_away(service: Service) -> None:
    await source_and_target(service)
    async with service.host(timeout=1) as host:
        with host.faults.late(of_hidden("PUT"), trio.Event()), failing(errno.EIO):
            await host.rename("source", "target")
    assert await stored(service) == {"source": b"source", "target": b"target"}


async def test_what_cannot_be_made_sure_of_is_kept_and_said(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy may be on its way, and nothing can be asked of the target any more."""
    await source_and_target(service)
    async with service.host() as host:
        reading = await host.open("target")
        with host.faults.unreachable(operation("PUT", "/target")), failing(errno.EIO):
            await host.rename("source", "target")
        await host.close(reading)
        (hidden,) = set(service.names()) - {"source", "target"}
        assert f"{hidden}, what target was before, is left behind" in caplog.text
        assert await host.read("source") == b"source"
        assert await host.read("target") == b"target"


async def test_a_rename_does_not_wait_for_the_end_of_what_was_kept(service: Service) -> None:
    await source_and_target(service)
    go = trio.Event()
    async with service.host() as host:
        node = await host.node("target")

        async def open_it() -> None:
            with failing(errno.ESTALE):
                await opened(host, node)

        with host.faults.delayed(of_hidden("DELETE"), go):
            await host.rename("source", "target")
            async with trio.open_nursery() as nursery:
                await host.faults.met.wait()
                nursery.start_soon(open_it)  # by the name that it had
                await trio.testing.wait_all_tasks_blocked(0.01)
                go.set()
    assert await stored(service) == {"target": b"source"}


@pytest.mark.parametrize("is_heard", [True, False])
async def test_an_unlink_that_is_done_but_for_the_answer_keeps_the_content_for_who_reads_it(
    service: Service, is_heard: bool
) -> None:
    async with service.host(timeout=1, cache_size=1) as host:
        await host.write("file", b"content")
        reading = await host.open("file")
        wanted = operation("DELETE", "/file")
        faults = host.faults.unheard(wanted) if is_heard else host.faults.late(wanted, trio.Event())
        with faults, trio.move_on_after(1), failing(errno.EIO) if is_heard else nullcontext():
            await host.unlink("file")
        assert await host.read_all(reading) == b"content"
        assert await host.entries() == []
        await host.close(reading)
    assert service.names() == []


async def test_a_conflict_of_what_is_to_replace_a_file_is_no_error_that_the_kernel_tries_again(
    service: Service,
) -> None:
    """It would rename what others have stored under the name."""
    async with service.host(ttl=60) as host:
        await host.write("file", b"old")
        writing = await host.create("new", b"ours")
        async with service.host() as others:
            await others.write("new", b"theirs")
        with failing(errno.EIO):
            await host.rename("new", "file")
        await host.close(writing)
    contents = await stored(service)
    assert sorted(contents.values()) == [b"old", b"ours", b"theirs"]
    assert (contents["file"], contents["new"]) == (b"old", b"theirs")


async def test_what_is_not_stored_yet_is_renamed_without_the_right_to_delete(
    service: Service,
) -> None:
    async with service.host() as host:
        root = host.fs.inodes.root
        root.volume = replace(root.volume, may_delete=lambda: False)
        writing = await host.create("file", b"content")
        await host.rename("file", "new")
        await host.close(writing)
    assert await stored(service) == {"new": b"content"}


@pytest.mark.parametrize("new", ["target", "free"])
async def test_without_the_right_to_delete_a_rename_is_refused_before_anything_is_copied(
    service: Service, new: str
) -> None:
    async with service.host() as host:
        await host.write("source", b"source")
        await host.write("target", b"target")
        root = host.fs.inodes.root
        root.volume = replace(root.volume, may_delete=lambda: False)
        with failing(errno.EACCES):
            await host.rename("source", new)
        assert await host.read("target") == b"target"
    assert service.names() == ["source", "target"]


class PendingCopy:
    """The service's answers to the first copy to a blob that never ends: it has no content then."""

    def __init__(self, service: Service, target: str) -> None:
        self._blob = service.sdk.get_blob_client(target)
        self._target = target
        self._status = ""

    def wanted(self, request: httpx.Request) -> bool:
        path, _, query = unquote(request.url.raw_path.decode()).partition("?")
        if not path.endswith(f"/{self._target}"):
            return False
        is_first = not self._status and "x-ms-copy-source" in request.headers
        return is_first or "comp=copy" in query or (request.method == "HEAD" and self._is_there())

    def _is_there(self) -> bool:
        return self._status != "" and self._blob.exists() and not self._properties().size

    def _properties(self) -> BlobProperties:
        return self._blob.get_blob_properties()

    def answer(self, request: httpx.Request) -> httpx.Response:
        if "x-ms-copy-source" in request.headers:
            self._status = "pending"
            self._blob.upload_blob(b"", overwrite=True)
        elif request.method == "PUT":
            self._status = "aborted"
        properties = self._properties()
        return httpx.Response(
            200 if request.method == "HEAD" else 202,
            headers={
                "x-ms-request-id": "1",
                "x-ms-version": "2021-12-02",
                "x-ms-blob-type": "BlockBlob",
                "x-ms-copy-id": "1",
                "x-ms-copy-status": self._status,
                "ETag": properties.etag,
                "Last-Modified": properties.last_modified.strftime("%a, %d %b %Y %H:%M:%S GMT"),
                "Content-Length": "0",
            },
        )


@pytest.mark.parametrize("target", ["target", "free"])
async def test_a_copy_that_the_service_does_not_end_leaves_the_names_as_they_were(
    service: Service, target: str
) -> None:
    await source_and_target(service)
    copy = PendingCopy(service, target)
    async with service.host(timeout=1) as host:
        with host.faults.answered(copy.wanted, copy.answer), failing(errno.EIO):
            await host.rename("source", target)
        assert await host.read("source") == b"source"
        assert await host.read("target") == b"target"
    assert service.names() == ["source", "target"]


async def test_what_replaces_a_file_while_it_is_written_is_stored_first(service: Service) -> None:
    async with service.host() as host:
        await host.write("file", b"old")
        writing = await host.create("new", b"")
        await host.fs.files.flush(writing)  # a child has closed its copy of the descriptor
        await host.fs.files.write(writing, 0, b"whole")
        await host.rename("new", "file")
        async with service.host() as others:  # what there is if the daemon is killed now
            assert await others.read("file") == b"whole"
        await host.close(writing)


async def test_what_the_service_keeps_for_a_moment_is_not_shown(service: Service) -> None:
    await source_and_target(service)
    async with service.host() as host, service.host() as others:
        async with renaming(host, operation("DELETE", "/source")):
            assert [name for name in service.names() if name.startswith(HIDDEN_PREFIX)]
            assert await others.entries() == ["source", "target"]
        await host.fs.files.retry()
    assert service.names() == ["target"]


@pytest.mark.parametrize("size", [0, 3, 100])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
async def test_a_truncate_by_name_that_fails_has_not_happened_whoever_has_the_file_open(
    service: Service, size: int, flags: int
) -> None:
    async with service.host(ttl=600) as host:
        await host.write("file", b"content")
        handle = await host.open("file", flags)
        node = await host.node("file")
        with host.faults.unreachable(), failing(errno.EIO):
            await host.fs.metadata.set(node, Changes(size=size), by_handle=False)
        assert node.size == 7
        assert await host.read_all(handle) == b"content"
        await host.fs.files.retry()
        await host.close(handle)
        async with service.host() as others:
            assert await others.read("file") == b"content"
