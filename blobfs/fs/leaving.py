"""What happens to a file's content while its name goes: by an unlink, or a rename over it.

Who has the file open goes on with it, so its blob is copied to a hidden name before, which the last
close deletes. A file that a rename replaces is kept so as well, whoever has it open, when more than
the network can keep the rename from being finished: if that fails, it is put back.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

import trio

from blobfs.attributes import value_of
from blobfs.blobs import BlobInfo, Container
from blobfs.envelope import METADATA_KEY
from blobfs.errors import (
    BlobfsError,
    ConditionFailed,
    ContentError,
    NotFound,
    ServiceError,
    Unavailable,
)
from blobfs.fs.store import CLEAN_UP_TIME, Store
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX, join
from blobfs.writer import SLOWEST_UPLOAD

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Leaving:
    """A file that is being unlinked or replaced: its blob until then, and that blob's hidden copy.

    Of what replaces it: the file that is copied, the ETag that the copy got, "" if it is not known,
    and whether the blob of that file is there for certain, None if that is not known.
    """

    info: BlobInfo | None
    kept: BlobInfo | None = None
    source: Node | None = None
    copied_as: str = ""
    source_stays: bool | None = None

    def is_replaced_by(self, there: BlobInfo) -> bool:
        """Whether what is there is a copy of the source: ours, or of another host's rename."""
        if self.source is None or self.source.info is None:
            return False
        ours = value_of(self.source.info.metadata, METADATA_KEY)
        is_copy = ours is not None and ours == value_of(there.metadata, METADATA_KEY)
        return is_copy or there.etag == self.copied_as


@contextmanager
def leaving(node: Node) -> Iterator[None]:
    """Who looks the node up meanwhile gets it as it is, and who opens it waits."""
    event = node.leaving = trio.Event()
    try:
        yield
    finally:
        node.leaving = None
        event.set()


@asynccontextmanager
async def hidden(store: Store, node: Node, *, always: bool = False) -> AsyncIterator[Leaving]:
    """Keep the content of an open file, or `always`, under a hidden name while its own goes.

    When that fails the file is what it was, as far as its blob is: what is written to it must not
    end up under a name that the last close deletes. The caller holds the node's lock.
    """
    with leaving(node):
        record = Leaving(node.info)
        if node.info is not None and (node.opens or always):
            record.info, record.kept = await _hide(store, node)
        try:
            yield record
        except BaseException as exc:
            if record.kept is not None:
                in_doubt = not isinstance(exc, BlobfsError) or isinstance(exc, Unavailable)
                await _come_back(store, node, record, in_doubt=in_doubt)
            raise


async def _hide(store: Store, node: Node) -> tuple[BlobInfo | None, BlobInfo]:
    """The blob that the node had, as it was copied, and the copy, which it has now.

    Raises ConditionFailed when others have deleted it, as when they have replaced it: NotFound is
    what is said of the source of a rename.
    """
    volume = store.volume(node)
    name = join([volume.prefix, HIDDEN_PREFIX + secrets.token_hex(12)])
    try:
        kept = await store.copy(node, name, create=True)
    except BaseException as exc:
        with trio.move_on_after(CLEAN_UP_TIME, shield=True), suppress(BlobfsError):
            await volume.container.delete(name)  # made all the same, unheard?
        if isinstance(exc, NotFound):
            raise ConditionFailed(f"{node.path!r} was deleted by someone else") from exc
        raise
    info = node.info  # others may have changed its metadata
    node.hidden, node.info = name, kept
    if node.content is not None:
        node.content.info = kept
    return info, kept


async def _come_back(store: Store, node: Node, record: Leaving, *, in_doubt: bool) -> None:
    kept, info = record.kept, record.info
    assert kept is not None
    assert info is not None
    seconds = CLEAN_UP_TIME + kept.size / SLOWEST_UPLOAD
    problem = "no answer"
    with trio.move_on_after(seconds, shield=True):
        try:
            await _settle(store, node, record, info, in_doubt=in_doubt)
            if not node.hidden:
                await store.delete(store.volume(node).container, kept.name, kept.etag)
            return
        except BlobfsError as exc:
            problem = str(exc)
    log.error("%s, what %s was before, is left behind: %s", kept.name, node.path, problem)
    if node.hidden:
        _show(node, info)


