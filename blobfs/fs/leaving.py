"""What happens to a file's content while its name goes: by an unlink, or a rename over it.

Who has the file open goes on with it, so its blob is copied to a hidden name before, which the last
close deletes. A file that a rename replaces is kept so as well, whoever has it open, when more than
the network can keep the rename from being finished: if that fails, it is put back.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from blobfs.attributes import value_of
from blobfs.blobs import BlobInfo
from blobfs.envelope import METADATA_KEY
from blobfs.errors import BlobfsError, ConditionFailed
from blobfs.fs.store import CLEAN_UP_TIME, Store
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX, join
from blobfs.writer import SLOWEST_UPLOAD

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Leaving:
    """A file that is being unlinked or replaced: its blob until then, the blob of which a copy is
    to replace it, and the ETag of that copy when it is known."""

    info: BlobInfo | None
    source: BlobInfo | None = None
    copied_as: str = ""

    def is_replaced_by(self, there: BlobInfo) -> bool:
        """Whether what is there is our copy, whole or not; one without an answer is known by its
        wrapped CEK, which no other blob has."""
        assert self.source is not None
        ours = value_of(self.source.metadata, METADATA_KEY)
        return (
            there.etag == self.copied_as
            or there.copy_status in ("aborted", "failed")
            or (ours is not None and ours == value_of(there.metadata, METADATA_KEY))
        )


@asynccontextmanager
async def hidden(store: Store, node: Node, *, always: bool = False) -> AsyncIterator[Leaving]:
    """Keep the content of an open file, or `always`, under a hidden name while its own goes.

    When that fails the file is what it was: what is written to it must not end up under a name
    that the last close deletes. The caller holds the node's lock; who opens the file meanwhile
    waits (`Node.leaving`).
    """
    event = node.leaving = trio.Event()
    try:
        leaving = await _hide(store, node, always=always)
        try:
            yield leaving
        except BaseException:
            if node.hidden:
                await _unhide(store, node, leaving)
            raise
    finally:
        node.leaving = None
        event.set()


async def _hide(store: Store, node: Node, *, always: bool) -> Leaving:
    if node.info is None or not (node.opens or always):
        return Leaving(node.info)
    volume = store.volume(node)
    hidden = join([volume.prefix, HIDDEN_PREFIX + secrets.token_hex(12)])
    copied = await store.copy(node, hidden, create=True)
    leaving = Leaving(node.info)
    node.hidden, node.info = hidden, copied
    if node.content is not None:
        node.content.info = copied
    return leaving


async def _unhide(store: Store, node: Node, leaving: Leaving) -> None:
    copy, name = node.info, node.hidden
    assert copy is not None
    node.hidden, node.info = "", leaving.info
    seconds = CLEAN_UP_TIME + copy.size / SLOWEST_UPLOAD
    with trio.move_on_after(seconds, shield=True) as scope:
        try:
            node.info = await _put_back(store, node, copy, leaving)
            await store.delete(store.volume(node).container, name, copy.etag)
        except BlobfsError as exc:
            log.error("%s, what %s was before, is left behind: %s", name, node.path, exc)
    if scope.cancelled_caught:
        log.error("%s, what %s was before, is left behind: no answer", name, node.path)
    if node.content is not None and node.info is not None:
        node.content.info = node.info


async def _put_back(store: Store, node: Node, copy: BlobInfo, leaving: Leaving) -> BlobInfo | None:
    """The node's blob, which is `copy`'s again if another has taken its place meanwhile."""
    if leaving.info is None or leaving.source is None:
        return leaving.info
    volume, name = store.volume(node), leaving.info.name
    there = await volume.container.head(name)
    if there.etag == leaving.info.etag:
        return leaving.info
    if not leaving.is_replaced_by(there):
        raise ConditionFailed(f"{name!r} was changed by someone else")
    tags, tier = await store.carried(volume, copy)
    version = await volume.container.copy(
        copy.name, name, source_etag=copy.etag, tags=tags, tier=tier, if_match=there.etag
    )
    return replace(copy, name=name, etag=version.etag, last_modified_ns=version.last_modified_ns)


async def delete_hidden(store: Store, node: Node) -> None:
    """Delete what was kept of a file that nobody has open any more. Raises nothing of ours."""
    container, name = store.locate(node)
    assert node.info is not None
    try:
        await store.delete(container, name, node.info.etag)
    except BlobfsError as exc:
        log.error("%s, of a file whose name is gone, is left behind: %s", name, exc)
    node.hidden = ""
    node.info = None
