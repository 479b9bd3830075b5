"""The writes that change the blobs behind the nodes.

Every write is conditional on the version that we know. Attribute changes that follow a write by
this mount within twice `ATTRIBUTE_DELAY` are kept back for that delay, so that the next one, a
commit or a rename carries them (`cp -p`, `rsync -a` and `tar` change owner, mode and times one by
one); all others are stored before the call returns.
"""

import errno
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import trio

from blobfs.attributes import (
    Kind,
    find_key,
    put_key,
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
from blobfs.content import Content
from blobfs.draft import Draft, PagePool, ReadBase
from blobfs.envelope import BOX_KEY, METADATA_KEY
from blobfs.errors import (
    AlreadyExists,
    BlobfsError,
    ConditionFailed,
    Leased,
    NotFound,
    PosixError,
    TokenRefused,
    Unavailable,
)
from blobfs.fs.boxes import merged
from blobfs.fs.deleting import Deletions
from blobfs.fs.listing import Entry
from blobfs.fs.nodes import Nodes, StorePolicy, kind_of_blob
from blobfs.inodes import Node
from blobfs.keyring import Keyring
from blobfs.names import check_blob_name
from blobfs.reader import Reach, Reader
from blobfs.room import Room
from blobfs.writer import UNDER_WAY, Upload, WritePolicy

log = logging.getLogger(__name__)

ATTRIBUTE_DELAY = 1.0
"""Seconds that attribute changes may wait for a write that carries them."""

RETRY_DELAY = 10.0
"""Seconds until attribute changes, and content, that could not be sent are tried again."""

CLEAN_UP_TIME = 10.0
"""Seconds that deleting what a failed operation leaves behind may take."""

ENVELOPE_RESERVE = 1024
"""Bytes of metadata left free for the envelope of a body that is not stored yet (RSA-2048: 680)."""


@dataclass(slots=True)
class _Opening:
    """A content that is being opened, for which others wait. Cancelled, it has no error."""

    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


class Store(Nodes):
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
        super().__init__(reader, policy, now_ns)
        self.keyring = keyring
        self.pool = pool
        self.write_policy = write_policy
        self.blocks = Room(UNDER_WAY)
        self.singles = Room(UNDER_WAY)
        self.nursery = nursery
        self.deletions = Deletions(self, nursery, write_policy.timeout)
        self._opening: dict[int, _Opening] = {}  # by inode
        self._changed: set[Node] = set()  # those with unsaved attributes, and some that had

    def wrote(self, node: Node, info: BlobInfo) -> None:
        """Our own write made this version."""
        if node.is_stored and node.tags_until is None:
            node.tags_until = node.fresh_until  # our own write says nothing of tags and tier
        entry = Entry.of(node.kind, info)
        node.info = entry.info
        if node.parent is not None:
            self.listings.note(node.parent, node.name, entry)
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
            self._changed.add(node)

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
                await self.catch_up(node)
                continue
            except BaseException:
                self.distrust(node)  # it may have been done, unheard
                raise
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
        told = node.is_told
        self.wrote(node, info)
        node.is_told = told

    async def catch_up(self, node: Node) -> None:
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
        if node.is_directory and kind_of_blob(info) is not Kind.DIRECTORY:
            self._give_up(node)
            raise AlreadyExists(f"{name!r} is a file: the directory of its name has no attributes")
        if node.is_directory or node.info is None:
            await self.merge(node, info)
            return
        if not await self.reader.same_content(node.info, info):
            self._give_up(node)
            raise ConditionFailed(f"{name!r} was replaced by someone else")
        if node.content is not None:
            node.content.info = info
        await self.merge(node, info)

    async def merge(self, node: Node, info: BlobInfo) -> None:
        """As `rebase`, of each extended attribute, too. Raises ContentError, without a change."""
        key = find_key(node.overlay, BOX_KEY)
        if key is not None:
            base = None if node.info is None else value_of(node.info.metadata, BOX_KEY)
            ours, theirs = node.overlay[key], value_of(info.metadata, BOX_KEY)
            node.overlay[key] = await merged(self.keyring, base, ours, theirs)
        self.rebase(node, info)

    def _give_up(self, node: Node) -> None:
        """Back to the attributes that the service has; a draft's go with its content."""
        node.unsaved = False
        node.overlay.clear()
        if node.info is not None and not (node.draft is not None and node.draft.dirty):
            node.attrs = self.attributes_of(node.info, node.kind)
        self.distrust(node)

    async def save_overdue(self, age: float) -> None:
        """Store what has been unsaved for `age` seconds. Failures are logged: nobody waits.

        A change that the service refuses for good is dropped; one that could not be sent, or not
        while there is a lease or no token that is valid, stays.
        """
        await self._save_all(trio.current_time() - age, is_last=False)

    async def save_last(self) -> None:
        """Before the mount ends, as `save_overdue`: what cannot be stored now never is."""
        await self._save_all(math.inf, is_last=True)

    async def _save_all(self, due: float, *, is_last: bool) -> None:
        self._changed = {node for node in self._changed if node.unsaved}
        nodes = [
            node
            for node in self._changed
            if node.unsaved_since <= due
            and not (node.draft is not None and node.draft.dirty)  # its commit carries them
        ]
        limiter = trio.CapacityLimiter(16)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._save_quietly, node, limiter, is_last)

    async def _save_quietly(self, node: Node, limiter: trio.CapacityLimiter, is_last: bool) -> None:
        async with limiter:
            try:
                with trio.fail_after(self.write_policy.timeout):
                    async with self.locked(node):
                        await self.save(node)
            except (Unavailable, TokenRefused, Leased, trio.TooSlowError) as exc:
                why = str(exc) or "no answer"
                if is_last:
                    log.error("%s: mode, owner or times were not stored: %s", node.path, why)
                else:
                    log.warning("%s: mode, owner or times are not stored yet: %s", node.path, why)
                    node.unsaved_since = trio.current_time() + RETRY_DELAY
            except BlobfsError as exc:
                log.error("%s: mode, owner or times were not stored: %s", node.path, exc)
                self._give_up(node)
            except Exception:  # nobody waits for it, and one file's must not end the mount
                log.exception("%s: mode, owner or times were not stored: a bug", node.path)
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
                    with suppress(AlreadyExists):  # a file: the directory goes with its entries
                        await self.catch_up(directory)

    async def copy(
        self, node: Node, target: str, *, if_match: str | None = None, create: bool = False
    ) -> BlobInfo:
        """Copy the node's blob, with unsaved attributes, to another name of its container: also
        when others have changed its metadata."""
        try:
            return await self._copy(node, target, if_match, create)
        except ConditionFailed:
            await self.catch_up(node)
            return await self._copy(node, target, if_match, create)

    async def _copy(self, node: Node, target: str, if_match: str | None, create: bool) -> BlobInfo:
        info = await self.as_stored(node)
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
            tag_count=len(tags or ()),
        )

    async def delete(self, container: Container, name: str, etag: str) -> None:
        """Delete a blob of which `etag` is the version known, or any other: the name is to go."""
        with suppress(NotFound):
            for _ in range(3):
                try:
                    await container.delete(name, if_match=etag)
                except ConditionFailed:
                    etag = (await container.head(name)).etag
                else:
                    return
            raise ConditionFailed(f"{name!r} is being changed by others over and over")

    async def delete_content(self, container: Container, info: BlobInfo) -> None:
        """Delete the blob, whatever others have done to the metadata of an encrypted one.

        Raises ConditionFailed when they have stored another content.
        """
        with suppress(NotFound):
            for _ in range(3):
                try:
                    await container.delete(info.name, if_match=info.etag)
                except ConditionFailed:
                    current = await container.head(info.name)
                    if not await self.reader.same_content(info, current):
                        raise
                    info = current
                else:
                    return
            raise ConditionFailed(f"{info.name!r} is being changed by others over and over")

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

    # Content

    async def content(self, node: Node, reach: Reach | None = None) -> Content:
        """The node's stored content, opened for whoever reads with `reach` (see `Reader.open`).

        Raises ContentError.
        """
        while True:
            info = node.info
            if info is None:
                raise PosixError(errno.ESTALE, "nothing is stored")
            known = node.content
            if known is not None and (
                known.info.etag == info.etag or await self.reader.same_content(known.info, info)
            ):
                known.info = info
                if reach is not None:
                    self.reader.expect(known, reach)
                return known
            if (others := self._opening.get(node.ino)) is None:
                break
            await others.done.wait()
            if others.error is not None:
                raise others.error
        opening = self._opening[node.ino] = _Opening()
        try:
            opened = await self.reader.open(lambda: self.locate(node), info, node.kind, reach)
        except Exception as exc:
            opening.error = exc
            raise
        finally:
            del self._opening[node.ino]
            opening.done.set()
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
            node.draft = Draft(self.pool, size, self._base_of(node))
        return node.draft

    def _base_of(self, node: Node) -> ReadBase:
        # What is stored cannot become another version's under a draft: `show` and `refresh`
        # leave nodes with one alone, and the ETag guards each request.
        reach = Reach()

        async def read(offset: int, size: int) -> bytes | memoryview:
            try:
                return await self.reader.read(await self.content(node), reach, offset, size)
            except ConditionFailed:
                # A commit whose answer we have not, or never got, may have made the change.
                # What shows of the base under the draft is the same in that version.
                current = await self.attempted(node)
                if current is None:
                    raise
                node.info = current
            return await self.reader.read(await self.content(node), reach, offset, size)

        return read

    async def attempted(self, node: Node) -> BlobInfo | None:
        """The stored version if it is of a commit of ours of which the outcome is not known."""
        if not node.attempts:
            return None
        container, name = self.locate(node)
        try:
            current = await container.head(name)
        except NotFound:
            return None
        ours = (value_of(current.metadata, METADATA_KEY) or "") in node.attempts
        return current if ours else None

    def new_upload(self, node: Node, name: str = "") -> Upload:
        """To the node's blob, or to another `name`.

        Raises PosixError(ENAMETOOLONG) when no blob can have the name.
        """
        volume, name = self.volume(node), name or self.blob_name(node)
        check_blob_name(name)
        return Upload(
            volume.container,
            name,
            node.kind,
            self.keyring,
            self.write_policy,
            self.nursery,
            self.blocks,
        )
