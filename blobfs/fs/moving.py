"""Renaming a directory: its blobs are copied, then the sources deleted.

While it goes on, writes below the directory wait (`Store.locked`). Nothing is deleted before
everything is copied. When a copy fails, the copies made are deleted again and nothing has
happened; when a source cannot be deleted, its copy goes, so that every file is under exactly one
of the two names.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import trio

from blobfs.blobs import BlobInfo, Container, ContentHeaders
from blobfs.errors import BlobfsError, NotFound, root_cause
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.names import check_blob_name

log = logging.getLogger(__name__)

CLEAN_UP_TIME = 60.0
"""Seconds that taking back a failed rename may take."""

PARALLEL = 16
"""Requests of one directory rename under way at once."""


async def move_directory(
    store: Store, node: Node, target: Node | None, new_parent: Node, new_name: str
) -> None:
    """Move `node` and all below it to a name that is free but for `target`, an empty directory.

    Raises ServiceError, or PosixError(ENAMETOOLONG) when a blob below would get too long a name.
    """
    node.moving = trio.Event()
    try:
        await _settle_below(store, node)
        old, new = store.blob_name(node), store.blob_name(new_parent, new_name)
        container = store.volume(node).container
        sources = await _blobs_below(container, old + "/")
        slash_marker = next((info for info in sources if info.name == old + "/"), None)
        if slash_marker is not None:
            sources.remove(slash_marker)  # its attributes are the node's, and move with it
        for info in sources:
            check_blob_name(new + info.name[len(old) :])
        copies = await _copy_all(store, node, sources, old, new)
        try:
            marker = await _move_marker(store, node, target, new)
        except BlobfsError:
            await _delete_all(container, copies.values())
            raise
        try:
            await _delete_sources(container, sources, copies)
        except BlobfsError:
            _split(store, node, new_parent, copies)
            raise
        for old_marker in (node.info, slash_marker):
            if old_marker is not None:
                await store.delete(container, old_marker.name, old_marker.etag)
        _move_nodes(store, node, target, new_parent, new_name, copies)
        store.wrote(node, marker)
    finally:
        node.moving.set()
        node.moving = None


async def _settle_below(store: Store, directory: Node) -> None:
    """Wait for the writes under way below the directory, and store what they left unsaved."""
    for node in _below(store, directory):
        async with node.lock:
            await store.save(node)
            if node.upload is not None:
                node.upload.abandon()  # staged under the old name
                node.upload = None


async def _blobs_below(container: Container, prefix: str) -> list[BlobInfo]:
    blobs: list[BlobInfo] = []
    marker = ""
    while True:
        page = await container.list(prefix, delimiter="", marker=marker)
        blobs += page.blobs
        marker = page.next_marker
        if not marker:
            return blobs


async def _copy_all(
    store: Store, directory: Node, sources: list[BlobInfo], old: str, new: str
) -> dict[str, BlobInfo]:
    """Copies by the name of their source. After a failure there are none."""
    volume = store.volume(directory)
    copies: dict[str, BlobInfo] = {}
    limiter = trio.CapacityLimiter(PARALLEL)

    async def copy(info: BlobInfo) -> None:
        async with limiter:
            name = new + info.name[len(old) :]
            tags, tier = await store.carried(volume, info)
            version = await volume.container.copy(
                info.name,
                name,
                source_etag=info.etag,
                metadata=None,
                tags=tags,
                tier=tier,
                if_none_match=True,
            )
            copies[info.name] = replace(
                info,
                name=name,
                etag=version.etag,
                last_modified_ns=version.last_modified_ns,
                tag_count=len(tags or ()),
            )

    try:
        async with trio.open_nursery() as nursery:
            for info in sources:
                nursery.start_soon(copy, info)
    except BaseException as exc:
        await _delete_all(volume.container, copies.values())
        raise root_cause(exc) from exc
    return copies


async def _move_marker(store: Store, node: Node, target: Node | None, new: str) -> BlobInfo:
    """The directory's own blob under the new name; a directory without one gets one."""
    metadata = store.composed(node)
    container = store.volume(node).container
    existing = None if target is None else target.info
    if existing is not None and existing.name == new:
        version = await container.set_metadata(new, metadata, if_match=existing.etag)
    else:
        headers = ContentHeaders()
        version = await container.put(
            new, b"", metadata=metadata, headers=headers, tags=None, tier=None, if_none_match=True
        )
    return BlobInfo(new, version.etag, 0, version.last_modified_ns, "BlockBlob", metadata=metadata)


async def _delete_sources(
    container: Container, sources: list[BlobInfo], copies: dict[str, BlobInfo]
) -> None:
    failures: list[Exception] = []
    limiter = trio.CapacityLimiter(PARALLEL)

    async def delete(info: BlobInfo) -> None:
        async with limiter:
            try:
                await container.delete(info.name, if_match=info.etag)
            except NotFound:
                pass
            except BlobfsError as exc:
                failures.append(exc)
                copy = copies.pop(info.name)
                await container.delete(copy.name, if_match=copy.etag)

    async with trio.open_nursery() as nursery:
        for info in sources:
            nursery.start_soon(delete, info)
    if failures:
        raise root_cause(ExceptionGroup("sources that could not be deleted", failures))


async def _delete_all(container: Container, copies: Iterable[BlobInfo]) -> None:
    """Take copies back, shielded: half a rename must not stay. What cannot go is only logged."""
    limiter = trio.CapacityLimiter(PARALLEL)

    async def delete(info: BlobInfo) -> None:
        async with limiter:
            try:
                await container.delete(info.name, if_match=info.etag)
            except NotFound:
                pass
            except BlobfsError as exc:
                log.error("%r, a copy made by a failed rename, is left behind: %s", info.name, exc)

    with trio.move_on_after(CLEAN_UP_TIME, shield=True):
        async with trio.open_nursery() as nursery:
            for info in copies:
                nursery.start_soon(delete, info)


def _below(store: Store, directory: Node) -> list[Node]:
    return [node for node in store.inodes if node is not directory and node.is_within(directory)]


def _split(store: Store, node: Node, new_parent: Node, copies: dict[str, BlobInfo]) -> None:
    """Only some sources could be deleted: forget what is no longer where it was."""
    for child in _below(store, node):
        store.listings.drop(child)
        if child.info is not None and child.info.name in copies:
            store.vanish(child)
    store.listings.drop(node)
    store.listings.drop(new_parent)


def _move_nodes(
    store: Store,
    node: Node,
    target: Node | None,
    new_parent: Node,
    new_name: str,
    copies: dict[str, BlobInfo],
) -> None:
    old_parent, old_name = node.parent, node.name
    assert old_parent is not None
    for child in _below(store, node):
        store.listings.drop(child)
        moved = None if child.info is None else copies.get(child.info.name)
        if moved is not None and child.info is not None:
            if child.page_cache_etag == child.info.etag:
                child.page_cache_etag = moved.etag
            if child.content is not None:
                child.content.info = moved
            child.info = moved
    store.listings.drop(node)
    if target is not None:
        store.listings.drop(target)
        store.unlink(target)
    store.inodes.move(node, new_parent, new_name)
    store.listings.note(old_parent, old_name, None)
