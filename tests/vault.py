"""Azure Key Vault in this process, behind the real client: it answers instead of the network."""

import base64
import io
import json
import re
import threading
import time
from typing import Any

import requests
import requests.adapters
import urllib3
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import RequestsTransport
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

HOST = "blobfs-test.vault.azure.net"
TOKEN = "vault-token-5d1f"
_PATH = re.compile(r"/keys/([^/]+)/([^/]*)(?:/(wrapkey|unwrapkey))?")


class Credential:
    """A login, of which only the token is known."""

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        assert scopes == ("https://vault.azure.net/.default",)
        return AccessToken(TOKEN, int(time.time()) + 3600)


class Vault(requests.adapters.BaseAdapter):
    """A vault with one key, in the versions `v1` and, the newest, `v2`."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = {version: generate_private_key(65537, 2048) for version in ("v1", "v2")}
        self.calls: list[str] = []
        self.fails: dict[str, tuple[int, str]] = {}  # "get", "wrapkey", "unwrapkey" -> answer
        self.is_there = True
        self.answers = threading.Event()
        self.answers.set()

    def url(self, version: str = "") -> str:
        return f"https://{HOST}/keys/mine" + (f"/{version}" if version else "")

    def transport(self) -> RequestsTransport:
        session = requests.Session()
        session.mount("https://", self)
        return RequestsTransport(session=session)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        self.answers.wait(20)
        if not self.is_there:
            raise requests.ConnectionError("no route")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            login = 'Bearer authorization="https://login.test/tenant", resource="https://vault.azure.net"'
            return _answer(request, 401, {}, {"WWW-Authenticate": login})
        match = _PATH.fullmatch(request.path_url.partition("?")[0])
        assert match is not None, request.path_url
        name, version, operation = match[1], match[2] or "v2", match[3] or "get"
        self.calls.append(f"{operation} {version}")
        if operation in self.fails:
            status, text = self.fails[operation]
            return _answer(request, status, {"error": {"code": "Test", "message": text}})
        if name != "mine" or version not in self.keys:
            error = {"error": {"code": "KeyNotFound", "message": "not found in this key vault"}}
            return _answer(request, 404, error)
        return self._serve(request, operation, version)

    def _serve(self, request: requests.PreparedRequest, operation: str, version: str) -> Any:
        key, kid = self.keys[version], self.url(version)
        if operation == "get":
            return _answer(request, 200, {"key": _public_jwk(key, kid), "attributes": {}})
        assert request.body is not None
        asked = json.loads(request.body)
        algorithm = {"RSA-OAEP-256": hashes.SHA256(), "RSA-OAEP": hashes.SHA1()}[asked["alg"]]
        padding = OAEP(MGF1(algorithm), algorithm, None)
        value = _decode(asked["value"])
        if operation == "wrapkey":
            result = key.public_key().encrypt(value, padding)
        else:
            try:
                result = key.decrypt(value, padding)
            except ValueError:
                error = {"error": {"code": "BadParameter", "message": "Decryption failed"}}
                return _answer(request, 400, error)
        return _answer(request, 200, {"kid": kid, "value": _encode(result)})

    def close(self) -> None:
        """Nothing is open."""


def _answer(
    request: requests.PreparedRequest,
    status: int,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.request = request
    response.url = request.url or ""
    response.headers.update({"Content-Type": "application/json", **(headers or {})})
    content = io.BytesIO(json.dumps(body).encode())
    response.raw = urllib3.HTTPResponse(content, response.headers, status, preload_content=False)
    return response


def _public_jwk(key: RSAPrivateKey, kid: str) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    operations = ["wrapKey", "unwrapKey"]
    n, e = (_encode(i.to_bytes((i.bit_length() + 7) // 8, "big")) for i in (numbers.n, numbers.e))
    return {"kty": "RSA", "kid": kid, "key_ops": operations, "n": n, "e": e}


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
