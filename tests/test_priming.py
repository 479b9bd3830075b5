"""Names that are looked up in order: the kernel reads the directory instead of asking for each."""

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfs.attributes import Attributes, Kind
from blobfs.fs.listing import Entry, Listing, Listings
from blobfs.fs.priming import LEAST_TTL, STREAK, STRETCH, Primer
from blobfs.fs.store import Store
from blobfs.inodes import Inodes
from blobfs.selfread import CannotCopy, OtherMount, read_some
from blobfs.writer import WritePolicy
from tests.azurite import Azurite
from tests.mounts import ROOT, Mount, as_user, mounted

NAMES = [f"file{number:04}" for number in range(1000)]
BATCH = 200
NOBODY = 65534
LIMIT_S = 10


class Kernel:
    """Looks up names, and notes what it was made to read: the offsets."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.listings = Listings()
        self.root = Inodes(Attributes(Kind.DIRECTORY, 0o755, 0, 0, 0, 0, 0), trio.Lock).root
        store = SimpleNamespace(
            listings=self.listings, nursery=nursery, write_policy=WritePolicy(timeout=10)
        )
        self.primer = Primer(cast(Store, store))
        self.primer.read_some = self._read_some
        self.read: list[int] = []
        self.behave: Callable[[], Any] = lambda: None

    def listed(self, names: Sequence[str], ttl: float = 10.0) -> None:
        entries = {name: Entry(Kind.FILE, None) for name in names}
        self.listings.put(self.root, Listing(entries, trio.current_time() + ttl))

    async def _read_some(self, directory: str, offset: int) -> int:
        assert directory == "/"
        self.read.append(offset)
        outcome = self.behave()
        if isinstance(outcome, trio.Event):
            await outcome.wait()
            outcome = None
        return min(offset + BATCH, len(NAMES)) if outcome is None else outcome

    async def look_up(self, names: Sequence[str]) -> list[int]:
        """The offsets from which the kernel was made to read meanwhile."""
        before = len(self.read)
        for name in names:
            self.primer.looked_up(self.root, name)
            await wait_all_tasks_blocked()
        return self.read[before:]


@asynccontextmanager
async def kernel() -> AsyncIterator[Kernel]:
    async with trio.open_nursery() as nursery:
        kernel = Kernel(nursery)
        kernel.listed(NAMES)
        yield kernel
        nursery.cancel_scope.cancel()


async def test_after_some_in_order_the_next_ones_are_read_and_so_on() -> None:
    async with kernel() as it:
        assert await it.look_up(NAMES[: STREAK - 1]) == []
        assert await it.look_up([NAMES[STREAK - 1]]) == [STREAK]
        after = STREAK + BATCH
        assert await it.look_up([NAMES[after]]) == [after + 1]
        after += 1 + BATCH
        assert await it.look_up([NAMES[after + 2]]) == [after + 3]


async def test_some_may_be_left_out() -> None:
    async with kernel() as it:
        assert await it.look_up(NAMES[100 : 100 + 3 * STREAK : 3]) == [100 + 3 * STREAK - 2]


def shuffled(names: Sequence[str]) -> list[str]:
    return random.Random(1).sample(names, len(names))


@pytest.mark.parametrize(
    "names",
    [
        NAMES[::-1],
        shuffled(NAMES),
        NAMES[:: STRETCH // STREAK + 1],
        [name for name in NAMES[: STREAK - 1] for _ in range(2)],
        [NAMES[0], NAMES[1]] * STREAK,
    ],
    ids=["backwards", "in any order", "few of many", "twice each", "two in turn"],
)
async def test_in_another_order_nothing_is_read(names: list[str]) -> None:
    async with kernel() as it:
        assert await it.look_up(names) == []


async def test_of_two_directories_each_has_its_order() -> None:
    async with kernel() as it:
        other = Inodes(Attributes(Kind.DIRECTORY, 0o755, 0, 0, 0, 0, 0), trio.Lock).root
        other.ino = 77
        for name in NAMES[: STREAK - 1]:
            it.primer.looked_up(it.root, name)
            it.primer.looked_up(other, name)
        assert await it.look_up([NAMES[STREAK - 1]]) == [STREAK]


async def test_who_goes_on_elsewhere_begins_anew() -> None:
    async with kernel() as it:
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]
        assert await it.look_up(NAMES[900 : 900 + STREAK - 1]) == []
        assert await it.look_up([NAMES[900 + STREAK - 1]]) == [900 + STREAK]


async def test_threads_at_several_places_of_a_directory_each_have_their_order() -> None:
    places = [0, 320, 640]
    in_turn = [NAMES[place + step] for step in range(STREAK) for place in places]
    async with kernel() as it:
        assert await it.look_up(in_turn) == [place + STREAK for place in places]


async def test_names_that_were_read_and_are_looked_up_again_are_read_again() -> None:
    """The kernel was short of memory, say."""
    async with kernel() as it:
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]
        assert await it.look_up(NAMES[64 : 64 + STREAK]) == [64 + STREAK]


async def test_while_some_are_read_no_more_are() -> None:
    async with kernel() as it:
        it.behave = lambda: blocking
        blocking = trio.Event()
        assert await it.look_up(NAMES[: 2 * STREAK]) == [STREAK]
        blocking.set()
        await wait_all_tasks_blocked()
        assert await it.look_up([NAMES[STREAK + BATCH]]) == [STREAK + BATCH + 1]


async def test_a_reading_that_takes_too_long_is_given_up(autojump_clock: MockClock) -> None:
    async with kernel() as it:
        it.listed(NAMES, ttl=100)
        it.behave = trio.Event
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]
        await trio.sleep(11)
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]


async def test_what_is_stale_soon_or_is_listed_anew_is_not_read_on() -> None:
    async with kernel() as it:
        it.listed(NAMES, ttl=LEAST_TTL / 2)
        assert await it.look_up(NAMES[:STREAK]) == []
        it.listed(NAMES)
        assert await it.look_up(NAMES[: STREAK - 1]) == []
        it.listed(NAMES)
        assert await it.look_up([NAMES[STREAK - 1]]) == []


async def test_what_is_not_listed_is_not_read() -> None:
    async with kernel() as it:
        it.listings.drop(it.root)
        assert await it.look_up(NAMES[:STREAK]) == []
        it.listed(NAMES[STREAK:])
        assert await it.look_up(NAMES[:STREAK]) == []


async def test_at_the_end_there_is_nothing_to_read() -> None:
    async with kernel() as it:
        assert await it.look_up(NAMES[-STREAK:]) == []


def fails(error: OSError) -> Callable[[], None]:
    def behave() -> None:
        raise error

    return behave


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.ENOENT, "gone"), True),
        (OSError(errno.EACCES, "a token was refused"), True),
        (OtherMount("another mount"), True),
        (CannotCopy(errno.EPERM, "not root"), False),
    ],
)
async def test_a_failure_is_nobodys_and_one_that_will_not_pass_is_the_last(
    error: OSError, again: bool
) -> None:
    async with kernel() as it:
        it.behave = fails(error)
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]
        assert bool(await it.look_up(NAMES[:STREAK])) is again


@pytest.mark.parametrize("end", [2**63 - 1, 0, -1, len(NAMES) + 1])
async def test_an_offset_that_this_directory_does_not_have_says_nothing(end: int) -> None:
    async with kernel() as it:
        it.behave = lambda: end
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]
        assert await it.look_up(NAMES[:STREAK]) == [STREAK]


# Reading


async def test_nothing_is_read_of_another_mount_or_through_a_link(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    with pytest.raises(OtherMount):
        await read_some(tmp_path, device + 1, "/", 0)
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(NotADirectoryError):
        await read_some(tmp_path, device, "link", 0)
    with pytest.raises(NotADirectoryError):
        await read_some(tmp_path, device, "link/ssl", 0)


async def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotCopy):
        await read_some(tmp_path / "gone", 0, "/", 0)


# On a real mount

SOME = 600


@pytest.fixture(scope="module")
def filled(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A container with SOME files in a directory, and the key file."""
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("priming")
    with mounted(azurite, container, directory) as mount:
        (mount.path / "many").mkdir()
        for number, name in enumerate(NAMES[:SOME]):
            (mount.path / "many" / name).write_bytes(bytes(number))
    return container, mount.key_file


