"""Deletions of one file after another (`rm -r`): not each of them is waited for.

When `STREAK` blobs of a directory's entries were deleted, each within `PAUSE` of the one before and
none of them under a name that comes again (a lock file's does: others wait for it to go), the next
calls return while the service is still at work. When it is at work on `MOST`, the next is
waited for: so those that are stalled hold up no others. For this mount the names are gone all the
same: whatever lists the directory, or gives a name anew, waits.

As on a disk, a deletion is certain when the directory is synced or removed. One that fails gives
the name back and is logged, and the next unlink, rmdir, rename or fsync in the directory fails for
it, once; from then on each is waited for again.
"""

import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from blobfs.errors import (
    BlobfsError,
    ConditionFailed,
    PosixError,
    Unavailable,
    errno_of,
    root_cause,
)
from blobfs.fs.nodes import Nodes
from blobfs.inodes import Node
from blobfs.names import join

log = logging.getLogger(__name__)

STREAK = 3
"""Deletions that are waited for, before the first that is not."""

PAUSE = 1.0
"""Seconds between two deletions of a streak."""

REMEMBERED = 64
"""Names deleted last, of which none may come again in a streak."""

MOST = 8
"""Deletions under way that nobody waits for: half of the requests that a mount makes at once beside
those for contents."""

_RETRIED = {errno.ESTALE, errno.ENOENT}
"""What the kernel asks again for, or `rm -f` passes over: a failure would not be heard."""

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Streak:
    """The deletions of one directory's entries. While there is a `failure`, of which nobody has
    heard, the kernel's forgetting of the directory does not end it."""

    length: int = 0
    last: float = float("-inf")
    names: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    failure: Exception | None = None
    failed: str = ""  # the name that it is of

    def goes_on(self, name: str) -> bool:
        return trio.current_time() - self.last < PAUSE and name not in self.names

    def add(self, name: str) -> None:
        self.length += 1
        self.last = trio.current_time()
        self.names.append(name)


class Deletions:
    """Those of one mount. They run in `nursery`, each for `timeout` seconds at most."""

    def __init__(self, nodes: Nodes, nursery: trio.Nursery, timeout: float) -> None:
        self._nodes = nodes
        self._nursery = nursery
        self._timeout = timeout
        self._under_way: dict[tuple[str, str], trio.Event] = {}  # by container and blob

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def waited_for(self, directory: Node, name: str) -> None:
        """The entry's blob was deleted, and the caller has waited for that."""
        streak: Streak = directory.deletions or Streak()
        directory.deletions = streak
        if not streak.goes_on(name):
            streak.length = 0
            streak.names.clear()
        streak.add(name)

    def begin(self, directory: Node, name: str, work: Work) -> bool:
        """Whether this deletion need not be waited for. If so, `work` does it from now on, and the
        caller takes the name out of the tree before its next await.

        `work` must delete no version that the caller does not know: what others store under the
        name after that is theirs.
        """
        streak = _streak_in(directory)
        if streak is None or streak.length < STREAK or not streak.goes_on(name):
            return False
        blob = self._blob(directory, name)
        if len(self._under_way) >= MOST or blob in self._under_way:
            return False
        streak.add(name)
        self._under_way[blob] = trio.Event()
        self._nodes.inodes.hold(directory)
        self._nursery.start_soon(self._run, directory, streak, name, blob, work)
        return True

    def _blob(self, directory: Node, *name: str) -> tuple[str, str]:
        """Container and name of the entry's blob, or of the directory's own."""
        nodes = self._nodes
        return nodes.volume(directory).container.url, nodes.blob_name(directory, *name)

    async def _run(
        self, directory: Node, streak: Streak, name: str, blob: tuple[str, str], work: Work
    ) -> None:
        try:
            with trio.fail_after(self._timeout):
                await work()
        except trio.Cancelled:
            log.error("%s was not deleted: the mount has ended", blob[1])
            raise
        except trio.TooSlowError:
            unheard = Unavailable(f"{blob[1]!r}: no answer within {self._timeout:g} s")
            self._failed(directory, streak, name, unheard)
        except Exception as exc:  # for whoever asks next, never for the nursery
            self._failed(directory, streak, name, root_cause(exc))
        finally:
            self._under_way.pop(blob).set()
            self._nodes.inodes.let_go(directory)

    def _failed(self, directory: Node, streak: Streak, name: str, failure: BaseException) -> None:
        known = isinstance(failure, BlobfsError)
        path = name if directory.parent is None else join([directory.path, name])
        log.error("%s was not deleted: %s", path, failure, exc_info=None if known else failure)
        if not isinstance(failure, Exception) or errno_of(failure) in _RETRIED:
            failure = PosixError(errno.EIO, f"{path!r} was not deleted: {failure}")
        if streak.failure is None:
            self._nodes.inodes.hold(directory)
        streak.length, streak.failure, streak.failed = 0, failure, name
        streak.names.clear()
        self._nodes.listings.spoil(directory)

    async def settle(
        self, directory: Node, name: str | None = None, *, below: bool = False
    ) -> None:
        """Wait for the deletions under way now: of the directory's entries, of one of them, or of
        all that is `below`. Raises nothing."""
        if not self._under_way:
            return
        try:
            container, blob = self._blob(directory)
        except (ConditionFailed, PosixError):
            return  # it is gone, or above the containers
        prefix = blob and blob + "/"
        for (where, deleted), event in list(self._under_way.items()):
            if where == container and deleted.startswith(prefix):
                entry = deleted[len(prefix) :]
                if below or (entry == name if name is not None else "/" not in entry):
                    await event.wait()

    def check(self, directory: Node, name: str | None = None) -> None:
        """Raises the failure of a deletion in the directory, or of that name, of which nobody has
        heard, once."""
        streak = _streak_in(directory)
        if streak is not None and streak.failure is not None and name in (None, streak.failed):
            failure, streak.failure = streak.failure, None
            self._nodes.inodes.let_go(directory)
            raise failure

    async def finish(self, directory: Node) -> None:
        """`settle` and `check`: what has returned by then is deleted for good."""
        await self.settle(directory)
        self.check(directory)

    async def drain(self) -> None:
        """Before the mount ends."""
        for event in list(self._under_way.values()):
            await event.wait()


def _streak_in(directory: Node) -> Streak | None:
    streak: Streak | None = directory.deletions
    return streak
