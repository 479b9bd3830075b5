"""Renaming a directory: its blobs are copied, then the sources deleted.

While it goes on, writes below the directory wait (`Store.locked`). The target's marker comes
first and says where it is being filled from (`INTENT_KEY`), so that after a crash the same rename
may be run again onto the half-filled target, and finishes. Nothing is deleted before everything
is copied. After any failure what was done is undone: every file is under exactly one of the two
names, and, unless undoing fails as well, under its old one.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import quote

import trio

from blobfs.attributes import INTENT_KEY, put_key, value_of
from blobfs.blobs import BlobInfo, Container, ContentHeaders
from blobfs.envelope import METADATA_KEY
from blobfs.errors import (
    AlreadyExists,
    BlobfsError,
    ConditionFailed,
    NotFound,
    PosixError,
    Unavailable,
)
from blobfs.fs.leaving import fence, has_its_content
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.names import check_blob_name

log = logging.getLogger(__name__)

CLEAN_UP_TIME = 300.0
"""Seconds, and one for each blob, that undoing a failed rename may take."""

UNHEARD_TIME = 10.0
"""Seconds that finding out may take whether a request without an answer was carried out."""

ITEM_TIME = 600.0
"""Seconds that one blob of a directory may take."""

PARALLEL = 16
"""Requests of one directory rename under way at once."""


@dataclass(frozen=True, slots=True)
class _Replaced:
    """The marker that the target had, with what a write must name again."""

    info: BlobInfo
    tags: dict[str, str] | None
    tier: str | None


@dataclass(slots=True)
class _Move:
    """One rename under way; copies are by the name of their source."""

    store: Store
    node: Node
    container: Container
    old: str
    new: str
    replaced: _Replaced | None = None
    sources: list[BlobInfo] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    copies: dict[str, BlobInfo] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


def is_resumable(store: Store, node: Node, target: Node) -> bool:
    """Whether `target` was being filled from `node` by a rename that did not finish."""
    metadata = {} if target.info is None else target.info.metadata
    return value_of(metadata, INTENT_KEY) == quote(store.blob_name(node))


async def move_directory(
    store: Store,
    node: Node,
    target: Node | None,
    slash_marker: BlobInfo | None,
    new_parent: Node,
    new_name: str,
) -> None:
    """Move `node` and all below it to a name that is free but for `target`: an empty directory,
    or one that `is_resumable`. `slash_marker` is the one `NAME/` of the target, if it has one.

    Raises ServiceError, or PosixError: ENAMETOOLONG when a blob below would get too long a name,
    ENOTEMPTY when there is something in the target that is not stored.
    """
    move = _Move(
        store,
        node,
        store.volume(node).container,
        store.blob_name(node),
        store.blob_name(new_parent, new_name),
    )
    node.moving = moving = trio.Event()
    if target is not None:
        target.moving = moving
    try:
        await _settle_below(store, node)
        if target is not None:
            await _wait_below(store, target)
            check_unheld(store, target)
            if slash_marker is not None:
                await store.delete(move.container, slash_marker.name, slash_marker.etag)
                if target.info is not None and target.info.name == slash_marker.name:
                    target.info = None
        move.sources = await _blobs_below(move.container, move.old + "/")
        own_marker = next((x for x in move.sources if x.name == move.old + "/"), None)
        if own_marker is not None:
            move.sources.remove(own_marker)  # its attributes are the node's, and move with it
        for info in move.sources:
            check_blob_name(_moved_name(move, info))
        if target is not None and target.info is not None and target.info.name == move.new:
            kept = await store.carried(store.volume(target), target.info)
            move.replaced = _Replaced(target.info, *kept)
        marker = await _announce(move)
        try:
            await _for_each(move.sources, lambda info: _copy(move, info))
            await _for_each(move.sources, lambda info: _delete_source(move, info))
        except BaseException:
            await _undo(move, marker)
            raise
        try:
            for old_marker in (node.info, own_marker):
                if old_marker is not None:
                    await store.delete(move.container, old_marker.name, old_marker.etag)
            marker = await _conclude(move, marker)
        except BaseException:
            _distrust(move)
            store.listings.drop(new_parent)  # all is there by now
            raise
        _move_nodes(move, target, new_parent, new_name)
        store.wrote(node, marker)
    finally:
        moving.set()
        node.moving = None
        if target is not None:
            target.moving = None


async def _settle_below(store: Store, directory: Node) -> None:
    """Wait for the writes, renames and deletions under way below the directory, and store what
    they left unsaved."""
    async with store.inodes.lock(directory):
        pass  # what was being renamed into it
    for node in _below(store, directory):
        async with store.inodes.lock(node):
            await store.save(node)
            if node.upload is not None:
                node.upload.abandon()  # staged under the old name
                node.upload = None
    await store.deletions.settle(directory, below=True)


def check_unheld(store: Store, directory: Node) -> None:
    """Raises PosixError(ENOTEMPTY) when there is something in the directory that is not stored."""
    if any(store.is_held(child) for child in directory.children.values()):
        raise PosixError(errno.ENOTEMPTY)


async def _wait_below(store: Store, directory: Node) -> None:
    """Until what is under way there is over; nothing else begins."""
    for node in _below(store, directory):
        async with store.inodes.lock(node):
            pass
    await store.deletions.settle(directory, below=True)


async def _blobs_below(container: Container, prefix: str) -> list[BlobInfo]:
    blobs: list[BlobInfo] = []
    marker = ""
    while True:
        page = await container.list(prefix, delimiter="", marker=marker)
        blobs += page.blobs
        marker = page.next_marker
        if not marker:
            return blobs


T = TypeVar("T")


async def _for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on all items, some at once. After a failure no more are begun; those under way are
    waited for, cancelled or not, since what became of them must be known. Raises the first error.
    """
    limiter = trio.CapacityLimiter(PARALLEL)
    failures: list[Exception] = []

    async def one(item: T) -> None:
        async with limiter:
            if failures:
                return
            try:
                with trio.fail_after(ITEM_TIME, shield=True):
                    await work(item)
            except trio.TooSlowError:
                failures.append(Unavailable(f"no answer within {ITEM_TIME:g} s"))
            except Exception as exc:
                failures.append(exc)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)
    if failures:
        raise failures[0]


