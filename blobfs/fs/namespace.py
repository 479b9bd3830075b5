"""Making, removing and renaming names.

A rename is a server-side copy under conditions, then the deletion of the source: the ciphertext
is not touched, and the target is never absent. A directory's entries are copied in parallel;
nothing is deleted before everything is copied, and a failure takes the copies back.
"""

import errno
import logging
import math
import stat
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from blobfs.attributes import Attributes, Kind
from blobfs.blobs import BlobInfo, ContentHeaders
from blobfs.errors import (
    AlreadyExists,
    BlobfsError,
    ConditionFailed,
    Corrupt,
    Denied,
    HasSnapshots,
    Leased,
    NotFound,
    PosixError,
    Rejected,
    Unavailable,
)
from blobfs.fs.commit import commit
from blobfs.fs.leaving import Leaving, delete_hidden, find, hidden, leaving, stays
from blobfs.fs.listing import Listing
from blobfs.fs.moving import check_unheld, is_resumable, move_directory
from blobfs.fs.store import CLEAN_UP_TIME, Store
from blobfs.fs.tree import Tree
from blobfs.inodes import Node
from blobfs.names import check_blob_name
from blobfs.reader import Reach
from blobfs.writer import SINGLE_PUT, SLOWEST_UPLOAD, Properties

log = logging.getLogger(__name__)

LONGEST_TARGET = 4095
"""Bytes of a symbolic link's target: PATH_MAX of linux/limits.h, less the zero at its end."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as new files take after them."""

    uid: int
    gid: int
    umask: int = 0


