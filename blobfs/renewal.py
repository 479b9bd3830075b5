"""A token over its life: renewed without a remount, and its end announced.

A `Renewal` has the current token of one container. Another one is looked for

- in the sas_file, every `POLL` seconds: its content counts, so it may be replaced by a rename,
  written in place, or be a systemd credential;
- from the sas_command, when a tenth of the token's life is left, and at most five minutes;
- from either, at once, when the service refuses the token. Requests that were refused wait for it,
  but only as long as the first of them, so that a mount whose token is not replaced answers at once
  again.

A new token is taken up in one step, and only when it can be parsed, fits the source, is valid by
the service's clock, and the service accepts it for a listing: so one that was read half or is for
another container is not. Otherwise the old one stays, and one warning says why. A token that the
service accepts again, since its stored access policy was renewed, counts as a new one.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from blobfs.access import Access, ask_sas_command, read_sas_file, token_for
from blobfs.blobs import Client, Container
from blobfs.errors import Denied, NotFound, SasError, ServiceError
from blobfs.sas import PERMISSIONS, Sas, changes, check, span, stamp

log = logging.getLogger(__name__)

POLL = 2.0
"""Seconds between two looks at a sas_file."""

URGENT_POLL = 1.0
"""The same while requests wait for a new token."""

PROBE_TIME = 20.0
"""Seconds that the service has to accept or refuse a new token, and a disk to give a sas_file."""

CANDIDATE_DELAY = 30.0
"""Seconds until a new token that the service refused is tried again: it may start soon, and a new
stored access policy takes 30 s to be in force."""

CALL_DELAY = 10.0
"""Least seconds between two calls of a sas_command; doubled by each that gave nothing new."""

LONGEST_CALL_DELAY = 300.0

MARGIN = 2.0
"""Seconds before its own deadline at which a request stops waiting, to fail with the reason."""

QUIET = 10.0
"""Seconds without a refusal after which the next one is waited for, and warned of, again."""

SKEW_KNOWN = 2.0
"""Seconds of clock skew that are one: responses are dated to the second, some time ago."""

ANNOUNCED = (timedelta(hours=24), timedelta(hours=1), timedelta(minutes=5), timedelta(0))
"""How long before its end a token's expiry is announced."""


def local_now() -> datetime:
    return datetime.now(UTC)


