"""Nodes and the blobs behind them: what is known of each, and the writes that change it.

Every write is conditional on the version that we know. Attribute changes that follow a write by
this mount within `ATTRIBUTE_DELAY` are kept back that long, so that the next one, a commit or a
rename carries them (`cp -p`, `rsync -a` and `tar` change owner, mode and times one by one); all
others are stored before the call returns.
"""

import errno
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from blobfs.attributes import (
    Attributes,
    Defaults,
    Kind,
    kind_of,
    put_key,
    read_attributes,
    value_of,
    write_attributes,
)
from blobfs.blobs import (
    METADATA_LIMIT,
    BlobInfo,
    Container,
    ContentHeaders,
    Version,
    metadata_size,
)
from blobfs.draft import Draft, PagePool, ReadBase
from blobfs.envelope import METADATA_KEY
from blobfs.errors import (
    AlreadyExists,
    BlobfsError,
    ConditionFailed,
    ContentError,
    NotFound,
    PosixError,
)
from blobfs.fs.listing import Entry, Listings
from blobfs.inodes import Inodes, Node
from blobfs.keyring import Keyring
from blobfs.names import HIDDEN_PREFIX, check_blob_name, join
from blobfs.reader import Content, Reach, Reader
from blobfs.writer import Upload, WritePolicy

log = logging.getLogger(__name__)

ATTRIBUTE_DELAY = 1.0
"""Seconds that attribute changes may wait for a write that carries them."""


ENVELOPE_RESERVE = 1024
"""Bytes of metadata left free for the envelope of a body that is not stored yet (RSA-2048: 680)."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One container, or a folder in it, as part of a mount."""

    container: Container
    prefix: str  # without slashes at its ends; "" for the whole container
    writable: bool
    may_tag: bool  # the token allows reading and writing tags


@dataclass(frozen=True, slots=True)
class StorePolicy:
    defaults: Defaults
    metadata_ttl: float
    overwrite_on_conflict: bool
    recovery_dir: Path


