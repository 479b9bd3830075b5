"""Hosts move and remove directories under each other's files; no file is lost.

Two or three hosts without a kernel work on one small tree, each with several tasks that the locks
of directories keep apart as the kernel's do. The network delays requests and answers, and now and
then loses one. Files are of two sorts: those whose names begin with `keep` are written, appended to
and renamed to free names, those with `waste` are replaced and deleted as well. Then:

- a piece of content of which a close said that it is stored is in a `keep` file; one that a close
  refused for what others did is in a conflict copy or in a recovery file;
- nothing is locked, open or half moved on any host, and nothing is hidden but what a log names;
- who had asked the service all the time sees what a new host sees.
"""

import errno
import itertools
import logging
import math
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import httpx
import trio

from blobfs.attributes import Kind
from blobfs.errors import BlobfsError, ConditionFailed, PosixError, errno_of, root_cause
from blobfs.fs import Changes
from blobfs.fs.namespace import RENAME_NOREPLACE
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX
from tests.bare_host import CALLER, Host, Service, whole
from tests.kept import opened
from tests.mounts import PLAINTEXT_MARKER
from tests.torture.cancellation import held, settled
from tests.torture.hosts import piece, pieces
from tests.torture.service import service

KEEP, WASTE = "keep", "waste"
DIRECTORIES = ("a", "b", "a/x", "b/x", "b/x/y")
"""At the beginning."""
TTLS = (0.0, 0.1, 600.0)
TASKS = 4
OPERATIONS = 40
"""Of each task in a round."""


class Weather(httpx.AsyncBaseTransport):
    """Delays requests and answers by up to 30 ms, and loses a few."""

    def __init__(self, inner: httpx.AsyncBaseTransport, chance: random.Random) -> None:
        self._inner = inner
        self._chance = chance
        self.is_bad = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._passage("request")
        response = await whole(await self._inner.handle_async_request(request))
        await self._passage("answer")
        return response

    async def _passage(self, what: str) -> None:
        if not self.is_bad:
            return
        if self._chance.random() < 0.5:
            await trio.sleep(self._chance.uniform(0, 0.03))
        if self._chance.random() < 0.01:
            raise httpx.ReadError(f"the {what} was lost")

    async def aclose(self) -> None:
        await self._inner.aclose()


def _depth(node: Node) -> int:
    return sum(1 for _ in node.ancestry())


