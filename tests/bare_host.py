"""Hosts without a kernel: the file system in the test's own process, over Azurite and a connection
that fails on demand.
"""

import base64
import inspect
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote

import httpx
import trio

from blobfs.attributes import Defaults, Kind
from blobfs.blobs import Client, Container, RetryPolicy
from blobfs.draft import PAGE, PagePool
from blobfs.envelope import load_key_set
from blobfs.errors import BlobfsError, errno_of
from blobfs.fs import Caller, Filesystem, Store, StorePolicy, Volume
from blobfs.inodes import Node
from blobfs.keyring import Keyring
from blobfs.reader import Reader, ReadPolicy
from blobfs.spool import Spool
from blobfs.writer import WritePolicy
from tests.azurite import Azurite
from tests.strict import StagedBlocks, Strict, error

CALLER = Caller(0, 0)
KEYS = json.dumps(
    {"keys": [{"kty": "oct", "kid": "test", "k": base64.urlsafe_b64encode(b"k" * 32).decode()}]}
).replace("=", "")
KIB = 1024
Wanted = Callable[[httpx.Request], bool]


def operation(method: str, name: str = "", *, comp: str | None = None) -> Wanted:
    """Requests of `method` for blobs whose name ends in `name`; `comp` is the query's ("" none)."""

    def wanted(request: httpx.Request) -> bool:
        path, _, query = request.url.raw_path.decode().partition("?")
        found = [part[5:] for part in query.split("&") if part.startswith("comp=")]
        return (
            request.method == method
            and path.endswith(name)
            and (comp is None or found == ([comp] if comp else []))
        )

    return wanted


def listing_of(directory: str) -> Wanted:
    """Lists of this directory as it is shown (a rename lists all that is below)."""

    def wanted(request: httpx.Request) -> bool:
        query = parse_qs(request.url.raw_path.decode().partition("?")[2])
        is_list = query.get("comp") == ["list"] and "delimiter" in query
        prefix = unquote(query.get("prefix", [""])[0]).rstrip("/")
        return is_list and prefix == directory

    return wanted