async def _settle(
    store: Store, node: Node, record: Leaving, info: BlobInfo, *, in_doubt: bool
) -> None:
    """Make of the node what has become of its name; it is hidden still when open handles need what
    was kept. Raises ServiceError when that may be the only place of a content."""
    container = store.volume(node).container
    there = await find(container, info.name)
    if there is not None and there.etag == info.etag and in_doubt:
        with suppress(NotFound):
            _show(node, await fence(container, info))  # from what may still be on its way
            return
        there = None
    is_replaced = there is not None and there.etag != info.etag and record.is_replaced_by(there)
    if is_replaced and record.source_stays is None and record.source is not None:
        record.source_stays = await stays(store, record.source)
    if there is None or (is_replaced and record.source_stays is False):
        # What failed has happened all the same.
        if not node.opens:
            node.hidden = ""
        if node.is_linked:
            store.unlink(node)
        return
    if is_replaced and record.source_stays is None:
        raise ConditionFailed(f"it is not known whether {info.name!r} was replaced")
    is_aborted = there.copy_status in ("aborted", "failed") and not there.size
    if is_replaced or is_aborted:
        info = await _put_back(store, node, there)
    elif there.etag != info.etag and in_doubt and value_of(there.metadata, METADATA_KEY) is None:
        raise ConditionFailed(f"it is not known who has replaced {info.name!r}")
    _show(node, info)


def _show(node: Node, info: BlobInfo) -> None:
    node.hidden, node.info = "", info
    if node.content is not None:
        node.content.info = info


async def _put_back(store: Store, node: Node, there: BlobInfo) -> BlobInfo:
    kept, volume = node.info, store.volume(node)
    assert kept is not None
    tags, tier = await store.carried(volume, kept)
    version = await volume.container.copy(
        kept.name, there.name, source_etag=kept.etag, tags=tags, tier=tier, if_match=there.etag
    )
    return replace(
        kept, name=there.name, etag=version.etag, last_modified_ns=version.last_modified_ns
    )


async def find(container: Container, name: str) -> BlobInfo | None:
    try:
        return await container.head(name)
    except NotFound:
        return None


async def stays(store: Store, node: Node) -> bool | None:
    """Whether the content of a file of which the deletion failed is under its name, and will be;
    None when that cannot be made sure of."""
    info = node.info
    assert info is not None
    try:
        fenced = await fence(store.volume(node).container, info)
    except NotFound:
        return False
    except ConditionFailed:
        return await has_its_content(store, store.volume(node).container, info)
    except ServiceError:
        return None
    store.new_version(node, fenced, fenced.version)
    return True


async def has_its_content(store: Store, container: Container, info: BlobInfo) -> bool:
    """Whether a blob that others have changed has the content still: else they made a new one where
    it was deleted, or wrote over it."""
    try:
        return await store.reader.same_content(info, await container.head(info.name))
    except (ContentError, NotFound):
        return False


async def fence(container: Container, info: BlobInfo) -> BlobInfo:
    """A new version of a blob, equal to the old one: a deletion, or a copy onto it, that may still
    be on its way has that one's ETag as its condition, and fails.

    Raises NotFound when the blob is gone by now, ConditionFailed when others have changed it, or
    what else keeps it from being changed.
    """
    try:
        version = await container.set_metadata(info.name, info.metadata, if_match=info.etag)
    except ConditionFailed:  # what Azurite says of one that is gone, too
        await container.head(info.name)
        raise
    return replace(info, etag=version.etag, last_modified_ns=version.last_modified_ns)


async def delete_hidden(store: Store, node: Node) -> None:
    """Delete what was kept of a file that nobody has open any more; the caller holds its lock.
    Raises nothing of ours."""
    container, name = store.locate(node)
    assert node.info is not None
    with leaving(node):
        try:
            await store.delete(container, name, node.info.etag)
        except BlobfsError as exc:
            log.error("%s, of a file whose name is gone, is left behind: %s", name, exc)
        node.hidden = ""
        node.info = None
