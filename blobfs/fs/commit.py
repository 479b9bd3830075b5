"""From a draft to a stored version, and what happens when that fails.

- The service has another content by now: ESTALE; its version stays, ours is kept beside it as
  `NAME.blobfs-conflict-…` (`on_conflict=overwrite`: ours replaces it).
- Only metadata changed meanwhile: ours goes on top of it.
- The condition failed, but the version there is the one that we sent in an attempt whose answer
  never came: that is success.
- The blocks that it was staged in are gone, as others have stored something under its name since or
  the service has kept them for a week: it is staged again, under a new CEK.
- Anything else: the caller gets the error and the draft stays, so that the next flush or fsync
  tries again. What is still unsaved when the last handle goes is kept as a recovery file.
"""

import logging
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import trio

from blobfs.attributes import value_of
from blobfs.blobs import BlobInfo, ContentHeaders
from blobfs.draft import Draft
from blobfs.envelope import METADATA_KEY
from blobfs.errors import (
    AlreadyExists,
    BlobfsError,
    BlocksGone,
    ConditionFailed,
    ContentError,
    NotFound,
    ServiceError,
)
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.names import marked
from blobfs.recovery import attempt_mark, keep_for_recovery
from blobfs.writer import SINGLE_PUT, Properties, Upload

log = logging.getLogger(__name__)

KEEP_PAGES = 32 * 1024 * 1024
"""Bytes of pages kept after a commit of a file that stays open for writing."""

BASE_PATIENCE = 3.0
"""Seconds that a recovery file waits for the stored version below what was written. What does not
come by then can be put in later, as long as that version is there."""

_TRIES = 5
"""Of one commit, each after a change by others."""

_STAGINGS = 3
"""Of all its blocks."""

CONFLICT_MARK = ".blobfs-conflict-"


async def commit(store: Store, node: Node) -> None:
    """Store the node's draft if it is dirty; the caller holds the node's lock.

    Raises ServiceError or ContentError; the draft then is as dirty as before, except after a
    conflict, when it is gone since its content was stored under another name.
    """
    draft = node.draft
    if draft is None or not draft.dirty or not node.is_linked:
        return
    if node.attempts and await _was_applied(store, node, draft):
        return
    # A single Put Blob is in memory twice; blocks have room of their own.
    async with store.singles.taken(2 * draft.size if draft.size <= SINGLE_PUT else 0):
        await _commit(store, node, draft)


async def _commit(store: Store, node: Node, draft: Draft) -> None:
    upload = await _finished_upload(store, node, draft)
    stagings = 1
    for _ in range(_TRIES):
        try:
            await _store_upload(store, node, draft, upload)
            return
        except BlocksGone:
            if stagings == _STAGINGS:
                raise
            stagings += 1
            upload = await _finished_upload(store, node, draft)
        except (ConditionFailed, AlreadyExists, NotFound):
            await _resolve(store, node, draft, upload)
            if not draft.dirty:
                return
    raise ConditionFailed(f"{node.path!r} is being changed by others over and over")


async def _was_applied(store: Store, node: Node, draft: Draft) -> bool:
    """Whether the draft is stored after all, by an attempt whose answer never came."""
    current = await store.attempted(node)
    if current is None:
        return False
    if node.attempts[value_of(current.metadata, METADATA_KEY) or ""] == draft.changes:
        _committed(store, node, draft, current)
        return True
    node.info = current
    return False


async def _finished_upload(store: Store, node: Node, draft: Draft) -> Upload:
    upload = node.upload or store.new_upload(node)
    node.upload = None  # it is void from here on unless all of it goes well
    try:
        await upload.finish(draft.size, draft.read)
    except BaseException:
        upload.abandon()
        raise
    return upload


async def _properties(store: Store, node: Node) -> Properties:
    info = node.info
    if info is None:
        return Properties(store.composed(node), ContentHeaders(), None, None)
    info = await store.as_stored(node)
    tags, tier = await store.carried(store.volume(node), info)
    return Properties(store.composed(node), info.headers, tags, tier)


async def _store_upload(store: Store, node: Node, draft: Draft, upload: Upload) -> None:
    properties = await _properties(store, node)
    attrs, overlay = replace(node.attrs), dict(node.overlay)
    condition = None if node.info is None else node.info.etag
    await upload.seal(properties)
    node.attempts[upload.encryption_data] = draft.changes
    version = await upload.commit(properties, if_match=condition, create=condition is None)
    node.is_ours = node.is_ours or condition is None
    info = BlobInfo(
        upload.name,
        version.etag,
        upload.blob_size,
        version.last_modified_ns,
        "BlockBlob",
        replace(properties.headers, content_md5=""),
        upload.metadata,
        tier=properties.tier or "",
        tag_count=len(properties.tags or ()),
    )
    _committed(store, node, draft, info)
    if node.attrs == attrs and node.overlay == overlay:
        node.unsaved = False
        node.overlay.clear()