class Renewal:
    """The current token of one container, and how another is come by.

    `patience` is the deadline of a request, in seconds. `now` is this machine's clock, which is
    corrected by what `client` has seen of the service's. `refused` works without `watch`, which
    adds what happens unasked.
    """

    def __init__(
        self,
        client: Client,
        access: Access,
        *,
        patience: float,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self.access = access
        self._at_mount = access
        self._client = client
        # Those that come after the first are not to be told later than that one is.
        self._patience = max(0.0, patience - MARGIN)
        self._local_now = now
        self.container = Container(client, self._url, self.token, self.refused)
        self._lock = trio.Lock()
        # Reads that hang, on a network file system, must not take all of trio's threads.
        self._reads = trio.CapacityLimiter(1)
        self._generation = 0
        self._renewed = trio.Event()
        self._taken_up = self.now()
        self._announced = self._passed()
        self._refused_since = self._refused_last = -float("inf")
        self._looked_at = -float("inf")
        self._rejected = ""  # what was found and cannot be used: text of a token, or an error
        self._rejection_told = False
        self._candidate = ""  # refused by the service
        self._candidate_again = 0.0
        self._next_call = -float("inf")
        self._call_delay = CALL_DELAY

    @property
    def _url(self) -> str:
        return self.access.source.container_url

    @property
    def _from(self) -> str:
        """Where another token may come from, "" when from nowhere."""
        return "sas_command" if self.access.command else str(self.access.file or "")

    @property
    def expiry(self) -> datetime | None:
        """None when the token does not say."""
        return self.access.sas.effective_expiry

    def now(self) -> datetime:
        """The service's time, as far as it is known."""
        skew = self._client.clock_skew or 0.0
        return self._local_now() + timedelta(seconds=skew if abs(skew) >= SKEW_KNOWN else 0.0)

    def token(self) -> str:
        return self.access.sas.query

    def expiry_line(self) -> str:
        """Until when the token is valid, in words."""
        if self.expiry is None:
            return f"the token for {self._url} does not say when it expires"
        left = self.expiry - self.now()
        how = f"in {span(left)}" if left > timedelta(0) else f"{span(left)} ago"
        verb = "expires" if left > timedelta(0) else "expired"
        return f"the token for {self._url} {verb} at {stamp(self.expiry)} ({how})"

    # Refusals

    async def refused(self, query: str) -> bool:
        """The service refused the token `query`: whether a request may be sent again.

        Waits for another token, at the longest until `MARGIN` before the caller's deadline.
        """
        if query != self.token():
            return True
        if not self._from:
            return False
        generation = self._generation
        give_up = self._note_refusal()
        deadline = min(trio.current_effective_deadline() - MARGIN, give_up + PROBE_TIME)
        with trio.move_on_at(deadline):
            while True:
                await self._look(urgent=True)
                left = give_up - trio.current_time()
                if generation != self._generation or left <= 0:
                    break
                with trio.move_on_after(min(left, URGENT_POLL)):
                    await self._renewed.wait()
        return generation != self._generation

    def _note_refusal(self) -> float:
        """When requests stop waiting."""
        now = trio.current_time()
        if now - self._refused_last > max(self._patience, QUIET):
            self._refused_since = now
            self._announce()
            log.warning(
                "%s: the service refuses the token; waiting up to %g s for another one from %s",
                self._url,
                self._patience,
                self._from,
            )
        self._refused_last = now
        return self._refused_since + self._patience

    # Looking for another

    async def watch(self) -> None:
        """Look for new tokens and announce the end of the current one, for ever."""
        while True:
            self._announce()
            try:
                if self._from:
                    await self._look(urgent=False)
            except Exception:  # the mount goes on with the token that it has
                log.exception("%s: a bug in blobfs", self._url)
            await trio.sleep(self._pause())

    async def _look(self, *, urgent: bool) -> None:
        # Held over what is asked, which has deadlines: those who wait for it wait for what they
        # would ask themselves.
        async with self._lock:
            if urgent and trio.current_time() - self._looked_at < URGENT_POLL / 2:
                return
            text: str | None = ""
            try:
                text = await self._read(urgent=urgent)
                if text is None:
                    return
                sas = token_for(self.access.source, text)
                if sas.query != self.token():
                    self._check(sas)
            except SasError as exc:
                self._complain(str(exc), about=text or str(exc))
                return
            finally:
                self._looked_at = trio.current_time()
            if sas.query != self.token():
                await self._try(sas)
                return
            self._rejected = ""
            if urgent:
                await self._try_again()

    async def _read(self, *, urgent: bool) -> str | None:
        """What may be a new token; None when it is not the time to ask for one."""
        if not self.access.command:
            assert self.access.file is not None
            return await self._read_file(self.access.file)
        if trio.current_time() < self._next_call or (self._due_in() and not urgent):
            return None
        # Before the call, so that one which is cancelled counts.
        self._next_call = trio.current_time() + self._call_delay
        self._call_delay = min(2 * self._call_delay, LONGEST_CALL_DELAY)
        return await ask_sas_command(self.access.command)

    async def _read_file(self, path: Path) -> str:
        try:
            with trio.fail_after(PROBE_TIME):
                return await trio.to_thread.run_sync(
                    read_sas_file, path, abandon_on_cancel=True, limiter=self._reads
                )
        except trio.TooSlowError:
            raise SasError(f"cannot read the sas_file within {PROBE_TIME:g} s") from None

    def _due_in(self) -> float:
        """Seconds until the sas_command is to be called, which are none when it is time."""
        if self.expiry is None:
            return float("inf")
        lead = min(timedelta(minutes=5), (self.expiry - self._taken_up) / 10)
        return max(0.0, (self.expiry - lead - self.now()).total_seconds())

    def _pause(self) -> float:
        return min(POLL, self._due_in() or POLL) if self.access.command else POLL

    def _check(self, sas: Sas) -> None:
        """Raises SasError for a token that cannot take the place of the current one."""
        source = self.access.source
        check(sas, now=self.now(), scheme=source.scheme, prefix=source.prefix, read_only=True)

    def _complain(self, problem: str, *, about: str) -> None:
        """Warn once of what is wrong with what was found; in a file only when it is there twice,
        since the first look may have come while it was being written."""
        if about != self._rejected:
            self._rejected, self._rejection_told = about, False
            if not self.access.command:
                return
        if not self._rejection_told:
            self._rejection_told = True
            log.warning("%s: the token stays as it is: %s", self._url, problem)

    async def _try(self, sas: Sas) -> None:
        """Take `sas` up if the service accepts it."""
        if sas.query == self._candidate and trio.current_time() < self._candidate_again:
            return
        try:
            await self._ask_service(sas)
        except Denied as exc:
            refused_before, self._candidate = self._candidate, sas.query
            self._candidate_again = trio.current_time() + CANDIDATE_DELAY
            if sas.query != refused_before:
                log.warning(
                    "%s: a new token from %s is not taken up, the old one stays: is it for another "
                    "container? %s",
                    self._url,
                    self._from,
                    exc,
                )
        except ServiceError as exc:
            log.info("%s: a new token cannot be tried now: %s", self._url, exc)
        else:
            self._take_up(sas)

    async def _try_again(self) -> None:
        """Whether the current token is accepted again."""
        try:
            await self._ask_service(self.access.sas)
        except ServiceError:
            return
        log.info("%s: the service accepts the token again", self._url)
        self._wake()

    async def _ask_service(self, sas: Sas) -> None:
        """Raises the ServiceError that a listing with `sas` ends in; no such container is none."""
        prefix = self.access.source.prefix
        container = Container(self._client, self._url, lambda: sas.query)
        try:
            with trio.fail_after(PROBE_TIME):
                await container.list(prefix and prefix + "/", max_results=1)
        except NotFound:
            pass
        except trio.TooSlowError:
            raise ServiceError(f"no answer within {PROBE_TIME:g} s") from None

    def _take_up(self, sas: Sas) -> None:
        old = self.access.sas
        self.access = replace(self.access, sas=sas)
        self._taken_up = self.now()
        self._announced = self._passed()
        self._rejected = self._candidate = ""
        self._call_delay = CALL_DELAY
        fields = ", ".join(changes(old, sas)) or "the same fields"
        log.info("%s: new token from %s: %s", self._url, self._from, fields)
        self._tell_rights(old, sas)
        self._wake()

    def _tell_rights(self, old: Sas, new: Sas) -> None:
        if old.permissions is None or new.permissions is None:
            return
        used = [letter for letter in PERMISSIONS if letter in "rlwdt"]
        lost = [x for x in used if x in old.permissions and x not in new.permissions]
        if lost:
            log.warning(
                "%s: the new token lacks %s: what needs it fails with EACCES",
                self._url,
                ", ".join(lost),
            )
        before = self._at_mount.sas.permissions
        if before is not None and (gained := [x for x in used if x in new.permissions - before]):
            log.info("%s: %s will be used by the next mount", self._url, ", ".join(gained))

    def _wake(self) -> None:
        self._generation += 1
        self._refused_since = self._refused_last = -float("inf")
        self._renewed.set()
        self._renewed = trio.Event()

    # Announcing

    def _passed(self) -> int:
        """How many of `ANNOUNCED` are behind us."""
        if self.expiry is None:
            return 0
        left = self.expiry - self.now()
        return sum(left <= before for before in ANNOUNCED)

    def _announce(self) -> None:
        passed = self._passed()
        if passed > self._announced:
            # A command's tokens are short, and it has its own warning when it gives no other.
            routine = self.access.command and passed < len(ANNOUNCED)
            log.log(logging.INFO if routine else logging.WARNING, "%s", self.expiry_line())
        self._announced = passed
