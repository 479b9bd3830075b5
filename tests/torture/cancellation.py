"""Every operation is cancelled at every point where it waits; nothing is held or torn.

An operation is cancelled at its first wait, then, begun anew, at its second, and so on until it
runs through. After each: nothing is locked or counted as open that is not, no room is taken, no
request runs on, what is stored is the state before or the one after it, and the operation can be
done again.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
import trio.testing

from blobfs.attributes import Kind
from blobfs.errors import BlobfsError
from blobfs.fs import Changes
from tests.bare_host import CALLER, Host, Service
from tests.torture.service import service

OLD, NEW = b"old " * 50_000, b"new " * 50_000
MOST = 400
"""Checkpoints that no operation here has: it would not end."""


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when the task is about to wait for the n-th time; `reached` says it did.

    A task that steps has waited: whatever it awaits next finds the cancellation.
    """

    def __init__(self, number: int) -> None:
        self.scope = trio.CancelScope()
        self.reached = False
        self._task = trio.lowlevel.current_task()
        self._left = number

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task and not self.reached:
            self._left -= 1
            if self._left == 0:
                self.reached = True
                self.scope.cancel()


async def cancelled_at(number: int, operation: Callable[[], Awaitable[object]]) -> bool:
    """Whether the operation was cut short at its n-th wait; its own failure then is no news."""
    instrument = CancelAt(number)
    trio.lowlevel.add_instrument(instrument)
    try:
        with instrument.scope:
            await operation()
            return False
    except BlobfsError:
        if not instrument.reached:
            raise
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return True


def held(host: Host) -> dict[str, object]:
    """What is to be as before when nothing is under way."""
    store = host.store
    return {
        "handles": host.fs.inodes.open_handles,
        "locked": [
            n.path for n in host.fs.inodes if isinstance(n.lock, trio.Lock) and n.lock.locked()
        ],
        "moving": [n.path for n in host.fs.inodes if n.moving is not None],
        "block room": store.blocks.used,
        "single room": store.singles.used,
        "memory": store.pool.memory_used,
        "spool": store.pool.spool.bytes_used,
        "uploads": [n.path for n in host.fs.inodes if n.upload is not None],
        "drafts": [n.path for n in host.fs.inodes if n.draft is not None],
        "hidden": [n.path for n in host.fs.inodes if n.hidden],
        "leaving": [n.path for n in host.fs.inodes if n.leaving is not None],
    }


async def flush(host: Host) -> None:
    await given_up(host, host.fs.files.flush)


async def fsync(host: Host) -> None:
    await given_up(host, host.fs.files.fsync)


async def given_up(host: Host, operation: Callable[[int], Awaitable[None]]) -> None:
    """The operation on a file with unsaved content; the close that follows stores that."""
    with trio.CancelScope(shield=True):
        handle = await host.open("file", os.O_RDWR | os.O_TRUNC)
        await host.fs.files.write(handle, 0, NEW)
    try:
        await operation(handle)
    finally:
        with trio.CancelScope(shield=True):
            await host.close(handle)


async def read(host: Host) -> None:
    with trio.CancelScope(shield=True):
        handle = await host.open("file")
    try:
        assert bytes(await host.fs.files.read(handle, 0, len(OLD))) == OLD
    finally:
        with trio.CancelScope(shield=True):
            await host.close(handle)


async def create(host: Host) -> None:
    parent = host.fs.inodes.root
    node = await host.fs.names.create(parent, "new", 0o644, CALLER)
    with trio.CancelScope(shield=True):
        handle = host.fs.files.create(node, os.O_RDWR)
        await host.close(handle)


async def mkdir(host: Host) -> None:
    await host.fs.names.make_empty(host.fs.inodes.root, "new", Kind.DIRECTORY, 0o755, CALLER)


async def symlink(host: Host) -> None:
    await host.fs.names.symlink(host.fs.inodes.root, "new", b"target", CALLER)


async def chmod(host: Host) -> None:
    await host.fs.metadata.set(await host.node("file"), Changes(mode=0o600), by_handle=False)


async def truncate(host: Host) -> None:
    await host.fs.metadata.set(await host.node("file"), Changes(size=3), by_handle=False)


async def set_xattr(host: Host) -> None:
    await host.fs.metadata.set_xattr(await host.node("file"), b"user.x", b"1")


async def unlink(host: Host) -> None:
    await host.unlink("file")


