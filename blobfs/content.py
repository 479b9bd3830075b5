"""One version of one blob's content, as it is read."""

from collections.abc import Callable, Hashable

import trio

from blobfs.attributes import Kind
from blobfs.blobs import BlobInfo, Container
from blobfs.envelope import BodyReader, Regions
from blobfs.errors import Unavailable
from blobfs.flight import Flight

Buffer = bytes | bytearray | memoryview
Locate = Callable[[], tuple[Container, str]]
"""Where the blob is by now."""


class PlainBody:
    """A body that is stored as it is, in the shape of a `BodyReader`."""

    unit = 64 * 1024

    def __init__(self, blob_size: int) -> None:
        self.blob_size = blob_size
        self.plain_size: int | None = blob_size

    def blob_range(self, first: int, last: int) -> tuple[int, int]:
        return first * self.unit, min((last + 1) * self.unit, self.blob_size)

    def decrypt(self, first: int, ciphertext: Buffer) -> memoryview:
        return memoryview(bytes(ciphertext))

    def decrypt_into(self, first: int, ciphertext: Buffer, into: memoryview) -> int:
        into[: len(ciphertext)] = ciphertext
        return len(ciphertext)


class Content:
    """One version of one blob's content, opened: its key is known and its seal was checked.

    What is asked for before that waits for it.
    """

    def __init__(
        self,
        locate: Locate,
        info: BlobInfo,
        kind: Kind,
        regions: Regions,
        identity: Hashable,
    ) -> None:
        self.locate = locate
        self.info = info
        self.kind = kind
        self.unit = regions.unit
        self.regions = regions
        self.identity = identity
        assert regions.plain_size is not None
        self.size: int = regions.plain_size
        self.flights: dict[int, Flight] = {}
        self._body: BodyReader | PlainBody | None = None
        self._settled = trio.Event()

    def settle(self, body: BodyReader | PlainBody | None) -> None:
        """It is open now, or, without a body, never will be."""
        self._body = body
        self._settled.set()

    @property
    def body(self) -> BodyReader | PlainBody:
        if self._body is None:
            raise Unavailable(f"{self.info.name!r} could not be opened")
        return self._body

    async def opened(self) -> BodyReader | PlainBody:
        """Wait for its body. Raises Unavailable when it could not be opened."""
        if not self._settled.is_set():
            await self._settled.wait()
        return self.body
