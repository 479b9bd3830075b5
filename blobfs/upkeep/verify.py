"""Check: whether everything stored can be read, by whom it was made, and what lies about.

What the mount options refuse (`require_encryption`, `require_seal`, `min_protocol`) and what
cannot be read at all is an error; what is permitted and still worth a look is a notice.
"""

from contextlib import suppress

from blobfs.attributes import Kind as FileKind
from blobfs.attributes import value_of
from blobfs.blobs import BlobInfo
from blobfs.envelope import (
    BOX_KEY,
    METADATA_KEY,
    SEAL_KEY,
    Box,
    EncryptionData,
    Protocol,
    box_cek,
)
from blobfs.errors import (
    Archived,
    BlobfsError,
    ConditionFailed,
    ContentError,
    Corrupt,
    KeyUnknown,
    NotFound,
    ProtocolRefused,
    RecoveryError,
    Truncated,
    WrongKey,
)
from blobfs.fs.commit import CONFLICT_MARK
from blobfs.fs.nodes import kind_of_blob
from blobfs.names import HIDDEN_PREFIX, REENCRYPT_PREFIX
from blobfs.reader import Reader
from blobfs.recovery import read_description, recovery_files
from blobfs.session import Place, Session
from blobfs.upkeep.contents import Sequential, read_policy
from blobfs.upkeep.findings import Finding, Form, Kind, Summary
from blobfs.upkeep.passes import TRIES, Pass, background, look_again, within
from blobfs.upkeep.report import Report
from blobfs.xattrs import decode_box

WORKERS = 16
"""Most blobs looked at at once: each may take some 12 MiB of memory."""

_ERRORS: tuple[tuple[type[BlobfsError], Kind], ...] = (
    (KeyUnknown, Kind.UNKNOWN_KEY),
    (ProtocolRefused, Kind.PROTOCOL),
    (WrongKey, Kind.WRONG_KEY),
    (Truncated, Kind.TRUNCATED),
    (Corrupt, Kind.TAMPERED),
    (BlobfsError, Kind.UNREADABLE),
)
"""The finding for what reading a blob raises: the first class that fits."""


async def verify(
    session: Session,
    report: Report,
    form: Form,
    *,
    prefix: str = "",
    deep: bool = False,
    remove_hidden: bool = False,
) -> Summary:
    """Look at every blob, and with `deep` at every byte of those that are encrypted.

    `remove_hidden` deletes the blobs of files that were unlinked or replaced while open, of use to
    the mount alone that has them open still, and those that a failed rename has kept.

    Raises ServiceError when the pass cannot go on; the form then has ended, not complete.
    """
    options = session.options
    summary = Summary(deep=deep)
    form.begin(options.source.display)
    try:
        async with background() as nursery:
            workers = min(options.connections, WORKERS)
            policy = read_policy(workers, options.timeout, plaintext=True)
            reader = Reader(session.keyring, policy, nursery)
            verifying = _Verifying(session, reader, form, summary, remove_hidden)
            run = Pass(session, report, workers=workers, counts=False)
            verifying.look_for_recovery_files()
            await run.over(
                verifying.verify,
                verifying.failed,
                prefix=prefix,
                include="metadata,uncommittedblobs",
            )
            summary.complete = not run.cut_short
    finally:
        form.end(summary)
    return summary


