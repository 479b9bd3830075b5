"""Two operations on the same files run side by side, and one of them is cancelled.

A deadline cuts an operation short in the middle of what another waits for: a lock, a directory that
is moved, blocks on their way. The two begin some steps apart, and one is cancelled at one of its
waits, as chance says. After each pair:

- nothing is held that was not before, and no content is a mixture (as in `cancellation`);
- the other ran through, or failed with an error that the first's effect explains;
- no file is lost that neither was to delete or write;
- what the host shows from its cache is what a host that asks the service sees.
"""

import errno
import itertools
import math
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from blobfs.errors import BlobfsError, errno_of
from tests.bare_host import Host, Service
from tests.torture import cancellation
from tests.torture.cancellation import NEW, OLD, held, prepare, settled
from tests.torture.service import service

Operation = Callable[[Host], Awaitable[None]]

EXPLAINED = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR),
    *(errno.ESTALE, errno.EBUSY),
}
"""What an operation may be told whose files another moves, deletes or makes meanwhile."""

SERVICE_ENDS = 0.2
"""Seconds in which the service carries out a request that nobody waits for any more: what is asked
before that may be out of date, and is believed for a `metadata_ttl` as all that it says."""

WHOLE = (b"", OLD, NEW, OLD[:3], NEW[:3], b"target")

TAKING = (
    *("unlink", "unlink_open", "replace", "replace_kept", "truncate", "flush", "fsync"),
    *("write_inside", "unlink_inside"),
)


async def _used(host: Host, handle: int, use: Awaitable[object]) -> object:
    """What the use gives; the kernel closes what it has opened, whatever became of that."""
    try:
        return await use
    finally:
        with trio.CancelScope(shield=True):
            await host.close(handle)


async def read(host: Host) -> None:
    handle = await host.open("file")
    assert await _used(host, handle, host.read_all(handle)) in WHOLE


async def read_inside(host: Host) -> None:
    handle = await host.open("dir/inside")
    assert await _used(host, handle, host.read_all(handle)) in WHOLE


async def write_inside(host: Host) -> None:
    handle = await host.open("dir/inside", os.O_WRONLY | os.O_TRUNC)
    await _used(host, handle, host.fs.files.write(handle, 0, NEW))


async def create_inside(host: Host) -> None:
    handle = await host.create("dir/new")
    await _used(host, handle, host.fs.files.write(handle, 0, NEW))


async def unlink_inside(host: Host) -> None:
    await host.unlink("dir/inside")


OPERATIONS: dict[str, Operation] = cancellation.OPERATIONS | {
    function.__name__: function
    for function in (read, write_inside, create_inside, unlink_inside, read_inside)
}

NAMES = (
    {"create", "mkdir", "symlink", "unlink", "unlink_open", "rename", "replace", "replace_kept"}
    | {"rename_directory", "rmdir"},
    {"create_inside", "unlink_inside"},
)
"""What changes names in one directory: the kernel lets one such call through at a time."""

PAIRS = [
    pair
    for pair in itertools.product(OPERATIONS, repeat=2)
    if not any(names.issuperset(pair) for names in NAMES)
]


async def pair(place: Service, host: Host, names: tuple[str, str], chance: random.Random) -> bool:
    """Whether the first of the two was cancelled. Raises AssertionError."""
    number, apart = chance.randint(1, 12), chance.randint(-10, 10)
    where = f"{names[0]}, cancelled at {number}, {apart} steps after {names[1]}"
    await prepare(host)
    await trio.testing.wait_all_tasks_blocked(0.01)
    idle = held(host)
    cut = False

    async def cancelled() -> None:
        nonlocal cut
        await _steps(apart)
        cut = await cancellation.cancelled_at(number, lambda: OPERATIONS[names[0]](host))

    async def beside() -> None:
        await _steps(-apart)
        await OPERATIONS[names[1]](host)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_explained, cancelled, where)
            nursery.start_soon(_explained, beside, f"{where}: the other")
        await settled(host, idle, where)
    if cut:
        await trio.sleep(SERVICE_ENDS)
    await host.store.save_overdue(-math.inf)  # attributes that may be kept back
    await _judge(place, host, names, where)
    return cut


async def _explained(work: Callable[[], Awaitable[None]], where: str) -> None:
    failure = None
    try:
        await work()
    except BlobfsError as exc:
        failure = exc
    assert failure is None or errno_of(failure) in EXPLAINED, f"{where}: {failure!r}"


async def _steps(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()


async def _judge(place: Service, host: Host, names: tuple[str, str], where: str) -> None:
    shown, listed = await cancellation.contents(host), await host.entries()
    async with place.host() as other:
        stored, present = await cancellation.contents(other), await other.entries()
    assert listed == present, f"{where}: shows {listed} where there is {present}"
    wrong = [path for path in shown.keys() | stored.keys() if shown.get(path) != stored.get(path)]
    assert not wrong, f"{where}: {wrong} are not shown as they are stored"
    for path, content in shown.items():
        assert content in WHOLE, f"{where}: {path} is a mixture"
    assert NEW in shown.values(), f"{where}: what may replace a file is lost"
    if not set(names) & set(TAKING):
        assert list(shown.values()).count(OLD) >= 2, f"{where}: a file is lost"


async def pairs(place: Service, seed: str, count: int) -> int:
    """How many of `count` pairs, chosen by the seed, had one cancelled. Raises AssertionError."""
    chance = random.Random(seed)
    cancelled = 0
    async with place.host(ttl=600, cache_size=1) as host:
        for _ in range(count):
            cancelled += await pair(place, host, chance.choice(PAIRS), chance)
    return cancelled


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    with service() as (azurite, folder):
        while not figures or time.monotonic() < until:
            round_folder = folder / f"rivals-{figures['rounds']}"
            round_folder.mkdir()
            place = Service(azurite, azurite.new_container(), round_folder)
            figures["cancellations"] += trio.run(pairs, place, f"{seed}-{figures['rounds']}", 100)
            figures["pairs"] += 100
            figures["rounds"] += 1
    say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