def stat_all(mount: Mount) -> int:
    """Have all of them looked up by name; how many lookups reached the daemon."""
    paths = [mount.path / "many" / name for name in NAMES[:SOME]]
    command = [*as_user(mount.user), "stat", "-c", "%s", *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(number) for number in range(SOME)]
    return count(mount, "lookup")


def count(mount: Mount, operation: str) -> int:
    command = [*as_user(mount.user), sys.executable, "-m", "blobfs", "status", "--json", mount.path]
    done = subprocess.run(
        command, cwd=ROOT, env=mount.environment, check=True, capture_output=True, text=True
    )
    found: int = json.loads(done.stdout)["latency_ms"].get(operation, {"count": 0})["count"]
    return found


@pytest.mark.mount
def test_files_that_are_asked_for_by_name_cost_few_lookups(
    azurite: Azurite, filled: tuple[str, Path], tmp_path: Path
) -> None:
    container, key_file = filled
    lookups = []
    while len(lookups) < 3 and min(lookups, default=SOME) >= SOME:
        # the reading competes with `stat`, and may not get on where others work too
        with mounted(azurite, container, tmp_path, "metadata_ttl=1h", key_file=key_file) as mount:
            lookups.append(stat_all(mount))
            limit = time.monotonic() + LIMIT_S
            while (left := kept_open(mount)) and time.monotonic() < limit:
                time.sleep(0.01)  # the last reading may be under way
            assert left == []
    assert min(lookups) < SOME


