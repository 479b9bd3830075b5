"""The user's keys as the file system uses them: found by id, and asked once for each file."""

import logging
import secrets
from collections import Counter
from dataclasses import dataclass, field

import trio
from cachetools import LRUCache

from blobfs.envelope import (
    STANDBY_KEY_LENGTH,
    EncryptionData,
    KeySet,
    WrappedKey,
    split_standby,
    unpack_cek,
    unwrap_standby,
    wrap_standby,
)
from blobfs.errors import KeyUnknown, WrongKey
from blobfs.providers import KeyProvider, LocalKeys

log = logging.getLogger(__name__)

PAYLOAD_CACHE = 4096
"""Unwrapped payloads kept, of 32 or 40 bytes each."""


@dataclass(slots=True)
class _Flight:
    """A call of a provider under way, for which others wait."""

    done: trio.Event = field(default_factory=trio.Event)
    payload: bytes | None = field(default=None, repr=False)
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
        self._standby: tuple[bytes, WrappedKey] | None = None

    @property
    def can_write(self) -> bool:
        return self._wrapping is not None

    @property
    def wrapping(self) -> KeyProvider | None:
        """The provider whose key wraps what is written."""
        return self._wrapping

    @property
    def content_keys(self) -> Counter[str]:
        """How many content keys are kept in memory, by the id of the key that wraps them."""
        return Counter(wrapped.key_id for wrapped in self._payloads)

    async def probe(self) -> None:
        """Have a key wrapped, to know that it works before anything depends on it, and for
        `wrap_to_keep`."""
        standby = secrets.token_bytes(STANDBY_KEY_LENGTH)
        wrapped = await self.wrap(standby)
        self._standby = standby, wrapped
        log.info("files are encrypted under key %r (%s)", wrapped.key_id, wrapped.algorithm)

    async def wrap(self, payload: bytes) -> WrappedKey:
        """`payload` under the key for what is written now."""
        if self._wrapping is None:
            raise KeyUnknown("there is no key to encrypt with: give key_file=, or another")
        wrapping = self._wrapping
        wrapped = await wrapping.wrap(payload)
        if self._provider(wrapped.key_id) is not wrapping:
            raise WrongKey(
                f"{wrapping.name} wraps under the id {wrapped.key_id!r}, which is that of another "
                "key of the mount: nothing is stored that could not be found again"
            )
        self._remember(wrapped, payload)
        return wrapped

    async def wrap_to_keep(self, payload: bytes) -> WrappedKey:
        """`payload` for a file on this machine, without asking anybody outside of this process:
        what could not be stored must not be lost because the key provider is away, too.

        What is put at the service is wrapped again, by `wrap`, for other tools to read.
        """
        if self._standby is None or isinstance(self._wrapping, LocalKeys):
            return await self.wrap(payload)
        return wrap_standby(*self._standby, payload)

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

    async def unwrap_anew(self, wrapped: WrappedKey) -> bytes:
        """The same from the provider itself: to prove a wrap that nothing else would remember."""
        return await self._ask(wrapped)

    def has(self, wrapped: WrappedKey) -> bool:
        """Whether `unwrap` asks nobody outside of this process."""
        return wrapped in self._payloads or isinstance(self._find(wrapped.key_id), LocalKeys)

    async def content_key(self, data: EncryptionData) -> bytes:
        """The CEK of a blob's body. Raises Corrupt, too."""
        return unpack_cek(data.protocol, await self.unwrap(data.wrapped))

    def clear(self) -> None:
        """Let go of every key."""
        self._payloads.clear()
        self._providers, self._wrapping, self._standby = [], None, None

    async def aclose(self) -> None:
        """Let go of every key and close the providers. Raises nothing."""
        providers = self._providers
        self.clear()
        for provider in providers:
            await provider.aclose()

    async def _fly(self, wrapped: WrappedKey) -> bytes:
        flight = self._flights[wrapped] = _Flight()
        try:
            payload = flight.payload = await self._ask(wrapped)
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            del self._flights[wrapped]
            flight.done.set()
        self._remember(wrapped, payload)
        return payload

    async def _ask(self, wrapped: WrappedKey) -> bytes:
        parts = split_standby(wrapped)
        if parts is None:
            return await self._provider(wrapped.key_id).unwrap(wrapped)
        under, inner = parts
        return unwrap_standby(await self.unwrap(under), inner)

    def _remember(self, wrapped: WrappedKey, payload: bytes) -> None:
        if self._providers:
            self._payloads[wrapped] = payload

    def _provider(self, key_id: str) -> KeyProvider:
        provider = self._find(key_id)
        if provider is None:
            raise KeyUnknown(f"none of the mount's keys is {key_id!r}")
        return provider

    def _find(self, key_id: str) -> KeyProvider | None:
        if self._wrapping is not None and self._wrapping.key_id == key_id:
            return self._wrapping
        return next((each for each in self._providers if each.serves(key_id)), None)
