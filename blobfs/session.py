"""The keys and containers of a command that works without a mount; a mount opens its own alike."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import trio

from blobfs.access import Access
from blobfs.blobs import Client, Container, RetryPolicy
from blobfs.envelope import load_key_set
from blobfs.errors import SasTimeError, ServiceError
from blobfs.keyring import Keyring
from blobfs.options import MountOptions
from blobfs.renewal import Renewal, local_now
from blobfs.sas import clock_note

CLOCK_TIME = 5.0
"""Seconds to ask the service for the time, when a token looks expired."""


def open_keyring(options: MountOptions) -> Keyring:
    """The keys that the options name. Raises KeyFileError."""
    keys = None
    if options.key_file is not None:
        keys = load_key_set(options.key_file, options.key_id)
    return Keyring(keys)


def open_container(client: Client, access: Access, patience: float = 60.0) -> Container:
    """A container whose token is looked for anew when the service refuses it."""
    return Renewal(client, access, patience=patience).container


def parse_by_clock(
    parse: Callable[[datetime | None], MountOptions],
    now: Callable[[], datetime] = local_now,
) -> MountOptions:
    """What `parse` makes of the time: this machine's, or, when the token is not valid by that, the
    service's. Raises what `parse` raises.

    So a token is used that only looks expired because this machine's clock is wrong.
    """
    moment = now()
    try:
        return parse(moment)
    except SasTimeError:
        skew = trio.run(_skew_seen_by, parse(None).accesses[0], moment)
        note = clock_note(skew)
        if skew is None or not note:
            raise
    try:
        chosen = parse(moment + timedelta(seconds=skew))
    except SasTimeError as exc:
        raise SasTimeError(f"{exc}; {note}") from None
    return replace(chosen, notes=(*chosen.notes, f"{note}, by which the token is judged"))


async def _skew_seen_by(access: Access, moment: datetime) -> float | None:
    """How many seconds the service's clock is ahead of `moment`; None when it does not answer."""
    async with Client(retry=RetryPolicy(attempts=1)) as client:
        container = Container(client, access.source.container_url, lambda: access.sas.query)
        with trio.move_on_after(CLOCK_TIME), suppress(ServiceError):
            await container.list("", max_results=1)  # a refusal tells the time, too
        if client.clock_skew is None:
            return None
        return client.clock_skew + (local_now() - moment).total_seconds()


@dataclass(frozen=True, slots=True)
class Place:
    """A container, or a folder in it (`prefix`, without slashes at its ends), to work on."""

    container: Container
    prefix: str
    access: Access


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with; `places` has one entry, or one a container of a sas_dir."""

    options: MountOptions
    keyring: Keyring
    places: tuple[Place, ...]


@asynccontextmanager
async def open_session(options: MountOptions) -> AsyncIterator[Session]:
    """Raises KeyFileError. Nothing is asked of the service yet."""
    keyring = open_keyring(options)
    try:
        async with Client(connections=options.connections) as client:
            places = tuple(
                Place(open_container(client, access, options.timeout), access.source.prefix, access)
                for access in options.accesses
            )
            yield Session(options, keyring, places)
    finally:
        keyring.clear()
