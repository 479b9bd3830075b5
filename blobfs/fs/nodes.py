"""Nodes, and what is known of the blobs behind them.

Two things are known of a blob: what the service last said, for `metadata_ttl`, and what this
mount has changed and not stored yet, which outranks it.
"""

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from blobfs.attributes import (
    Attributes,
    Defaults,
    Kind,
    PackedAttributes,
    kind_of,
    read_attributes,
    value_of,
)
from blobfs.blobs import BlobInfo, Container, PackedInfo
from blobfs.envelope import METADATA_KEY, SEAL_KEY
from blobfs.errors import ConditionFailed, ContentError, NotFound, PosixError
from blobfs.fs.listing import Entry, Listings
from blobfs.inodes import Inodes, Node
from blobfs.names import join
from blobfs.reader import Reader

log = logging.getLogger(__name__)


_SAME_TIME = 0.01
"""Seconds. What was listed together shares one number: 32 bytes less of each inode."""

_READ_ONLY_TYPES = {"AppendBlob": "an append blob", "PageBlob": "a page blob"}


@dataclass(frozen=True, slots=True)
class Volume:
    """One container, or a folder in it, as part of a mount."""

    container: Container
    prefix: str  # without slashes at its ends; "" for the whole container
    writable: bool
    may_tag: bool  # the token allows reading and writing tags
    may_delete: Callable[[], bool]  # the token that there is by now allows it


@dataclass(frozen=True, slots=True)
class StorePolicy:
    defaults: Defaults
    metadata_ttl: float
    overwrite_on_conflict: bool
    recovery_dir: Path


def kind_of_blob(info: BlobInfo) -> Kind:
    """What a blob is by itself; a name that ends in a slash is a directory's marker."""
    if info.name.endswith("/"):
        return Kind.DIRECTORY
    return kind_of(info.metadata, info.size)


def _is_surely_the_same(before: BlobInfo, after: BlobInfo) -> bool:
    """Whether both versions of a blob have one content, as far as that shows without a key: a new
    wrapped CEK may be the old one's under another KEK, and the seal is of the CEK."""
    values = [value_of(info.metadata, METADATA_KEY) for info in (before, after)]
    seals = [value_of(info.metadata, SEAL_KEY) for info in (before, after)]
    sums = [info.headers.content_md5 for info in (before, after)]
    if None in values or before.size != after.size:
        return False
    return any(old == new and old for old, new in (values, seals, sums))