async def _announce(move: _Move) -> BlobInfo:
    """The target's marker, with all that the directory's has and the name that fills it."""
    try:
        return await _put_marker(move)
    except BaseException as exc:
        if isinstance(exc, Unavailable) or not isinstance(exc, BlobfsError):
            with trio.move_on_after(UNHEARD_TIME, shield=True):
                await _withdraw(move, None)
        raise


async def _put_marker(move: _Move) -> BlobInfo:
    store, node = move.store, move.node
    headers, tags, tier = ContentHeaders(), None, None
    if node.info is not None:
        await store.catch_up(node)  # what others have changed of it goes with the old marker
    if node.info is not None:
        headers = node.info.headers
        tags, tier = await store.carried(store.volume(node), node.info)
    metadata = store.composed(node)
    put_key(metadata, INTENT_KEY, quote(move.old))
    version = await move.container.put(
        move.new,
        b"",
        metadata=metadata,
        headers=headers,
        tags=tags,
        tier=tier,
        if_match=None if move.replaced is None else move.replaced.info.etag,
        if_none_match=move.replaced is None,
    )
    return BlobInfo(
        move.new,
        version.etag,
        0,
        version.last_modified_ns,
        "BlockBlob",
        headers,
        metadata,
        tier=tier or "",
        tag_count=len(tags or ()),
    )


async def _conclude(move: _Move, marker: BlobInfo) -> BlobInfo:
    metadata = dict(marker.metadata)
    put_key(metadata, INTENT_KEY, None)
    version = await move.container.set_metadata(move.new, metadata, if_match=marker.etag)
    return replace(
        marker,
        etag=version.etag,
        last_modified_ns=version.last_modified_ns,
        metadata=metadata,
    )


def _moved_name(move: _Move, info: BlobInfo) -> str:
    return move.new + info.name[len(move.old) :]


async def _copy(move: _Move, info: BlobInfo) -> None:
    name = _moved_name(move, info)
    move.begun.add(info.name)
    try:
        move.copies[info.name] = await _copy_blob(move, info, name)
    except AlreadyExists:
        # Left by the run that this one resumes? Then it is the same content.
        try:
            there = await move.container.head(name)
        except NotFound:  # then it was the other condition that failed
            raise ConditionFailed(f"{info.name!r} was changed by someone else") from None
        if not _is_copy(there, info):
            raise
        move.copies[info.name] = there


def _is_copy(there: BlobInfo, info: BlobInfo) -> bool:
    if there.metadata != info.metadata or there.size != info.size:
        return False
    # The wrapped CEK in the metadata is one content's alone; plaintext needs its hash.
    md5 = info.headers.content_md5
    is_encrypted = value_of(info.metadata, METADATA_KEY) is not None
    return is_encrypted or info.size == 0 or (bool(md5) and md5 == there.headers.content_md5)


async def _copy_blob(move: _Move, info: BlobInfo, name: str) -> BlobInfo:
    tags, tier = await move.store.carried(move.store.volume(move.node), info)
    version = await move.container.copy(
        info.name,
        name,
        source_etag=info.etag,
        metadata=None,
        tags=tags,
        tier=tier,
        if_none_match=True,
    )
    return replace(info, name=name, etag=version.etag, last_modified_ns=version.last_modified_ns)


