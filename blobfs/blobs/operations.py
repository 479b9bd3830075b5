"""The operations of the Blob service that blobfs uses, by their names in the REST reference."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """`letters` are the permissions of a container SAS that allow it, `for_new` those that do for
    a blob that is not there yet; `bulk` says that it moves file contents, and so counts against
    the limit of such requests and not the other one."""

    name: str
    method: str
    letters: str
    for_new: str = ""
    bulk: bool = False

    @property
    def permission(self) -> str:
        """The letters in words."""
        needed = " and ".join(self.letters)
        return (
            f"{needed} (or {' and '.join(self.for_new)} for a new blob)" if self.for_new else needed
        )


LIST_BLOBS = Operation("List Blobs", "GET", "l")
GET_PROPERTIES = Operation("Get Blob Properties", "HEAD", "r")
GET_BLOB = Operation("Get Blob", "GET", "r", bulk=True)
PUT_BLOB = Operation("Put Blob", "PUT", "w", "c", bulk=True)
PUT_BLOCK = Operation("Put Block", "PUT", "w", bulk=True)
PUT_BLOCK_FROM_URL = Operation("Put Block From URL", "PUT", "w (and r for the source)")
GET_BLOCK_LIST = Operation("Get Block List", "GET", "r")
PUT_BLOCK_LIST = Operation("Put Block List", "PUT", "w")
SET_METADATA = Operation("Set Blob Metadata", "PUT", "w")
SET_PROPERTIES = Operation("Set Blob Properties", "PUT", "w")
GET_TAGS = Operation("Get Blob Tags", "GET", "t")
SET_TAGS = Operation("Set Blob Tags", "PUT", "t")
COPY_BLOB = Operation("Copy Blob", "PUT", "rw", "rc")
ABORT_COPY = Operation("Abort Copy Blob", "PUT", "w")
DELETE_BLOB = Operation("Delete Blob", "DELETE", "d")

VERBS = {
    value.name: value.method for value in [*globals().values()] if isinstance(value, Operation)
}
"""Operation's name -> HTTP method."""

UPLOADS = (PUT_BLOB.name, PUT_BLOCK.name)
"""What carries contents to the service."""
