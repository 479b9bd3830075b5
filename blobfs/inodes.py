"""The inode table: which node the kernel knows under which number, and who has it open.

Everything here is synchronous; no await means that every change is atomic to other tasks.

INVARIANTS (`check`):
- a node with a parent is that parent's child under its name; a node without is the root or
  unlinked;
- a node stays as long as the kernel counts lookups on it, or it has handles, children, unsaved
  attributes or unsaved content.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from blobfs.attributes import Attributes, Kind, PackedAttributes
from blobfs.blobs import BlobInfo, PackedInfo
from blobfs.errors import PosixError
from blobfs.names import join

if TYPE_CHECKING:
    from blobfs.content import Content
    from blobfs.draft import Draft
    from blobfs.reader import Reach
    from blobfs.writer import Upload

ROOT_INO = 1

_CHILDLESS = cast("dict[str, Node]", MappingProxyType({}))

Lock = AbstractAsyncContextManager[Any]


class Node:
    """One inode.

    `info` is the blob as the service last showed it to us (None: nothing is stored, or a
    directory that exists only as a prefix). `attrs` are the current attributes, which may be
    ahead of `info` while `unsaved` is set. `overlay` holds metadata keys to be changed with the
    next metadata write (None: remove).

    Its lock (`Inodes.lock`) makes the conditional writes on one blob a sequence: each needs the
    ETag that the one before it returned. It is the one lock that is held across requests.
    """

    __slots__ = (
        "__dict__",
        "_attrs",
        "_info",
        "children",
        "fresh_until",
        "ino",
        "is_told",
        "kind",
        "lookups",
        "name",
        "opens",
        "parent",
        "plain_size",
    )

    # Most nodes are only listed, so what they do not need has its default here and takes no
    # memory in them (150 bytes).
    lock: Lock | None = None
    committed_at = float("-inf")
    tags_until: float | None = None  # how long `info`'s tags and tier hold; None: `fresh_until`
    writers = 0
    unsaved = False
    unsaved_since = 0.0
    _overlay: dict[str, str | None] | None = None
    draft: "Draft | None" = None
    upload: "Upload | None" = None  # what of the draft is staged already
    _attempts: dict[str, int] | None = None
    commits = 0  # of content, by this mount
    content: "Content | None" = None
    page_cache_etag = ""  # the content that the kernel's page cache was filled from
    hidden = ""  # blob name after an unlink while open, and while a rename replaces it
    leaving: Any = None  # an event, while it is being unlinked, renamed or replaced
    is_ours = False  # this mount has made the blob: nobody has a lease on it, or a snapshot
    vanished = False  # taken out of the tree since others deleted it
    target: bytes | None = None  # of a symlink, once read
    fillings = 0  # calls under way that put an entry or content into it
    volume: Any = None  # set on the root, or on each container's directory
    # Of directories:
    _scans: list[Any] | None = None
    deletions: Any = None  # of its entries, one after another
    probes = 0  # single lookups since the last listing
    big = False  # its listing has more entries than are worth keeping
    moving: Any = None  # an event, while a rename of this directory is under way

    def __init__(self, ino: int, attrs: Attributes) -> None:
        self.ino = ino
        self.kind = attrs.kind
        self._attrs: Attributes | PackedAttributes = attrs
        self.parent: Node | None = None
        self.name = ""
        self._info: BlobInfo | PackedInfo | None = None
        self.plain_size = 0
        self.fresh_until = 0.0
        self.lookups = 0
        self.opens = 0
        self.is_told = False  # whether it was this version whose attributes the kernel was told
        self.children: dict[str, Node] = {} if self.is_directory else _CHILDLESS

    @property
    def attrs(self) -> Attributes:
        """What was packed is not any more: whoever asks works on it."""
        if isinstance(self._attrs, PackedAttributes):
            self._attrs = self._attrs.unpacked()
        return self._attrs

    @attrs.setter
    def attrs(self, attrs: Attributes | PackedAttributes) -> None:
        self._attrs = attrs

    @property
    def shown_attrs(self) -> Attributes:
        """To look at alone: what is packed stays so."""
        attrs = self._attrs
        return attrs.unpacked() if isinstance(attrs, PackedAttributes) else attrs

    @property
    def info(self) -> BlobInfo | None:
        """As `attrs`."""
        if isinstance(self._info, PackedInfo):
            self._info = self._info.unpacked()
        return self._info

    @info.setter
    def info(self, info: BlobInfo | PackedInfo | None) -> None:
        self.is_told = self.is_told and self.etag == ("" if info is None else info.etag)
        self._info = info

    @property
    def is_stored(self) -> bool:
        return self._info is not None

    @property
    def etag(self) -> str:
        """Of `info`, which stays packed; "" without."""
        return "" if self._info is None else self._info.etag

    @property
    def overlay(self) -> dict[str, str | None]:
        if self._overlay is None:
            self._overlay = {}
        return self._overlay

    @overlay.setter
    def overlay(self, overlay: dict[str, str | None]) -> None:
        self._overlay = overlay

    @property
    def attempts(self) -> dict[str, int]:
        """encryptiondata of commits whose outcome is not known -> the draft's `changes` then."""
        if self._attempts is None:
            self._attempts = {}
        return self._attempts

    @property
    def scans(self) -> list[Any]:
        """Listings in flight, told of local changes."""
        if self._scans is None:
            self._scans = []
        return self._scans

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def is_linked(self) -> bool:
        """False once unlinked or replaced."""
        return self.parent is not None or self.ino == ROOT_INO

    @property
    def is_local(self) -> bool:
        """Whether we know more about it than the service does."""
        has_written = self.draft is not None and self.draft.dirty
        is_written = self.fillings > 0 and not self.is_directory
        is_ahead = has_written or is_written or self.unsaved or bool(self._overlay)
        return is_ahead or self.leaving is not None

    @property
    def size(self) -> int:
        if self.draft is not None:
            return self.draft.size
        return self.plain_size

    @property
    def path(self) -> str:
        """For messages: relative to the mount point."""
        return join(reversed([node.name for node in self.ancestry()])) or "/"

    def ancestry(self) -> Iterator["Node"]:
        """This node and its ancestors, the root last."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def is_within(self, directory: "Node") -> bool:
        return any(node is directory for node in self.ancestry())


class Handle:
    """An open file: what `open` returned a number for."""

    __slots__ = ("commits", "content", "node", "privileged", "reach", "writable")

    def __init__(self, node: Node, writable: bool, privileged: bool, reach: "Reach") -> None:
        self.node = node
        self.writable = writable
        self.privileged = privileged  # opened by root, whose writes leave set-id bits alone
        self.reach = reach
        self.content: Content | None = None  # the version that this handle reads
        self.commits = node.commits


class Inodes:
    """The table. `make_lock` makes the lock of a node."""

    def __init__(self, root_attrs: Attributes, make_lock: Callable[[], Lock]) -> None:
        self._make_lock = make_lock
        self.root = Node(ROOT_INO, root_attrs)
        self._nodes: dict[int, Node] = {ROOT_INO: self.root}
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    def get(self, ino: int) -> Node:
        """Raises PosixError(ESTALE) for a number that the kernel has no right to know."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise PosixError(errno.ESTALE, f"unknown inode {ino}") from None

    def lock(self, node: Node) -> Lock:
        """The node's lock, which most never need."""
        if node.lock is None:
            node.lock = self._make_lock()
        return node.lock

    def add(self, parent: Node, name: str, attrs: Attributes) -> Node:
        """A new node under `parent`, where no child has that name."""
        assert name not in parent.children, name
        node = Node(self._number(parent, name), attrs)
        self._nodes[node.ino] = node
        self._link(node, parent, name)
        return node

    def _number(self, parent: Node, name: str) -> int:
        # Derived from the path, so that a file keeps its number when the kernel forgot it in
        # between: git takes another inode number for another file and reads it again.
        path = join([*reversed([node.name for node in parent.ancestry()]), name])
        digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "big") >> 4  # 60 bits: one more takes 16 bytes more
        while number <= ROOT_INO or number in self._nodes:
            number += 1
        return number

    def _link(self, node: Node, parent: Node, name: str) -> None:
        node.parent, node.name = parent, name
        parent.children[name] = node

    def detach(self, node: Node) -> None:
        """Take the node out of the tree; it lives on while it is in use."""
        if node.parent is not None:
            parent = node.parent
            del parent.children[node.name]
            node.parent = None
            self._drop_if_unused(parent)
        self._drop_if_unused(node)

    def move(self, node: Node, parent: Node, name: str) -> None:
        """Give the node another place, which must be free."""
        assert node.parent is not None
        assert name not in parent.children, name
        old = node.parent
        del old.children[node.name]
        self._link(node, parent, name)
        self._drop_if_unused(old)

    def forget(self, ino: int, count: int) -> None:
        node = self._nodes.get(ino)
        if node is not None:
            assert node.lookups >= count, f"inode {ino}: {node.lookups} lookups, forget {count}"
            node.lookups -= count
            self._drop_if_unused(node)

    def open(self, node: Node, *, writable: bool, reach: "Reach", privileged: bool = False) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = Handle(node, writable, privileged, reach)
        node.opens += 1
        node.writers += writable
        return number

    def handle(self, number: int) -> Handle:
        try:
            return self._handles[number]
        except KeyError:
            raise PosixError(errno.EBADF) from None

    def close(self, number: int) -> Handle:
        """Forget the handle; the caller settles what the node still holds, then `release`s it."""
        handle = self._handles.pop(number)
        handle.node.opens -= 1
        handle.node.writers -= handle.writable
        return handle

    def release(self, node: Node) -> None:
        """Let the node go if nothing holds it any more."""
        self._drop_if_unused(node)

    def hold(self, node: Node) -> None:
        """Keep a node that is in use and that the kernel may not know, until `let_go`."""
        node.lookups += 1

    def let_go(self, node: Node) -> None:
        node.lookups -= 1
        self._drop_if_unused(node)

    @contextmanager
    def used(self, node: Node) -> Iterator[None]:
        """`hold` it for a block."""
        self.hold(node)
        try:
            yield
        finally:
            self.let_go(node)

    @contextmanager
    def held(self, node: Node) -> Iterator[None]:
        """`hold` it for a block, after which it stays for whoever tells the kernel of it before the
        next await."""
        self.hold(node)
        try:
            yield
        finally:
            node.lookups -= 1

    @contextmanager
    def filling(self, node: Node) -> Iterator[None]:
        """An entry or content is put into it in the block: it stays in the tree, also when the
        service shows meanwhile that others removed it."""
        node.fillings += 1
        try:
            yield
        finally:
            node.fillings -= 1

    def _drop_if_unused(self, node: Node) -> None:
        while (
            node.ino != ROOT_INO
            and node.ino in self._nodes
            and node.draft is None
            and not node.hidden
            and not (node.lookups or node.opens or node.children or node.is_local)
            and (node.volume is None or node.parent is None)
        ):
            del self._nodes[node.ino]
            parent = node.parent
            if parent is None:
                return
            del parent.children[node.name]
            node.parent = None
            node = parent

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for ino, node in self._nodes.items():
            assert node.ino == ino
            assert node.lookups >= 0
            assert node.opens >= node.writers >= 0
            if node.parent is not None:
                assert node.parent.children.get(node.name) is node
                assert self._nodes.get(node.parent.ino) is node.parent
            for name, child in node.children.items():
                assert child.parent is node
                assert child.name == name
        opens = sum(node.opens for node in self._nodes.values() if not node.is_directory)
        assert opens == len(self._handles), f"{opens} opens, {len(self._handles)} handles"
