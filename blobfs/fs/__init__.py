"""What each operation of the file system means, without FUSE and without HTTP.

    nodes      nodes and what is known of the blobs behind them
    store      the writes that change those blobs; attribute writes
    listing    a directory's entries from pages of List Blobs
    tree       lookup and reading directories
    guess      directories that are listed while their name is looked up
    files      open files: read, write, truncate, flush, release
    ahead      what is worked on one after another
    priming    names that are looked up one after another
    deleting   deletions that nobody waits for
    leaving    the content of what is unlinked or replaced
    commit     from a draft to a stored version; conflicts; recovery
    namespace  create, mkdir, symlink, unlink, rmdir, rename
    moving     renaming a directory
    boxes      extended attributes, encrypted
    metadata   chmod, chown, utimensat, extended attributes

Concurrency: the kernel serialises changes of one directory's names, and writes of one file; each
node's lock (`Store.locked`) serialises everything that changes its blob. No task holds two
locks, except a rename of a file (its new directory's, the file's and the target's).
"""

from blobfs.fs.files import Files
from blobfs.fs.metadata import Changes, Metadata
from blobfs.fs.namespace import Caller, Namespace
from blobfs.fs.nodes import StorePolicy, Volume
from blobfs.fs.priming import Primer
from blobfs.fs.store import Store
from blobfs.fs.tree import Stream, Tree

__all__ = [
    "Caller",
    "Changes",
    "Files",
    "Filesystem",
    "Metadata",
    "Namespace",
    "Store",
    "StorePolicy",
    "Stream",
    "Tree",
    "Volume",
]


class Filesystem:
    """The operations, by the part that owns them."""

    def __init__(self, store: Store, page_size: int = 5000) -> None:
        self.store = store
        self.inodes = store.inodes
        self.tree = Tree(store, page_size)
        self.primer = Primer(store)
        self.files = Files(store)
        self.names = Namespace(store, self.tree)
        self.metadata = Metadata(store, self.files)
