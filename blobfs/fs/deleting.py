"""Deletions of one file after another (`rm -r`): not each of them is waited for.

When `STREAK` blobs of a directory's entries were deleted, each within `PAUSE` of the one before,
the next calls return while the service is still at work. When it is at work on `MOST`, the next is
waited for: so those that are stalled hold up no others. For this mount the names are gone all the
same: whatever lists the directory, or gives a name anew, waits.

As on a disk, a deletion is certain when the directory is synced or removed. One that fails gives
the name back and is logged, and the next unlink, rmdir or fsync in the directory fails with the
same error, once; from then on each is waited for again.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from blobfs.errors import BlobfsError, Unavailable
from blobfs.fs.listing import Listings
from blobfs.inodes import Inodes, Node

log = logging.getLogger(__name__)

STREAK = 3
"""Deletions that are waited for, before the first that is not."""

PAUSE = 1.0
"""Seconds between two deletions of a streak."""

MOST = 8
"""Deletions under way that nobody waits for: half of the requests that a mount makes at once."""

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Streak:
    """The deletions of one directory's entries."""

    length: int = 0
    last: float = float("-inf")
    under_way: dict[str, trio.Event] = field(default_factory=dict)
    failure: Exception | None = None


class Deletions:
    """Those of one mount. They run in `nursery`, each for `timeout` seconds at most."""

    def __init__(
        self, nursery: trio.Nursery, inodes: Inodes, listings: Listings, timeout: float
    ) -> None:
        self._nursery = nursery
        self._inodes = inodes
        self._listings = listings
        self._timeout = timeout
        self._under_way: set[trio.Event] = set()

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def waited_for(self, directory: Node) -> None:
        """An entry's blob was deleted, and the caller has waited for that."""
        now = trio.current_time()
        streak: Streak = directory.deletions or Streak()
        directory.deletions = streak
        streak.length = streak.length + 1 if now - streak.last < PAUSE else 1
        streak.last = now

    def begin(self, directory: Node, name: str, work: Work) -> bool:
        """Whether this deletion need not be waited for. If so, `work` does it from now on, and the
        caller takes the name out of the tree before its next await."""
        streak, now = _streak_in(directory), trio.current_time()
        if streak is None or streak.length < STREAK or now - streak.last >= PAUSE:
            return False
        if len(self._under_way) >= MOST:
            return False
        streak.last = now
        event = streak.under_way[name] = trio.Event()
        self._under_way.add(event)
        directory.lookups += 1  # not to be let go meanwhile
        self._nursery.start_soon(self._run, directory, streak, name, work)
        return True

    async def _run(self, directory: Node, streak: Streak, name: str, work: Work) -> None:
        event = streak.under_way[name]
        try:
            with trio.fail_after(self._timeout):
                await work()
        except Exception as exc:  # for whoever asks next, never for the nursery
            failure: Exception = exc
            if isinstance(exc, trio.TooSlowError):
                failure = Unavailable(f"no answer within {self._timeout:g} s")
            known = isinstance(failure, BlobfsError)
            path = f"{directory.path.rstrip('/')}/{name}"
            log.error("%s was not deleted: %s", path, failure, exc_info=None if known else exc)
            streak.length, streak.failure = 0, failure
            self._listings.drop(directory)
        finally:
            self._under_way.discard(event)
            del streak.under_way[name]
            event.set()
            directory.lookups -= 1
            self._inodes.release(directory)

    async def settle(self, directory: Node, name: str | None = None) -> None:
        """Wait for the deletions under way now, or for that of one name. Raises nothing."""
        streak = _streak_in(directory)
        if streak is not None and streak.under_way:
            for under_way, event in list(streak.under_way.items()):
                if name in (None, under_way):
                    await event.wait()

    def check(self, directory: Node) -> None:
        """Raises the failure of a deletion in the directory of which nobody has heard, once."""
        streak = _streak_in(directory)
        if streak is not None and streak.failure is not None:
            failure, streak.failure = streak.failure, None
            raise failure

    async def finish(self, directory: Node) -> None:
        """`settle` and `check`: what has returned by then is deleted for good."""
        await self.settle(directory)
        self.check(directory)

    async def drain(self) -> None:
        """Before the mount ends."""
        for event in list(self._under_way):
            await event.wait()


def _streak_in(directory: Node) -> Streak | None:
    streak: Streak | None = directory.deletions
    return streak
