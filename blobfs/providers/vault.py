"""Azure Key Vault as a key provider, through Microsoft's own client (the extra `keyvault`).

As in Azure's SDKs the key id is the key's identifier, version and all. Whatever key id a blob
names, only versions of the one key that the user named are asked for.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from blobfs.envelope import WrappedKey
from blobfs.errors import (
    BlobfsError,
    KeyRefused,
    KeyUnavailable,
    KeyUnknown,
    OptionError,
    WrongKey,
)
from blobfs.sas import redact

MAX_THREADS = 8
"""Calls at once, each in a thread of its own; those given up end by the client's own timeouts."""

ALGORITHM = "RSA-OAEP-256"
_UNWRAPS = (ALGORITHM, "RSA-OAEP")
_CLIENTS = 64  # versions of the key whose clients are kept
_SHOWN = 300

_IDENTIFIER = re.compile(
    r"https://([0-9A-Za-z.-]{1,255})(?::443)?/keys/([0-9A-Za-z-]{1,127})(?:/([0-9A-Za-z]{1,64}))?/?"
)

T = TypeVar("T")


class VaultProvider:
    """A `KeyProvider`, to be used behind `Outside`."""

    name = "key_vault"
    can_wrap = True
    algorithm = ALGORITHM

    def __init__(
        self, identifier: str, *, limit: float, credential: Any = None, transport: Any = None
    ) -> None:
        """`identifier` is https://VAULT.vault.azure.net/keys/NAME/VERSION; without a version the
        newest one, found at the first use, wraps. `limit` is seconds for one request.

        `credential` is azure-identity's default (environment, managed identity, `az login`), and
        `transport` the client's own, if not given. Raises OptionError.
        """
        parts = _split(identifier)
        if parts is None:
            raise OptionError(
                "key_vault is wrong: write https://VAULT.vault.azure.net/keys/NAME/VERSION"
            )
        self._key, version = parts
        self.key_id: str | None = f"{self._key}/{version}" if version else None
        try:
            from azure.keyvault.keys.crypto import CryptographyClient

            if credential is None:
                from azure.identity import DefaultAzureCredential

                credential = DefaultAzureCredential()
        except ImportError:
            raise OptionError(
                "key_vault needs a package that is not installed: pip install 'blobfs[keyvault]'"
            ) from None
        settings = {"connection_timeout": limit, "read_timeout": limit, "retry_total": 2}
        if transport is not None:
            settings["transport"] = transport
        self._new_client: Callable[[str], Any] = lambda key_id: CryptographyClient(
            key_id, credential, **settings
        )
        self._credential = credential
        self._clients: dict[str, Any] = {}
        self._threads = trio.CapacityLimiter(MAX_THREADS)

    def serves(self, key_id: str) -> bool:
        """Every version of the key."""
        parts = _split(key_id)
        return parts is not None and parts[0] == self._key and bool(parts[1])

    async def wrap(self, payload: bytes) -> WrappedKey:
        target = self.key_id or self._key
        result = await self._call(target, "wrap_key", ALGORITHM, payload)
        if not self.serves(result.key_id or ""):
            raise KeyRefused(
                "key_vault names no version, and may not read which is the newest: append it, or "
                "permit keys/get"
            )
        self.key_id = result.key_id
        return WrappedKey(result.key_id, ALGORITHM, result.encrypted_key)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        if wrapped.algorithm not in _UNWRAPS:
            raise WrongKey(f"key_vault does not unwrap {wrapped.algorithm[:20]!r}")
        result = await self._call(
            wrapped.key_id, "unwrap_key", wrapped.algorithm, wrapped.encrypted_key
        )
        payload: bytes = result.key
        return payload

    async def aclose(self) -> None:
        clients, self._clients = [*self._clients.values()], {}
        closing = [item.close for item in (*clients, self._credential) if hasattr(item, "close")]
        await trio.to_thread.run_sync(
            lambda: [close() for close in closing], abandon_on_cancel=True
        )

    def _client(self, key_id: str) -> Any:
        if key_id not in self._clients:
            if len(self._clients) >= _CLIENTS:
                self._clients.pop(next(iter(self._clients)))
            self._clients[key_id] = self._new_client(key_id)
        return self._clients[key_id]

    async def _call(self, key_id: str, method: str, algorithm: str, key: bytes) -> Any:
        from azure.keyvault.keys.crypto import KeyWrapAlgorithm

        client = self._client(key_id)
        return await trio.to_thread.run_sync(
            _translated,
            key_id,
            lambda: getattr(client, method)(KeyWrapAlgorithm(algorithm), key),
            abandon_on_cancel=True,
            limiter=self._threads,
        )


def _split(identifier: str) -> tuple[str, str] | None:
    """The key's identifier without its version, in one spelling, and the version or ""."""
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        return None
    return f"https://{match[1].lower()}/keys/{match[2]}", match[3] or ""


def _translated(key_id: str, call: Callable[[], T]) -> T:
    """What the call gives. The client's exceptions hold requests, and those hold keys, so none of
    them is kept, not even as a context."""
    from azure.core.exceptions import (
        AzureError,
        ClientAuthenticationError,
        HttpResponseError,
        ResourceNotFoundError,
    )

    problem: BlobfsError
    try:
        return call()
    except ResourceNotFoundError as exc:
        problem = KeyUnknown(f"key_vault has no key {key_id!r}: {_shown(exc)}")
    except ClientAuthenticationError as exc:
        problem = KeyRefused(f"key_vault: no login that the vault accepts: {_shown(exc)}")
    except HttpResponseError as exc:
        if exc.status_code == 403:
            problem = KeyRefused(f"key_vault refuses the use of {key_id!r}: {_shown(exc)}")
        elif exc.status_code == 400:
            problem = WrongKey(f"key {key_id!r} does not unwrap this key: {_shown(exc)}")
        else:
            problem = KeyUnavailable(f"key_vault cannot be used now: {_shown(exc)}")
    except AzureError as exc:
        problem = KeyUnavailable(f"key_vault cannot be reached: {_shown(exc)}")
    except ValueError as exc:  # a key that has expired, or a login for another domain
        problem = KeyRefused(f"key_vault refuses the use of {key_id!r}: {_shown(exc)}")
    raise problem


def _shown(exc: Exception) -> str:
    """The beginning of what the client says, in one line."""
    return redact(" ".join(str(exc).split()))[:_SHOWN]