class Faulty(httpx.AsyncBaseTransport):
    """Does to the requests that are `wanted` what one of its methods says, until it ends."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self._wanted: Wanted = lambda request: False
        self._action: Callable[[httpx.Request], object] = lambda request: None
        self._carry_out = False
        self.hits = 0
        self.met = trio.Event()
        self.carried_out = trio.Event()

    @contextmanager
    def _set(
        self, wanted: Wanted, action: Callable[[httpx.Request], object], *, carry_out: bool = False
    ) -> Iterator[None]:
        before = self._wanted, self._action, self._carry_out, self.hits
        self._wanted, self._action, self._carry_out, self.hits = wanted, action, carry_out, 0
        try:
            yield
            assert self.hits, "no request met the fault"
        finally:
            self._wanted, self._action, self._carry_out, self.hits = before

    def unreachable(self, wanted: Wanted = lambda request: True) -> AbstractContextManager[None]:
        return self._set(wanted, _refuse_connection)

    def denied(self, wanted: Wanted) -> AbstractContextManager[None]:
        return self._set(wanted, lambda request: error(403, "AuthorizationPermissionMismatch"))

    def answered(
        self, wanted: Wanted, answer: Callable[[httpx.Request], httpx.Response]
    ) -> AbstractContextManager[None]:
        """By somebody else than the service."""
        return self._set(wanted, answer)

    def unheard(self, wanted: Wanted) -> AbstractContextManager[None]:
        """Carried out, but the answer is lost."""
        return self._set(wanted, _lose_answer, carry_out=True)

    def stalled(self, wanted: Wanted = lambda request: True) -> AbstractContextManager[None]:
        return self._set(wanted, lambda request: trio.Event().wait())

    def delayed(self, wanted: Wanted, until: trio.Event) -> AbstractContextManager[None]:
        return self._set(wanted, lambda request: until.wait())

    def held(
        self, wanted: Wanted, hold: Callable[[httpx.Request], Awaitable[None]]
    ) -> AbstractContextManager[None]:
        """For what `hold` does with the request; it goes on to the service when that returns."""
        return self._set(wanted, hold)

    def late(self, wanted: Wanted, until: trio.Event) -> AbstractContextManager[None]:
        """Carried out at once; the answer comes later."""
        return self._set(wanted, lambda request: until.wait(), carry_out=True)

    def broken(self, wanted: Wanted) -> AbstractContextManager[None]:
        """As a bug in the client would be."""
        return self._set(wanted, _bug)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._wanted(request):
            return await self.inner.handle_async_request(request)
        self.hits += 1
        self.met.set()
        action, answer = self._action, None
        if self._carry_out:
            answer = await whole(await self.inner.handle_async_request(request))
            self.carried_out.set()
        result = action(request)
        if isinstance(result, httpx.Response):
            await request.aread()
            return result
        await result  # type: ignore[misc]
        return answer or await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def whole(response: httpx.Response) -> httpx.Response:
    """The same, received and closed: it can be passed on later."""
    content = await response.aread()
    await response.aclose()
    headers = httpx.Headers(response.headers)
    headers.pop("transfer-encoding", None)
    return httpx.Response(response.status_code, headers=headers, content=content)


def _refuse_connection(request: httpx.Request) -> None:
    raise httpx.ConnectError("refused")


def _lose_answer(request: httpx.Request) -> None:
    raise httpx.ReadError("the connection was cut")


def _bug(request: httpx.Request) -> None:
    raise KeyError("a bug")


@contextmanager
def failing(*codes: int) -> Iterator[None]:
    """The block must fail with one of these error numbers."""
    raised = None
    try:
        yield
    except BlobfsError as exc:
        raised = exc
    assert raised is not None, "it did not fail"
    assert errno_of(raised) in codes, repr(raised)


async def eventually(condition: Callable[[], bool]) -> None:
    """Until it is true; raises AssertionError, with its source, when it is not within a minute."""
    for _ in range(6000):
        if condition():
            return
        await trio.sleep(0.01)
    raise AssertionError(f"not within a minute:\n{inspect.getsource(condition)}")


class Host:
    """One mount without a kernel: paths are names joined by slashes."""

    def __init__(self, fs: Filesystem, faults: Faulty, recovery: Path) -> None:
        self.fs = fs
        self.store = fs.store
        self.faults = faults
        self.recovery = recovery

    async def node(self, path: str) -> Node:
        node = self.fs.inodes.root
        for name in filter(None, path.split("/")):
            node = await self.fs.tree.lookup(node, name, may_guess=True)
            node.lookups += 1  # the kernel remembers what it looked up
        return node

    async def _parent(self, path: str) -> tuple[Node, str]:
        directory, _, name = path.rpartition("/")
        return await self.node(directory), name

    async def create(self, path: str, data: bytes = b"") -> int:
        parent, name = await self._parent(path)
        node = await self.fs.names.create(parent, name, 0o644, CALLER)
        node.lookups += 1
        handle = self.fs.files.create(node, os.O_RDWR)
        if data:
            await self.fs.files.write(handle, 0, data)
        return handle

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        handle, _ = await self.fs.files.open(await self.node(path), flags)
        return handle

    async def close(self, handle: int) -> None:
        """As the kernel does: the release comes whatever became of the flush."""
        try:
            await self.fs.files.flush(handle)
        finally:
            await self.fs.files.release(handle)

    async def write(self, path: str, data: bytes) -> None:
        await self.close(await self.create(path, data))

    async def overwrite(self, path: str, data: bytes) -> None:
        handle = await self.open(path, os.O_WRONLY | os.O_TRUNC)
        await self.fs.files.write(handle, 0, data)
        await self.close(handle)

    async def read(self, path: str) -> bytes:
        handle = await self.open(path)
        try:
            return await self.read_all(handle)
        finally:
            await self.fs.files.release(handle)

    async def read_all(self, handle: int) -> bytes:
        size = max(1, self.fs.inodes.handle(handle).node.size)
        return bytes(await self.fs.files.read(handle, 0, size))

    async def mkdir(self, path: str) -> None:
        parent, name = await self._parent(path)
        await self.fs.names.make_empty(parent, name, Kind.DIRECTORY, 0o755, CALLER)

    async def unlink(self, path: str) -> None:
        await self.fs.names.unlink(*await self._parent(path))

    async def rmdir(self, path: str) -> None:
        await self.fs.names.rmdir(*await self._parent(path))

    async def rename(self, old: str, new: str) -> None:
        await self.fs.names.rename(*await self._parent(old), *await self._parent(new), 0)

    async def entries(self, path: str = "") -> list[str]:
        return await self.entries_of(await self.node(path))

    async def entries_of(self, directory: Node) -> list[str]:
        stream = self.fs.tree.open_directory(directory)
        names: list[str] = []
        offset = 0
        try:
            while found := await self.fs.tree.entries(stream, offset):
                names += [name for name, _, _ in found]
                offset = found[-1][2]
        finally:
            self.fs.tree.close_directory(stream)
        return sorted(names)

    def recovery_files(self) -> list[Path]:
        return sorted(self.recovery.glob("*.blobfs-recovery"))


class Service:
    """What the tests need around hosts: the container, and one key for all of them."""

    def __init__(self, azurite: Azurite, container: str, directory: Path) -> None:
        self.azurite = azurite
        self.container = container
        self.sdk = azurite.sdk(container)
        self._directory = directory
        self._token = azurite.sas(container)
        self._numbers = itertools.count(1)
        self._blocks = StagedBlocks()
        key_file = directory / "keys.json"
        key_file.touch(0o600)
        key_file.write_text(KEYS)
        self._keys = load_key_set(key_file)

    def names(self) -> list[str]:
        return sorted(self.sdk.list_blob_names())

    def listed(self) -> list[str]:
        """The prefixes that were listed since the last call, in the order of the answers."""
        asked = [
            request.query.get("prefix", "").rstrip("/")
            for request in self.azurite.requests()
            if request.query.get("comp") == "list"
        ]
        self.azurite.reset_requests()
        return asked

    @asynccontextmanager
    async def host(
        self,
        *,
        ttl: float = 0.0,
        timeout: float = 10.0,
        attempts: int = 2,
        overwrite: bool = False,
        cache_size: int = 2**26,
        memory: int = 64 * PAGE,
        spool: int = 1024 * PAGE,
        region_size: int = 64 * KIB,
    ) -> AsyncIterator[Host]:
        directory = self._directory / f"host-{next(self._numbers)}"
        keyring = Keyring(self._keys)
        faults = Faulty(Strict(httpx.AsyncHTTPTransport(), self._blocks))
        retry = RetryPolicy(attempts=attempts, first_delay=0.001)
        pages = Spool(directory, PAGE, spool)
        async with (
            Client(transport=faults, retry=retry) as client,
            trio.open_nursery() as nursery,
        ):
            box = Container(client, self.azurite.url(self.container), lambda: self._token)
            store = Store(
                reader=Reader(keyring, ReadPolicy(timeout=timeout, cache_size=cache_size), nursery),
                keyring=keyring,
                pool=PagePool(pages, memory),
                policy=StorePolicy(Defaults(), ttl, overwrite, directory),
                write_policy=WritePolicy(region_size=region_size, timeout=timeout),
                nursery=nursery,
                now_ns=time.time_ns,
            )
            store.inodes.root.volume = Volume(
                box, "", writable=True, may_tag=True, may_delete=lambda: True
            )
            host = Host(Filesystem(store), faults, directory)
            yield host
            await store.deletions.drain()
            store.inodes.check()
            nursery.cancel_scope.cancel()
        pages.close()