class Store:
    """What all operations share. See the module's docstring."""

    def __init__(
        self,
        *,
        reader: Reader,
        keyring: Keyring,
        pool: PagePool,
        policy: StorePolicy,
        write_policy: WritePolicy,
        nursery: trio.Nursery,
        now_ns: Callable[[], int],
    ) -> None:
        self.reader = reader
        self.keyring = keyring
        self.policy = policy
        self.now_ns = now_ns
        self.inodes = Inodes(self.bare_directory(), trio.Lock)
        self.listings = Listings()
        self._pool = pool
        self.write_policy = write_policy
        self._nursery = nursery
        self._logged: set[str] = set()

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
            raise PosixError(errno.ESTALE, "the file was deleted")
        segments: list[str] = []
        for ancestor in node.ancestry():
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
    async def locked(self, node: Node) -> AsyncIterator[None]:
        """Hold the node's lock, at a time when no directory above it is being renamed."""
        while True:
            for ancestor in node.ancestry():
                if ancestor.moving is not None:
                    await ancestor.moving.wait()
            async with node.lock:
                if all(ancestor.moving is None for ancestor in node.ancestry()):
                    yield
                    return

    # What is known

    def fresh_until(self) -> float:
        return trio.current_time() + self.policy.metadata_ttl

    def is_fresh(self, node: Node) -> bool:
        return node.is_local or self.is_confirmed(node)

    def is_confirmed(self, node: Node) -> bool:
        """Whether the service said what we know of the node within `metadata_ttl`."""
        return trio.current_time() < node.fresh_until

    def log_once(self, level: int, message: str) -> None:
        """For what every listing would say again."""
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, message)

    def attributes_of(self, info: BlobInfo, kind: Kind) -> Attributes:
        return read_attributes(info.metadata, kind, info.last_modified_ns, self.policy.defaults)

    def bare_directory(self) -> Attributes:
        """Attributes of a directory without a blob of its own."""
        defaults, now = self.policy.defaults, self.now_ns()
        return Attributes(
            Kind.DIRECTORY, defaults.dir_mode, defaults.uid, defaults.gid, now, now, now
        )

    def show(self, parent: Node, name: str, kind: Kind, info: BlobInfo | None) -> Node:
        """The child of this name with what the service just said of it; new if need be.

        What we know better (unsaved changes) stays. A child of another kind by now is replaced.
        """
        node = parent.children.get(name)
        if node is not None and node.kind is not kind:
            if node.is_local:
                return node
            self.inodes.detach(node)
            node = None
        if node is None:
            attrs = self.bare_directory() if info is None else self.attributes_of(info, kind)
            node = self.inodes.add(parent, name, attrs)
        elif node.is_local:
            return node
        self._take_up(node, info)
        return node

    def _take_up(self, node: Node, info: BlobInfo | None) -> None:
        node.fresh_until = self.fresh_until()
        if info is None:
            node.info = None  # a directory whose marker is gone keeps what it was shown with
            return
        if node.info is None or node.info.etag != info.etag:
            mtime, ctime = node.attrs.mtime_ns, node.attrs.ctime_ns
            node.attrs = self.attributes_of(info, node.kind)
            if node.is_directory and node.info is not None:
                # Changes of entries count as changes of the directory, and are not stored.
                node.attrs.mtime_ns = max(mtime, node.attrs.mtime_ns)
                node.attrs.ctime_ns = max(ctime, node.attrs.ctime_ns)
            node.target = None
            node.plain_size = self._listed_size(node, info)
        node.info = info

    def _listed_size(self, node: Node, info: BlobInfo) -> int:
        if node.is_directory:
            return 0
        try:
            size = self.reader.known_size(info)
        except ContentError as exc:
            self.log_once(logging.WARNING, f"{info.name!r} is listed with its stored size: {exc}")
            return info.size
        return -1 if size is None else size

    async def settle_size(self, node: Node) -> None:
        """Make sure of the exact plaintext size, which costs requests for protocol 1.0 only."""
        info = node.info
        if node.plain_size >= 0 or info is None:
            return
        try:
            size = await self.reader.exact_size(lambda: self.locate(node), info, node.kind)
        except (ContentError, NotFound, ConditionFailed) as exc:
            self.log_once(logging.WARNING, f"{info.name!r} is listed with its stored size: {exc}")
            size = info.size
        if node.info is info:
            node.plain_size = size

    async def refresh(self, node: Node) -> None:
        """Ask the service about this one blob. Raises NotFound when it is gone."""
        container, name = self.locate(node)
        known = node.info
        info = await container.head(name)
        if node.info is known and not node.is_local:
            if kind_of(info.metadata, info.size) is not node.kind:
                raise NotFound(f"{name!r} is of another type by now")
            self._take_up(node, info)

    def wrote(self, node: Node, info: BlobInfo) -> None:
        """Our own write made this version."""
        node.info = info
        if node.parent is not None:
            self.listings.note(node.parent, node.name, Entry(node.kind, info))
        node.fresh_until = self.fresh_until()
        node.committed_at = trio.current_time()

    # Attributes

    def composed(self, node: Node) -> dict[str, str]:
        """All metadata that the blob is to have. Raises PosixError(ENOSPC) over Azure's limit."""
        stored: Mapping[str, str] = {} if node.info is None else node.info.metadata
        metadata = dict(stored)
        for key, value in node.overlay.items():
            put_key(metadata, key, value)
        metadata = write_attributes(metadata, node.attrs)
        has_body = node.kind in (Kind.FILE, Kind.SYMLINK)
        reserve = 0 if METADATA_KEY in metadata or not has_body else ENVELOPE_RESERVE
        if metadata_size(metadata) + reserve > METADATA_LIMIT:
            raise PosixError(errno.ENOSPC, f"{node.path!r}: over 8 KiB of metadata")
        if value_of(stored, METADATA_KEY) != value_of(metadata, METADATA_KEY):
            raise AssertionError("a metadata write would lose encryptiondata, and so the file")
        return metadata

    def changed(self, node: Node) -> None:
        """Note that attributes or overlay are ahead of what is stored."""
        if not node.unsaved:
            node.unsaved = True
            node.unsaved_since = trio.current_time()

    def may_wait(self, node: Node) -> bool:
        """Whether an attribute change follows a write closely enough to be carried by another."""
        if node.draft is not None and node.draft.dirty:
            return True
        return trio.current_time() - node.committed_at < 2 * ATTRIBUTE_DELAY

    async def save(self, node: Node) -> None:
        """Store unsaved attributes and metadata; the caller holds the node's lock.

        Raises ConditionFailed when the blob was replaced by another content meanwhile.
        """
        if not node.unsaved or (node.draft is not None and node.draft.dirty):
            return  # a commit will carry them
        if not node.is_linked or not self.blob_name(node):
            node.unsaved = False  # unlinked, or the root of a container: nowhere to store them
            node.overlay.clear()
            return
        for _ in range(3):
            metadata = self.composed(node)
            before = (replace(node.attrs), dict(node.overlay))
            try:
                await self._store_metadata(node, metadata)
            except (ConditionFailed, NotFound, AlreadyExists):
                await self._rebase(node)
                continue
            if before == (node.attrs, node.overlay):
                node.unsaved = False
                node.overlay.clear()
            return
        raise ConditionFailed(f"{node.path!r} is being changed by others over and over")

    async def _store_metadata(self, node: Node, metadata: dict[str, str]) -> None:
        container, name = self.locate(node)
        if node.info is None:
            await self.put_empty(node, name, metadata)
            return
        version = await container.set_metadata(name, metadata, if_match=node.info.etag)
        self.new_version(node, replace(node.info, metadata=metadata), version)

    def new_version(self, node: Node, info: BlobInfo, version: Version) -> None:
        """We changed metadata or headers, not content: open readers go on under the new ETag."""
        assert node.info is not None
        info.etag, info.last_modified_ns = version
        if node.page_cache_etag == node.info.etag:
            node.page_cache_etag = info.etag
        if node.content is not None:
            node.content.info = info
        self.wrote(node, info)

    async def _rebase(self, node: Node) -> None:
        """Someone else changed the blob: put our change on top, if the content is the same."""
        container, name = self.locate(node)
        try:
            info = await container.head(name)
        except NotFound:
            if node.is_directory:
                node.info = None
                return
            self._give_up(node)
            raise
        if node.is_directory or node.info is None:
            node.info = info
            return
        if not await self.reader.same_content(node.info, info):
            self._give_up(node)
            raise ConditionFailed(f"{name!r} was replaced by someone else")
        if node.content is not None:
            node.content.info = info
        node.info = info

    def _give_up(self, node: Node) -> None:
        node.unsaved = False
        node.overlay.clear()
        node.fresh_until = 0.0

    async def save_overdue(self, age: float) -> None:
        """Store what has been unsaved for `age` seconds. Failures are logged: nobody waits.

        A change that the service refuses for good is dropped, one that could not be sent stays.
        """
        due = trio.current_time() - age
        nodes = [node for node in self.inodes if node.unsaved and node.unsaved_since <= due]
        limiter = trio.CapacityLimiter(16)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._save_quietly, node, limiter)

    async def _save_quietly(self, node: Node, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                async with self.locked(node):
                    await self.save(node)
            except BlobfsError as exc:
                log.error("%s: mode, owner or times were not stored: %s", node.path, exc)
                self._give_up(node)
            self.inodes.release(node)

    # Whole blobs

    async def put_empty(self, node: Node, name: str, metadata: dict[str, str]) -> None:
        """A blob without a body: a directory's marker or a special file."""
        headers = ContentHeaders()
        version = await self.volume(node).container.put(
            name, b"", metadata=metadata, headers=headers, tags=None, tier=None, if_none_match=True
        )
        info = BlobInfo(
            name, version.etag, 0, version.last_modified_ns, "BlockBlob", headers, metadata
        )
        self.wrote(node, info)

    async def ensure_marker(self, directory: Node) -> None:
        """Give a directory that exists by its entries alone a blob, before one of them goes."""
        if directory.info is not None or not self.blob_name(directory):
            return
        async with self.locked(directory):
            if directory.info is None and directory.is_linked:
                try:
                    await self.put_empty(
                        directory, self.blob_name(directory), self.composed(directory)
                    )
                except AlreadyExists:
                    await self._rebase(directory)

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

    async def copy(
        self, node: Node, target: str, *, if_match: str | None = None, create: bool = False
    ) -> BlobInfo:
        """Copy the node's blob, with unsaved attributes, to another name of its container."""
        info = node.info
        assert info is not None
        volume = self.volume(node)
        tags, tier = await self.carried(volume, info)
        metadata = self.composed(node) if node.unsaved else None
        version = await volume.container.copy(
            info.name,
            target,
            source_etag=info.etag,
            metadata=metadata,
            tags=tags,
            tier=tier,
            if_match=if_match,
            if_none_match=create,
        )
        return replace(
            info,
            name=target,
            etag=version.etag,
            last_modified_ns=version.last_modified_ns,
            metadata=info.metadata if metadata is None else metadata,
        )

    async def delete(self, container: Container, name: str, etag: str) -> None:
        """Delete a blob of which `etag` is the version known, or any other: the name is to go."""
        for _ in range(3):
            try:
                await container.delete(name, if_match=etag)
            except ConditionFailed:
                etag = (await container.head(name)).etag
            except NotFound:
                return
            else:
                return
        raise ConditionFailed(f"{name!r} is being changed by others over and over")

    async def hide(self, node: Node) -> None:
        """Keep the content of an open file under a hidden name, since its own is about to go."""
        if node.info is None or not node.opens:
            return
        volume = self.volume(node)
        hidden = join([volume.prefix, HIDDEN_PREFIX + secrets.token_hex(12)])
        info = await self.copy(node, hidden, create=True)
        node.hidden, node.info = hidden, info
        if node.content is not None:
            node.content.info = info

    def unlink(self, node: Node) -> None:
        """Take the node out of the tree; open handles keep it."""
        node.volume = self.volume(node)
        node.unsaved = False
        node.overlay.clear()
        node.attrs.ctime_ns = self.now_ns()
        if not node.hidden:
            node.info = None
        assert node.parent is not None
        self.listings.note(node.parent, node.name, None)
        self.inodes.detach(node)

    def vanish(self, node: Node) -> None:
        """Someone else deleted it: open handles find out when they read."""
        if node.volume is None:
            node.volume = self.volume(node)
            self.inodes.detach(node)

    # Content

    async def content(self, node: Node) -> Content:
        """The node's stored content, opened. Raises ContentError."""
        info = node.info
        if info is None:
            raise PosixError(errno.ESTALE, "nothing is stored")
        known = node.content
        if known is not None and (
            known.info.etag == info.etag or await self.reader.same_content(known.info, info)
        ):
            known.info = info
            return known
        opened = await self.reader.open(lambda: self.locate(node), info, node.kind)
        if node.info is info:
            node.content = opened
            node.plain_size = opened.size
        return opened

    async def draft(self, node: Node, *, empty: bool = False) -> Draft:
        """The node's draft, begun if there is none; `empty` begins it without the content.

        The caller holds the node's lock. Raises ContentError.
        """
        if node.draft is None:
            size = 0
            if node.info is not None and not empty:
                size = (await self.content(node)).size
            node.draft = Draft(self._pool, size, self._base_of(node))
        return node.draft

    def _base_of(self, node: Node) -> ReadBase:
        # What is stored cannot become another version's under a draft: `show` and `refresh`
        # leave nodes with one alone, and the ETag guards each request.
        reach = Reach()

        async def read(offset: int, size: int) -> bytes | memoryview:
            return await self.reader.read(await self.content(node), reach, offset, size)

        return read

    def new_upload(self, node: Node, name: str = "") -> Upload:
        """To the node's blob, or to another `name`.

        Raises PosixError(ENAMETOOLONG) when no blob can have the name.
        """
        volume, name = self.volume(node), name or self.blob_name(node)
        check_blob_name(name)
        return Upload(
            volume.container, name, node.kind, self.keyring, self.write_policy, self._nursery
        )
