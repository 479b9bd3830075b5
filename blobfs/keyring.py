"""The user's keys as the file system uses them: found by id, and asked once for each file."""

import logging
import secrets
from dataclasses import dataclass, field

import trio
from cachetools import LRUCache

from blobfs.envelope import EncryptionData, KeySet, WrappedKey, unpack_cek
from blobfs.errors import KeyUnknown
from blobfs.providers import KeyProvider, LocalKeys

log = logging.getLogger(__name__)

PAYLOAD_CACHE = 4096
"""Unwrapped payloads kept, of 32 or 40 bytes each."""

_PROBE_LENGTH = 32


@dataclass(slots=True)
class _Flight:
    """A call of a provider under way, for which others wait."""

    done: trio.Event = field(default_factory=trio.Event)
    payload: bytes | None = None
    error: Exception | None = None


class Keyring:
    """Wraps and unwraps content keys, by whichever provider has the key.

    A payload is cached by its wrapped form, which is unique to one version of one blob's content
    and, unlike the ETag, survives changes of metadata. A failure is not cached.

    All methods but `aclose` raise what the contract of `providers` names: KeyUnknown (also when
    there is no provider: such a mount reads plaintext blobs only), WrongKey, KeyRefused and
    KeyUnavailable. All are cancel-safe.
    """

    def __init__(
        self,
        keys: KeySet | None,
        *others: KeyProvider,
        wrapping: KeyProvider | None = None,
    ) -> None:
        """`wrapping` is the provider that wraps, by default the first that can.

        A key is looked for at that one if it is the one that it wraps with, else in `keys`, then
        at the others in their order.
        """
        first = [] if keys is None else [LocalKeys(keys)]
        self._providers: list[KeyProvider] = [*first, *others]
        able = (provider for provider in self._providers if provider.can_wrap)
        self._wrapping = wrapping or next(able, None)
        self._payloads: LRUCache[WrappedKey, bytes] = LRUCache(PAYLOAD_CACHE)
        self._flights: dict[WrappedKey, _Flight] = {}

    @property
    def can_write(self) -> bool:
        return self._wrapping is not None

    async def probe(self) -> None:
        """Have something wrapped, to know that it works before anything depends on it."""
        wrapped = await self.wrap(secrets.token_bytes(_PROBE_LENGTH))
        log.info("files are encrypted under key %r (%s)", wrapped.key_id, wrapped.algorithm)

    async def wrap(self, payload: bytes) -> WrappedKey:
        """`payload` under the key for what is written now."""
        if self._wrapping is None:
            raise KeyUnknown("there is no key to encrypt with: give key_file=, or another")
        wrapped = await self._wrapping.wrap(payload)
        self._remember(wrapped, payload)
        return wrapped

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The payload inside `wrapped`; one call of the provider, however many ask at once."""
        while True:
            payload = self._payloads.get(wrapped)
            if payload is not None:
                return payload
            flight = self._flights.get(wrapped)
            if flight is None:
                return await self._fly(wrapped)
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.payload is not None:
                return flight.payload
            # Whoever made the call was cancelled: somebody else has to make it.

    async def content_key(self, data: EncryptionData) -> bytes:
        """The CEK of a blob's body. Raises Corrupt, too."""
        return unpack_cek(data.protocol, await self.unwrap(data.wrapped))

    def clear(self) -> None:
        """Let go of every key."""
        self._payloads.clear()
        self._providers, self._wrapping = [], None

    async def aclose(self) -> None:
        """Let go of every key and close the providers. Raises nothing."""
        providers = self._providers
        self.clear()
        for provider in providers:
            await provider.aclose()

    async def _fly(self, wrapped: WrappedKey) -> bytes:
        provider = self._provider(wrapped.key_id)
        flight = self._flights[wrapped] = _Flight()
        try:
            payload = flight.payload = await provider.unwrap(wrapped)
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            del self._flights[wrapped]
            flight.done.set()
        self._remember(wrapped, payload)
        return payload

    def _remember(self, wrapped: WrappedKey, payload: bytes) -> None:
        if self._providers:
            self._payloads[wrapped] = payload

    def _provider(self, key_id: str) -> KeyProvider:
        if self._wrapping is not None and self._wrapping.key_id == key_id:
            return self._wrapping
        for provider in self._providers:
            if provider.serves(key_id):
                return provider
        raise KeyUnknown(f"none of the mount's keys is {key_id!r}")