class Nodes:
    """The inode table and the listings, kept in step with what the service says."""

    def __init__(self, reader: Reader, policy: StorePolicy, now_ns: Callable[[], int]) -> None:
        self.reader = reader
        self.policy = policy
        self.now_ns = now_ns
        self.on_distrust: Callable[[Node], None] = lambda node: None
        """Told of each node of which the kernel, too, is to forget what it was told."""
        self.listings = Listings()
        self.inodes = Inodes(self.bare_directory(), trio.Lock)
        self._logged: set[str] = set()
        self._fresh_until = 0.0

    # Where things are

    def volume(self, node: Node) -> Volume:
        """Raises PosixError(EACCES) for the directory above several containers."""
        for ancestor in node.ancestry():
            if ancestor.volume is not None:
                volume: Volume = ancestor.volume
                return volume
        raise PosixError(errno.EACCES, "outside the containers of this mount")

    def writable(self, node: Node) -> Volume:
        """The node's volume. Raises PosixError(EROFS) when it may not be changed."""
        volume = self.volume(node)
        if not volume.writable:
            raise PosixError(errno.EROFS)
        return volume

    def blob_name(self, node: Node, *below: str) -> str:
        """The name of the blob behind the node, or of one below it; "" for a container."""
        if node.hidden:
            return node.hidden
        if not node.is_linked:
            raise ConditionFailed(f"{node.name!r} was replaced or deleted by someone else")
        segments: list[str] = []
        for ancestor in node.ancestry():
            if not ancestor.is_linked:
                break  # it has a volume, but no place in it any more
            if ancestor.volume is not None:
                return join([ancestor.volume.prefix, *reversed(segments), *below])
            segments.append(ancestor.name)
        raise PosixError(errno.ESTALE, "the file was deleted")

    def marker_name(self, directory: Node) -> str:
        """The blob that holds the directory's attributes; some tools' end with a slash."""
        name = self.blob_name(directory)
        if directory.info is not None and directory.info.name.endswith("/"):
            return name + "/"
        return name

    def locate(self, node: Node) -> tuple[Container, str]:
        name = self.marker_name(node) if node.is_directory else self.blob_name(node)
        return self.volume(node).container, name

    @asynccontextmanager
    async def locked(self, node: Node, *, holding: Node | None = None) -> AsyncIterator[None]:
        """Hold the node's lock, at a time when no directory above it is being renamed.

        `holding` is a node whose lock the caller has: a rename from or to a directory above that
        one has not begun, since it waits for this lock, and so must not be waited for.
        """
        while True:
            for moving in self._moving_above(node, holding):
                await moving.wait()
            async with self.inodes.lock(node):
                if not self._moving_above(node, holding):
                    yield
                    return

    async def at_rest(self, node: Node) -> None:
        """Wait while a directory above it, or itself, is being renamed: the service then has
        some of its entries under one name and some under the other."""
        for moving in self._moving_above(node, None):
            await moving.wait()

    def _moving_above(self, node: Node, holding: Node | None) -> list[trio.Event]:
        waiting = [] if holding is None else [above.moving for above in holding.ancestry()]
        return [
            ancestor.moving
            for ancestor in node.ancestry()
            if ancestor.moving is not None and ancestor.moving not in waiting
        ]

    # What is known

    def fresh_until(self) -> float:
        until = trio.current_time() + self.policy.metadata_ttl
        if until > self._fresh_until + _SAME_TIME:
            self._fresh_until = until
        return self._fresh_until

    def is_fresh(self, node: Node) -> bool:
        return node.is_local or self.is_confirmed(node)

    def is_confirmed(self, node: Node) -> bool:
        """Whether the service said what we know of the node within `metadata_ttl`."""
        return trio.current_time() < node.fresh_until

    def distrust(self, node: Node) -> None:
        """What we know of the node, or of what is in it, is not what is stored: ask again, and not
        a listing that says the same."""
        node.fresh_until = 0.0
        self.on_distrust(node)
        self.listings.spoil(node)
        if node.parent is not None:
            self.listings.spoil(node.parent)

    @contextmanager
    def in_doubt(self, *nodes: Node | None) -> Iterator[None]:
        """What fails in the block may have been done by the service, unheard: these nodes, and what
        is in them, are then asked for again."""
        try:
            yield
        except BaseException:
            for node in nodes:
                if node is not None:
                    self.distrust(node)
            raise

    def log_once(self, level: int, message: str) -> None:
        """For what every listing would say again."""
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, message)

    def attributes_of(self, info: BlobInfo, kind: Kind) -> Attributes:
        return read_attributes(
            dict(info.metadata), kind, info.last_modified_ns, self.policy.defaults
        )

    def bare_directory(self) -> Attributes:
        """Attributes of a directory without a blob of its own."""
        defaults, now = self.policy.defaults, self.now_ns()
        return Attributes(
            Kind.DIRECTORY, defaults.dir_mode, defaults.uid, defaults.gid, now, now, now
        )

    def entry(self, kind: Kind, info: BlobInfo | None) -> Entry:
        """With all that `take_up` needs: what was packed would have to be unpacked for that."""
        if info is None:
            return Entry(kind, None)
        attrs = PackedAttributes.of(self.attributes_of(info, kind))
        return Entry(kind, PackedInfo.of(info), attrs, self._listed_size(kind, info))

    def show(self, parent: Node, name: str, entry: Entry, until: float) -> Node:
        """The child of this name with what the service said of it, to be believed `until`; new if
        need be.

        What we know better (unsaved changes) stays. A child of another kind by now is replaced.
        """
        node = parent.children.get(name)
        if node is not None and node.kind is not entry.kind:
            if self.is_held(node):
                return node
            self.vanish(node)
            node = None
        if node is not None and not node.is_local and self._is_replaced(node, entry.info):
            self.vanish(node)
            node = None
        if node is None:
            attrs = self.bare_directory()
            attrs.kind = entry.kind  # all else, `take_up` has from the service
            node = self.inodes.add(parent, name, attrs)
        elif node.is_local:
            return node
        self.take_up(node, entry, until)
        return node

    def _is_replaced(self, node: Node, packed: PackedInfo | None) -> bool:
        """Whether the file is open with another content than `info` has.

        Who has it open goes on with the node, and the name gets another one: handles of one node
        share the kernel's cached pages and its size, and so would read both versions as one.
        """
        if packed is None or node.is_directory or not node.opens or node.etag == packed.etag:
            return False
        known, info = node.info, packed.unpacked()
        if known is None:
            return False
        return not _is_surely_the_same(known, info)

    def take_up(self, node: Node, entry: Entry, until: float) -> None:
        """The service has said this of the node, which has nothing unsaved."""
        if node.fresh_until > until:
            return  # it has said something since
        node.fresh_until = until
        if node.tags_until is not None:
            node.tags_until = None
        packed = entry.info
        if packed is None:
            node.info = None  # a directory whose marker is gone keeps what it was shown with
            return
        if node.etag != packed.etag or not node.is_stored:
            attrs = entry.attrs
            if attrs is None:
                entry = self.entry(node.kind, packed.unpacked())
                attrs = entry.attrs
                assert attrs is not None
            if node.is_directory and node.is_stored:
                # Changes of entries count as changes of the directory, and are not stored.
                before, later = node.shown_attrs, attrs.unpacked()
                later.mtime_ns = max(before.mtime_ns, later.mtime_ns)
                later.ctime_ns = max(before.ctime_ns, later.ctime_ns)
                attrs = PackedAttributes.of(later)
            node.attrs = attrs
            node.target = None
            if node.is_ours:
                node.is_ours = False
            if not node.opens:
                node.content = None  # a symlink's, of the version before
            node.plain_size = entry.size
        node.info = packed

    def _listed_size(self, kind: Kind, info: BlobInfo) -> int:
        if kind is Kind.DIRECTORY:
            return 0
        try:
            size = self.reader.known_size(info)
        except ContentError as exc:
            self.log_once(logging.WARNING, f"{info.name!r} is listed with its stored size: {exc}")
            return info.size
        return -1 if size is None else size

    async def settle_size(self, node: Node) -> None:
        """Make sure of the exact plaintext size, which costs requests for protocol 1.0 only."""
        if node.plain_size >= 0 or not node.is_stored:  # as a rule: `info` would be unpacked
            return
        info = node.info
        assert info is not None
        try:
            with self.inodes.held(node):
                size = await self.reader.exact_size(lambda: self.locate(node), info, node.kind)
        except (ContentError, NotFound, ConditionFailed) as exc:
            self.log_once(logging.WARNING, f"{info.name!r} is listed with its stored size: {exc}")
            size = info.size
        if node.info is info:
            node.plain_size = size

    async def refresh(self, node: Node) -> None:
        """Ask the service about this one blob.

        Raises NotFound when it is gone, ConditionFailed when it is open and was replaced.
        """
        container, name = self.locate(node)
        known = node.info
        try:
            info = await container.head(name)
        except NotFound:
            if node is not self.inodes.root:
                raise
            node.info = None  # a mounted folder stays, with or without a marker
            return
        if node.info is known and not node.is_local:
            if kind_of_blob(info) is not node.kind:
                raise NotFound(f"{name!r} is of another type by now")
            entry = self.entry(node.kind, info)
            if self._is_replaced(node, entry.info):
                self.vanish(node)
                raise ConditionFailed(f"{name!r} was replaced by someone else while it was open")
            self.take_up(node, entry, self.fresh_until())

    async def as_stored(self, node: Node) -> BlobInfo:
        """The node's blob with the tags and the tier that it has now, which change without a new
        ETag: for what is to replace it. Raises ConditionFailed when it is another version."""
        info = node.info
        assert info is not None
        until = node.fresh_until if node.tags_until is None else node.tags_until
        if trio.current_time() < until:
            return info
        container, name = self.locate(node)
        current = await container.head(name)
        if current.etag != info.etag:
            raise ConditionFailed(f"{name!r} was changed by someone else")
        if node.etag == current.etag:
            node.info, node.tags_until = current, self.fresh_until()
        return current

    async def carried(
        self, volume: Volume, info: BlobInfo
    ) -> tuple[dict[str, str] | None, str | None]:
        """Tags and tier that a write must name again, since the service would drop them."""
        tags = None
        if info.tag_count and volume.may_tag:
            tags = await volume.container.get_tags(info.name)
        elif info.tag_count:
            self.log_once(
                logging.WARNING, f"{info.name!r} loses its tags: the token has no permission t"
            )
        return tags, (info.tier if info.tier and not info.tier_inferred else None)

    def rebase(self, node: Node, info: BlobInfo) -> None:
        """Others changed the blob's metadata while this mount has changes that are not stored:
        what we left alone is as they have it."""
        if node.info is not None:
            before = self.attributes_of(node.info, node.kind)
            theirs = self.attributes_of(info, node.kind)
            for name in ("mode", "uid", "gid", "mtime_ns", "atime_ns"):
                if getattr(node.attrs, name) == getattr(before, name):
                    setattr(node.attrs, name, getattr(theirs, name))
        node.info = info

    def check_rewritable(self, node: Node) -> None:
        """Raises PosixError(EPERM) for blobs of which Azure replaces the content by no request
        that a large file could be written with: those would have to be deleted first."""
        info = node.info
        if info is not None and info.blob_type in _READ_ONLY_TYPES:
            self.log_once(
                logging.WARNING,
                f"{info.name!r} is {_READ_ONLY_TYPES[info.blob_type]}, which is never rewritten: "
                "write a copy of it, delete it, and rename the copy",
            )
            raise PosixError(errno.EPERM)

    def is_held(self, node: Node) -> bool:
        """Whether it or anything below it has changes that are not stored, or is being changed:
        then it stays where it is, whatever others do, until these have found out at their commit.
        """
        is_changing = node.moving is not None or node.fillings > 0
        return (
            node.is_local
            or is_changing
            or any(self.is_held(child) for child in node.children.values())
        )

    @contextmanager
    def filling(self, directory: Node) -> Iterator[None]:
        """An entry is put into the directory in the block: it stays in the tree, also when the
        service shows meanwhile, or in an answer that is on its way then, that others removed it."""
        with self.inodes.filling(directory):
            yield
        for above in list(directory.ancestry())[1:]:
            if above.scans:
                self.listings.spoil(above)

    def vanish(self, node: Node) -> None:
        """Someone else deleted it: open handles find out when they read or write."""
        if node.volume is None:
            node.volume = self.volume(node)
            node.vanished = True
            self.inodes.detach(node)

    def check_present(self, node: Node) -> None:
        """Raises ConditionFailed when others deleted the file: what is written to it would go
        nowhere. One that was unlinked here is written to as POSIX has it."""
        *_, top = node.ancestry()
        if top.vanished:
            raise ConditionFailed(f"{node.path!r} was deleted by someone else")
