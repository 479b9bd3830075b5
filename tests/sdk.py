"""The other side of the interoperability tests: the Azure SDK, encrypting on the client."""

import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from azure.storage.blob import ContainerClient
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from jwcrypto.jwk import JWK

from tests.azurite import Azurite
from tests.mounts import PLAINTEXT_MARKER

WRITES_PROTOCOL_1 = pytest.mark.filterwarnings(
    "ignore:This client has been configured to use encryption with version 1.0"
)


class Kek(Protocol):
    """What the SDK asks of a key-encryption key, and the same key as a JSON Web Key."""

    def wrap_key(self, key: bytes) -> bytes: ...
    def unwrap_key(self, key: bytes, algorithm: str) -> bytes: ...
    def get_kid(self) -> str: ...
    def get_key_wrap_algorithm(self) -> str: ...
    def jwk(self) -> dict[str, Any]: ...


class AesKek:
    """A256KW, as the SDK's sample of a local key has it."""

    def __init__(self, kid: str, key: bytes) -> None:
        self._kid = kid
        self._key = key

    def wrap_key(self, key: bytes) -> bytes:
        return aes_key_wrap(self._key, key)

    def unwrap_key(self, key: bytes, algorithm: str) -> bytes:
        assert algorithm == "A256KW"
        return aes_key_unwrap(self._key, key)

    def get_kid(self) -> str:
        return self._kid

    def get_key_wrap_algorithm(self) -> str:
        return "A256KW"

    def jwk(self) -> dict[str, Any]:
        encoded = urlsafe_b64encode(self._key).rstrip(b"=").decode()
        return {"kty": "oct", "kid": self._kid, "k": encoded}


_HASH: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "RSA-OAEP-256": hashes.SHA256,
    "RSA-OAEP": hashes.SHA1,
    "RSA": hashes.SHA1,  # the name in the SDK's sample
}


class RsaKek:
    """One RSA key; it wraps with the algorithm given and unwraps whatever it is told."""

    def __init__(self, kid: str, key: RSAPrivateKey, algorithm: str = "RSA-OAEP-256") -> None:
        self._kid = kid
        self._key = key
        self._algorithm = algorithm

    def wrap_key(self, key: bytes) -> bytes:
        return self._key.public_key().encrypt(key, _oaep(self._algorithm))

    def unwrap_key(self, key: bytes, algorithm: str) -> bytes:
        return self._key.decrypt(key, _oaep(algorithm))

    def get_kid(self) -> str:
        return self._kid

    def get_key_wrap_algorithm(self) -> str:
        return self._algorithm

    def jwk(self) -> dict[str, Any]:
        fields: dict[str, Any] = JWK.from_pyca(self._key).export(as_dict=True)
        return {**fields, "kid": self._kid}


def _oaep(algorithm: str) -> OAEP:
    return OAEP(MGF1(_HASH[algorithm]()), _HASH[algorithm](), None)


def write_key_file(path: Path, *keks: Kek) -> Path:
    """A key file for a mount; the first key wraps."""
    path.touch(0o600)
    path.write_text(json.dumps({"keys": [kek.jwk() for kek in keks]}))
    return path


def encrypting(azurite: Azurite, container: str, kek: Kek, version: str = "2.0") -> ContainerClient:
    """The SDK's client of the container; it writes protocol `version` and reads all of them."""
    return ContainerClient(
        azurite.endpoint,
        container,
        credential=azurite.key,
        require_encryption=True,
        encryption_version=version,
        key_encryption_key=kek,
    )


def download(client: ContainerClient, name: str) -> bytes:
    """The whole plaintext; never a range, which the SDK gets wrong for protocol 1.0."""
    content: bytes = client.download_blob(name).readall()
    return content


def content(size: int, seed: int = 0) -> bytes:
    """Bytes without any period, beginning with what must not be found in the service's data."""
    return (PLAINTEXT_MARKER + random.Random(f"{size} {seed}").randbytes(size))[:size]
