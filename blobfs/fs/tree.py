"""Finding nodes by name, and reading directories.

One List of the parent answers a lookup and all that follow in it within `metadata_ttl`, also
those of names that are not there. In a directory too big for one page, and for the few files
looked up again after the listing is stale, a name is asked for by itself.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial

import trio

from blobfs.attributes import Kind, kind_of
from blobfs.blobs import BlobInfo, Page
from blobfs.errors import BlobfsError, NotFound, PosixError
from blobfs.fs.ahead import InOrder
from blobfs.fs.guess import Guess, Guesses
from blobfs.fs.listing import CACHED_DIRECTORY, Entry, Listing, Listings, Scan, Scanner
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX, is_storable

log = logging.getLogger(__name__)

PROBES = 3
"""Stale files asked for one by one before the whole directory is listed again."""


CHUNK = 256
"""Entries of which nodes are made at a time while a directory is read (a reply holds some 200)."""


STREAK = 2
"""Directories that are read in order before more are listed than were asked for."""

LEAST_TTL = 1.0
"""Seconds that a listing must be fresh for to be worth having early."""


class Walk:
    """One listing of a directory from its start, page by page.

    What this mount changes meanwhile outranks what the service says. `close` it.
    """

    def __init__(
        self, store: Store, directory: Node, page_size: int, fresh_until: float | None = None
    ) -> None:
        """Its first page may have been asked for before, and be believed `fresh_until`."""
        self._store = store
        self._directory = directory
        self._page_size = page_size
        self._path = directory.path
        name = store.blob_name(directory)
        self._prefix = name + "/" if name else ""
        self._scanner = Scanner(self._prefix, store.entry)
        self._scan = store.listings.begin(directory)
        store.listings.drop(directory)  # it is stale, or there would be no walk
        self._fresh_until = store.fresh_until() if fresh_until is None else fresh_until
        self.page_until = 0.0  # what the last page says is to be believed
        self._entries: dict[str, Entry] | None = {}
        self._marker = ""
        self.ended = False

    async def next_page(self) -> list[tuple[str, Entry]]:
        """The next entries; may be none before the end. At the end a listing that is small enough
        is kept for later. A name made meanwhile comes only if the service lists it still."""
        container = self._store.volume(self._directory).container
        if not self._marker:
            await self._store.deletions.settle(self._directory)
        self.page_until = self._store.fresh_until()
        page = await container.list(self._prefix, marker=self._marker, max_results=self._page_size)
        return self.take(page)

    def take(self, page: Page) -> list[tuple[str, Entry]]:
        """The next page has come."""
        self._marker = page.next_marker
        changed = self._scan.changed
        batch = []
        for name, listed in self._scanner.feed(page):
            entry = changed.get(name, listed)
            if entry is not None:
                batch.append((name, entry))
        if not self._marker:
            self.ended = True
        if self._entries is not None:
            self._entries.update(batch)
            if len(self._entries) > CACHED_DIRECTORY:
                self._entries = None
        if self.ended:
            self._finish()
        return batch

    def _finish(self) -> None:
        directory, store = self._directory, self._store
        if not directory.is_linked or directory.path != self._path:
            return  # it was removed or renamed meanwhile: this is the listing of where it was
        if self._scan.spoiled:
            return
        directory.probes = 0
        directory.big = self._entries is None or len(self._entries) > self._page_size
        if self._entries is not None:
            # A page delivered before one of its names changed has the name's old entry.
            for name, entry in self._scan.changed.items():
                if entry is None:
                    self._entries.pop(name, None)
                else:
                    self._entries[name] = entry
            store.listings.put(directory, Listing(self._entries, self._fresh_until))
        marker = self._scanner.own_marker
        if marker is not None and not (directory.is_stored or directory.is_local):
            directory.info = marker
            directory.attrs = store.attributes_of(marker, Kind.DIRECTORY)
        for name in self._scanner.unshowable:
            store.log_once(
                logging.WARNING, f"blob name {name!r} cannot be shown in a directory; skipped"
            )

    def close(self) -> None:
        self._store.listings.end(self._directory, self._scan)


class Stream:
    """A directory being read: pages come as they are asked for, and go when they are delivered.

    What only this mount has comes first, so that it comes once when it is stored meanwhile.
    Offsets given to the kernel count entries since the start, removed ones too. `first` is the
    offset of `page[0]`.
    """

    def __init__(self, directory: Node, scan: Scan) -> None:
        self.directory = directory
        self.scan = scan  # what was removed since a page came
        self.first = 0
        self.page: list[tuple[str, Entry | None]] = []
        self.walk: Walk | None = None
        self.started = False
        self.local: frozenset[str] = frozenset()  # entries that were not stored at the start
        self.fresh_until = 0.0  # of `page`


class Tree:
    def __init__(self, store: Store, page_size: int = 5000) -> None:
        self._store = store
        self._inodes = store.inodes
        self._listings: Listings = store.listings
        self._page_size = page_size
        self._loading: dict[int, trio.Event] = {}
        self._in_order = InOrder(STREAK)
        self._guesses = Guesses(store, page_size)

    # Lookup

    async def lookup(self, parent: Node, name: str, *, may_guess: bool = False) -> Node:
        """The child of this name. Raises PosixError(ENOENT), or what the service says.

        A directory may be listed at once for who `may_guess`, and counts the lookup before its next
        await: the node is let go otherwise, when it is listed.
        """
        store = self._store
        node = parent.children.get(name)
        if node is not None and (node.volume is not None or store.is_fresh(node)):
            await store.settle_size(node)
            return node
        if self._above_containers(parent):
            raise PosixError(errno.ENOENT)
        await store.at_rest(parent)
        guess, listing = None, self._fresh_listing(parent)
        if listing is None:
            guess = self._guess(parent, name) if may_guess and node is None else None
            listing = await self._listing_for(parent, node)
        if listing is None:
            return await self._probe(parent, name)
        entry = listing.entries.get(name)
        node = parent.children.get(name)
        if entry is not None:
            is_new = node is None
            node = store.show(parent, name, entry, listing.fresh_until)
            if guess is not None and node.is_directory:
                self._guesses.was_right()
                if is_new and self._fresh_listing(node) is None:
                    self._take(guess, node)
        elif node is None or not store.is_held(node):
            if node is not None:
                store.vanish(node)
            raise PosixError(errno.ENOENT)
        await store.settle_size(node)
        return node

    def _guess(self, parent: Node, name: str) -> Guess | None:
        """For a name of which there is no node: below it, this mount changes nothing."""
        is_early = parent.ino not in self._loading and not parent.big
        is_kept = self._store.policy.metadata_ttl >= LEAST_TTL
        return self._guesses.begin(parent, name) if is_early and is_kept else None

    def _take(self, guess: Guess, directory: Node) -> None:
        """The directory has just got its node: what was guessed is its listing, when it comes."""
        walk = self._begin(directory, guess.fresh_until)

        async def list_it() -> None:
            try:
                page = await guess.page()
                if page is not None:
                    walk.take(page)
                    directory.big = not walk.ended
            finally:
                self._end(directory, walk)

        self._start_ahead(directory, list_it)

    def _above_containers(self, directory: Node) -> bool:
        return all(node.volume is None for node in directory.ancestry())

    async def _listing_for(self, parent: Node, stale: Node | None) -> Listing | None:
        """A new listing of `parent`; None when asking for the one name is better."""
        if parent.big:
            return None
        if stale is not None and stale.kind is not Kind.DIRECTORY and parent.probes < PROBES:
            parent.probes += 1
            return None
        return await self._load(parent)

    def _fresh_listing(self, directory: Node) -> Listing | None:
        listing = self._listings.get(directory)
        if listing is not None and trio.current_time() < listing.fresh_until:
            return listing
        return None

    async def _load(self, directory: Node) -> Listing | None:
        """List one page; None when that is not all of it. Readers share one request."""
        while await self._loaded_by_others(directory):
            listing = self._fresh_listing(directory)
            if listing is not None or directory.big:
                return listing
        walk = self._begin(directory)
        try:
            await walk.next_page()
            directory.big = not walk.ended
        finally:
            self._end(directory, walk)
        return self._fresh_listing(directory)

    def _begin(self, directory: Node, fresh_until: float | None = None) -> Walk:
        """A walk that others wait for until its `_end`. Raises as `Store.volume` does when the
        directory is gone."""
        walk = Walk(self._store, directory, self._page_size, fresh_until)
        self._loading[directory.ino] = trio.Event()
        return walk

    def _end(self, directory: Node, walk: Walk) -> None:
        walk.close()
        self._loading.pop(directory.ino).set()

    async def _loaded_by_others(self, directory: Node) -> bool:
        """Wait while somebody lists it; whether somebody did."""
        event = self._loading.get(directory.ino)
        if event is not None:
            await event.wait()
        return event is not None

    def _list_ahead(self, directory: Node) -> None:
        """It is being read: those that will be read next are listed, if there is an order."""
        store = self._store
        if store.policy.metadata_ttl < LEAST_TTL:
            return
        for following in self._in_order.after(directory):
            if following.volume is None and not following.big:
                self._start_ahead(following, partial(self._load_if_stale, following))

    async def _load_if_stale(self, directory: Node) -> None:
        await self._store.at_rest(directory)
        if directory.is_linked and self._fresh_listing(directory) is None:
            await self._load(directory)

    def _start_ahead(self, directory: Node, work: Callable[[], Awaitable[None]]) -> None:
        self._inodes.hold(directory)
        self._store.nursery.start_soon(self._list_by, directory, work)

    async def _list_by(self, directory: Node, work: Callable[[], Awaitable[None]]) -> None:
        """Raises nothing: who reads the directory asks again, and is told what is wrong."""
        try:
            with trio.move_on_after(self._store.write_policy.timeout):
                await work()
        except BlobfsError as exc:
            log.debug("%s: not listed ahead: %s", directory.path, exc)
        except Exception:  # nobody waits for it, and it must not end the mount
            log.exception("%s: a bug in blobfs", directory.path)
        finally:
            self._inodes.let_go(directory)

    async def _probe(self, parent: Node, name: str) -> Node:
        """Ask for one name: a blob, or anything below it."""
        store = self._store
        dots = name.endswith(".")
        if not is_storable(name.rstrip(".")) or name.startswith(HIDDEN_PREFIX):
            raise PosixError(errno.ENOENT)
        await store.deletions.settle(parent, name)
        container = store.volume(parent).container
        blob_name = store.blob_name(parent, name)
        found: list[BlobInfo] = []
        below = False

        async def ask_blob() -> None:
            if dots:  # in a URL, Azure would take it for the name without
                page = await container.list(blob_name, max_results=1)
                found.extend(blob for blob in page.blobs if blob.name == blob_name)
                return
            with suppress(NotFound):
                found.append(await container.head(blob_name))

        async def ask_below() -> None:
            nonlocal below
            page = await container.list(blob_name + "/", max_results=1)
            below = bool(page.blobs or page.prefixes or page.next_marker)

        before = parent.children.get(name)
        known = None if before is None else before.info
        scan = self._listings.begin(parent)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_blob)
                if before is None or before.is_directory:
                    nursery.start_soon(ask_below)
        finally:
            self._listings.end(parent, scan)
        node = parent.children.get(name)
        if not scan.spoiled and name in scan.changed and scan.changed[name] is None:
            raise PosixError(errno.ENOENT)  # removed by this mount meanwhile
        if node is not None and (node is not before or node.is_local or node.info is not known):
            return node  # changed by this mount meanwhile
        if not found and not below:
            if node is not None and store.is_held(node):
                return node
            if node is not None:
                store.vanish(node)
            raise PosixError(errno.ENOENT)
        info = found[0] if found else None
        kind = Kind.DIRECTORY if below or info is None else kind_of(info.metadata, info.size)
        if info is not None and below and kind_of(info.metadata, info.size) is not kind:
            info = None  # a file shadowed by the directory of its name
        node = store.show(parent, name, store.entry(kind, info), store.fresh_until())
        await store.settle_size(node)
        return node

    # Reading directories

    def open_directory(self, directory: Node) -> Stream:
        return Stream(directory, self._listings.begin(directory))

    def close_directory(self, stream: Stream) -> None:
        self._listings.end(stream.directory, stream.scan)
        if stream.walk is not None:
            stream.walk.close()

    async def entries(self, stream: Stream, offset: int) -> list[tuple[str, Node, int]]:
        """Some entries from `offset` on, each with its node and the offset after it; [] at the end.

        The nodes are the caller's: those that nobody looks up are to be released.
        """
        await self._store.at_rest(stream.directory)
        if offset == 0 or offset < stream.first:
            self._rewind(stream)
        while True:
            start = offset - stream.first
            chunk = stream.page[start : start + CHUNK]
            if chunk:
                found = await self._nodes(stream, chunk, offset)
                if found:
                    return found
                offset += len(chunk)
            elif not await self._next_page(stream, offset):
                return []

    async def _nodes(
        self, stream: Stream, chunk: list[tuple[str, Entry | None]], offset: int
    ) -> list[tuple[str, Node, int]]:
        directory = stream.directory
        found = []
        for position, (name, listed) in enumerate(chunk, offset + 1):
            entry = stream.scan.changed.get(name, listed)
            node = directory.children.get(name)
            if entry is not None:
                node = self._store.show(directory, name, entry, stream.fresh_until)
            elif node is None or not node.is_local or name in stream.scan.changed:
                continue
            found.append((name, node, position))
        unsettled = [node for _, node, _ in found if node.plain_size < 0]
        if unsettled:
            with ExitStack() as held:  # others may read the directory, and have no use for them
                for _, node, _ in found:
                    held.enter_context(self._inodes.held(node))
                async with trio.open_nursery() as nursery:
                    for node in unsettled:
                        nursery.start_soon(self._store.settle_size, node)
        return found

    def _rewind(self, stream: Stream) -> None:
        if stream.walk is not None:
            stream.walk.close()
        stream.first, stream.page, stream.walk = 0, [], None
        stream.started = False
        stream.scan.changed.clear()

    async def _next_page(self, stream: Stream, offset: int) -> bool:
        """Put the next page in the place of the present one; False at the end."""
        page = await self._more(stream, offset)
        if page is None:
            return False
        stream.first += len(stream.page)
        stream.page = page
        return True

    async def _more(self, stream: Stream, offset: int) -> list[tuple[str, Entry | None]] | None:
        if not stream.started:
            if offset == 0:  # not when the kernel is made to read some: see `priming`
                self._list_ahead(stream.directory)
            await trio.lowlevel.checkpoint()  # until what is listed ahead has begun, and says so
            while await self._loaded_by_others(stream.directory):
                pass
            stream.scan.changed.clear()  # what changed while it waited is in what comes now
            return self._first_page(stream)
        if stream.walk is None or stream.walk.ended:
            return None
        page = await stream.walk.next_page()
        stream.fresh_until = stream.walk.page_until
        return [(name, entry) for name, entry in page if name not in stream.local]

    def _first_page(self, stream: Stream) -> list[tuple[str, Entry | None]]:
        """All that is known without a request."""
        directory = stream.directory
        stream.started = True
        if self._above_containers(directory):
            return [(name, Entry(Kind.DIRECTORY, None)) for name in sorted(directory.children)]
        stream.local = frozenset(
            name
            for name, node in directory.children.items()
            if node.is_local and not node.is_stored
        )
        page: list[tuple[str, Entry | None]] = [(name, None) for name in stream.local]
        listing = self._fresh_listing(directory)
        if listing is None:
            stream.walk = Walk(self._store, directory, self._page_size)
        else:
            stream.fresh_until = listing.fresh_until
            page += [(name, e) for name, e in listing.entries.items() if name not in stream.local]
        return page

    async def check_empty(self, directory: Node) -> BlobInfo | None:
        """Raises PosixError(ENOTEMPTY) when anything but its own marker is in the directory, or
        why something in it could not be deleted.

        The marker `NAME/` that some tools make is returned, since it has to go with it.
        """
        await self._store.at_rest(directory)
        await self._store.deletions.finish(directory)
        listing = self._fresh_listing(directory)
        if any(self._store.is_held(child) for child in directory.children.values()) or (
            listing is not None and listing.entries
        ):
            raise PosixError(errno.ENOTEMPTY)
        prefix = self._store.blob_name(directory) + "/"
        container = self._store.volume(directory).container
        slash_marker = None
        marker = ""
        while True:
            page = await container.list(prefix, marker=marker, max_results=10)
            if page.prefixes or any(blob.name != prefix for blob in page.blobs):
                raise PosixError(errno.ENOTEMPTY)
            slash_marker = page.blobs[0] if page.blobs else slash_marker
            marker = page.next_marker
            if not marker:
                return slash_marker