class User:
    """The programs of one host, and what the kernel does for them."""

    def __init__(self, host: Host, chance: random.Random, numbers: Iterator[int]) -> None:
        self.host = host
        self.stored: set[int] = set()
        self.refused: set[int] = set()
        self._chance = chance
        self._numbers = numbers
        self._locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        self._renaming = trio.Lock()

    async def work(self, operations: int, figures: Counter[str]) -> None:
        for _ in range(operations):
            operation = self._chance.choice(OPERATIONS_AT_ONCE)
            outcome = operation.__name__
            try:
                with trio.fail_after(60):
                    await operation(self)
            except Exception as exc:
                cause = root_cause(exc)
                if not isinstance(cause, BlobfsError):
                    raise
                outcome += f": {errno.errorcode[errno_of(cause)]}"
            figures[outcome] += 1

    @asynccontextmanager
    async def _changing(self, *directories: Node, goes: str = "") -> AsyncIterator[None]:
        """One change of names in a directory at a time, and one rename between directories; none,
        either, in a directory of the name that `goes` from the last of them."""
        async with AsyncExitStack() as stack:
            if len(directories) > 1:
                await stack.enter_async_context(self._renaming)
            for node in sorted(set(directories), key=lambda node: (_depth(node), node.ino)):
                await stack.enter_async_context(self._locks[node.ino])
            victim = directories[-1].children.get(goes)
            if victim is not None and victim not in directories:
                await stack.enter_async_context(self._locks[victim.ino])
            yield

    def _directory(self) -> str:
        """One that this host knows, whether or not it is there any more."""
        nodes = (node for node in self.host.fs.inodes if node.is_directory and node.is_linked)
        return self._chance.choice(sorted(node.path for node in nodes))

    def _name(self) -> str:
        return f"d{next(self._numbers)}" if self._chance.random() < 0.8 else "x"

    async def _some(self, sort: str) -> tuple[Node, str]:
        """A file of this sort and its directory; PosixError(ENODATA) where there is none."""
        directory = await self._node(self._directory())
        async with self._changing(directory):
            entries = await self.host.entries_of(directory)
        names = [name for name in entries if name.startswith(sort)]
        if not names:
            raise PosixError(errno.ENODATA)
        return directory, self._chance.choice(names)

    async def _node(self, path: str) -> Node:
        node = self.host.fs.inodes.root
        for name in filter(None, path.split("/")):
            node = await self._found(node, name)
        return node

    async def _found(self, directory: Node, name: str) -> Node:
        """What is known is asked for again; what is not waits for who changes the directory."""
        tree = self.host.fs.tree
        if name in directory.children:
            node = await tree.lookup(directory, name)
        else:
            async with self._changing(directory):
                node = await tree.lookup(directory, name)
        node.lookups += 1
        return node

    async def _put(self, handle: int, number: int) -> None:
        files = self.host.fs.files
        node = self.host.fs.inodes.handle(handle).node
        data = piece(number, self._chance.choice((10, 1000, 200_000)))
        lock = self._locks[node.ino]  # what is appended after a conflict has a hole before it
        try:
            async with lock:
                await files.write(handle, node.size, data)
            await trio.sleep(self._chance.choice((0, 0, 0.05)))
            try:
                async with lock:
                    await files.flush(handle)
            except Exception as exc:
                if isinstance(root_cause(exc), ConditionFailed):
                    self.refused.add(number)
                raise
            self.stored.add(number)
        finally:
            await files.release(handle)

    async def write(self) -> None:
        number, directory = next(self._numbers), await self._node(self._directory())
        async with self._changing(directory):
            node = await self.host.fs.names.create(directory, f"{KEEP}-{number}", 0o644, CALLER)
            node.lookups += 1
            handle = self.host.fs.files.create(node, os.O_RDWR)
        await self._put(handle, number)

    async def append(self) -> None:
        node = await self._found(*await self._some(KEEP))
        handle, _ = await self.host.fs.files.open(node, os.O_WRONLY | os.O_APPEND)
        await self._put(handle, next(self._numbers))

    async def read(self) -> None:
        node = await self._found(*await self._some(KEEP))
        handle, _ = await self.host.fs.files.open(node, os.O_RDONLY)
        try:
            pieces(await self.host.read_all(handle))
        finally:
            await self.host.fs.files.release(handle)

    async def rename(self) -> None:
        old, name = await self._some(KEEP)
        new = await self._node(self._directory())
        async with self._changing(old, new):
            new_name = f"{KEEP}-{next(self._numbers)}"
            await self.host.fs.names.rename(old, name, new, new_name, RENAME_NOREPLACE)

    async def rename_directory(self) -> None:
        directory, _, name = self._directory().rpartition("/")
        old, new, new_name = (
            await self._node(directory),
            await self._node(self._directory()),
            self._name(),
        )
        flags = self._chance.choice((0, RENAME_NOREPLACE))
        async with self._changing(old, new, goes=new_name):
            await self.host.fs.names.rename(old, name or "a", new, new_name, flags)

    async def mkdir(self) -> None:
        directory = await self._node(self._directory())
        async with self._changing(directory):
            names = self.host.fs.names
            await names.make_empty(directory, self._name(), Kind.DIRECTORY, 0o755, CALLER)

    async def rmdir(self) -> None:
        directory, _, name = self._directory().rpartition("/")
        parent = await self._node(directory)
        async with self._changing(parent, goes=name):
            await self.host.fs.names.rmdir(parent, name or "a")

    async def chmod(self) -> None:
        node = await self._node(self._directory())
        await self.host.fs.metadata.set(node, Changes(mode=0o700), by_handle=False)

    async def set_xattr(self) -> None:
        node = await self._found(*await self._some(KEEP))
        await self.host.fs.metadata.set_xattr(node, b"user.x", b"%d" % next(self._numbers))

    async def waste(self) -> None:
        directory = await self._node(self._directory())
        name = f"{WASTE}-{self._chance.randrange(3)}"
        async with self._changing(directory):
            node = await self.host.fs.names.create(directory, name, 0o644, CALLER)
            node.lookups += 1
            handle = self.host.fs.files.create(node, os.O_RDWR)
        try:
            await self.host.fs.files.write(handle, 0, b"waste")
            await self.host.fs.files.flush(handle)
        finally:
            await self.host.fs.files.release(handle)

    async def replace(self) -> None:
        old, name = await self._some(WASTE)
        new = await self._node(self._directory())
        async with self._changing(old, new):
            new_name = f"{WASTE}-{self._chance.randrange(3)}"
            await self.host.fs.names.rename(old, name, new, new_name, 0)

    async def unlink(self) -> None:
        directory, name = await self._some(WASTE)
        async with self._changing(directory):
            await self.host.fs.names.unlink(directory, name)


