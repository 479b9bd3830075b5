"""Rotation: content keys wrapped by an old key are wrapped by the current one instead.

One Set Blob Metadata a blob, on the condition that it is still the version looked at; headers,
tags, tier and body are not touched by it. Losing a content key loses the file, so what the old key
gave must fit the seal, and what the current key wrapped is unwrapped with it, and compared, before
it is stored.
"""

import hmac
import secrets
from collections import Counter

from blobfs.attributes import value_of
from blobfs.blobs import METADATA_LIMIT, BlobInfo, metadata_size
from blobfs.envelope import (
    SEAL_KEY,
    WRAPPED_KEYS,
    WrappedKey,
    check_payload,
    with_wrapped_key,
    wrapped_key_of,
)
from blobfs.errors import (
    BlobfsError,
    ConditionFailed,
    ContentError,
    HasSnapshots,
    NotFound,
    TooBig,
    WrongKey,
)
from blobfs.fs.nodes import kind_of_blob
from blobfs.keyring import Keyring
from blobfs.session import Place, Session
from blobfs.upkeep.keep import with_times
from blobfs.upkeep.passes import TRIES, Pass, look_again, within
from blobfs.upkeep.report import Report, shown
from blobfs.writer import seal_kind


async def rekey(
    session: Session, report: Report, *, prefix: str = "", only: str = "", dry_run: bool = False
) -> bool:
    """Wrap the content keys of all blobs under the current key; whether none is left.

    `only` is the id of the one old key to replace, "" for all. Raises ServiceError when the pass
    cannot go on, after a summary of what it has done; KeyUnknown when nothing wraps.
    """
    # Only a key that has wrapped something is known to be the one that wraps.
    with within(session.options.timeout, "the first use of the current key"):
        current = (await session.keyring.wrap(secrets.token_bytes(32))).key_id
    rekeying = _Rekeying(session, report, current, only=only, dry_run=dry_run)
    try:
        await rekeying.run(prefix)
    finally:
        rekeying.summarize()
    return rekeying.nothing_left


class _Rekeying:
    def __init__(
        self, session: Session, report: Report, current: str, *, only: str, dry_run: bool
    ) -> None:
        self._keyring: Keyring = session.keyring
        self._timeout = session.options.timeout
        self._report = report
        self._current = current
        self._only = only
        self._dry_run = dry_run
        self._pass = Pass(session, report, workers=session.options.connections)
        self._changed = 0
        self._left: Counter[str] = Counter()
        self._unreadable = 0
        self._not_asked: Counter[str] = Counter()

    async def run(self, prefix: str) -> None:
        await self._pass.over(
            self._rekey, self._failed, prefix=prefix, include="metadata,snapshots"
        )

    @property
    def nothing_left(self) -> bool:
        return not (self._left or self._unreadable or self._pass.cut_short)

    async def _rekey(self, place: Place, info: BlobInfo) -> None:
        others = self._other_keys(info)
        self._not_asked.update(others - self._asked_for(others))
        for _ in range(TRIES):
            old = self._asked_for(self._other_keys(info))
            if not old:
                return
            if info.snapshot:
                raise HasSnapshots(f"snapshot {info.snapshot} cannot be changed, only deleted")
            if self._dry_run or self._pass.stopping:
                self._left.update(old)
                return
            with within(self._timeout, f"another key for {info.name!r}"):
                metadata = await self._rewrapped(info, old)
            try:
                with within(self._timeout, repr(info.name)):
                    await place.container.set_metadata(info.name, metadata, if_match=info.etag)
            except (ConditionFailed, NotFound):
                # Changed or replaced since it was listed: whatever is there now is looked at.
                now = await look_again(place, info, self._timeout)
                if now is None:
                    return
                info = now
                continue
            self._changed += 1
            return
        raise ConditionFailed("it is being changed by others over and over")

    def _other_keys(self, info: BlobInfo) -> set[str]:
        """The ids of keys other than the current one that this blob needs. Raises ContentError."""
        return {wrapped.key_id for wrapped in _wrapped_keys(info).values()} - {self._current}

    def _asked_for(self, key_ids: set[str]) -> set[str]:
        return key_ids & {self._only} if self._only else key_ids

    async def _rewrapped(self, info: BlobInfo, old: set[str]) -> dict[str, str]:
        metadata = with_times(info)
        for name, wrapped in _wrapped_keys(info).items():
            if wrapped.key_id in old:
                payload = await self._keyring.unwrap(wrapped)
                check_payload(
                    name.lower(),
                    metadata[name],
                    payload,
                    seal=value_of(metadata, SEAL_KEY),
                    kind=seal_kind(kind_of_blob(info)),
                )
                again = await self._wrap(payload)
                metadata[name] = with_wrapped_key(name.lower(), metadata[name], again)
        if metadata_size(metadata) > METADATA_LIMIT:
            raise TooBig("with the new key it would have over 8 KiB of metadata")
        return metadata

    async def _wrap(self, payload: bytes) -> WrappedKey:
        wrapped = await self._keyring.wrap(payload)
        if not hmac.compare_digest(await self._keyring.unwrap_anew(wrapped), payload):
            raise WrongKey(f"key {wrapped.key_id!r} does not give back what it wraps")
        return wrapped

    def _failed(self, place: Place, info: BlobInfo, exc: BlobfsError) -> None:
        try:
            old = self._asked_for(self._other_keys(info))
        except ContentError:
            old = set()
        self._left.update(old)
        self._unreadable += not old
        keys = f" under {', '.join(map(repr, sorted(old)))}" if old else ""
        self._report.say(f"left{keys}: {shown(place, info.name)}: {exc}")

    def summarize(self) -> None:
        say = self._report.say
        say(f"{self._report.looked_at:,} blobs looked at, {self._changed:,} re-keyed")
        say(f"the current key is {self._current!r}")
        for key_id, count in sorted(self._left.items()):
            say(f"left under key {key_id!r}: {count:,}")
        for key_id, count in sorted(self._not_asked.items()):
            say(f"under key {key_id!r}, not asked for: {count:,}")
        if self._unreadable:
            say(f"left with metadata that cannot be read: {self._unreadable:,}")
        if self._pass.cut_short:
            say("not all blobs were looked at: run this again")
        elif self._left:
            say("what is left needs its old key: keep that in the key file")


def _wrapped_keys(info: BlobInfo) -> dict[str, WrappedKey]:
    """By metadata name, as the blob spells it. Raises ContentError."""
    return {
        name: wrapped_key_of(name.lower(), value)
        for name, value in info.metadata.items()
        if name.lower() in WRAPPED_KEYS
    }
