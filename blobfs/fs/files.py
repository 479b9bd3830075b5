"""Open files: read, write, truncate, flush, and what the last close leaves."""

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable

import trio

from blobfs.attributes import Kind
from blobfs.draft import Draft
from blobfs.errors import BlobfsError, ConditionFailed, PosixError
from blobfs.fs import commit as commits
from blobfs.fs.ahead import Ahead
from blobfs.fs.leaving import delete_hidden
from blobfs.fs.store import Store
from blobfs.inodes import Handle, Node
from blobfs.reader import Reach
from blobfs.writer import LARGEST_FILE, SINGLE_PUT, SLOWEST_UPLOAD

log = logging.getLogger(__name__)

KEEP_TIME = 10.0
"""Seconds, and those that the bytes take, that writing a recovery file may take."""

SLOWEST_DISK = 20 * 1024 * 1024
"""Bytes a second that a recovery file is given time for."""

DRAIN_TIME = 30.0
"""Seconds, and those that the bytes take, until files become recovery files as the mount ends."""

RETRY_TIME = 10.0
"""Seconds, and those that the bytes take, for one more attempt to store what a last close could
neither store nor keep. The close had its whole time: now a recovery file is worth more than
another wait, during which a crash would lose the content."""


class Files:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._inodes = store.inodes
        self._ahead = Ahead(store)

    async def open(self, node: Node, flags: int, *, privileged: bool = False) -> tuple[int, bool]:
        """A handle, and whether the kernel may keep its cached pages of the file.

        `privileged` says that root opens it: then writes do not clear set-id bits.
        `O_TRUNC` arrives here, not in a setattr. Raises PosixError, ServiceError, or ContentError
        when the content may not be served.
        """
        store = self._store
        # whoever truncates has written, and its close is to store that
        writable = (flags & os.O_ACCMODE) != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if node.kind is Kind.DIRECTORY:
            raise PosixError(errno.EISDIR)
        if writable:
            store.writable(node)
        await self._revalidate(node)
        while node.leaving is not None:
            # What is kept of it for open handles is chosen: this one is too late to be among them.
            await node.leaving.wait()
        if not (node.is_linked or node.hidden or node.draft is not None):
            raise PosixError(errno.ESTALE, "nothing is left of it: its name is to be looked up")
        if writable:
            store.check_rewritable(node)
        number = self._inodes.open(node, writable=writable, reach=Reach(), privileged=privileged)
        try:
            if flags & os.O_TRUNC:
                async with self._store.locked(node):
                    await self._truncate(node, 0, privileged)
            elif (flags & os.O_ACCMODE) != os.O_WRONLY and node.draft is None:
                handle = self._inodes.handle(number)
                # The kernel has no pages of what it will read.
                expected = None if writable or self._is_in_page_cache(node) else handle.reach
                handle.content = await store.content(node, expected)
        except BaseException:
            self._inodes.close(number)
            self._inodes.release(node)
            raise
        keep = self._is_in_page_cache(node)
        node.page_cache_etag = node.etag
        return number, keep

    def _is_in_page_cache(self, node: Node) -> bool:
        """Whether what pages the kernel has are this version's."""
        return node.draft is not None or node.page_cache_etag == node.etag

    async def _revalidate(self, node: Node) -> None:
        """Raises PosixError(ESTALE) when the name has another node by now: the kernel then looks
        it up again, and nobody hears of it."""
        try:
            if not node.vanished and not self._store.is_fresh(node):
                await self._store.refresh(node)
        except ConditionFailed as exc:
            raise PosixError(errno.ESTALE, str(exc)) from exc
        if node.vanished:
            raise PosixError(errno.ESTALE, "the name was looked up again since")

    def create(self, node: Node, flags: int, *, privileged: bool = False) -> int:
        """A handle on a node that is new: an empty draft, to be stored by the first flush."""
        writable = (flags & os.O_ACCMODE) != os.O_RDONLY
        return self._inodes.open(node, writable=writable, reach=Reach(), privileged=privileged)

    async def store_new(self, node: Node) -> None:
        """Store a file that was made without being opened."""
        async with self._store.locked(node):
            try:
                await self.commit(node)
            except BaseException:
                self._drop_draft(node)
                self._inodes.detach(node)
                raise

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        handle = self._inodes.handle(number)
        while True:
            commits = handle.node.commits
            try:
                return await self._read(handle, offset, size)
            except ConditionFailed:
                if handle.node.commits == commits:
                    raise
                # A commit of this mount came between: its version is the one to read.

    async def _read(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        node = handle.node
        if node.draft is not None:
            return await node.draft.read(offset, size)
        if handle.content is None or handle.commits != node.commits:
            handle.content = await self._store.content(node)
            handle.commits = node.commits
        if offset == 0:
            self._ahead.read(node)
        return await self._store.reader.read(handle.content, handle.reach, offset, size)

    async def write(self, number: int, offset: int, data: bytes) -> int:
        handle = self._inodes.handle(number)
        node = handle.node
        _check_size(offset + len(data))
        async with self._store.locked(node):
            self._store.check_present(node)
            with self._inodes.filling(node):
                draft = await self._store.draft(node)
                self._invalidate_staged(node, offset)
                await draft.write(offset, data)
                self._modified(node, handle.privileged)
                await self._stage(node, draft)
        return len(data)

    def _modified(self, node: Node, privileged: bool) -> None:
        now = self._store.now_ns()
        node.attrs.mtime_ns = node.attrs.ctime_ns = now
        if not privileged:
            # The kernel leaves this to us (FUSE_HANDLE_KILLPRIV) and does not say who writes:
            # whoever opened the handle.
            node.attrs.mode = without_set_id(node.attrs.mode)

    def _invalidate_staged(self, node: Node, offset: int) -> None:
        upload = node.upload
        if upload is not None and offset < upload.staged:
            upload.abandon()
            node.upload = None

    async def _stage(self, node: Node, draft: Draft) -> None:
        """Send whole blocks of a file that is being written front to back."""
        if not draft.front_to_back or draft.size <= SINGLE_PUT or not node.is_linked:
            return
        if node.upload is None:
            if draft.base_size:
                return  # staged once, in vain: the next commit sends all of it
            node.upload = self._store.new_upload(node)
        upload = node.upload
        try:
            while draft.size - upload.staged >= upload.next_block:
                await upload.turn(upload.next_block)
                # The pieces have no name here: the traceback of an error would keep them, and a
                # page of which there is a piece cannot grow.
                block = upload.body.encrypt(
                    *draft.pieces(upload.staged, upload.next_block), final=False
                )
                draft.stage(upload.body, block)
                upload.send(block)
        except BlobfsError as exc:
            # Not this write's failure: the draft has the bytes, and the commit will try again.
            log.warning("%s: staging stopped: %s", node.path, exc)
            draft.front_to_back = False
            upload.abandon()
            node.upload = None
        except BaseException:
            upload.abandon()
            node.upload = None
            raise

    async def truncate(
        self, node: Node, size: int, *, by_handle: bool, privileged: bool = False
    ) -> None:
        """Set the size; the caller holds the node's lock. Raises as `write` and `flush` do.

        Without a handle there will be no flush, so it is stored now, or has not happened.
        `privileged` is as in `open`.
        """
        if not by_handle and not node.writers:
            await self.commit(node)  # what a last close could not store: see `retry`
        was_dirty = node.draft is not None and node.draft.dirty
        await self._truncate(node, size, privileged)
        if not by_handle:
            try:
                await self.commit(node)
            finally:
                if not node.opens or (self._is_unsaved(node) and not was_dirty):
                    self._drop_draft(node)

    async def _truncate(self, node: Node, size: int, privileged: bool) -> None:
        _check_size(size)
        self._store.check_rewritable(node)
        self._store.check_present(node)
        with self._inodes.filling(node):
            draft = await self._store.draft(node, empty=size == 0)
            self._invalidate_staged(node, size)
            await draft.truncate(size)
            self._modified(node, privileged)

    async def flush(self, number: int) -> None:
        """Every close of a descriptor: store what is dirty. Raises what keeps it from being so.

        A reader's stores nothing while there are writers, whose own closes do.
        """
        handle = self._inodes.handle(number)
        if handle.writable or not handle.node.writers:
            await self._settle(handle.node)

    async def fsync(self, number: int) -> None:
        node = self._inodes.handle(number).node
        await self._settle(node)
        async with self._store.locked(node):
            await self._store.save(node)

    async def _settle(self, node: Node) -> None:
        if node.draft is not None and node.draft.dirty:
            async with self._store.locked(node):
                await self.commit(node)

    async def commit(self, node: Node) -> None:
        """Store the draft; the caller holds the node's lock. See `commit.commit`."""
        draft = node.draft
        if draft is None:
            return
        changes = draft.changes
        try:
            await commits.commit(self._store, node)
        except BaseException:
            draft.failed_at = changes
            self._store.distrust(node)  # for when the draft is gone: it may be stored, unheard
            raise
        if not node.writers and node.draft is draft and not self._is_nowhere_else(node):
            self._drop_draft(node)

    def _is_nowhere_else(self, node: Node) -> bool:
        """Whether the draft is all there is of the file, since it was unlinked, and somebody still
        has it open."""
        return node.draft is not None and not node.is_linked and node.opens > 0

    def _drop_draft(self, node: Node) -> None:
        if node.draft is not None:
            node.draft.discard()
            node.draft = None
        if node.upload is not None:
            node.upload.abandon()
            node.upload = None
        node.attempts.clear()  # they count the changes of this draft

    async def release(self, number: int) -> None:
        """The last reference to a handle is gone. Raises nothing of ours: nobody would hear it.

        Dirty data at this point was written through a mapping after close, or its flush failed.
        What there is no time for is left to `retry`.
        """
        handle = self._inodes.close(number)
        node = handle.node
        if not node.opens:
            node.content = None
        try:
            async with self._store.locked(node):
                if not node.writers:
                    await self._last_writer_gone(node)
                if node.hidden and not node.opens:
                    await delete_hidden(self._store, node)
        finally:
            self._inodes.release(node)

    async def _last_writer_gone(self, node: Node) -> None:
        draft = node.draft
        if draft is None or self._is_nowhere_else(node):
            return
        try:
            if draft.failed_at != draft.changes:
                await self._commit_at_last(node)
        finally:  # also when there was no time for it
            if not self._is_unsaved(node) or await self._keep(node, "close failed"):
                self._drop_draft(node)

    def _is_unsaved(self, node: Node) -> bool:
        return node.draft is not None and node.draft.dirty and node.is_linked

    async def _commit_at_last(self, node: Node) -> None:
        """A commit of which nobody hears. Raises nothing of ours."""
        if self._is_unsaved(node):
            try:
                await self.commit(node)
            except BlobfsError as exc:
                log.error("%s: %s", node.path, exc)

    async def _keep(self, node: Node, reason: str) -> bool:
        """Write a recovery file, shielded; False when that may still be possible later."""
        size = 0 if node.draft is None else node.draft.size
        with trio.move_on_after(KEEP_TIME + size / SLOWEST_DISK, shield=True):
            if not await commits.keep(self._store, node, reason):
                return False
            self._forget_unsaved(node)
            return True
        log.error("%s: not stored; no recovery file yet: its content was not all there", node.path)
        return False

    def _forget_unsaved(self, node: Node) -> None:
        """After the recovery file is written: back to what the service has."""
        node.unsaved = False
        node.overlay.clear()
        self._store.distrust(node)
        node.page_cache_etag = ""  # the kernel has the pages that were not stored
        if node.info is None:
            self._inodes.detach(node)
        else:
            node.attrs = self._store.attributes_of(node.info, node.kind)

    async def retry(self) -> None:
        """Store or keep what a last close could do neither with: its disk was full, or something
        had the file's lock for longer than it could wait."""
        await self._each([node for node in self._inodes if self._is_left(node)], self._retry)

    def _is_left(self, node: Node) -> bool:
        draft_left = node.draft is not None and not node.writers
        draft_left = draft_left and not self._is_nowhere_else(node)
        return draft_left or (node.hidden != "" and not node.opens)

    async def _retry(self, node: Node) -> None:
        if not self._is_left(node):
            return
        size = 0 if node.draft is None else node.draft.size
        with trio.move_on_after(RETRY_TIME + size / SLOWEST_UPLOAD):
            await self._commit_at_last(node)
            if node.hidden and not node.opens:
                await delete_hidden(self._store, node)
        if node.writers:
            return  # whose close stores it
        if not self._is_unsaved(node) or await self._keep(node, "close failed"):
            self._drop_draft(node)
            self._inodes.release(node)

    async def drain(self) -> None:
        """Before the mount ends: store everything that is dirty, or keep it for recovery. Shielded.

        One file's failure, or a service that does not answer, costs no other file its turn.
        """
        nodes = [node for node in self._inodes if self._is_unsaved(node)]
        size = sum(node.draft.size for node in nodes if node.draft is not None)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(DRAIN_TIME + size / SLOWEST_UPLOAD):
                await self._each(nodes, self._commit_at_last)
            await self._each(nodes, self._keep_at_last)
            with trio.move_on_after(DRAIN_TIME):
                hidden = [node for node in self._inodes if node.hidden]
                await self._each(hidden, self._drop_hidden)

    async def _drop_hidden(self, node: Node) -> None:
        if node.hidden and not node.is_linked:  # not so any more of what was put back meanwhile
            await delete_hidden(self._store, node)

    async def _keep_at_last(self, node: Node) -> None:
        if self._is_unsaved(node) and not await self._keep(node, "the mount ended"):
            log.critical("%s: NOT STORED", node.path)

    async def _each(self, nodes: Iterable[Node], work: Callable[[Node], Awaitable[None]]) -> None:
        limiter = trio.CapacityLimiter(16)

        async def one(node: Node) -> None:
            async with limiter, self._store.locked(node):
                try:
                    await work(node)
                except Exception:
                    log.exception("%s: a bug in blobfs", node.path)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)


def _check_size(size: int) -> None:
    # The commit would find out too, but only after all that fits is uploaded.
    if size > LARGEST_FILE:
        raise PosixError(errno.EFBIG)


def without_set_id(mode: int) -> int:
    """The permission bits left after someone changed the content or the owner."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
