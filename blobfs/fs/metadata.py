"""chmod, chown, utimensat, and extended attributes."""

import errno
from dataclasses import dataclass, replace

from blobfs.attributes import Kind, find_key, value_of
from blobfs.blobs import BlobInfo
from blobfs.envelope import BOX_KEY
from blobfs.errors import ConditionFailed, PosixError
from blobfs.fs.boxes import boxed, unboxed
from blobfs.fs.files import Files, without_set_id
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.xattrs import (
    Attribute,
    View,
    envelope_of,
    listed,
    parse_name,
    text_of,
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a setattr asks for; None: leave it. Times in ns.

    `privileged` says that root asks: then a new size does not clear set-id bits.
    """

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    privileged: bool = False

    @property
    def clears_set_id(self) -> bool:
        """A chown; the one that names neither owner nor group is a request for nothing."""
        nothing = replace(self, privileged=False) == Changes()
        return self.uid is not None or self.gid is not None or nothing


class Metadata:
    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files

    async def set(self, node: Node, changes: Changes, *, by_handle: bool) -> None:
        """Change attributes, stored before this returns unless a write will carry them soon.

        `by_handle` says that a flush will follow, so that a new size can wait for it. Raises
        ServiceError, ContentError or PosixError.
        """
        store = self._store
        if node.parent is not None or not node.hidden:
            store.writable(node)
        async with store.locked(node):
            store.check_present(node)
            before, unsaved = replace(node.attrs), node.unsaved
            if changes.size is not None:
                if node.kind is not Kind.FILE:
                    raise PosixError(errno.EISDIR if node.is_directory else errno.EINVAL)
                try:
                    await self._files.truncate(
                        node, changes.size, by_handle=by_handle, privileged=changes.privileged
                    )
                except BaseException:
                    if node.draft is None:  # it has not happened
                        node.attrs = before
                    raise
            self._apply(node, changes)
            if replace(node.attrs, ctime_ns=before.ctime_ns) == before:
                return
            store.changed(node)
            if not store.may_wait(node):
                info = node.info
                try:
                    await store.save(node)
                except BaseException:
                    # The version, too, before others' changes were put together with ours: what of
                    # theirs was taken up is found out again. What was accepted before stays due,
                    # unless all is given up since the file was replaced.
                    if node.unsaved:
                        node.attrs, node.info, node.unsaved = before, info, unsaved
                    raise

    async def save(self, node: Node) -> None:
        """Store what is unsaved, and of a directory wait for the deletions in it. Raises
        ServiceError."""
        deletions = self._store.deletions
        await deletions.settle(node)
        async with self._store.locked(node):
            await self._store.save(node)
        deletions.check(node)

    def _apply(self, node: Node, changes: Changes) -> None:
        attrs = node.attrs
        now = self._store.now_ns()
        if changes.clears_set_id and not node.is_directory:
            attrs.mode = without_set_id(attrs.mode)
        attrs.uid = attrs.uid if changes.uid is None else changes.uid
        attrs.gid = attrs.gid if changes.gid is None else changes.gid
        if changes.mode is not None:
            attrs.mode = changes.mode
        if changes.atime_ns is not None:
            attrs.atime_ns = changes.atime_ns
        if changes.mtime_ns is not None:
            attrs.mtime_ns = changes.mtime_ns
        attrs.ctime_ns = now

    # Extended attributes

    async def get_xattr(self, node: Node, name: bytes) -> bytes:
        attribute = parse_name(name)
        value = await self._value(node, attribute)
        if value is None:
            raise PosixError(errno.ENODATA)
        return value

    async def list_xattrs(self, node: Node) -> list[bytes]:
        if node.info is None and not node.overlay:
            return []
        metadata = self._store.composed(node)
        info = node.info or BlobInfo("", "", 0, 0)
        names = listed(info, metadata)
        if info.tag_count and self._store.volume(node).may_tag:
            names += [f"user.azure.tag.{key}" for key in await self._tags(node)]
        names += await self._boxed(node)
        return [name.encode() for name in names]

    async def set_xattr(self, node: Node, name: bytes, value: bytes) -> None:
        attribute = parse_name(name)
        store = self._store
        store.writable(node)
        if node.is_linked and not store.blob_name(node):
            raise PosixError(errno.EOPNOTSUPP, "the root of a container is no blob")
        if node.kind not in (Kind.FILE, Kind.DIRECTORY):
            raise PosixError(errno.EPERM, "only files and directories have user attributes")
        async with store.locked(node):
            store.check_present(node)
            if attribute.view is View.BOX:
                await self._set_boxed(node, attribute.key, value)
            elif attribute.view is View.METADATA:
                text = text_of(value, "metadata")
                await self._set_metadata(node, attribute.key, text)
            elif attribute.view is View.TAG:
                tags = await self._tags(node)
                await self._store_tags(node, {**tags, attribute.key: _tag(value)})
            elif attribute.view is View.HEADER:
                await self._set_header(node, attribute.key, text_of(value, "a header"))
            else:
                raise _unchangeable(attribute)

    async def remove_xattr(self, node: Node, name: bytes) -> None:
        attribute = parse_name(name)
        store = self._store
        store.writable(node)
        async with store.locked(node):
            store.check_present(node)
            if attribute.view in (View.READ_ONLY, View.ENVELOPE):
                raise _unchangeable(attribute)
            if await self._value(node, attribute) is None:
                raise PosixError(errno.ENODATA)
            if attribute.view is View.BOX:
                await self._set_boxed(node, attribute.key, None)
            elif attribute.view is View.METADATA:
                await self._set_metadata(node, attribute.key, None)
            elif attribute.view is View.TAG:
                tags = await self._tags(node)
                del tags[attribute.key]
                await self._store_tags(node, tags)
            else:
                await self._set_header(node, attribute.key, "")

    async def _value(self, node: Node, attribute: Attribute) -> bytes | None:
        info = node.info
        if attribute.view is View.BOX:
            return (await self._boxed(node)).get(attribute.key)
        if attribute.view is View.METADATA:
            text = self._current(node, attribute.key.lower())
        elif info is None:
            text = None
        elif attribute.view is View.ENVELOPE:
            text = envelope_of(info, attribute.key)
        elif attribute.view is View.TAG:
            text = (await self._tags(node)).get(attribute.key) if info.tag_count else None
        elif attribute.view is View.HEADER or attribute.key == "content_md5":
            text = getattr(info.headers, attribute.key) or None
        else:
            text = getattr(info, attribute.key) or None
        return None if text is None else text.encode()

    def _current(self, node: Node, key: str) -> str | None:
        """A metadata value with what is not saved yet on top."""
        pending = find_key(node.overlay, key)
        if pending is not None:
            return node.overlay[pending]
        return None if node.info is None else value_of(node.info.metadata, key)

    async def _set_metadata(self, node: Node, key: str, value: str | None) -> None:
        """Put one metadata value on top of what is stored. ENOSPC over the limit: no change."""
        store = self._store
        before, info = dict(node.overlay), node.info
        attrs, unsaved = replace(node.attrs), node.unsaved
        node.overlay[find_key(node.overlay, key.lower()) or key] = value
        try:
            store.composed(node)
        except BaseException:
            node.overlay = before
            raise
        node.attrs.ctime_ns = store.now_ns()
        store.changed(node)
        if not store.may_wait(node):
            try:
                await store.save(node)
            except BaseException:
                if node.unsaved:  # as above
                    node.overlay, node.attrs, node.info, node.unsaved = before, attrs, info, unsaved
                raise

    async def _boxed(self, node: Node) -> dict[str, bytes]:
        return await unboxed(self._store.keyring, self._current(node, BOX_KEY))

    async def _set_boxed(self, node: Node, name: str, value: bytes | None) -> None:
        attributes = await self._boxed(node)
        attributes.pop(name, None)
        if value is not None:
            attributes[name] = value
        box = await boxed(self._store.keyring, attributes)
        await self._set_metadata(node, BOX_KEY, box)

    async def _stored(self, node: Node) -> BlobInfo:
        """The node's blob, made first if there is none yet."""
        if node.draft is not None and node.draft.dirty:
            await self._files.commit(node)
        if node.info is None:
            self._store.changed(node)
            await self._store.save(node)
        assert node.info is not None
        return node.info

    async def _tags(self, node: Node) -> dict[str, str]:
        volume = self._store.volume(node)
        if node.info is None:
            return {}
        return await volume.container.get_tags(node.info.name)

    async def _store_tags(self, node: Node, tags: dict[str, str]) -> None:
        info = await self._stored(node)
        with self._store.in_doubt(node):
            await self._store.volume(node).container.set_tags(info.name, tags)
        self._store.wrote(node, replace(info, tag_count=len(tags)))

    async def _set_header(self, node: Node, key: str, value: str) -> None:
        await self._stored(node)
        with self._store.in_doubt(node):
            try:
                await self._replace_header(node, key, value)
            except ConditionFailed:
                await self._store.catch_up(node)
                await self._replace_header(node, key, value)

    async def _replace_header(self, node: Node, key: str, value: str) -> None:
        info = node.info
        assert info is not None
        headers = replace(info.headers, **{key: value})
        container = self._store.volume(node).container
        version = await container.set_headers(
            info.name, headers, metadata=info.metadata, if_match=info.etag
        )
        self._store.new_version(node, replace(info, headers=headers), version)


def _unchangeable(attribute: Attribute) -> PosixError:
    return PosixError(errno.EPERM, f"{attribute.key} is said by what is stored, and not changed")


def _tag(value: bytes) -> str:
    return text_of(value, "a tag")
