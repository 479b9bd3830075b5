"""How a file's content reaches the service: encrypted under a new CEK, staged, committed.

A `Upload` is one commit. Small content is one Put Blob; larger content is Put Block in parallel,
then Put Block List. Blocks are staged while a file is still being written front to back, so that
close has little left to do. A staged region that changes makes the whole upload void: the next
one has a new CEK and stages everything again, so that no (CEK, nonce) pair meets two plaintexts.
"""

import base64
import errno
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from blobfs.attributes import Kind
from blobfs.blobs import METADATA_LIMIT, Container, ContentHeaders, Version, metadata_size
from blobfs.envelope import METADATA_KEY, REGION_LENGTH_2_0, SEAL_KEY, BodyWriter, Protocol
from blobfs.errors import PosixError, TooBig, Unavailable
from blobfs.keyring import Keyring
from blobfs.room import Room

SINGLE_PUT = 8 * 1024 * 1024
"""Content up to this many bytes is stored with one Put Blob."""

BLOCK = 8 * 1024 * 1024
"""Bytes of plaintext in the first blocks."""

UNDER_WAY = 8 * BLOCK
"""Bytes of blocks that are being sent at once, of all files: one with all its `uploads`."""

SLOWEST_UPLOAD = 1024 * 1024
"""Bytes a second that what is being stored is given time for. Blocks that are under way share the
line, so each has the time of all; one that is larger goes alone."""

MAX_BLOCKS = 50_000
_BLOCKS_PER_SIZE = 5_000
"""Blocks of one size; then the size doubles."""