async def _delete_source(move: _Move, info: BlobInfo) -> None:
    move.deleting.add(info.name)
    with suppress(NotFound):
        await move.container.delete(info.name, if_match=info.etag)
    move.deleted.add(info.name)


async def _stays(move: _Move, info: BlobInfo) -> bool:
    """Whether the source is there, and will be."""
    if info.name in move.deleted:
        return False
    try:
        if info.name in move.deleting:
            await fence(move.container, info)
        else:
            await move.container.head(info.name)
    except NotFound:
        return False
    except ConditionFailed:
        return await has_its_content(move.store, move.container, info)
    return True


async def _unnoticed_copy(move: _Move, info: BlobInfo) -> BlobInfo | None:
    """A copy that was made although the request for it failed, as one without an answer may."""
    try:
        there = await move.container.head(_moved_name(move, info))
    except NotFound:
        return None
    return there if _is_copy(there, info) else None


async def _undo(move: _Move, marker: BlobInfo) -> None:
    """Bring every file back to its old name, or leave it under its new one alone.

    Shielded: half a rename must not stay for want of time.
    """
    complete = True

    async def restore(info: BlobInfo) -> None:
        nonlocal complete
        try:
            copy = move.copies.get(info.name) or await _unnoticed_copy(move, info)
            if copy is None:
                return
            if not await _stays(move, info):
                await _copy_blob(move, copy, info.name)
            await move.store.delete_content(move.container, copy)
        except BlobfsError as exc:
            complete = False
            log.error("a rename failed, and %r stays so: %s", _moved_name(move, info), exc)

    with trio.move_on_after(CLEAN_UP_TIME + len(move.begun), shield=True) as scope:
        await _for_each([x for x in move.sources if x.name in move.begun], restore)
        if complete:
            complete = await _withdraw(move, marker)
    if scope.cancelled_caught or not complete:
        log.error("a rename of %r to %r is half done; run it again", move.old, move.new)
    _distrust(move)


async def _withdraw(move: _Move, marker: BlobInfo | None) -> bool:
    """Whether the target has no marker of ours any more, but the one that it had; without
    `marker`, one that was put although the request for it failed."""
    replaced = move.replaced
    try:
        marker = marker or await _unnoticed_marker(move)
        if marker is None:
            return True
        if replaced is None:
            await move.store.delete(move.container, marker.name, marker.etag)
        else:
            await move.container.put(
                move.new,
                b"",
                metadata=replaced.info.metadata,
                headers=replaced.info.headers,
                tags=replaced.tags,
                tier=replaced.tier,
                if_match=marker.etag,
            )
    except BlobfsError as exc:
        log.error("a rename failed, and the directory %r stays: %s", move.new, exc)
        return False
    return True


async def _unnoticed_marker(move: _Move) -> BlobInfo | None:
    try:
        there = await move.container.head(move.new)
    except NotFound:
        return None
    if move.replaced is not None and there.etag == move.replaced.info.etag:
        return None
    return there if value_of(there.metadata, INTENT_KEY) == quote(move.old) else None


def _distrust(move: _Move) -> None:
    """What is known of the directory is out of date."""
    for child in _below(move.store, move.node):
        move.store.listings.spoil(child)  # also what is being listed just now
        child.fresh_until = 0.0
    move.store.distrust(move.node)
    move.store.listings.spoil(move.node)


def _below(store: Store, directory: Node) -> list[Node]:
    return [node for node in store.inodes if node is not directory and node.is_within(directory)]


def _move_nodes(move: _Move, target: Node | None, new_parent: Node, new_name: str) -> None:
    store, node = move.store, move.node
    old_parent, old_name = node.parent, node.name
    assert old_parent is not None
    store.listings.drop_below(node.path)  # also of those that the kernel has let go of
    listed = {info.name: info.etag for info in move.sources}
    for child in _below(store, node):
        store.listings.drop(child)
        moved = None if child.info is None else move.copies.get(child.info.name)
        if moved is not None and child.info is not None:
            if child.info.etag != listed[child.info.name]:
                # Changed by others since we looked: it moves as a version that we do not know.
                child.info = replace(child.info, name=moved.name)
                child.fresh_until = 0.0
                continue
            if child.page_cache_etag == child.info.etag:
                child.page_cache_etag = moved.etag
            if child.content is not None:
                child.content.info = moved
            child.info = moved
    store.listings.drop(node)
    if target is not None:
        for child in list(target.children.values()):
            store.vanish(child)  # of a run that this one resumed
        store.listings.drop(target)
        store.unlink(target)
    store.inodes.move(node, new_parent, new_name)
    store.listings.drop_below(node.path)
    store.listings.note(old_parent, old_name, None)
