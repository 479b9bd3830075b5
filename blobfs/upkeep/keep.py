"""What a blob has beside its content and must still have after a change."""

from blobfs.attributes import Defaults, put_key, read_attributes
from blobfs.blobs import BlobInfo
from blobfs.fs.nodes import kind_of_blob

_UNSTORED = -(2**63) - 1  # before every time that can be stored


def with_times(info: BlobInfo) -> dict[str, str]:
    """The blob's metadata, with the time of its last change if it stores none: the service's own,
    which is what a mount shows then, becomes that of our write."""
    metadata = dict(info.metadata)
    stored = read_attributes(metadata, kind_of_blob(info), _UNSTORED, Defaults())
    if stored.mtime_ns == _UNSTORED:
        put_key(metadata, "modtime", str(info.last_modified_ns))
    return metadata
