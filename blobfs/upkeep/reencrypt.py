"""Upgrade: bodies of an older protocol, another region length or none encrypted again.

A file goes through five steps, and a crash before the last leaves the original as it was:

1. its plaintext is encrypted under a new content key into a hidden blob (`REENCRYPT_PREFIX`);
2. that blob is read back: every tag, the seal, and the digest of the plaintext are compared;
3. its bytes are staged as blocks of the original, at the service, where nobody sees them yet;
4. one Put Block List, on the condition that the original is still the version that was read,
   makes them the original's content, with its metadata, headers, tags and tier;
5. the hidden blob is deleted. One that a crash has left is deleted by the next run: it is never
   the only copy of anything.
"""

import base64
import errno
import secrets

import trio

from blobfs.attributes import Kind, value_of
from blobfs.blobs import BlobInfo, Container
from blobfs.content import Content
from blobfs.envelope import METADATA_KEY, SEAL_KEY, EncryptionData, Protocol
from blobfs.errors import (
    Archived,
    BlobfsError,
    ConditionFailed,
    Corrupt,
    Denied,
    HasSnapshots,
    Leased,
    NotFound,
    PosixError,
    TooBig,
    Unavailable,
)
from blobfs.fs.nodes import kind_of_blob
from blobfs.names import HIDDEN_PREFIX, REENCRYPT_PREFIX, join
from blobfs.reader import Reader
from blobfs.room import Room
from blobfs.session import Place, Session
from blobfs.upkeep.contents import Sequential, read_policy
from blobfs.upkeep.keep import with_times
from blobfs.upkeep.passes import TRIES, Pass, background, look_again, within
from blobfs.upkeep.report import Report, shown
from blobfs.writer import MAX_BLOCKS, UNDER_WAY, Properties, Upload, WritePolicy, region_of

PIECE = 64 * 1024 * 1024
"""Bytes that the service is asked to copy by one request; more for files of over 3 TiB."""

LARGEST_PIECE = 4000 * 1024 * 1024
"""Azure's limit for one block."""

WORKERS = 8
"""Most files under way at once: each may take some 50 MiB of memory, more with large regions."""

CLEAN_UP_TIME = 10.0
"""Seconds that deleting the hidden blob may take when the work on a file is given up."""


