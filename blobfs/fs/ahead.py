"""What is worked on one after another: the next ones are fetched before they are asked for.

What reads a directory (`cp -r`, `tar`, `grep -r`, `cat *`) reads its files in the order of their
names, each when it is done with the one before, so that each costs it a round trip; and what walks
a tree (`find`, `ls -R`) so lists its directories. The kernel knows nothing of that, but here it
shows. Only nodes are fetched of which the kernel has looked up the attributes, so nothing is listed
to find them.
"""

import logging
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import trio
from cachetools import LRUCache

from blobfs.attributes import Kind
from blobfs.errors import BlobfsError
from blobfs.fs.store import Store
from blobfs.inodes import Node

log = logging.getLogger(__name__)

SMALL = 256 * 1024
"""Bytes: of larger files the reading itself takes longer than the round trip before it."""

STREAK = 3
"""Files that are read in order before more are fetched than were asked for."""

GAP = 4
"""Names that may lie between two files that are read in order: links, large files."""

MOST = 8
"""Files that are fetched ahead: half of the requests for contents that a mount makes at once."""

KEPT = 4 * MOST
"""Files fetched ahead that are kept open for whoever reads them: unwrapping their keys and checking
their seals again was a tenth of what reading small files took."""

RUNS = 16
"""Directories in which an order is looked for."""


@dataclass(slots=True)
class _Run:
    """The work on one directory's entries, as far as it is in order."""

    path: str
    recent: deque[str]
    names: list[str] = field(default_factory=list)  # of all like them, once it is in order
    window: int = 1
    asked: int = 0  # the place in `names` up to which they were fetched


class InOrder:
    """Sees when the entries of a directory are worked on in the order of their names."""

    def __init__(self, streak: int) -> None:
        """`streak` in order, and more are expected."""
        self._streak = streak
        self._runs: LRUCache[int, _Run] = LRUCache(RUNS)

    def after(self, node: Node) -> list[Node]:
        """Work on this one begins: those that are to be fetched now, each told once."""
        directory = node.parent
        if directory is None:
            return []
        run = self._runs.get(directory.ino)
        if run is None or run.path != directory.path:
            recent: deque[str] = deque(maxlen=self._streak)
            run = self._runs[directory.ino] = _Run(directory.path, recent)
        if run.recent and run.recent[-1] == node.name:
            return []
        run.recent.append(node.name)
        if len(run.recent) < self._streak:
            return []
        if not run.names:
            is_alike = node.is_directory
            children = directory.children.items()
            run.names = sorted(name for name, it in children if it.is_directory == is_alike)
        place = _place(run)
        if place < 0:
            run.names, run.window, run.asked = [], 1, 0
            return []
        run.window = min(run.window * 2, MOST)
        begin, run.asked = max(run.asked, place + 1), max(run.asked, place + 1 + run.window)
        following = (directory.children.get(name) for name in run.names[begin : run.asked])
        return [each for each in following if each is not None]


class Ahead:
    """Fetches small files ahead; its requests run in the store's nursery."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._in_order = InOrder(STREAK)
        self._kept: deque[Node] = deque()

    def read(self, node: Node) -> None:
        """The beginning of this file is being read, from the service or from memory."""
        if 0 < node.plain_size <= SMALL:
            for following in self._in_order.after(node):
                if self._is_wanted(following):
                    self._store.nursery.start_soon(self._fetch, following)

    def _is_wanted(self, node: Node) -> bool:
        return (
            node.kind is Kind.FILE
            and 0 < node.plain_size <= SMALL
            and node.draft is None
            and not node.opens
            and node.is_stored
            and node.page_cache_etag != node.etag
            and self._store.is_confirmed(node)
        )

    async def _fetch(self, node: Node) -> None:
        """Raises nothing: who reads the file asks again, and is told what is wrong."""
        try:
            with trio.move_on_after(self._store.write_policy.timeout):
                await self._store.reader.fetch(await self._store.content(node))
        except BlobfsError as exc:
            log.debug("%s: not fetched ahead: %s", node.path, exc)
        except Exception:  # nobody waits for it, and it must not end the mount
            log.exception("%s: a bug in blobfs", node.path)
        finally:
            self._keep(node)

    def _keep(self, node: Node) -> None:
        self._kept.append(node)
        if len(self._kept) > KEPT:
            oldest = self._kept.popleft()
            if not oldest.opens and oldest not in self._kept:
                oldest.content = None


def _place(run: _Run) -> int:
    """Where the last file read is among the names; -1 when the last ones were not in order."""
    places = []
    for name in run.recent:
        place = bisect_left(run.names, name)
        if place == len(run.names) or run.names[place] != name:
            return -1
        places.append(place)
    steps = [later - earlier for earlier, later in pairwise(places)]
    return places[-1] if all(0 < step <= GAP for step in steps) else -1
