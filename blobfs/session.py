"""The keys and containers of a command that works without a mount; a mount opens its own alike."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import trio

from blobfs.access import Access
from blobfs.blobs import Client, Container, RetryPolicy
from blobfs.envelope import KeySet, load_key_set
from blobfs.errors import KeyFileError, SasTimeError, ServiceError
from blobfs.keyring import Keyring
from blobfs.options import MountOptions
from blobfs.providers import CommandProvider, Outside, VaultProvider, open_package_provider
from blobfs.renewal import Renewal, local_now
from blobfs.sas import clock_note

CLOCK_TIME = 5.0
"""Seconds to ask the service for the time, when a token looks expired."""


def open_keyring(options: MountOptions) -> Keyring:
    """The keys that the options name; `aclose` it. Nobody is asked for anything yet.

    The key that `key_id` names wraps. Without it the first of key_vault, key_provider and
    key_command does, and the key file if there is none of them. Raises KeyFileError and
    OptionError.
    """
    outside = _open_outside(options)
    keys = None
    if options.key_file is not None:
        keys = load_key_set(
            options.key_file,
            options.key_id,
            passphrase_file=options.key_passphrase_file,
            alone=not outside,
        )
    return Keyring(keys, *outside, wrapping=_choose_wrapping(options.key_id, keys, outside))


def _open_outside(options: MountOptions) -> list[Outside]:
    # Half of what an operation has, so that the error names the provider, and time is left.
    limit = options.timeout / 2
    outside = []
    if options.key_vault is not None:
        vault = VaultProvider(options.key_vault, limit=limit)
        outside.append(Outside(vault, limit=limit, trusted=True))
    if options.key_provider is not None:
        package = open_package_provider(options.key_provider, options.key_id)
        outside.append(Outside(package, limit=limit))
    if options.key_command is not None:
        command = CommandProvider(options.key_command, options.key_id)
        outside.append(Outside(command, limit=options.key_command_timeout or limit))
    return outside


def _choose_wrapping(
    key_id: str | None, keys: KeySet | None, outside: list[Outside]
) -> Outside | None:
    """The provider outside that wraps; None leaves it to the key file."""
    if not outside or (key_id is not None and keys is not None and key_id in keys.key_ids):
        return None
    for provider in outside:
        if provider.can_wrap and key_id in (None, provider.key_id):
            return provider
    if key_id is None:
        return None
    raise KeyFileError(f"no key has the kid {key_id!r}: give another key_id=, or its key")


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
    """Raises KeyFileError and OptionError. Nothing is asked of the service, nor of a key provider,
    yet: a command that is to write starts with `keyring.probe`."""
    async with (
        aclosing(open_keyring(options)) as keyring,
        Client(connections=options.connections) as client,
    ):
        places = tuple(
            Place(open_container(client, access, options.timeout), access.source.prefix, access)
            for access in options.accesses
        )
        yield Session(options, keyring, places)