async def reencrypt(
    session: Session,
    report: Report,
    *,
    prefix: str = "",
    include_plain: bool = False,
    dry_run: bool = False,
) -> bool:
    """Store every file as the session's `protocol` and `region_size` say, sealed; whether none
    that was asked for is left.

    Raises ServiceError when the pass cannot go on, after a summary of what it has done; what the
    keyring raises when nothing wraps, before anything is asked of the service.
    """
    if not dry_run:
        # Else each file would be uploaded before that shows.
        with within(session.options.timeout, "the first use of the current key"):
            await session.keyring.probe()
    workers = min(max(1, session.options.connections // 2), WORKERS)
    work = _Reencrypting(session, report, workers, include_plain=include_plain, dry_run=dry_run)
    try:
        async with background() as nursery:
            # What a mount with these options refuses must not get a seal by being rewritten.
            policy = read_policy(
                workers,
                session.options.timeout,
                plaintext=include_plain,
                require_seal=session.options.require_seal,
                min_protocol=Protocol(session.options.min_protocol),
            )
            work.use(Reader(session.keyring, policy, nursery), nursery)
            await work.run(prefix)
    finally:
        work.summarize()
    return work.nothing_left


class _Reencrypting:
    def __init__(
        self,
        session: Session,
        report: Report,
        workers: int,
        *,
        include_plain: bool,
        dry_run: bool,
    ) -> None:
        options = session.options
        self._session = session
        self._report = report
        self._timeout = options.timeout
        self._policy = WritePolicy(
            protocol=Protocol(options.protocol),
            region_size=options.region_size,
            uploads=2,
            timeout=options.timeout,
        )
        self._include_plain = include_plain
        self._dry_run = dry_run
        self._pass = Pass(session, report, workers=workers)
        self._done = 0
        self._bytes = 0
        self._left = 0
        self._waiting = 0
        self._plain = 0

    def use(self, reader: Reader, nursery: trio.Nursery) -> None:
        """What reads and writes run in."""
        self._reader = reader
        self._nursery = nursery
        self._blocks = Room(UNDER_WAY)

    async def run(self, prefix: str) -> None:
        if not self._dry_run:
            for place in self._session.places:
                await self._clear_leftovers(place)
        await self._pass.over(
            self._reencrypt, self._failed, prefix=prefix, include="metadata,snapshots"
        )

    @property
    def nothing_left(self) -> bool:
        return not (self._left or self._waiting or self._pass.cut_short)

    async def _clear_leftovers(self, place: Place) -> None:
        """Delete what runs before this one have left when they were killed."""
        start = join([place.prefix, REENCRYPT_PREFIX])
        following, more = "", True
        while more:
            with within(self._timeout, f"the listing of {start!r}"):
                page = await place.container.list(start, delimiter="", marker=following)
            for info in page.blobs:
                with within(self._timeout, repr(info.name)):
                    await self._delete(place.container, info.name)
                self._report.say(f"deleted, of a run before: {shown(place, info.name)}")
            following = page.next_marker
            more = bool(following)

    async def _reencrypt(self, place: Place, info: BlobInfo) -> None:
        if not _is_file(info):
            return
        if not info.snapshot and value_of(info.metadata, METADATA_KEY) is None:
            self._plain += not self._include_plain
        for _ in range(TRIES):
            if not self._is_wanted(info):
                return
            if self._dry_run or self._pass.stopping:
                self._waiting += 1
                return
            _check_changeable(place, info)
            try:
                with self._pass.interruptible() as scope:
                    await self._replace(place, info)
                    self._done += 1
                    self._bytes += info.size
                    return
                assert scope.cancelled_caught
                continue
            except (ConditionFailed, NotFound):
                now = await look_again(place, info, self._timeout)
                if now is None:
                    return
                info = now
        raise ConditionFailed("it is being changed by others over and over")

    def _is_wanted(self, info: BlobInfo) -> bool:
        """Whether the blob is not yet as it is to be. Raises ContentError."""
        value = value_of(info.metadata, METADATA_KEY)
        if value is None:
            return self._include_plain
        data = EncryptionData.parse(value)
        wanted = (self._policy.protocol, region_of(self._policy))
        sealed = value_of(info.metadata, SEAL_KEY) is not None
        return not sealed or (data.protocol, data.region_length) != wanted

    async def _replace(self, place: Place, info: BlobInfo) -> None:
        container, kind = place.container, kind_of_blob(info)
        hidden = join([place.prefix, REENCRYPT_PREFIX + secrets.token_hex(12)])
        with within(self._timeout, repr(info.name)):
            content = await self._reader.open(lambda: (container, info.name), info, kind)
        plain = Sequential(self._reader, content)
        upload = Upload(
            container,
            hidden,
            kind,
            self._session.keyring,
            self._policy,
            self._nursery,
            self._blocks,
        )
        try:
            await upload.finish(content.size, plain.read)
            copy = await self._store_hidden(container, upload, info)
            await self._read_back(container, upload, copy, kind, await plain.digest())
            await self._put_in_place(place, upload, copy, content)
        finally:
            upload.abandon()
            with trio.move_on_after(CLEAN_UP_TIME, shield=True):
                await self._delete(container, hidden)

    async def _store_hidden(self, container: Container, upload: Upload, info: BlobInfo) -> BlobInfo:
        properties = Properties(with_times(info), info.headers, None, None)
        with within(self._timeout + upload.blob_size / 2**20, repr(info.name)):
            await upload.seal(properties)
            await upload.commit(properties, if_match=None, create=True)
            return await container.head(upload.name)

    async def _read_back(
        self, container: Container, upload: Upload, copy: BlobInfo, kind: Kind, digest: bytes
    ) -> None:
        """Raises Corrupt unless the service gives back what was sent."""
        if copy.metadata != upload.metadata:
            raise Corrupt("the metadata that was read back is not what was written")
        with within(self._timeout, repr(upload.name)):
            content = await self._reader.open(lambda: (container, upload.name), copy, kind)
        if await Sequential(self._reader, content).digest() != digest:
            raise Corrupt("the content that was read back is not what was written")

    async def _put_in_place(
        self, place: Place, upload: Upload, copy: BlobInfo, content: Content
    ) -> None:
        container, name = place.container, content.info.name
        ids = await self._stage(container, name, upload.name, copy)
        with within(self._timeout, repr(name)):
            # Tags and tier change without a new ETag, so what was listed may not hold any more.
            current = await container.head(name)
            if not await self._reader.same_content(content.info, current):
                raise ConditionFailed(f"{name!r} was replaced meanwhile")
            _check_changeable(place, current)
            tags = await container.get_tags(name) if current.tag_count else None
            tier = current.tier if current.tier and not current.tier_inferred else None
            await upload.seal(Properties(with_times(current), current.headers, tags, tier))
        # Told to stop, the pass still hears this out: the file is replaced or it is not.
        with trio.CancelScope(shield=True), within(self._timeout, repr(name)):
            await container.put_block_list(
                name,
                ids,
                metadata=upload.metadata,
                headers=current.headers,
                tags=tags,
                tier=tier,
                if_match=current.etag,
            )

    async def _stage(
        self, container: Container, name: str, source: str, copy: BlobInfo
    ) -> list[str]:
        """Stage the hidden blob's bytes under the name; the ids of the blocks, in order."""
        piece = max(PIECE, -(-copy.size // MAX_BLOCKS))
        if piece > LARGEST_PIECE:
            raise TooBig("it is over the size that the service can copy")
        nonce = secrets.token_hex(8)
        sizes: dict[str, int] = {}
        for number, start in enumerate(range(0, copy.size, piece)):
            block_id = base64.b64encode(f"blobfs-{nonce}-{number:08d}".encode()).decode()
            stop = min(start + piece, copy.size)
            with within(self._timeout, repr(name)):
                await container.put_block_from(
                    name, block_id, source, start, stop, source_etag=copy.etag
                )
            sizes[block_id] = stop - start
        if sizes:
            with within(self._timeout, repr(name)):
                staged = await container.staged_blocks(name)
            if sizes.items() - staged.items():
                raise ConditionFailed(f"{name!r} is being written by somebody else")
        return list(sizes)

    async def _delete(self, container: Container, name: str) -> None:
        try:
            await container.delete(name)
        except NotFound:
            pass
        except BlobfsError as exc:
            self._report.note(f"{name} is left behind, delete it: {exc}")

    def _failed(self, place: Place, info: BlobInfo, exc: BlobfsError) -> None:
        self._left += 1
        self._report.say(f"left: {shown(place, info.name)}: {exc}")

    def summarize(self) -> None:
        say = self._report.say
        say(
            f"{self._report.looked_at:,} blobs looked at, {self._done:,} re-encrypted, "
            f"{self._bytes / 2**20:,.1f} MiB"
        )
        if self._plain:
            say(f"plaintext, not asked for (--include-plain): {self._plain:,}")
        if self._left:
            say(f"left, for the reasons above: {self._left:,}")
        if self._waiting:
            say(f"still to be re-encrypted: {self._waiting:,}")
        if self._pass.cut_short:
            say("not all blobs were looked at: run this again")


def _is_file(info: BlobInfo) -> bool:
    """Whether the blob has a body of its own, and is not about to be deleted by a mount."""
    hidden = info.name.rpartition("/")[2].startswith(HIDDEN_PREFIX)
    return not hidden and kind_of_blob(info) in (Kind.FILE, Kind.SYMLINK)


def _check_changeable(place: Place, info: BlobInfo) -> None:
    """Raises BlobfsError, with the reason for which this blob cannot be replaced as it is."""
    if info.snapshot:
        raise HasSnapshots(f"snapshot {info.snapshot} cannot be changed, only deleted")
    if info.blob_type not in ("", "BlockBlob"):
        raise PosixError(errno.EPERM, f"a {info.blob_type} is not rewritten: copy it instead")
    if info.tier == "Archive":
        raise Archived("it is in the archive tier: rehydrate it first")
    if info.lease_state == "leased":
        raise Leased("somebody holds a lease on it")
    if info.copy_status == "pending":
        raise Unavailable("a copy to it is under way")
    if info.tag_count and not place.access.may_tag:
        raise Denied("it has index tags, and the SAS token lacks t to keep them")
