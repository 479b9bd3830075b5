"""What every provider outside of this process is held to, whoever wrote it."""

import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from blobfs.envelope import WrappedKey
from blobfs.errors import BlobfsError, KeyRefused, KeyUnavailable, KeyUnknown, WrongKey
from blobfs.providers.contract import KeyProvider

PAYLOAD_LENGTHS = (32, 40)
"""Bytes of a payload: protocol 1.0, and all others."""

_MAX_WRAPPED = 3 * 1024  # in Base64, and with a key id, it has to fit into 8 KiB of metadata
_MAX_NAME = 1024
_ERRORS = (KeyUnknown, WrongKey, KeyRefused, KeyUnavailable)

Q = TypeVar("Q")
T = TypeVar("T")


class Outside:
    """A `KeyProvider` over another: each call ends within `limit` seconds, and no answer is
    believed that would lose or give away a file.

    What cannot be unwrapped is lost, so what is wrapped is unwrapped again before it counts:
    every time, or, with `trusted`, the first time under each key id.
    """

    def __init__(self, provider: KeyProvider, *, limit: float, trusted: bool = False) -> None:
        self._provider = provider
        self._limit = limit
        self._trusted = trusted
        self._proved: set[str] = set()

    def __repr__(self) -> str:
        return f"Outside({self.name!r})"

    @property
    def name(self) -> str:
        return self._provider.name

    @property
    def key_id(self) -> str | None:
        return self._provider.key_id

    @property
    def algorithm(self) -> str | None:
        return self._provider.algorithm

    @property
    def can_wrap(self) -> bool:
        return self._provider.can_wrap

    def serves(self, key_id: str) -> bool:
        return self._provider.serves(key_id)

    async def wrap(self, payload: bytes) -> WrappedKey:
        """Raises as the contract says, WrongKey when what it wrapped does not unwrap again."""
        expected = self._provider.key_id
        wrapped = await self._ask(self._provider.wrap, payload)
        self._check(wrapped, payload, expected)
        if not self._trusted or wrapped.key_id not in self._proved:
            again = await self.unwrap(wrapped)
            if not hmac.compare_digest(again, payload):
                raise WrongKey(
                    f"{self.name} does not unwrap what it wrapped with key {wrapped.key_id!r}: "
                    "it is not used, since files would be lost"
                )
            self._proved.add(wrapped.key_id)
        return wrapped

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        payload = await self._ask(self._provider.unwrap, wrapped)
        if not isinstance(payload, bytes) or len(payload) not in PAYLOAD_LENGTHS:
            raise KeyUnavailable(f"{self.name} answered with something that is no content key")
        return payload

    async def aclose(self) -> None:
        """Cancel-safe: the provider gets its few seconds in any case. Raises nothing."""
        with trio.move_on_after(min(self._limit, 5.0), shield=True):
            try:
                await self._provider.aclose()
            except Exception:  # what is being left has nobody to tell it to
                return

    async def _ask(self, call: Callable[[Q], Awaitable[T]], question: Q) -> T:
        """What `call` gives within the limit.

        The provider's own exceptions may hold keys: none is kept, not even as a context.
        """
        problem: BlobfsError
        try:
            with trio.fail_after(self._limit):
                return await call(question)
        except BlobfsError as exc:
            kind = next((kind for kind in _ERRORS if isinstance(exc, kind)), KeyUnavailable)
            problem = kind(str(exc))
        except trio.TooSlowError:
            problem = KeyUnavailable(f"{self.name} gave no answer within {self._limit:g} s")
        except Exception as exc:
            problem = KeyUnavailable(f"{self.name} failed with {type(exc).__name__}")
        raise problem

    def _check(self, wrapped: object, payload: bytes, expected: str | None) -> None:
        if not (
            isinstance(wrapped, WrappedKey)
            and 0 < len(wrapped.key_id) <= _MAX_NAME
            and 0 < len(wrapped.algorithm) <= _MAX_NAME
            and 0 < len(wrapped.encrypted_key) <= _MAX_WRAPPED
        ):
            raise KeyUnavailable(f"{self.name} answered with something that is no wrapped key")
        if expected not in (None, wrapped.key_id):
            raise WrongKey(f"{self.name} was to use key {expected!r}, not {wrapped.key_id!r}")
        if payload in wrapped.encrypted_key:
            raise WrongKey(f"{self.name} answered with the key as it was, not encrypted")
