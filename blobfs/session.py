"""The keys and containers of a command that works without a mount; a mount opens its own alike."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from blobfs.access import Access
from blobfs.blobs import Client, Container
from blobfs.envelope import load_key_set
from blobfs.keyring import Keyring
from blobfs.options import MountOptions


def open_keyring(options: MountOptions) -> Keyring:
    """The keys that the options name. Raises KeyFileError."""
    keys = None
    if options.key_file is not None:
        keys = load_key_set(options.key_file, options.key_id)
    return Keyring(keys)


def open_container(client: Client, access: Access) -> Container:
    return Container(client, access.source.container_url, lambda: access.sas.query)


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
                Place(open_container(client, access), access.source.prefix, access)
                for access in options.accesses
            )
            yield Session(options, keyring, places)
    finally:
        keyring.clear()
