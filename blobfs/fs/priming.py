"""Names that are looked up one after another: the kernel is made to read the directory instead.

`rsync`, `git status` and `make` ask for the attributes of files whose names they know, and never
read the directory. Each such name is a round trip to us of 0.1 ms, and to read an entry takes a
fifth of that: `rsync -a` of 1,000 files that are there already took 0.20 s instead of 0.30.

Only directories are read of which a listing is known, so nothing is asked of the service for it.
"""

import logging
from collections.abc import Awaitable, Callable

import trio
from cachetools import LRUCache

from blobfs.fs.listing import Listing
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.selfread import CannotCopy

log = logging.getLogger(__name__)

STRETCH = 32
"""Entries in which an order is looked for: several threads of a program may be at work on a
directory, each on a part of it (`git status` has up to 20)."""

STREAK = 8
"""Names of a stretch that are looked up in order before what follows them is read."""

LEAST_TTL = 1.0
"""Seconds for which the kernel must be allowed to keep what it reads."""

RUNS = 4
"""Directories that are watched: one of 20,000 names takes 2 MiB for that."""

ReadSome = Callable[[str, int], Awaitable[int]]
"""Has the kernel read some entries of the directory of that path from an offset on, and says the
offset after them. Raises OSError, and CannotCopy when there is no need to try again."""


class _Run:
    """The lookups in one directory, while one listing of it holds."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self._early: list[str] = []
        self._places: dict[str, int] = {}
        self._streaks: dict[int, tuple[int, int]] = {}  # by stretch: the last place, and how many

    def after(self, name: str) -> int | None:
        """From which offset to read on, if this name makes a streak."""
        if not self._places:
            # Few directories come to this, and for the others their places are not worth it.
            self._early.append(name)
            if len(self._early) < STREAK:
                return None
            self._places = {name: place for place, name in enumerate(self.listing.entries)}
            for early in self._early[:-1]:
                self._count(early)
        return self._count(name)

    def _count(self, name: str) -> int | None:
        place = self._places.get(name)
        if place is None:  # not stored yet
            return None
        last, streak = self._streaks.get(place // STRETCH, (-1, 0))
        streak = streak + 1 if place > last else 1
        self._streaks[place // STRETCH] = place, streak
        return place + 1 if streak == STREAK and place + 1 < len(self._places) else None

    def was_read(self, begin: int, end: int) -> None:
        """These need not be looked up; the first one after them shows that it goes on."""
        if not begin <= end <= len(self._places):
            return  # another directory is there by now
        for stretch in range(begin // STRETCH, end // STRETCH):
            self._streaks[stretch] = len(self._places), STREAK
        self._streaks[end // STRETCH] = end - 1, STREAK - 1


class Primer:
    """Reads one directory at a time, in the store's nursery, while there is a `read_some`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read_some: ReadSome | None = None
        self._runs: LRUCache[int, _Run] = LRUCache(RUNS)
        self._is_reading = False

    def looked_up(self, directory: Node, name: str) -> None:
        """The kernel has asked for this name, which is there."""
        if self.read_some is None or self._is_reading:
            return
        listing = self._store.listings.get(directory)
        if listing is None:
            return
        run = self._runs.get(directory.ino)
        if run is None or run.listing is not listing:
            run = self._runs[directory.ino] = _Run(listing)
        begin = run.after(name)
        if begin is not None and listing.fresh_until - trio.current_time() >= LEAST_TTL:
            self._is_reading = True
            self._store.nursery.start_soon(self._read, directory, run, begin)

    async def _read(self, directory: Node, run: _Run, begin: int) -> None:
        """Raises nothing: names that were not read are looked up."""
        assert self.read_some is not None
        try:
            with trio.move_on_after(self._store.write_policy.timeout):
                run.was_read(begin, await self.read_some(directory.path, begin))
        except OSError as exc:
            log.debug("%s: not read ahead: %s", directory.path, exc)
            if isinstance(exc, CannotCopy):
                self.read_some = None
        except Exception:  # nobody waits for it, and it must not end the mount
            log.exception("%s: a bug in blobfs", directory.path)
        finally:
            self._is_reading = False