def _committed(store: Store, node: Node, draft: Draft, info: BlobInfo) -> None:
    cached, told = node.page_cache_etag == node.etag, node.is_told
    store.wrote(node, info)
    node.attempts.clear()
    node.commits += 1
    node.content = None
    node.plain_size = draft.size
    # Of what the kernel's cache was right about it saw every change pass.
    node.page_cache_etag = info.etag if cached else ""
    node.is_told = told  # the size is the one that it has reached by its writes
    draft.committed(KEEP_PAGES)


async def _resolve(store: Store, node: Node, draft: Draft, upload: Upload) -> None:
    """After a refused commit: take it for done, make a new try possible, or keep ours aside."""
    container, name = store.locate(node)
    try:
        current = await container.head(name)
    except NotFound:
        current = None
    if current is not None:
        attempt = node.attempts.get(value_of(current.metadata, METADATA_KEY) or "")
        if attempt == draft.changes:
            _committed(store, node, draft, current)
            return
        if attempt is not None:  # ours, but the draft has gone on since
            node.info = current
            return
        same = node.info is not None and await _same(store, node.info, current)
        if same:
            await store.merge(node, current)
            return
        if store.policy.overwrite_on_conflict:
            node.info = current
            return
    elif store.policy.overwrite_on_conflict:
        node.info = None
        return
    aside = await _keep_aside(store, node, draft, upload)
    node.draft = None
    node.unsaved = False
    node.overlay.clear()
    store.distrust(node)
    node.page_cache_etag = ""  # it holds our version
    node.attempts.clear()
    draft.discard()
    raise ConditionFailed(
        f"{name!r} was changed by someone else; this version of it is kept as {aside!r}"
    )


async def _same(store: Store, before: BlobInfo, after: BlobInfo) -> bool:
    try:
        return await store.reader.same_content(before, after)
    except BlobfsError:
        return False  # not ours to judge, for want of its key: then it is another content


async def _keep_aside(store: Store, node: Node, draft: Draft, upload: Upload) -> str:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = marked(upload.name, f"{CONFLICT_MARK}{stamp}-{secrets.token_hex(3)}")
    properties = replace(await _own_properties(store, node), tags=None, tier=None)
    if draft.size > SINGLE_PUT or not upload.is_single:
        upload = store.new_upload(node, aside)
        try:
            await upload.finish(draft.size, draft.read)
        except BaseException:
            upload.abandon()
            raise
    await upload.seal(properties)
    await upload.commit(properties, if_match=None, create=True, name=aside)
    return aside


async def _own_properties(store: Store, node: Node) -> Properties:
    headers = ContentHeaders() if node.info is None else node.info.headers
    return Properties(store.composed(node), headers, None, None)


async def keep(store: Store, node: Node, reason: str) -> bool:
    """Write the recovery file of a draft that could not be stored, and say where it is.

    False when there was no room for it, or no key.
    """
    draft = node.draft
    assert draft is not None
    holes = 0
    base_until = trio.current_time() + BASE_PATIENCE

    async def read(offset: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        nonlocal holes, base_until
        if draft.is_base_local:
            return await draft.read(offset, size), []
        if trio.current_time() < base_until:
            with suppress(ServiceError, ContentError), trio.move_on_at(base_until):
                return await draft.read(offset, size), []
            base_until = 0.0
        plain, unknown = draft.written(offset, size)
        holes += sum(length for _, length in unknown)
        return plain, unknown

    try:
        path = await keep_for_recovery(
            store.policy.recovery_dir,
            container_url=store.volume(node).container.url,
            name=store.blob_name(node),
            etag=node.info.etag if node.info is not None else "",
            attempts=[attempt_mark(encryption_data) for encryption_data in node.attempts],
            kind=node.kind,
            size=draft.size,
            read=read,
            properties=await _own_properties(store, node),
            keyring=store.keyring,
            policy=store.write_policy,
            reason=reason,
        )
    except (OSError, BlobfsError) as exc:
        log.critical("%s: NOT STORED, and no recovery file could be written: %s", node.path, exc)
        return False
    but = f", but for {holes} bytes of the version below it, which are zeros" if holes else ""
    log.error("%s: not stored; its content is kept, encrypted, in %s%s", node.path, path, but)
    return True