async def unlink_open(host: Host) -> None:
    with trio.CancelScope(shield=True):
        handle = await host.open("file")
    try:
        await host.unlink("file")
    finally:
        with trio.CancelScope(shield=True):
            await host.close(handle)


async def rename(host: Host) -> None:
    await host.rename("file", "new")


async def replace(host: Host) -> None:
    await host.rename("other", "file")


async def replace_kept(host: Host) -> None:
    """As of a file that others have made: what it replaces is kept until it is done."""
    (await host.node("other")).is_ours = False
    await host.rename("other", "file")


async def rename_directory(host: Host) -> None:
    await host.rename("dir", "new")


async def rmdir(host: Host) -> None:
    await host.rmdir("empty")


async def listing(host: Host) -> None:
    await host.entries()


async def lookup(host: Host) -> None:
    await host.node("dir/inside")


OPERATIONS = {
    function.__name__: function
    for function in (
        *(flush, fsync, read, create, mkdir, symlink, chmod, truncate, set_xattr),
        *(unlink, unlink_open, rename, replace, replace_kept, rename_directory, rmdir),
        *(listing, lookup),
    )
}


async def prepare(host: Host) -> None:
    """The same files each time, whatever the last operation has left."""
    for name in ("new/inside", "dir/inside", "file", "other", "new"):
        with suppress(BlobfsError):
            await host.unlink(name)
    for name in ("dir", "new"):
        with suppress(BlobfsError):
            await host.rmdir(name)
    for name in ("dir", "empty"):
        with suppress(BlobfsError):
            await host.mkdir(name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.write, "file", OLD)
        nursery.start_soon(host.write, "other", NEW)
        nursery.start_soon(host.write, "dir/inside", OLD)


async def contents(host: Host) -> dict[str, bytes]:
    found = {}
    for name in ("file", "other", "new", "dir/inside", "new/inside"):
        with suppress(BlobfsError):
            found[name] = await host.read(name)
    return found


async def given_up_everywhere(place: Service, name: str, seed: int, stride: int) -> int:
    """How many waits of the operation were tried: the first, and each `stride`-th on average.

    Raises AssertionError.
    """
    operation = OPERATIONS[name]
    chance = random.Random(f"{seed}-{name}")
    number, tried = 1, 0
    async with place.host(cache_size=1) as host:  # every read asks the service
        while await _given_up_at(number, name, operation, host):
            tried += 1
            number += chance.randint(1, 2 * stride - 1)
            assert number < MOST, f"{name} never runs through"
    assert tried, f"{name} does not wait at all"
    return tried


async def _given_up_at(
    number: int, name: str, operation: Callable[[Host], Awaitable[None]], host: Host
) -> bool:
    """Whether the operation waits so often; if so it was cut there, and all is as it should be."""
    where = f"{name}, cancelled at {number}"
    await prepare(host)
    before = await contents(host)
    await trio.testing.wait_all_tasks_blocked(0.01)
    idle = held(host)
    cut = await cancelled_at(number, lambda: operation(host))
    await settled(host, idle, where)
    after = await contents(host)
    for path in before.keys() | after.keys():
        whole = (None, b"", OLD, NEW, OLD[:3], b"target")
        assert after.get(path) in whole, f"{where}: {path} is a mixture"
    assert NEW in after.values(), f"{where}: what was to replace a file is lost"
    if not name.startswith(("unlink", "replace", "truncate", "flush", "fsync")):
        assert list(after.values()).count(OLD) >= 2, f"{where}: a file is lost"
    return cut


async def settled(host: Host, idle: dict[str, object], where: str) -> None:
    """Nothing is held, at the latest when what was begun in the background has ended."""
    with trio.move_on_after(10):
        while held(host) != idle:
            await trio.sleep(0.01)
            if held(host)["hidden"]:
                await host.fs.files.retry()  # what a mount does every 10 seconds
    assert held(host) == idle, where
    host.store.inodes.check()


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    with service() as (azurite, folder):
        while not figures or time.monotonic() < until:
            round_folder = folder / f"cancellation-{figures['rounds']}"
            round_folder.mkdir()
            place = Service(azurite, azurite.new_container(), round_folder)
            for name in OPERATIONS:
                figures["cancellations"] += trio.run(given_up_everywhere, place, name, seed, 1)
            figures["rounds"] += 1
    say(f"{len(OPERATIONS)} operations")
    say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
