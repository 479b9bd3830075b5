"""One pass over all blobs of a session's places: listed page by page, worked on in parallel.

Memory is bounded by two pages of the listing, however many blobs there are. The first SIGINT or
SIGTERM makes the pass count what is left instead of changing more, the second ends it, at the
latest when what has been asked to replace a blob is answered or out of time.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import trio

from blobfs.blobs import BlobInfo
from blobfs.errors import BlobfsError, NotFound, TokenRefused, Unavailable, root_cause
from blobfs.session import Place, Session
from blobfs.upkeep.report import Report

PATIENCE = 16
"""Blobs in a row for which the service has no answer, after which it has none for the others."""

TRIES = 5
"""How often a blob that others are changing is looked at again."""

Work = Callable[[Place, BlobInfo], Awaitable[None]]
Failed = Callable[[Place, BlobInfo, BlobfsError], None]


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """A deadline for what is awaited inside; raises Unavailable."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{what}: not done within {seconds:g} s") from None


async def look_again(place: Place, info: BlobInfo, timeout: float) -> BlobInfo | None:
    """The blob as it is now, None when it is gone."""
    try:
        with within(timeout, repr(info.name)):
            return await place.container.head(info.name)
    except NotFound:
        return None


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery for requests that end with the block; what leaves it is one exception."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except ExceptionGroup as exc:
        raise root_cause(exc) from None


class Pass:
    """`stopping` says that nothing more is to be changed, `cut_short` that not all was seen.

    `counts` says whether, told to stop, it goes on to count what is left.
    """

    def __init__(
        self, session: Session, report: Report, *, workers: int, counts: bool = True
    ) -> None:
        self._session = session
        self._report = report
        self._workers = workers
        self._counts = counts
        self._timeout = session.options.timeout
        self._unanswered = 0
        self._scopes: set[trio.CancelScope] = set()
        self.stopping = False
        self.cut_short = False

    async def over(
        self, work: Work, failed: Failed, *, prefix: str = "", include: str = "metadata"
    ) -> None:
        """Have `work` done on each blob whose name, below its place, begins with `prefix`.

        What it raises about one blob goes to `failed`. Raises ServiceError when the listing
        fails, the token is refused, or the service is not there any more.
        """
        try:
            async with background() as nursery:
                nursery.start_soon(self._obey_signals, nursery.cancel_scope)
                for place in self._session.places:
                    await self._over_place(place, work, failed, prefix, include)
        except BlobfsError:
            self.cut_short = True
            raise

    @contextmanager
    def interruptible(self) -> Iterator[trio.CancelScope]:
        """Work that is given up when the pass is told to stop."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    async def _obey_signals(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if self.stopping or not self._counts:
                    self.cut_short = True
                    everything.cancel()
                    return
                self.stopping = True
                self._report.note("stopping; counting what is left (once more to skip that)")
                for scope in self._scopes:
                    scope.cancel()

    async def _over_place(
        self, place: Place, work: Work, failed: Failed, prefix: str, include: str
    ) -> None:
        page = self._session.options.list_page
        send, receive = trio.open_memory_channel[BlobInfo](page)
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(self._work, place, receive.clone(), work, failed)
            receive.close()
            with send:
                await self._list(place, prefix, include, page, send)

    async def _list(
        self,
        place: Place,
        prefix: str,
        include: str,
        page_size: int,
        send: trio.MemorySendChannel[BlobInfo],
    ) -> None:
        if place.prefix and not prefix:
            with suppress(NotFound):  # its own blob, with its attributes, lies beside its contents
                with within(self._timeout, place.prefix):
                    marker = await place.container.head(place.prefix)
                await send.send(marker)
        start = f"{place.prefix}/{prefix}" if place.prefix else prefix
        following = ""
        while True:
            with within(self._timeout, f"the listing of {start!r}"):
                page = await place.container.list(
                    start, delimiter="", marker=following, max_results=page_size, include=include
                )
            for info in page.blobs:
                await send.send(info)
            following = page.next_marker
            if not following:
                return

    async def _work(
        self,
        place: Place,
        blobs: trio.MemoryReceiveChannel[BlobInfo],
        work: Work,
        failed: Failed,
    ) -> None:
        with blobs:
            async for info in blobs:
                try:
                    await work(place, info)
                    self._unanswered = 0
                except TokenRefused:
                    raise
                except BlobfsError as exc:
                    self._unanswered = self._unanswered + 1 if isinstance(exc, Unavailable) else 0
                    if self._unanswered >= PATIENCE:
                        raise
                    failed(place, info, exc)
                self._report.step()
