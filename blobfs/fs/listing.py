"""What a directory holds, from pages of List Blobs.

A name in a directory can come from four kinds of blobs, pages apart: `a` (a file, a link or a
node), `a` with `hdi_isfolder` (a directory's marker), `a/` (a marker as some tools write it) and
anything below `a/` (a directory, marker or not). `Scanner` makes one entry of them:

- marker and prefix are one directory;
- a file `a` beside `a/…` is shadowed by the directory: it is not shown, said once in the log, and
  never touched;
- empty segments (`a//b`), `.`, `..` and names over 255 bytes cannot be shown: skipped, said once.

Between `a` and `a/` a listing has only names that begin with `a`, so the scanner holds an entry
back until a name comes that does not. Nothing else depends on the service's order.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cachetools import LRUCache

from blobfs.attributes import Kind, PackedAttributes, kind_of
from blobfs.blobs import BlobInfo, PackedInfo, Page
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX, is_showable

log = logging.getLogger(__name__)

CACHED_ENTRIES = 100_000
"""Entries of all cached listings together."""

CACHED_DIRECTORY = 20_000
"""Entries of the largest directory whose listing is kept."""


class Entry(NamedTuple):
    """What the service says of one name; `info` is None for a directory without a marker.

    `attrs`, and the plaintext `size` as far as it is known (else -1), are what follows from `info`,
    where they were worked out before that was packed.
    """

    kind: Kind
    info: PackedInfo | None
    attrs: PackedAttributes | None = None
    size: int = -1

    @classmethod
    def of(cls, kind: Kind, info: BlobInfo | None) -> "Entry":
        return cls(kind, None if info is None else PackedInfo.of(info))


class Scanner:
    """Turns the pages of one listing of `prefix` (ending in a slash, or "") into entries, each of
    which `entry` makes."""

    def __init__(
        self, prefix: str, entry: Callable[[Kind, BlobInfo | None], Entry] = Entry.of
    ) -> None:
        self._prefix = prefix
        self._entry = entry
        self._held: dict[str, Entry] = {}
        self._held_order: list[str] = []
        self.own_marker: BlobInfo | None = None  # a blob `prefix` itself, slash included
        self.unshowable: list[str] = []

    def feed(self, page: Page) -> Iterator[tuple[str, Entry]]:
        """The entries that are certain after this page, in the service's order."""
        names: list[tuple[str, BlobInfo | None]] = [(blob.name, blob) for blob in page.blobs]
        names += [(prefix, None) for prefix in page.prefixes]
        # Blobs and prefixes come in two lists; where they meet in one page does not matter,
        # since what a page says of one name is put together before anything is certain.
        for full, info in names:
            self._add(full[len(self._prefix) :], info)
        lasts = [names[-1] for names in ([b.name for b in page.blobs], page.prefixes) if names]
        if not page.next_marker:
            yield from self._release([])
        elif lasts:  # an empty page says nothing of what may still come
            yield from self._release([last[len(self._prefix) :] for last in lasts])

    def _add(self, relative: str, info: BlobInfo | None) -> None:
        if relative == "" and info is not None:
            self.own_marker = info
            return
        if relative.startswith(HIDDEN_PREFIX):
            return
        is_prefix = info is None or relative.endswith("/")
        name = relative[:-1] if is_prefix else relative
        if not is_showable(name):
            self.unshowable.append(self._prefix + relative)
            return
        held = self._held.get(name)
        if held is None:
            self._held_order.append(name)
        self._held[name] = self._merge(name, held, is_prefix, info)

    def _merge(
        self, name: str, held: Entry | None, is_prefix: bool, info: BlobInfo | None
    ) -> Entry:
        if not is_prefix:
            assert info is not None
            entry = self._entry(kind_of(info.metadata, info.size), info)
            if held is None or entry.kind is Kind.DIRECTORY:
                return entry
            self.unshowable.append(self._prefix + name)
            return held
        if held is None:
            return self._entry(Kind.DIRECTORY, info)
        if held.kind is not Kind.DIRECTORY:
            self.unshowable.append(self._prefix + name)
            return self._entry(Kind.DIRECTORY, info)
        return held if held.info is not None else self._entry(Kind.DIRECTORY, info)

    def _release(self, lasts: list[str]) -> Iterator[tuple[str, Entry]]:
        """Entries of which no later page can say more, given the last names of this one."""
        still_held = []
        for name in self._held_order:
            if any(last.startswith(name) for last in lasts):
                still_held.append(name)
            else:
                yield name, self._held.pop(name)
        self._held_order = still_held


class Scan:
    """A listing under way: what this mount changes meanwhile outranks what the service says."""

    def __init__(self) -> None:
        self.changed: dict[str, Entry | None] = {}
        self.spoiled = False  # what was `changed` has turned out not to be so


class Listing:
    """A directory's whole content at the time when it was asked for."""

    __slots__ = ("directory", "entries", "fresh_until", "path", "subdirectories")

    def __init__(self, entries: dict[str, Entry], fresh_until: float) -> None:
        self.entries = entries
        self.fresh_until = fresh_until
        self.directory: Node | None = None  # once it is cached
        self.path = ""  # of the directory then
        self.subdirectories = sum(_is_directory(entry) for entry in entries.values())

    def set(self, name: str, entry: Entry | None) -> None:
        """Take up one change; None removes the name."""
        before = self.entries.pop(name, None)
        if entry is not None:
            self.entries[name] = entry
        self.subdirectories += _is_directory(entry) - _is_directory(before)


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is Kind.DIRECTORY


class Listings:
    """Whole listings of the directories used last, kept right under this mount's own changes."""

    def __init__(self) -> None:
        self._cache: LRUCache[int, Listing] = LRUCache(
            CACHED_ENTRIES, getsizeof=lambda listing: len(listing.entries) + 1
        )

    def get(self, directory: Node) -> Listing | None:
        listing: Listing | None = self._cache.get(directory.ino)
        if listing is None or not directory.is_linked:
            return None
        # A number is given again when the kernel has forgotten it.
        is_its = listing.directory is directory or listing.path == directory.path
        return listing if is_its else None

    def put(self, directory: Node, listing: Listing) -> None:
        listing.directory, listing.path = directory, directory.path
        self._cache[directory.ino] = listing

    def drop(self, directory: Node) -> None:
        self._cache.pop(directory.ino, None)

    def drop_below(self, path: str) -> None:
        """Those of the directory of this path and of all below it."""
        for number, listing in list(self._cache.items()):
            if listing.path == path or listing.path.startswith(path + "/"):
                del self._cache[number]

    def spoil(self, directory: Node) -> None:
        """What was noted of it, or is being listed just now, may not be so after all."""
        for scan in directory.scans:
            scan.spoiled = True
        self.drop(directory)

    def note(self, directory: Node, name: str, entry: Entry | None) -> None:
        """This mount made (or removed: None) the entry."""
        for scan in directory.scans:
            scan.changed[name] = entry
        listing = self.get(directory)
        if listing is not None:
            listing.set(name, entry)

    def link_count(self, directory: Node) -> int:
        """Two, and one for each subdirectory that is known of."""
        listing = self.get(directory)
        if listing is not None:
            return 2 + listing.subdirectories
        return 2 + sum(child.is_directory for child in directory.children.values())

    def begin(self, directory: Node) -> Scan:
        scan = Scan()
        directory.scans.append(scan)
        return scan

    def end(self, directory: Node, scan: Scan) -> None:
        directory.scans.remove(scan)
