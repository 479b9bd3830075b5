"""Ways to lose bytes, to serve wrong ones or to end the mount, each tried on purpose.

The file system runs in the test's own process, as the kernel would use it, over Azurite and a
connection that fails on demand.

More of them: `test_changed_by_others`, `test_directories` and `test_unstored`.
"""

import errno
import gc
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfs.draft import PAGE
from blobfs.fs import Changes
from tests.azurite import Azurite
from tests.bare_host import KIB, Service, failing, operation
from tests.mounts import PLAINTEXT_MARKER, mounted

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
        copy = operation("PUT", "/old", comp="")
        with host.faults.unreachable(copy), failing(errno.EIO):
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
