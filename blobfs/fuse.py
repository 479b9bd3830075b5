"""pyfuse3 ↔ `blobfs.fs`: types, deadlines, errors. No policy.

pyfuse3 has no interrupts, so a caller of a handler that waits cannot be killed: every handler has
a deadline. And whatever but a bare FUSEError leaves a handler ends the mount, so nothing does.
"""

import errno
import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import FUSEError

from blobfs.attributes import Kind
from blobfs.errors import (
    BlobfsError,
    ConditionFailed,
    ContentError,
    NotFound,
    PosixError,
    ServiceError,
    Unavailable,
    errno_of,
    root_cause,
)
from blobfs.fs import Caller, Changes, Filesystem, Stream
from blobfs.inodes import Node
from blobfs.metrics import Latencies
from blobfs.names import decode_segment, lookup_segment
from blobfs.writer import SLOWEST_UPLOAD

log = logging.getLogger(__name__)

BLOCK_SIZE = 4096
_CAPACITY = 2**50  # bytes that statfs claims: a container has no limit, tools want a number

_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_STREAM = frozenset({"readdir", "releasedir", "fsyncdir"})
_BY_NAME = frozenset({"lookup", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "create"})

P = ParamSpec("P")
R = TypeVar("R")


def _handler(
    deadline: Callable[..., float],
) -> Callable[
    [Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]],
    Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]],
]:
    """Run a handler under a deadline; every exception becomes one FUSEError.

    `deadline` gets the handler's arguments and says seconds.
    """

    def wrap(
        operation: Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
        name = operation.__name__.lstrip("_")

        async def run(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
            seconds = deadline(self, *args)
            began = perf_counter()
            try:
                # not move_on_after, whose generator is a tenth of what a lookup takes
                with trio.CancelScope(deadline=trio.current_time() + seconds):
                    return await operation(self, *args, **kwargs)
                code = self._failed(name, args, Unavailable(f"no answer within {seconds:g} s"))
            except Exception as exc:  # never BaseException: Cancelled must pass
                code = self._failed(name, args, root_cause(exc))
            finally:
                self.latency[name].observe(perf_counter() - began)
            if not _is_answer(name, code):
                self.failures[name, code] += 1
            raise FUSEError(code)  # outside of the except: no chained traceback

        functools.update_wrapper(run, operation)
        return run

    return wrap


def _is_answer(operation: str, code: int) -> bool:
    """Whether this is no failure: what was asked for is not there, or never, as the ACLs that
    `ls -l` asks for."""
    never = operation == "getxattr" and code == errno.EOPNOTSUPP
    return never or code in (errno.ENOENT, errno.ENODATA)


def _short(self: "Operations", *args: object) -> float:
    return self._timeout


def _upload(self: "Operations", *args: object) -> float:
    """For what may store a whole file: the time that the largest draft takes on a slow line."""
    return self._timeout + self._fs.store.pool.largest_draft / SLOWEST_UPLOAD


def _resize(self: "Operations", inode: int, attr: Any, fields: Any, *args: object) -> float:
    """For setattr, which may store a file of a size that no draft has yet."""
    size = attr.st_size if fields.update_size else 0
    return max(_upload(self), self._timeout + size / SLOWEST_UPLOAD)


def _long(self: "Operations", *args: object) -> float:
    """For a rename, which has deadlines of its own: a directory may have any number of files."""
    return math.inf


def _forget_attributes(node: Node) -> None:
    """The kernel is to ask for them again; when it hears then that the file is gone, it looks the
    name up again, too."""
    with suppress(OSError):  # it does not know the inode, or any more
        pyfuse3.invalidate_inode(node.ino, attr_only=True)


class Operations(pyfuse3.Operations):
    """The handlers. `timeout` is the deadline of an ordinary operation in seconds.

    `latency` is of every call, `failures` counts those that failed by operation and errno, and
    `bytes_read` and `bytes_written` what passed between the kernel and us.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: Filesystem, timeout: float) -> None:
        super().__init__()
        self._fs = fs
        fs.store.on_distrust = _forget_attributes
        self._timeout = timeout
        self._streams: dict[int, Stream] = {}
        self._next_stream = 1
        self._last_failure = "", 0.0
        self.latency = Latencies()
        self.failures: Counter[tuple[str, int]] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0

    # Errors

    def _failed(self, operation: str, args: tuple[Any, ...], exc: BaseException) -> int:
        code = errno_of(exc)
        if isinstance(exc, PosixError) and not log.isEnabledFor(logging.DEBUG):
            return code  # names that are not there are looked up all the time
        where = self._describe(operation, args)
        if isinstance(exc, PosixError):
            log.debug("%s %s: %s: %s", operation, where, os.strerror(code), exc)
        elif isinstance(exc, ContentError | ServiceError):
            text = f"{operation} {where}: {os.strerror(code)}: {exc}"
            asked_again = code == errno.ESTALE and self._by_name(operation, args)
            quiet = code == errno.ENOENT or self._is_repetition(operation, where, exc)
            level = logging.INFO if asked_again else logging.ERROR
            log.log(logging.DEBUG if quiet else level, "%s", text)
        elif isinstance(exc, BlobfsError):
            log.error("%s %s: %s", operation, where, exc)
        else:
            log.error("%s %s: a bug in blobfs", operation, where, exc_info=exc)
        return code

    def _by_name(self, operation: str, args: tuple[Any, ...]) -> bool:
        """Whether the kernel will look the name up again after ESTALE: not for a file that is open,
        whose reads ask for its attributes first."""
        if operation in ("lookup", "open"):
            return True
        return operation == "getattr" and not self._fs.inodes.get(args[0]).opens

    def _is_repetition(self, operation: str, where: str, exc: BaseException) -> bool:
        """Whether the same was said just now: the kernel looks up a name again, and reads a page
        by itself again, before it tells the caller of the first failure. The request that found
        out may be another one then."""
        said = f"{operation} {where} {type(exc).__name__}"
        before, at = self._last_failure
        now = trio.current_time()
        self._last_failure = said, now
        return said == before and now - at < 1.0

    def _describe(self, operation: str, args: tuple[Any, ...]) -> str:
        """What the operation was about, as paths: never what was to be written."""
        try:
            if operation in _BY_HANDLE:
                return repr(self._fs.inodes.handle(args[0]).node.path)
            if operation in _BY_STREAM:
                return repr(self._streams[args[0]].directory.path)
            if not args or not isinstance(args[0], int):
                return ""
            path = self._fs.inodes.get(args[0]).path
            if operation in _BY_NAME:
                path = os.path.join(path, os.fsdecode(args[1]))
            return repr(path)
        except (BlobfsError, KeyError):
            return str(args[0])

    # Attributes

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        attrs = node.shown_attrs
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.ino
        entry.generation = 0
        fresh = max(0.0, node.fresh_until - trio.current_time())
        if node.is_local or node.volume is not None:
            fresh = self._fs.store.policy.metadata_ttl
        entry.entry_timeout = fresh
        entry.attr_timeout = fresh
        entry.st_mode = attrs.st_mode
        entry.st_nlink = int(node.is_linked)
        if node.is_directory and node.is_linked:
            entry.st_nlink = self._fs.store.listings.link_count(node)
        entry.st_uid = attrs.uid
        entry.st_gid = attrs.gid
        entry.st_rdev = attrs.rdev
        entry.st_size = 0 if node.is_directory else max(0, node.size)
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = -(-entry.st_size // 512)
        entry.st_atime_ns = attrs.atime_ns
        entry.st_mtime_ns = attrs.mtime_ns
        entry.st_ctime_ns = attrs.ctime_ns
        node.is_told = True
        return entry

    def _looked_up(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = self._entry(node)
        node.lookups += 1
        return entry

    @_handler(_short)
    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        directory = self._fs.inodes.get(parent)
        if name == b".":
            return self._looked_up(directory)
        if name == b"..":
            return self._looked_up(directory.parent or directory)
        segment = lookup_segment(name)
        if segment is None:
            raise PosixError(errno.ENOENT)
        node = await self._fs.tree.lookup(directory, segment, may_guess=True)
        self._fs.primer.looked_up(directory, segment)
        return self._looked_up(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # No handler: an exception here would end the mount, and there is no reply to send.
        for ino, count in inode_list:
            try:
                self._fs.inodes.forget(ino, count)
            except Exception:
                log.exception("forget %d: a bug in blobfs", ino)

    @_handler(_short)
    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        node = self._fs.inodes.get(inode)
        store = self._fs.store
        if not store.is_fresh(node) and node.is_linked and node.is_stored:
            try:
                await store.refresh(node)
            except NotFound as exc:
                # Asked for by number, not by name: the kernel then looks the name up again.
                raise ConditionFailed(f"{node.path!r} was deleted by someone else") from exc
        await store.settle_size(node)
        return self._entry(node)

    @_handler(_resize)
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        node = self._fs.inodes.get(inode)
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            privileged=ctx.uid == 0,
        )
        await self._fs.metadata.set(node, changes, by_handle=fh is not None)
        return self._entry(node)

    # Names

    def _caller(self, ctx: Any) -> Caller:
        return Caller(ctx.uid, ctx.gid, ctx.umask)

    @_handler(_short)
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        directory, segment = self._fs.inodes.get(parent), decode_segment(name)
        kind = Kind(mode & 0o170000) if mode & 0o170000 else Kind.FILE
        if kind is Kind.FILE:
            node = await self._fs.names.create(directory, segment, mode, self._caller(ctx))
            await self._fs.files.store_new(node)
        else:
            node = await self._fs.names.make_empty(
                directory, segment, kind, mode, self._caller(ctx), rdev
            )
        return self._looked_up(node)

    @_handler(_short)
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        directory, segment = self._fs.inodes.get(parent), decode_segment(name)
        return self._looked_up(
            await self._fs.names.make_empty(
                directory, segment, Kind.DIRECTORY, mode, self._caller(ctx)
            )
        )

    @_handler(_short)
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        directory, segment = self._fs.inodes.get(parent), decode_segment(name)
        return self._looked_up(
            await self._fs.names.symlink(directory, segment, target, self._caller(ctx))
        )

    @_handler(_short)
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return await self._fs.names.readlink(self._fs.inodes.get(inode))

    @_handler(_short)
    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        await self._fs.names.unlink(self._fs.inodes.get(parent), self._existing(name))

    @_handler(_short)
    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        await self._fs.names.rmdir(self._fs.inodes.get(parent), self._existing(name))

    def _existing(self, name: bytes) -> str:
        segment = lookup_segment(name)
        if segment is None:
            raise PosixError(errno.ENOENT)
        return segment

    @_handler(_long)
    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: object,
    ) -> None:
        inodes = self._fs.inodes
        await self._fs.names.rename(
            inodes.get(parent_old),
            self._existing(name_old),
            inodes.get(parent_new),
            decode_segment(name_new),
            flags,
        )

    @_handler(_short)
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: object
    ) -> pyfuse3.EntryAttributes:
        raise PosixError(errno.EOPNOTSUPP, "a blob has one name")

    # Directories

    @_handler(_short)
    async def opendir(self, inode: int, ctx: object) -> int:
        directory = self._fs.inodes.get(inode)
        number = self._next_stream
        self._next_stream += 1
        self._streams[number] = self._fs.tree.open_directory(directory)
        directory.opens += 1
        return number

    @_handler(_short)
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        stream = self._streams[fh]
        found = await self._fs.tree.entries(stream, start_id)
        # From here on without an await: lookups counted for a reply that is then dropped stay.
        full = False
        for name, node, next_id in found:
            if not full:
                full = not pyfuse3.readdir_reply(
                    token, os.fsencode(name), self._entry(node), next_id
                )
            if full:
                self._fs.inodes.release(node)
            else:
                node.lookups += 1

    @_handler(_short)
    async def releasedir(self, fh: int) -> None:
        stream = self._streams.pop(fh)
        self._fs.tree.close_directory(stream)
        stream.directory.opens -= 1
        self._fs.inodes.release(stream.directory)

    @_handler(_short)
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.metadata.save(self._streams[fh].directory)

    # Files

    @_handler(_upload)
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        node = self._fs.inodes.get(inode)
        try:
            number, keep = await self._fs.files.open(node, flags, privileged=ctx.uid == 0)
        except NotFound as exc:
            # It was there when its name was looked up: O_CREAT makes it anew, after another look.
            raise ConditionFailed(f"{node.path!r} was deleted by someone else") from exc
        if not keep and node.is_stored and not node.is_told:
            if flags & os.O_APPEND and not flags & os.O_TRUNC:
                # It would append at the end of the version that it knows: it is to look again.
                await self._fs.files.release(number)
                raise ConditionFailed(f"{node.path!r} was changed by someone else just now")
            # The size that the kernel has is of another version, and would cut what it reads.
            _forget_attributes(node)
        return pyfuse3.FileInfo(fh=number, keep_cache=keep)

    @_handler(_short)
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        directory, segment = self._fs.inodes.get(parent), decode_segment(name)
        node = await self._fs.names.create(directory, segment, mode, self._caller(ctx))
        number = self._fs.files.create(node, flags, privileged=ctx.uid == 0)
        return pyfuse3.FileInfo(fh=number, keep_cache=True), self._looked_up(node)

    @_handler(_short)
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any contiguous buffer, whatever its annotation says.
        data = cast(bytes, await self._fs.files.read(fh, off, size))
        self.bytes_read += len(data)
        return data

    @_handler(_upload)
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._fs.inodes.handle(fh).node
        mode = node.attrs.mode
        written = await self._fs.files.write(fh, off, buf)
        self.bytes_written += written
        if node.attrs.mode != mode:
            # The kernel expects a write to change size and times only, and keeps the mode.
            _forget_attributes(node)
        return written

    @_handler(_upload)
    async def flush(self, fh: int) -> None:
        await self._fs.files.flush(fh)

    @_handler(_upload)
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.files.fsync(fh)

    @_handler(_upload)
    async def release(self, fh: int) -> None:
        await self._fs.files.release(fh)

    # The rest

    @_handler(_short)
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = data.f_bfree = data.f_bavail = _CAPACITY // BLOCK_SIZE
        data.f_files = data.f_ffree = data.f_favail = 2**32
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if name == b"security.capability":  # the kernel asks before each write
            raise FUSEError(errno.ENODATA)
        return await self._getxattr(inode, name)

    @_handler(_short)
    async def _getxattr(self, inode: int, name: bytes) -> bytes:
        return await self._fs.metadata.get_xattr(self._fs.inodes.get(inode), name)

    @_handler(_short)
    async def listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        return await self._fs.metadata.list_xattrs(self._fs.inodes.get(inode))

    @_handler(_upload)
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        await self._fs.metadata.set_xattr(self._fs.inodes.get(inode), name, value)

    @_handler(_upload)
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        await self._fs.metadata.remove_xattr(self._fs.inodes.get(inode), name)