@pytest.mark.mount
def test_what_was_read_is_not_looked_up(
    azurite: Azurite, filled: tuple[str, Path], tmp_path: Path
) -> None:
    container, key_file = filled
    with mounted(azurite, container, tmp_path, "metadata_ttl=1h", key_file=key_file) as mount:
        directory = mount.path / "many"
        device = directory.stat().st_dev
        lookups = count(mount, "lookup")
        assert trio.run(read_some, mount.path, device, "many", SOME) == SOME, "the end"
        end = trio.run(read_some, mount.path, device, "many", 100)
        assert 300 <= end < SOME
        for name in NAMES[100:end]:
            (directory / name).stat()
        assert count(mount, "lookup") == lookups
        assert trio.run(read_some, mount.path, device, "/", 0) == 1


def kept_open(mount: Mount) -> list[str]:
    """What the daemon has open on its own mount; a thread that reads it has a table of its own."""
    links = []
    for path in Path(f"/proc/{mount.pid}/task").glob("*/fd/*"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(path))
    return [link for link in links if link.startswith(str(mount.path)) or link == "/many"]


@pytest.mark.mount
def test_a_mount_of_a_user_looks_each_of_them_up(
    azurite: Azurite, filled: tuple[str, Path], tmp_path: Path
) -> None:
    container, key_file = filled
    with mounted(
        azurite, container, tmp_path, "metadata_ttl=1h", key_file=key_file, user=NOBODY
    ) as mount:
        assert stat_all(mount) >= SOME
        assert "bug" not in mount.log()


@pytest.mark.mount
def test_a_mount_can_be_unmounted_whenever_its_files_were_asked_for(
    azurite: Azurite, filled: tuple[str, Path], tmp_path: Path
) -> None:
    """The directory that the kernel is made to read is not open on the mount that others see."""
    container, key_file = filled
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        for number in range(STREAK, STREAK + 10):
            for name in NAMES[:number]:
                (mount.path / "many" / name).stat()
            unmount(mount.path)
            assert mount.wait_for_end() == []
            mount.start()


def unmount(path: Path) -> None:
    """At once: a program would take longer to start than the reading takes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.mount
def test_a_daemon_that_is_killed_while_its_mount_is_read_ends_and_leaves_nobody_waiting(
    azurite: Azurite, filled: tuple[str, Path], tmp_path: Path
) -> None:
    container, key_file = filled
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        for number in range(STREAK, STREAK + 20):
            for name in NAMES[:number]:
                (mount.path / "many" / name).stat()
            os.kill(mount.pid, signal.SIGKILL)
            assert mount.wait_for_end() == ["the daemon ended with status -9"]
            with pytest.raises(OSError, match="not connected"):
                os.statvfs(mount.path)
            mount.remove()
            mount.start()