ReadPlain = Callable[[int, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """How content is encrypted and sent: see the mount options of the same names."""

    protocol: Protocol = Protocol.V2_1
    region_size: int = 64 * 1024
    uploads: int = 8  # blocks of one file under way at once
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Properties:
    """What a commit stores beside the content."""

    metadata: Mapping[str, str]
    headers: ContentHeaders
    tags: Mapping[str, str] | None
    tier: str | None


def block_length(number: int, region_length: int) -> int:
    """Bytes of plaintext in the block of this number: whole regions, at most 2 GiB."""
    length = min(BLOCK << (number // _BLOCKS_PER_SIZE), 2 * 1024**3)
    return max(1, length // region_length) * region_length


LARGEST_FILE = _BLOCKS_PER_SIZE * sum(
    block_length(number, 1) for number in range(0, MAX_BLOCKS, _BLOCKS_PER_SIZE)
)
"""Bytes of plaintext that 50,000 blocks hold at most: 29 TiB."""


def region_of(policy: WritePolicy) -> int:
    """Bytes of plaintext of which every block but the last must hold a multiple."""
    if policy.protocol is Protocol.V1_0:
        return 16
    return REGION_LENGTH_2_0 if policy.protocol is Protocol.V2_0 else policy.region_size


def new_body(policy: WritePolicy) -> BodyWriter:
    """A new body under a new CEK."""
    return BodyWriter(policy.protocol, 0 if policy.protocol is Protocol.V1_0 else region_of(policy))


def seal_kind(kind: Kind) -> str:
    """What the seal says of a file type: only these two have a body."""
    return "symlink" if kind is Kind.SYMLINK else "file"


@dataclass(frozen=True, slots=True)
class _Turn:
    """Of a block: its slot among those of its file, and bytes of room among those of all."""

    borrower: object
    room: int


class Upload:
    """One commit of one file to one blob name. Used by one task at a time.

    Its requests run in `nursery`, so that they go on between the writes of the caller. All uploads
    of a mount share `room`, the memory for blocks that are under way.
    """

    def __init__(
        self,
        container: Container,
        name: str,
        kind: Kind,
        keyring: Keyring,
        policy: WritePolicy,
        nursery: trio.Nursery,
        room: Room,
    ) -> None:
        self._container = container
        self.name = name
        self._kind = kind
        self._keyring = keyring
        self._policy = policy
        self._nursery = nursery
        self.body = new_body(policy)
        self._region = region_of(policy)
        self._nonce = secrets.token_hex(8)
        self._block_ids: list[str] = []
        self._slots = trio.CapacityLimiter(policy.uploads)
        self._room = room
        self._turn: _Turn | None = None  # of the next block
        self._scopes: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._idle.set()
        self._error: Exception | None = None
        self._single: bytearray | None = None
        self.encryption_data = ""  # as stored: it marks the blob as this upload's
        self.metadata: dict[str, str] = {}

    @property
    def staged(self) -> int:
        """Bytes of plaintext encrypted so far: content below this must not change any more."""
        return self.body.plain_size

    @property
    def next_block(self) -> int:
        """Bytes of plaintext that the next block takes."""
        return block_length(len(self._block_ids), self._region)

    async def turn(self, size: int) -> None:
        """Wait until the next block, of `size` bytes, may be encrypted and sent: while `uploads`
        blocks of this file are under way, or as many of all files as there is room for.

        Raises the error of an earlier block, or TooBig. After an error or a cancellation here or
        in `finish` the upload is void: `abandon` it.
        """
        self._raise_error()
        if len(self._block_ids) == MAX_BLOCKS:
            raise TooBig(f"{self.name!r} is over {MAX_BLOCKS} blocks")
        borrower = object()  # the slot is the task's: it frees the slot when the block is stored
        await self._slots.acquire_on_behalf_of(borrower)
        try:
            self._turn = _Turn(borrower, await self._room.take(size))
        except BaseException:
            self._slots.release_on_behalf_of(borrower)
            raise

    def send(self, ciphertext: bytearray) -> None:
        """Stage what `body` has just encrypted as the next block, whose turn it is."""
        turn, self._turn = self._turn, None
        assert turn is not None
        number = len(self._block_ids)
        block_id = base64.b64encode(f"blobfs-{self._nonce}-{number:08d}".encode()).decode()
        self._block_ids.append(block_id)
        if not self._scopes:
            self._idle = trio.Event()
        scope = trio.CancelScope()
        self._scopes.add(scope)
        self._nursery.start_soon(self._put_block, block_id, ciphertext, turn, scope)

    async def finish(self, size: int, read: ReadPlain) -> None:
        """Encrypt and send the rest of a content of `size` bytes."""
        if self.body.plain_size == 0 and size <= SINGLE_PUT:
            self._single = self.body.encrypt(await read(0, size), final=True)
            return
        final = False
        while not final:
            offset = self.body.plain_size
            length = min(self.next_block, size - offset)
            final = offset + length == size
            await self.turn(length)
            ciphertext = self.body.encrypt(await read(offset, length), final=final)
            if ciphertext:
                self.send(ciphertext)
            else:
                self._leave_turn()
        await self._idle.wait()
        self._raise_error()

    async def seal(self, properties: Properties) -> None:
        """Wrap the CEK and settle the metadata that `commit` will store.

        Raises KeyUnknown, or PosixError(ENOSPC) when it is over Azure's limit.
        """
        if not self.encryption_data:
            wrapped = await self._keyring.wrap(self.body.cek_payload)
            self.encryption_data = self.body.encryption_data(wrapped).serialize()
        envelope = {
            METADATA_KEY: self.encryption_data,
            SEAL_KEY: self.body.seal(seal_kind(self._kind)),
        }
        kept = {k: v for k, v in properties.metadata.items() if k.lower() not in envelope}
        self.metadata = kept | envelope
        if metadata_size(self.metadata) > METADATA_LIMIT:
            raise PosixError(errno.ENOSPC, f"{self.name!r} has over 8 KiB of metadata")

    async def commit(
        self, properties: Properties, *, if_match: str | None, create: bool, name: str | None = None
    ) -> Version:
        """Make it the blob's content, under the condition; `create` demands a new blob.

        Another `name` than the upload's is possible only for content that is one Put Blob.
        Raises ConditionFailed, AlreadyExists and every other ServiceError.
        """
        target, container = name or self.name, self._container
        if self._single is not None:
            store = partial(container.put, target, self._single)
        else:
            assert target == self.name
            store = partial(container.put_block_list, target, self._block_ids)
        return await store(
            metadata=self.metadata,
            headers=properties.headers,
            tags=properties.tags,
            tier=properties.tier,
            if_match=if_match,
            if_none_match=create,
        )

    @property
    def is_single(self) -> bool:
        return self._single is not None

    @property
    def blob_size(self) -> int:
        return self.body.blob_size

    def abandon(self) -> None:
        """Stop what is under way; staged blocks without a commit vanish by themselves."""
        self._leave_turn()
        for scope in self._scopes:
            scope.cancel()

    def _leave_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._end(turn)

    def _end(self, turn: _Turn) -> None:
        self._slots.release_on_behalf_of(turn.borrower)
        self._room.give(turn.room)

    async def _put_block(
        self, block_id: str, ciphertext: bytearray, turn: _Turn, scope: trio.CancelScope
    ) -> None:
        seconds = self._policy.timeout + max(UNDER_WAY, len(ciphertext)) / SLOWEST_UPLOAD
        try:
            with scope, trio.fail_after(seconds):
                await self._container.put_block(self.name, block_id, ciphertext)
        except trio.TooSlowError:
            self._error = self._error or Unavailable(
                f"{self.name!r}: a block was not stored within {seconds:g} s"
            )
        except Exception as exc:  # kept for the next call of the upload's user
            self._error = self._error or exc
        finally:
            self._end(turn)
            self._scopes.discard(scope)
            if not self._scopes:
                self._idle.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