class Namespace:
    def __init__(self, store: Store, tree: Tree) -> None:
        self._store = store
        self._tree = tree
        self._inodes = store.inodes
        self._moving = trio.Lock()

    # Making

    def _new_attributes(
        self, parent: Node, kind: Kind, mode: int, caller: Caller, rdev: int = 0
    ) -> Attributes:
        now = self._store.now_ns()
        mode = stat.S_IMODE(mode) & ~caller.umask
        gid = caller.gid
        if parent.attrs.mode & stat.S_ISGID:
            gid = parent.attrs.gid
            if kind is Kind.DIRECTORY:
                mode |= stat.S_ISGID
        return Attributes(kind, mode, caller.uid, gid, now, now, now, rdev)

    async def _vacant(self, parent: Node, name: str) -> None:
        """Raises PosixError: EEXIST, EROFS, or ENAMETOOLONG when no blob can have the name."""
        store = self._store
        store.writable(parent)
        check_blob_name(store.blob_name(parent, name))
        await store.deletions.settle(parent, name)
        store.deletions.check(parent, name)
        try:
            await self._tree.lookup(parent, name)
        except (NotFound, PosixError) as exc:
            if isinstance(exc, PosixError) and exc.errno != errno.ENOENT:
                raise
        else:
            raise PosixError(errno.EEXIST)

    def _touch(self, directory: Node) -> None:
        """The directory's entries changed. Its times are not stored for that alone."""
        directory.attrs.mtime_ns = directory.attrs.ctime_ns = self._store.now_ns()

    async def create(self, parent: Node, name: str, mode: int, caller: Caller) -> Node:
        """A new file, which the first flush will store."""
        with self._inodes.filling(parent):  # from then on the draft keeps it in the tree
            await self._vacant(parent, name)
            attrs = self._new_attributes(parent, Kind.FILE, mode, caller)
            node = self._inodes.add(parent, name, attrs)
            draft = await self._store.draft(node, empty=True)
            draft.mark_dirty()
        self._touch(parent)
        return node

    async def make_empty(
        self, parent: Node, name: str, kind: Kind, mode: int, caller: Caller, rdev: int = 0
    ) -> Node:
        """A directory or a special file."""
        store = self._store

        async def put(node: Node) -> None:
            await store.put_empty(node, store.blob_name(node), store.composed(node))

        make = partial(self._new_attributes, parent, kind, mode, caller, rdev)
        node = await self._made(parent, name, make, put)
        if kind is Kind.DIRECTORY:
            # Nothing is in it yet, so nothing in it need be asked for.
            store.listings.put(node, Listing({}, node.fresh_until))
        return node

    async def symlink(self, parent: Node, name: str, target: bytes, caller: Caller) -> Node:
        no_umask = Caller(caller.uid, caller.gid)
        make = partial(self._new_attributes, parent, Kind.SYMLINK, 0o777, no_umask)
        return await self._made(parent, name, make, partial(self._store_target, target=target))

    async def _made(
        self,
        parent: Node,
        name: str,
        make: Callable[[], Attributes],
        put: Callable[[Node], Awaitable[None]],
    ) -> Node:
        inodes, store = self._inodes, self._store
        with store.filling(parent):
            await self._vacant(parent, name)
            node = inodes.add(parent, name, make())
            try:
                with inodes.held(node), store.in_doubt(parent):
                    async with store.locked(node):
                        await put(node)
            except BaseException:
                inodes.detach(node)
                raise
        self._touch(parent)
        return node

    async def _store_target(self, node: Node, target: bytes) -> None:
        store = self._store
        upload = store.new_upload(node)

        async def read(offset: int, size: int) -> bytes:
            return target[offset : offset + size]

        await upload.finish(len(target), read)
        properties = Properties(store.composed(node), ContentHeaders(), None, None)
        await upload.seal(properties)
        version = await upload.commit(properties, if_match=None, create=True)
        node.is_ours = True
        node.target = target
        node.plain_size = len(target)
        store.wrote(
            node,
            BlobInfo(
                upload.name,
                version.etag,
                upload.blob_size,
                version.last_modified_ns,
                "BlockBlob",
                metadata=upload.metadata,
            ),
        )

    async def readlink(self, node: Node) -> bytes:
        if node.kind is not Kind.SYMLINK:
            raise PosixError(errno.EINVAL)
        if node.target is None:
            store = self._store
            content = await store.content(node)
            if content.size > LONGEST_TARGET:  # what marks it as a link is anybody's who may write
                raise Corrupt(f"{node.path!r} is no symbolic link: it has {content.size} bytes")
            node.target = bytes(await store.reader.read(content, Reach(), 0, content.size))
        return node.target

    # Removing

    async def unlink(self, parent: Node, name: str) -> None:
        """One of many may return before the blob is deleted: see `deleting`."""
        self._store.deletions.check(parent)
        node = await self._tree.lookup(parent, name)
        if node.is_directory:
            raise PosixError(errno.EISDIR)
        self._store.writable(node)
        with self._inodes.used(node), self._store.in_doubt(node):
            if node.info is not None:
                await self._store.ensure_marker(parent)
            async with self._store.locked(node):
                await self._remove(node)
        self._touch(parent)

    async def _remove(self, node: Node) -> None:
        store, directory = self._store, node.parent
        if directory is None:
            raise PosixError(errno.ENOENT)
        info = node.info
        if info is not None:
            container, name = store.locate(node)
            later = partial(store.delete_content, container, info)
            # the content of one that is open has to be kept first
            if node.opens or not store.deletions.begin(directory, node.name, later):
                async with hidden(store, node):
                    await store.delete(container, name, info.etag)
                store.deletions.waited_for(directory, node.name)
        store.unlink(node)

    async def rmdir(self, parent: Node, name: str) -> None:
        node = await self._tree.lookup(parent, name)
        if not node.is_directory:
            raise PosixError(errno.ENOTDIR)
        if node.volume is not None:
            raise PosixError(errno.EBUSY, "a container of this mount")
        store = self._store
        store.writable(node)
        store.deletions.check(parent)
        with self._inodes.used(node):
            slash_marker = await self._tree.check_empty(node)
            with store.in_doubt(node):
                await store.ensure_marker(parent)
                async with store.locked(node):
                    if node.parent is None:
                        raise PosixError(errno.ENOENT)  # others removed it meanwhile
                    with leaving(node):
                        await self._remove_directory(node, slash_marker)
        self._touch(parent)

    async def _remove_directory(self, node: Node, slash_marker: BlobInfo | None) -> None:
        store = self._store
        container = store.volume(node).container
        check_unheld(store, node)
        for marker in (slash_marker, node.info):
            if marker is not None:
                await store.delete(container, marker.name, marker.etag)
        store.listings.drop(node)
        try:
            check_unheld(store, node)
        except PosixError:  # it was written to meanwhile, by who has it open
            gone, node.info = node.info, None
            if gone is not None:
                with suppress(AlreadyExists):
                    await store.put_empty(node, store.blob_name(node), dict(gone.metadata))
            raise
        for child in list(node.children.values()):
            store.vanish(child)  # others have deleted it
        store.unlink(node)

    # Renaming

    async def rename(
        self, old_parent: Node, old_name: str, new_parent: Node, new_name: str, flags: int
    ) -> None:
        """A directory's takes the time that its entries take. Raises Unavailable when a file's is
        not over in the time of an operation."""
        if flags & ~RENAME_NOREPLACE:
            raise PosixError(errno.EINVAL, "RENAME_EXCHANGE and RENAME_WHITEOUT are not possible")
        seconds = self._store.write_policy.timeout
        try:
            with trio.fail_after(seconds) as scope:
                await self._rename(old_parent, old_name, new_parent, new_name, flags, scope)
        except trio.TooSlowError as exc:
            raise Unavailable(f"no answer within {seconds:g} s") from exc

    async def _rename(
        self,
        old_parent: Node,
        old_name: str,
        new_parent: Node,
        new_name: str,
        flags: int,
        scope: trio.CancelScope,
    ) -> None:
        self._store.deletions.check(old_parent)
        node = await self._tree.lookup(old_parent, old_name)
        with self._inodes.used(node), self._store.filling(new_parent), ExitStack() as used:
            target = await self._target(new_parent, new_name)
            if target is not None:
                if flags & RENAME_NOREPLACE:
                    raise PosixError(errno.EEXIST)
                used.enter_context(self._inodes.used(target))
            if target is not node:
                self._check_rename(node, target, new_parent)
                with self._store.in_doubt(node, target, new_parent):
                    await self._rename_found(node, target, old_parent, new_parent, new_name, scope)

    async def _rename_found(
        self,
        node: Node,
        target: Node | None,
        old_parent: Node,
        new_parent: Node,
        new_name: str,
        scope: trio.CancelScope,
    ) -> None:
        store = self._store
        check_blob_name(store.blob_name(new_parent, new_name))
        slash_marker = None
        if target is not None and target.is_directory and not is_resumable(store, node, target):
            slash_marker = await self._tree.check_empty(target)
        if node.info is not None or node.is_directory:
            await store.ensure_marker(old_parent)
        if node.is_directory:
            scope.deadline = math.inf
            # One at a time: one of the directories may lie in the other.
            async with self._moving:
                if target is not None and target.parent is None:
                    raise ConditionFailed(f"{new_name!r} was removed by someone else")
                await move_directory(store, node, target, slash_marker, new_parent, new_name)
        else:
            await self._rename_file(node, target, new_parent, new_name, scope)
        node.attrs.ctime_ns = store.now_ns()
        self._touch(old_parent)
        self._touch(new_parent)

    async def _target(self, parent: Node, name: str) -> Node | None:
        await self._store.deletions.settle(parent, name)
        try:
            return await self._tree.lookup(parent, name)
        except NotFound:
            return None
        except PosixError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return None

    def _check_rename(self, node: Node, target: Node | None, new_parent: Node) -> None:
        store = self._store
        if store.writable(node) is not store.writable(new_parent):
            raise PosixError(errno.EXDEV, "another container")
        if node.volume is not None or (target is not None and target.volume is not None):
            raise PosixError(errno.EBUSY, "a container of this mount")
        if node.is_directory and new_parent.is_within(node):
            raise PosixError(errno.EINVAL, "a directory cannot go into itself")
        if target is not None and target.is_directory != node.is_directory:
            raise PosixError(errno.EISDIR if target.is_directory else errno.ENOTDIR)
        if (node.info is not None or node.is_directory) and not store.volume(node).may_delete():
            # The service would say so after the copy, which has replaced the target by then.
            raise Denied(f"{node.path!r} cannot be renamed: the SAS token lacks d")

    async def _rename_file(
        self,
        node: Node,
        target: Node | None,
        new_parent: Node,
        new_name: str,
        scope: trio.CancelScope,
    ) -> None:
        store = self._store
        # Several nodes' locks: the kernel runs one rename over a directory pair at a time, and
        # nothing else takes a second lock. The directory's keeps it from being renamed meanwhile.
        async with store.locked(new_parent), store.locked(node, holding=new_parent):
            if target is None:
                with leaving(node):
                    await self._move_file(node, None, new_parent, new_name, Leaving(None))
                return
            store.check_rewritable(target)
            async with store.locked(target, holding=new_parent):
                if target.info is not None:
                    # What replaces it is stored: after a crash there is one of the two.
                    await self._commit(node, scope)
                keep = hidden(store, target, always=not _goes_surely(node))
                with leaving(node):
                    async with keep as record:
                        await self._move_file(node, target, new_parent, new_name, record)
            if target.hidden and not target.opens:
                self._inodes.hold(target)
                store.nursery.start_soon(self._delete_hidden, target)

    async def _commit(self, node: Node, scope: trio.CancelScope) -> None:
        if node.draft is not None and node.draft.dirty:
            scope.deadline += node.draft.size / SLOWEST_UPLOAD
        try:
            await commit(self._store, node)
        except ConditionFailed as exc:
            # After ESTALE the kernel would try again, with what others have stored.
            log.error("%s is not renamed: %s", node.path, exc)
            raise PosixError(errno.EIO, str(exc)) from exc

    async def _delete_hidden(self, node: Node) -> None:
        """What there is no time for is left to `Files.retry`. Raises nothing."""
        try:
            with trio.move_on_after(self._store.write_policy.timeout):
                async with self._inodes.lock(node):
                    if node.hidden and not node.opens:
                        await delete_hidden(self._store, node)
        except Exception:  # nobody waits for it, and it must not end the mount
            log.exception("%s: a bug in blobfs", node.path)
        finally:
            self._inodes.let_go(node)

    async def _move_file(
        self,
        node: Node,
        target: Node | None,
        new_parent: Node,
        new_name: str,
        record: Leaving,
    ) -> None:
        """`record` is of the target: no blob, if there is none to be replaced."""
        store, replaced = self._store, record.info
        if node.upload is not None:
            node.upload.abandon()  # staged under the old name
            node.upload = None
        source = moved = None
        if node.info is not None:
            before = replace(node.attrs), dict(node.overlay)
            record.source = node
            moved = await store.copy(
                node,
                store.blob_name(new_parent, new_name),
                if_match=None if replaced is None else replaced.etag,
                create=replaced is None,
            )
            source = node.info
            record.copied_as = moved.etag
            await self._delete_source(node, source, moved, record)
            node.is_ours = node.is_ours and (replaced is None or _is_ours(target))
            if before == (node.attrs, node.overlay):
                node.unsaved = False
                node.overlay.clear()
        old_parent, old_name = node.parent, node.name
        assert old_parent is not None
        if target is not None:
            store.unlink(target)
        self._inodes.move(node, new_parent, new_name)
        store.listings.note(old_parent, old_name, None)
        if moved is not None and source is not None:
            if node.content is not None:
                node.content.info = moved
            if node.page_cache_etag == source.etag:
                node.page_cache_etag = moved.etag
            store.wrote(node, moved)

    async def _delete_source(
        self, node: Node, source: BlobInfo, moved: BlobInfo, record: Leaving
    ) -> None:
        """Delete what was copied; if that fails, take the copy back where nothing was replaced.
        One of many may return before unless what it replaces is kept (see `deleting`): if it fails
        then, both are there."""
        container, directory = self._store.volume(node).container, node.parent
        deletions = self._store.deletions
        assert directory is not None

        async def delete() -> None:
            try:
                await container.delete(source.name, if_match=source.etag)
            except NotFound:
                pass
            except ConditionFailed:  # Azurite's answer for one that is gone, too
                if await find(container, source.name) is not None:
                    raise

        if record.kept is None and deletions.begin(directory, node.name, delete):
            return
        try:
            await delete()
            deletions.waited_for(directory, node.name)
        except BaseException as exc:
            with trio.move_on_after(CLEAN_UP_TIME, shield=True):
                # A deletion without an answer may have been done: then the copy is all there is.
                if isinstance(exc, Leased | HasSnapshots | Denied | Rejected):
                    record.source_stays = await find(container, source.name) is not None
                else:
                    record.source_stays = await stays(self._store, node)
                if record.source_stays is False and isinstance(exc, BlobfsError):
                    return
                if record.source_stays and record.info is None:
                    with suppress(ConditionFailed):  # others have stored something there
                        await self._store.delete_content(container, moved)
            raise


def _is_ours(node: Node | None) -> bool:
    return node is not None and node.is_ours


def _goes_surely(node: Node) -> bool:
    """Whether nothing but the network can keep a file from being copied and then deleted: no lease,
    no snapshot, and no copy that takes the service longer than an answer."""
    return node.info is None or (node.is_ours and node.info.size <= SINGLE_PUT)