class _Verifying:
    def __init__(
        self, session: Session, reader: Reader, form: Form, summary: Summary, remove_hidden: bool
    ) -> None:
        self._session = session
        self._options = session.options
        self._timeout = session.options.timeout
        self._reader = reader
        self._form = form
        self._summary = summary
        self._remove_hidden = remove_hidden

    def _found(self, place: Place, info: BlobInfo, kind: Kind, detail: str, *, error: bool) -> None:
        self._add(
            Finding(
                "error" if error else "notice",
                kind,
                place.access.source.container,
                info.name,
                detail,
            )
        )

    def _add(self, finding: Finding) -> None:
        self._summary.count(finding)
        self._form.add(finding)

    def failed(self, place: Place, info: BlobInfo, exc: BlobfsError) -> None:
        """Tell of what could not be read."""
        if isinstance(exc, Archived):
            detail = "in the archive tier: what needs its content was not checked"
            self._found(place, info, Kind.UNREADABLE, detail, error=False)
            return
        kind = next(kind for cls, kind in _ERRORS if isinstance(exc, cls))
        self._found(place, info, kind, str(exc), error=True)

    async def verify(self, place: Place, info: BlobInfo) -> None:
        """Raises BlobfsError for what is wrong with the body."""
        if await self._is_uncommitted(place, info):
            detail = (
                "blocks without a blob: being written, or left; the service drops them in a week"
            )
            self._found(place, info, Kind.UNCOMMITTED, detail, error=False)
            return
        self._summary.blobs += 1
        self._summary.bytes += info.size
        if self._remove_hidden and _is_hidden(info):
            await self._remove(place, info)
            return
        self._look_at_name(place, info)
        await self._check_box(place, info)
        if not self._take_stock(place, info):
            return
        for _ in range(TRIES):
            try:
                await self._read(place, info)
                return
            except (ConditionFailed, NotFound):
                now = await look_again(place, info, self._timeout)
                if now is None:
                    return
                info = now
        raise ConditionFailed("it is being changed by others over and over")

    async def _is_uncommitted(self, place: Place, info: BlobInfo) -> bool:
        """A listing does not tell such a blob from an empty one without metadata."""
        if info.size or info.metadata or info.blob_type != "BlockBlob":
            return False
        return await look_again(place, info, self._timeout) is None

    def _look_at_name(self, place: Place, info: BlobInfo) -> None:
        name = info.name.rpartition("/")[2]
        if name.startswith(REENCRYPT_PREFIX):
            detail = "left by a reencrypt that was killed, or is running: run it again"
            self._found(place, info, Kind.REENCRYPT, detail, error=False)
        elif _is_hidden(info):
            detail = "of a file that was unlinked while open: in use, or left by a crash"
            self._found(place, info, Kind.HIDDEN, detail, error=False)
        elif CONFLICT_MARK in name:
            detail = "what was kept aside when two hosts wrote the file"
            self._found(place, info, Kind.CONFLICT, detail, error=False)

    async def _remove(self, place: Place, info: BlobInfo) -> None:
        with within(self._timeout, repr(info.name)), suppress(NotFound):
            await place.container.delete(info.name, if_match=info.etag)
        detail = "of a file that was unlinked while open: deleted"
        self._found(place, info, Kind.HIDDEN, detail, error=False)

    async def _check_box(self, place: Place, info: BlobInfo) -> None:
        value = value_of(info.metadata, BOX_KEY)
        if value is None:
            return
        try:
            box = Box.parse(value)
            self._summary.keys[box.wrapped.key_id] += 1
            with within(self._timeout, repr(info.name)):
                payload = await self._session.keyring.unwrap(box.wrapped)
            decode_box(box.decrypt(box_cek(payload)))
        except ContentError as exc:
            kind = next(kind for cls, kind in _ERRORS if isinstance(exc, cls))
            self._found(place, info, kind, f"extended attributes: {exc}", error=True)

    def _take_stock(self, place: Place, info: BlobInfo) -> bool:
        """Count it and tell of what is plain, old or unsealed; whether there is a body to check.

        Raises ProtocolRefused.
        """
        value = value_of(info.metadata, METADATA_KEY)
        if value is None:
            if kind_of_blob(info) in (FileKind.FILE, FileKind.SYMLINK):
                self._summary.protocols["plain"] += 1
                error = self._options.require_encryption
                self._found(place, info, Kind.PLAINTEXT, "not encrypted", error=error)
            return False
        try:
            data = EncryptionData.parse(value)
        except Corrupt as exc:
            self._found(place, info, Kind.MALFORMED, str(exc), error=True)
            return False
        self._summary.protocols[data.protocol] += 1
        self._summary.keys[data.wrapped.key_id] += 1
        refused = data.protocol < self._options.min_protocol
        if refused or data.protocol is Protocol.V1_0:
            detail = f"protocol {data.protocol}" + (", below min_protocol" if refused else "")
            self._found(place, info, Kind.PROTOCOL, detail, error=refused)
        if value_of(info.metadata, SEAL_KEY) is None:
            error = self._options.require_seal
            self._found(place, info, Kind.UNSEALED, "encrypted, without a seal", error=error)
        return True

    async def _read(self, place: Place, info: BlobInfo) -> None:
        with within(self._timeout, repr(info.name)):
            content = await self._reader.open(
                lambda: (place.container, info.name), info, kind_of_blob(info)
            )
        if self._summary.deep and content.size:
            await Sequential(self._reader, content).digest()
        elif self._summary.deep and info.size:
            # No plaintext, and yet an empty region or a block of padding to check.
            with within(self._timeout, repr(info.name)):
                _, body = await place.container.get(info.name, 0, info.size, if_match=info.etag)
            content.body.decrypt(0, body)

    def look_for_recovery_files(self) -> None:
        """Those of this session's containers, in its `spool_dir` if that can be read."""
        ours = {place.container.url for place in self._session.places}
        with suppress(RecoveryError):
            for path in recovery_files(self._options.spool_dir):
                with suppress(RecoveryError):  # `blobfs recover list` tells of those
                    file = read_description(path)
                    if file.container_url in ours:
                        detail = f"holds what a failed close could not store as {file.name!r}"
                        self._add(Finding("notice", Kind.RECOVERY, "", str(path), detail))


def _is_hidden(info: BlobInfo) -> bool:
    """Whether it is of a file that was unlinked while open."""
    name = info.name.rpartition("/")[2]
    return name.startswith(HIDDEN_PREFIX) and not name.startswith(REENCRYPT_PREFIX)