OPERATIONS_AT_ONCE: tuple[Callable[[User], Awaitable[None]], ...] = (
    *(User.write, User.append, User.rename, User.rename_directory) * 2,
    *(User.read, User.mkdir, User.rmdir, User.chmod, User.set_xattr),
    *(User.waste, User.replace, User.unlink),
)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged() -> Iterator[Records]:
    records, logger = Records(), logging.getLogger("blobfs")
    logger.addHandler(records)
    try:
        yield records
    finally:
        logger.removeHandler(records)


async def seen(host: Host, path: str = "") -> dict[str, bytes | None]:
    """All files, and None for directories."""
    found: dict[str, bytes | None] = {}
    for name in await host.entries(path):
        inner = f"{path}/{name}".lstrip("/")
        if (await host.node(inner)).kind is Kind.DIRECTORY:
            found |= {inner: None, **await seen(host, inner)}
        else:
            found[inner] = await host.read(inner)
    return found


def _said(seed: str, log: Records, problem: str) -> str:
    return "\n".join((f"seed {seed}: {problem}", *log.lines))


async def played(place: Service, seed: str, operations: int = OPERATIONS) -> Counter[str]:
    """What happened in one round, of so many operations of each task. Raises AssertionError."""
    chance, figures, numbers = random.Random(seed), Counter[str](), itertools.count(1)
    users: list[User] = []
    with logged() as log:
        async with AsyncExitStack() as stack:
            weathers = []
            for _ in range(chance.choice((2, 3))):
                host = await stack.enter_async_context(place.host(ttl=chance.choice(TTLS)))
                host.faults.inner = weather = Weather(host.faults.inner, chance)
                weathers.append(weather)
                users.append(User(host, chance, numbers))
            for path in DIRECTORIES:
                await users[0].host.mkdir(path)
            idle = [held(user.host) for user in users]
            for weather in weathers:
                weather.is_bad = True
            async with trio.open_nursery() as nursery:
                for user in users * TASKS:
                    nursery.start_soon(user.work, operations, figures)
            for weather in weathers:
                weather.is_bad = False
            for user, before in zip(users, idle, strict=True):
                await user.host.store.deletions.drain()
                await user.host.fs.files.retry()
                await user.host.store.save_overdue(-math.inf)
                await settled(user.host, before, _said(seed, log, "not settled"))
            async with place.host() as new:
                there = await seen(new)
            for user in users:
                if user.host.store.policy.metadata_ttl == 0:
                    shown = await seen(user.host)
                    wrong = {path for path, _ in shown.items() ^ there.items()}
                    assert not wrong, _said(seed, log, f"{wrong} are not shown as they are stored")
        _check(place, seed, users, there, log)
    return figures


def _pieces_among_holes(data: bytes) -> set[int]:
    """Those of a recovery file, whose base may be unknown."""
    heads = re.finditer(rb"(\d{8})(\d{8})(?=%b)" % PLAINTEXT_MARKER[:10], data)
    return {
        int(head[1])
        for head in heads
        if data.startswith(piece(int(head[1]), int(head[2])), head.start())
    }


def _check(
    place: Service, seed: str, users: list[User], there: dict[str, bytes | None], log: Records
) -> None:
    found: set[int] = set()
    for path, content in there.items():
        if content is not None and path.rpartition("/")[2].startswith(KEEP):
            found.update(pieces(content))
    kept = set()
    for user in users:
        for path in user.host.recovery_files():
            content, description = opened(path, user.host.recovery.parent / "keys.json")
            if KEEP in description["name"]:
                kept |= _pieces_among_holes(content)
    for user in users:
        lost = user.stored - found
        assert not lost, _said(seed, log, f"{sorted(lost)} were stored, and are lost")
        lost = user.refused - found - kept
        assert not lost, _said(seed, log, f"{sorted(lost)} were refused, and are lost")
    said = "\n".join(log.lines)
    assert "a bug" not in said, _said(seed, log, "a bug")
    hidden = [name for name in place.names() if HIDDEN_PREFIX in name]
    unsaid = [name for name in hidden if name not in said]
    assert not unsaid, _said(seed, log, f"{unsaid} are left")


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    rounds = 0
    with service() as (azurite, folder):
        while not rounds or time.monotonic() < until:
            round_folder = folder / f"trees-{rounds}"
            round_folder.mkdir()
            place = Service(azurite, azurite.new_container(), round_folder)
            figures += trio.run(played, place, f"{seed}-{rounds}")
            rounds += 1
    say(f"{rounds} rounds")
    for what, number in sorted(figures.items()):
        say(f"{number:,} {what}")
